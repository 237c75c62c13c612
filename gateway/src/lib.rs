//! The gateway: from the store to APIs.
//!
//! [`view`] holds what etcd says, at a revision; [`rest`] and [`graphql`] answer from
//! it, [`websocket`] streams from it; [`mod@write`] enqueues what is sent to it; [`web`] is what all
//! answers have in common (problems, headers, metrics, the OpenAPI document and its pages);
//! [`auth`] says who may ask, [`tls`] over what; [`server`] puts them together and runs.

pub mod auth;
mod descriptors;
mod files;
pub mod graphql;
pub mod rest;
pub mod server;
pub mod tls;
pub mod view;
pub mod web;
pub mod websocket;
pub mod write;
