//! The only place that talks to etcd: connections, session, claim, commit, watch.
//!
//! Safety rests on transaction compares alone. Reads may be stale, watches may lag, keep-alive
//! answers may lie and clocks may jump: each of them only decides what to try next, and a
//! [`Commit`]'s guards decide whether it happens.

mod claim;
mod client;
mod commit;
mod connect;
mod error;
mod members;
mod relief;
mod seen;
mod session;
mod swap;
mod watch;

pub use claim::Claim;
pub use client::{Entry, Etcd, Listing, RangeRead};
pub use commit::{Commit, Outcome, Position};
pub use connect::{EtcdConfig, Security};
pub use error::{Error, Fate};
pub use session::Session;
pub use watch::{Change, Event, follow};
