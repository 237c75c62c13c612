#![no_main]

#[path = "../src/feed.rs"]
mod feed;
#[path = "../src/samples.rs"]
mod samples;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| samples::run(bytes));
