#![no_main]

#[path = "../src/csv.rs"]
mod csv_reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| csv_reader::run(bytes));
