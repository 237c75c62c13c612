//! Against a real etcd: one for each test. What is claimed here rests on etcd's own answers.

// Tests may panic.
#![allow(clippy::unwrap_used)]

mod audit;
mod claim;
mod commit;
mod fuzz;
mod given;
mod inventory;
mod pool;
mod queue;
mod regress;
mod secure;
mod session;
mod store;
mod tidy;
mod watch;
mod worker;
