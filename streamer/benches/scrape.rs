//! How fast an exporter's answer is read, the first and every further time. Items are samples.

#![allow(clippy::unwrap_used)] // a benchmark that fails may say so by panicking

use std::fmt::Write;

use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use nexus_common::keyspace::live::Rules;
use nexus_streamer::source::scrape::{Format, Reader, Reading};

/// What sixteen GPUs tell, fifty fields each, and as many series again of a node exporter.
const GPUS: usize = 16;
const FIELDS: usize = 50;

fn answer() -> String {
    let mut text = String::new();
    for field in 0..FIELDS {
        writeln!(
            text,
            "# HELP DCGM_FI_DEV_FIELD_{field} What it is.\n# TYPE DCGM_FI_DEV_FIELD_{field} gauge"
        )
        .unwrap();
        for gpu in 0..GPUS {
            let value = (field * 31 + gpu * 7) as f64 * 1.25;
            writeln!(
                text,
                "DCGM_FI_DEV_FIELD_{field}{{gpu=\"{gpu}\",UUID=\"GPU-00000000-1111-2222-3333-{gpu:012}\",\
                 pci_bus_id=\"00000000:1B:00.0\",device=\"nvidia{gpu}\",modelName=\"NVIDIA H100 80GB HBM3\",\
                 Hostname=\"dgx-001\",DCGM_FI_DRIVER_VERSION=\"535.129.03\"}} {value}"
            )
            .unwrap();
        }
    }
    for n in 0..GPUS * FIELDS {
        writeln!(text, "node_cpu_seconds_total{{cpu=\"{n}\",mode=\"idle\"}} {n}.25").unwrap();
    }
    text
}

fn reading() -> Reading {
    Reading { rules: Rules::default(), series_max: 50_000, honour_times: false }
}

fn reader() -> Reader {
    Reader::new("node-1".parse().unwrap(), "t")
}

const SAMPLES: usize = 2 * GPUS * FIELDS;

/// Into samples by host, from a target that was asked before.
#[divan::bench]
fn again(bencher: Bencher) {
    let (text, reading) = (answer(), reading());
    let mut reader = reader();
    assert_eq!(reader.read(text.as_bytes(), Format::Text, 1, &reading).samples, SAMPLES as u64);
    bencher
        .counter(ItemsCount::new(SAMPLES))
        .counter(BytesCount::new(text.len()))
        .bench_local(|| reader.read(text.as_bytes(), Format::Text, 2, &reading).samples);
}

/// The same, from one that was never asked.
#[divan::bench]
fn first(bencher: Bencher) {
    let (text, reading) = (answer(), reading());
    bencher
        .counter(ItemsCount::new(SAMPLES))
        .counter(BytesCount::new(text.len()))
        .bench(|| reader().read(text.as_bytes(), Format::Text, 1, &reading).samples);
}

fn main() {
    divan::main();
}
