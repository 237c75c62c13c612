//! The real streamer against a real etcd: bad input, changed files, replay.

#![allow(clippy::unwrap_used)] // tests may

mod discover;
mod exporter;
mod exposition;
mod faulty;
mod fetched;
mod follow;
mod fuzz;
mod gpu_z;
mod input;
mod live;
mod named;
mod nvml;
mod process;
mod refusal;
mod replay;
mod scrape;
mod scrape_faults;
mod wanted;
