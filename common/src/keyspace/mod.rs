//! The keyspace: what stands where in etcd. Reading [`Key`] is reading the data model.
//!
//! Keys are readable text below one root; ids are validated, never escaped. Control values are
//! JSON; only messages and blocks are binary ([`crate::block`]).

pub mod csv;
pub mod discover;
mod key;
pub mod live;
mod value;

pub use csv::{Follow, Followed, Mapping};
pub use key::{BlockName, ClaimItem, Key, KeyError, KeyRange, Keyspace, KeyspaceError};
pub use value::{
    Claimant, ClusterRecord, CommitSummary, Config, Cursor, DeadLetter, FileRange, Floor,
    GpuRecord, HostRecord, Instance, InstanceState, LaneMove, LastError, Progress, Receipt, Replay,
    Retired, Source, SourceKind, ValueError, from_json, to_json,
};
