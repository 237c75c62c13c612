//! What the fuzzer began with and what it found: nothing of it may fail again.

use std::{fs, path::Path};

#[path = "../../fuzz/src/block.rs"]
mod block;
#[path = "../../fuzz/src/feed.rs"]
mod feed;
#[path = "../../fuzz/src/key.rs"]
mod key;
#[path = "../../fuzz/src/samples.rs"]
mod samples;

/// Runs every input of a target, and says which one it was that panicked.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let outcome = std::panic::catch_unwind(|| run(&bytes));
        assert!(outcome.is_ok(), "input {} fails; what it says stands above", path.display());
        inputs += 1;
    }
    assert!(inputs >= 10, "only {inputs} inputs in {}", corpus.display());
}

#[test]
fn inputs_of_the_block_decoder_pass() {
    replay("block", block::run);
}

#[test]
fn inputs_of_the_block_encoder_pass() {
    replay("samples", samples::run);
}

#[test]
fn inputs_of_the_key_codec_pass() {
    replay("key", key::run);
}
