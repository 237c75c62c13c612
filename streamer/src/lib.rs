//! Source to queue: claims shards, reads telemetry, enqueues messages; and generates DCGM CSV.

pub mod args;
mod prepare;
mod register;
mod run;
mod shard;
pub mod source;
mod sources;

pub use run::run;
