//! Nexus: an elastic GPU telemetry pipeline whose only coordinator, queue and hot store is etcd.
//!
//! Read downwards, each module may use the ones above it: [`limits`], [`model`], [`block`].

pub mod block;
pub mod limits;
pub mod model;
