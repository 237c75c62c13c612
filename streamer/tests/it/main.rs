//! The real streamer against a real etcd: bad input, changed files, replay.

#![allow(clippy::unwrap_used)] // tests may

mod exporter;
mod fuzz;
mod input;
mod live;
mod nvml;
mod process;
mod refusal;
mod replay;
mod scrape;
mod wanted;
