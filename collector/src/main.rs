//! nexus-collector
fn main() {}
