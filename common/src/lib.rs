//! Nexus: an elastic GPU telemetry pipeline whose only coordinator, queue and hot store is etcd.
//!
//! The data flows [`queue`] to [`store`]; both rest on [`etcd`]'s guarded commit, [`keyspace`]
//! says what stands where, [`mod@block`] how samples travel and rest, [`model`] what they are, and
//! [`runtime`] is what a process is made of. `common/examples/elastic_worker.rs` shows how to
//! write a worker of one's own.

/// Whether a test took a guard out, to see that the suite notices. Outside of tests none is.
#[cfg(feature = "testing")]
macro_rules! left_out {
    ($guard:ident) => {
        crate::testing::mutation::is(crate::testing::mutation::Mutation::$guard)
    };
}
#[cfg(not(feature = "testing"))]
macro_rules! left_out {
    ($guard:ident) => {
        false
    };
}

pub mod assign;
pub mod audit;
pub mod block;
pub mod crash;
pub mod etcd;
pub mod keyspace;
pub mod limits;
pub mod model;
pub mod queue;
pub mod runtime;
pub mod sources;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
