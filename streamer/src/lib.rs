//! nexus-streamer: reads telemetry from sources and hands it on in batches.
//!
//! [`source`] turns files into samples; [`generate`] writes files to try it with.

pub mod generate;
pub mod source;
