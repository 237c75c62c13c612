#![no_main]

#[path = "../src/block.rs"]
mod block;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| block::run(bytes));
