//! nexus-gateway
fn main() {}
