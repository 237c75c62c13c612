//! Source to queue: claims shards, reads telemetry, enqueues messages.
//!
//! [`source`] turns files into samples, [`run`] streams them; [`generate`] writes files to try
//! it with.

pub mod args;
pub mod ask;
mod askers;
mod cut;
mod follow;
pub mod generate;
mod live;
mod local;
mod mapping;
pub mod nvml;
mod prepare;
mod register;
mod rounds;
mod run;
mod shard;
pub mod simulate;
pub mod source;
mod sources;

pub use run::run;
