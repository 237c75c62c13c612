//! nexus-streamer: reads telemetry from sources and hands it on in batches.
//!

pub mod source;
