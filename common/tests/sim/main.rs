//! Schedules: what streamers, collectors and the janitor do to an etcd in memory, over a wire on
//! which everything goes wrong that can, in an order that a seed decides.

// Tests may panic.
#![allow(clippy::unwrap_used)]

mod differential;
mod judge;
mod mutants;
mod real;
mod schedule;
mod schedules;
mod workers;
