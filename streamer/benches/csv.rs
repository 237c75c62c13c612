//! How fast rows are read, cut and written. Divan's items are rows, its bytes those of the file.

#![allow(clippy::unwrap_used)] // a benchmark that fails may say so by panicking

use std::{hint::black_box, sync::LazyLock};

use clap::Parser;
use divan::{Bencher, counter::BytesCount, counter::ItemsCount};
use nexus_streamer::{
    generate::{GenerateArgs, generate},
    source::{
        CsvFile,
        csv::{BatchLimits, SeriesCache, ShardReader},
    },
};
use tempfile::TempDir;

/// Rows of the long file; the wide one has as many.
const ROWS: u64 = 200_000;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: GenerateArgs,
}

fn args(flags: &str) -> GenerateArgs {
    Cli::parse_from(["generate"].into_iter().chain(flags.split_whitespace())).args
}

struct Inputs {
    _dir: TempDir,
    long: CsvFile,
    wide: CsvFile,
}

static INPUTS: LazyLock<Inputs> = LazyLock::new(|| {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, flags: &str| {
        let mut args = args(flags);
        args.output = dir.path().join(name);
        assert_eq!(generate(&args).unwrap().rows, ROWS);
        CsvFile::open(&args.output).unwrap()
    };
    Inputs {
        // 2,000 series, about as many as the export users have.
        long: file("long.csv", "--hosts 25 --gpus-per-host 8 --seconds 100"),
        wide: file("wide.csv", "--hosts 25 --gpus-per-host 8 --seconds 1000 --layout wide"),
        _dir: dir,
    }
});

fn main() {
    divan::main();
}

fn read(bencher: Bencher<'_, '_>, file: &CsvFile) {
    let range = file.header_end..file.identity.bytes;
    bencher
        .counter(ItemsCount::new(ROWS))
        .counter(BytesCount::new(file.identity.bytes))
        .bench_local(|| {
            let from = range.start;
            let mut reader =
                ShardReader::open(&file.path, file.layout.clone(), range.clone(), from)
                    .unwrap()
                    .with_cache(SeriesCache::default());
            let mut rows = 0;
            loop {
                let batch = black_box(reader.read_batch(&BatchLimits::default()).unwrap());
                rows += batch.rows_accepted;
                if batch.done {
                    break;
                }
            }
            assert_eq!(rows, ROWS);
        });
}

#[divan::bench]
fn long(bencher: Bencher<'_, '_>) {
    read(bencher, &INPUTS.long);
}

#[divan::bench]
fn wide(bencher: Bencher<'_, '_>) {
    read(bencher, &INPUTS.wide);
}

/// The csv crate alone, for comparison: what a reader on top of it can reach at most.
#[divan::bench]
fn long_records_only(bencher: Bencher<'_, '_>) {
    let file = &INPUTS.long;
    bencher
        .counter(ItemsCount::new(ROWS))
        .counter(BytesCount::new(file.identity.bytes))
        .bench_local(|| {
            let mut reader = csv::ReaderBuilder::new()
                .buffer_capacity(256 * 1024)
                .from_path(&file.path)
                .unwrap();
            let mut record = csv::ByteRecord::new();
            let mut rows = 0;
            while reader.read_byte_record(&mut record).unwrap() {
                rows += 1;
            }
            assert_eq!(rows, ROWS);
        });
}

#[divan::bench]
fn cut_into_shards(bencher: Bencher<'_, '_>) {
    let file = &INPUTS.long;
    bencher
        .counter(BytesCount::new(file.identity.bytes))
        .bench_local(|| black_box(file.shards(None).unwrap()));
}

#[divan::bench(args = ["long", "wide"])]
fn write(bencher: Bencher<'_, '_>, layout: &str) {
    let seconds = if layout == "long" { 100 } else { 1000 };
    let mut args =
        args(&format!("--hosts 25 --gpus-per-host 8 --seconds {seconds} --layout {layout}"));
    args.output = INPUTS.long.path.with_file_name("written.csv");
    bencher.counter(ItemsCount::new(ROWS)).bench_local(|| generate(&args).unwrap());
}
