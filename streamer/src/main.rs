//! nexus-streamer
fn main() {}
