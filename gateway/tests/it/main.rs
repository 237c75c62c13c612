//! The gateway against a real etcd whose keyspace is filled through the real queue and store.

// Tests may panic, and so may what they are built of.
#![allow(clippy::unwrap_used)]

mod access;
mod consistency;
mod document;
mod errors;
mod graphql;
mod graphql_http;
mod graphql_socket;
mod hostile;
mod live;
mod outage;
mod pipeline;
mod remote_write;
mod routes;
mod rows;
mod selection;
mod sent;
mod serve;
mod sources;
mod upload;
mod websocket;
