//! nexus-streamer: reads telemetry and enqueues it.
fn main() {}
