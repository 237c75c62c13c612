//! The real binaries against a real etcd: whatever dies, stops or hangs, every row of the source
//! is stored once.

#![allow(clippy::unwrap_used)] // tests may

mod auditing;
mod churn;
mod crash;
mod dead_letters;
mod drain;
mod merging;
mod outage;
mod pause;
mod restored;
mod scaling;
mod space;
