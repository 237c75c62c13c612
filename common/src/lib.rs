//! Nexus: an elastic GPU telemetry pipeline whose only coordinator, queue and hot store is etcd.
//!
//! Read downwards, each module may use the ones above it: [`limits`], [`model`].

pub mod assign;
pub mod audit;
pub mod etcd;
pub mod keyspace;
pub mod limits;
pub mod model;
pub mod queue;
pub mod runtime;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
