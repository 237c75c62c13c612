//! How fast rows are read, cut and written. Divan's items are rows, its bytes those of the file.

#![allow(clippy::unwrap_used)] // a benchmark that fails may say so by panicking

use std::{
    fs::File,
    hint::black_box,
    io::{BufWriter, Write},
    path::Path,
    sync::LazyLock,
};

use clap::Parser;
use divan::{Bencher, counter::BytesCount, counter::ItemsCount};
use nexus_common::keyspace::Mapping;
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
    gpu_z: CsvFile,
}

/// A log of GPU-Z with ten sensors, a row a second.
fn gpu_z(path: &Path) -> CsvFile {
    let sensors = [
        "GPU Clock [MHz]",
        "Memory Clock [MHz]",
        "GPU Temperature [°C]",
        "Hot Spot [°C]",
        "Fan Speed (RPM) [RPM]",
        "Memory Used [MB]",
        "GPU Load [%]",
        "Memory Controller Load [%]",
        "Board Power Draw [W]",
        "CPU Temperature [°C]",
    ];
    let mut log = BufWriter::new(File::create(path).unwrap());
    writeln!(log, "        Date        , {} ,\r", sensors.join(" , ")).unwrap();
    for n in 0..ROWS {
        let (day, hour, minute, second) = (1 + n / 86_400, n / 3600 % 24, n / 60 % 60, n % 60);
        write!(log, "2024-01-{day:02} {hour:02}:{minute:02}:{second:02} ,").unwrap();
        for sensor in 0..sensors.len() as u64 {
            let tenths = (n * (sensor + 3)) % 4000;
            write!(log, " {:>14}.{} ,", tenths / 10, tenths % 10).unwrap();
        }
        writeln!(log, "\r").unwrap();
    }
    log.into_inner().unwrap();
    let is = |text: &str| Some(text.to_owned());
    let mapping = Mapping { host_is: is("pc-7"), gpu_is: is("0"), ..Mapping::default() };
    CsvFile::open_as(path, Some(Box::new(mapping))).unwrap()
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
        gpu_z: gpu_z(&dir.path().join("gpu-z.txt")),
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

#[divan::bench]
fn log_of_gpu_z(bencher: Bencher<'_, '_>) {
    read(bencher, &INPUTS.gpu_z);
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
