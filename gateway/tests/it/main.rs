//! The gateway against a real etcd whose keyspace is filled through the real queue and store.

mod consistency;
mod document;
mod errors;
mod outage;
mod pipeline;
mod routes;
mod rows;
mod serve;
