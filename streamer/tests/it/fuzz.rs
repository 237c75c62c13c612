//! What the fuzzer of the CSV reader began with and what it found: nothing of it may fail again.

use std::{fs, path::Path};

#[path = "../../../common/fuzz/src/csv.rs"]
mod csv_reader;

#[test]
fn inputs_of_the_csv_reader_pass() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/fuzz/corpus/csv");
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| csv_reader::run(&bytes));
        assert!(outcome.is_ok(), "input {} fails; what it says stands above", path.display());
        inputs += 1;
    }
    assert!(inputs >= 8, "only {inputs} inputs in {}", corpus.display());
}
