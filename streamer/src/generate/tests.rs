//! Generated files, read back by the reader that will read them.

use std::collections::BTreeSet;

use clap::Parser;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::source::{
    CsvFile,
    csv::{Batch, BatchLimits, ShardReader},
};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    args: GenerateArgs,
}

fn args(flags: &str) -> Result<GenerateArgs, clap::Error> {
    Cli::try_parse_from(["generate"].into_iter().chain(flags.split_whitespace())).map(|c| c.args)
}

fn text(flags: &str) -> (Written, Vec<u8>) {
    let mut out = Vec::new();
    let written = write_rows(&args(flags).unwrap(), &mut out).unwrap();
    assert_eq!(written.bytes, out.len() as u64);
    (written, out)
}

/// Generates a file and reads all of its shards.
fn read_back(flags: &str) -> (Written, Vec<Batch>) {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(flags).unwrap();
    args.output = dir.path().join("out.csv");
    let written = generate(&args).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the partial file is gone");
    let file = CsvFile::open(&args.output).unwrap();
    let shards = file.shards(None).unwrap();
    let batches = shards.into_iter().map(|shard| {
        let from = shard.start;
        let mut reader = ShardReader::open(&file.path, file.layout.clone(), shard, from).unwrap();
        let batch = reader.read_batch(&BatchLimits::default()).unwrap();
        assert!(batch.done && batch.rejected.is_empty(), "{:?}", batch.rejects);
        batch
    });
    (written, batches.collect())
}

#[test]
fn the_sample_has_exactly_the_counts_users_know() {
    let (written, batches) = read_back("--preset sample");
    assert_eq!((written.rows, written.samples), (2470, 2470));
    assert_eq!(batches.len(), 8, "several streamers have something to do");
    assert_eq!(batches.iter().map(|b| b.samples).sum::<u64>(), 2470);
    let (mut hosts, mut gpus, mut points) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut at_second = [const { BTreeSet::new() }; 4];
    for host in batches.iter().flat_map(|b| &b.hosts) {
        hosts.insert(host.host.clone());
        for series in &host.series {
            let gpu = &host.gpus[series.gpu.unwrap() as usize].id;
            gpus.insert((host.host.clone(), gpu.clone()));
            for at in &series.timestamps {
                points.insert((gpu.clone(), *at));
                let second = (at - 1_752_871_354_000) / 1000;
                at_second[second as usize].insert(series.metric.to_string());
            }
        }
    }
    assert_eq!((hosts.len(), gpus.len(), points.len()), (31, 247, 988));
    let on_last = gpus.iter().filter(|(host, _)| host.as_str() == "dgx-031").count();
    assert_eq!(on_last, 7);
    let names = at_second.map(|names| names.into_iter().collect::<Vec<_>>().join(" "));
    assert_eq!(
        names,
        [
            "gpu_utilization memory_utilization power_draw",
            "memory_free_mb memory_used_mb temperature",
            "decoder_utilization",
            "encoder_utilization memory_clock_mhz sm_clock_mhz",
        ]
    );
}

#[test]
fn every_metric_of_every_gpu_at_every_second() {
    let check = |flags: &str, rows: u64, samples: u64| {
        let (written, batches) = read_back(flags);
        assert_eq!((written.rows, written.samples), (rows, samples), "{flags}");
        assert_eq!(batches.iter().map(|b| b.rows_accepted).sum::<u64>(), rows, "{flags}");
        assert_eq!(batches.iter().map(|b| b.samples).sum::<u64>(), samples, "{flags}");
    };
    check("--hosts 3 --gpus-per-host 2 --seconds 5", 300, 300);
    check("--hosts 3 --gpus-per-host 2 --seconds 5 --metrics 4", 120, 120);
    check("--hosts 3 --gpus-per-host 2 --seconds 5 --layout wide", 30, 240);
    check("--hosts 1 --gpus-per-host 1 --seconds 2 --layout wide --metrics 1", 2, 2);
    check("--preset sample --layout wide", 3 * 247, 8 * 247);
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_ever() {
    // Golden: files that others keep hashes of must not change with a new version.
    let check = |flags: &str, expected: u64| {
        let (_, bytes) = text(flags);
        assert_eq!(xxh3_64(&bytes), expected, "{flags}: {:#x}", xxh3_64(&bytes));
    };
    check("--hosts 1 --gpus-per-host 2 --seconds 3", 0xf8e3_b687_83cd_a169);
    check("--hosts 1 --gpus-per-host 2 --seconds 3 --layout wide", 0x7cb4_13e7_b74d_64eb);
    check("--preset sample", 0xcdba_b50d_de95_adf0);
    assert_ne!(text("--seed 1 --seconds 1").1, text("--seed 2 --seconds 1").1);
}

#[test]
fn rows_are_ordered_by_time_host_gpu_and_metric() {
    let (_, bytes) = text("--hosts 12 --gpus-per-host 2 --seconds 3 --metrics 2");
    let mut reader = csv::Reader::from_reader(&*bytes);
    let keys: Vec<_> = reader
        .records()
        .map(|row| {
            let row = row.unwrap();
            let metric = FIELDS.iter().position(|f| f.dcgm == &row[1]).unwrap();
            (row[0].to_owned(), row[6].to_owned(), row[2].to_owned(), metric)
        })
        .collect();
    assert_eq!(keys.len(), 144);
    assert!(keys.is_sorted() && keys[0].0 == "2025-07-18T20:42:34Z");
}

#[test]
fn a_bad_value_names_its_flag_and_the_range() {
    let check = |flags: &str, flag: &str, range: &str| {
        let message = args(flags).unwrap_err().to_string();
        assert!(message.contains(flag) && message.contains(range), "{message}");
    };
    check("--hosts 0", "--hosts", "1..=4096");
    check("--gpus-per-host 17", "--gpus-per-host", "1..=16");
    check("--metrics 11", "--metrics", "1..=10");
    check("--seconds 0", "--seconds", "1..=31536000");
    check("--start yesterday", "--start", "1970 to 2200");
    check("--layout tall", "--layout", "long, wide");
    check("--preset sample --hosts 3", "--preset", "--hosts");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let mut args = args("--seconds 1").unwrap();
    args.output = PathBuf::from("/nonexistent/out.csv");
    let message = generate(&args).unwrap_err().to_string();
    assert_eq!(message, "write /nonexistent/out.csv");
}
