//! How small blocks of DCGM telemetry are, and how fast they are written and read.
#![allow(missing_docs)] // divan makes public items of benches

use divan::counter::ItemsCount;
use nexus_common::block::{Block, Section, merge};
use nexus_common::model::{
    ClusterId, Gpu, GpuId, HostName, HostSamples, Labels, MetricName, SeriesSamples,
};

#[allow(unreachable_pub)] // it is a test's module, too
mod dcgm;

/// Consecutive pieces of `seconds` of one host at 1 Hz.
fn host(seconds: usize, pieces: usize) -> Vec<HostSamples> {
    let mut host = dcgm::Host::new(42);
    let gpu = |index: usize, uuid: String| Gpu {
        id: GpuId::new(&uuid).expect("a UUID is an id"),
        uuid,
        index: index.to_string(),
        device: format!("nvidia{index}"),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        driver: "535.129.03".to_owned(),
        mig_profile: String::new(),
    };
    let gpus: Vec<Gpu> = (0..dcgm::GPUS).map(|index| gpu(index, host.uuid())).collect();
    let mut at = 1_752_871_354_000;
    let mut piece = || {
        let start = at;
        at += seconds as i64 * 1000;
        let rows: Vec<_> = (0..seconds).map(|_| host.second()).collect();
        let series = |position: usize| {
            let (gpu, metric) = (position / 10, position % 10);
            SeriesSamples {
                gpu: Some(gpu as u32),
                metric: MetricName::new(dcgm::METRICS[metric]).expect("a metric"),
                labels: Labels::default(),
                timestamps: (0..seconds as i64).map(|i| start + 1000 * i).collect(),
                values: rows.iter().map(|row| row[gpu][metric]).collect(),
            }
        };
        HostSamples {
            host: HostName::new("mtv5-dgx1-hgpu-031").expect("a host name"),
            gpus: gpus.clone(),
            series: (0..10 * dcgm::GPUS).map(series).collect(),
        }
    };
    (0..pieces).map(|_| piece()).collect()
}

fn section(samples: &HostSamples) -> Section {
    Section::encode(samples).expect("samples within limits")
}

fn block(sections: Vec<Section>) -> Block {
    Block { cluster: ClusterId::new("mtv5").expect("a cluster"), sections }
}

/// Samples of one host over this many seconds at 1 Hz: 80 a second.
const SECONDS: [usize; 6] = [1, 10, 50, 60, 600, 3600];

#[divan::bench(args = SECONDS)]
fn encode(bencher: divan::Bencher<'_, '_>, seconds: usize) {
    let samples = host(seconds, 1).remove(0);
    bencher.counter(ItemsCount::new(samples.samples())).bench(|| section(&samples));
}

#[divan::bench(args = SECONDS)]
fn decode(bencher: divan::Bencher<'_, '_>, seconds: usize) {
    let samples = host(seconds, 1).remove(0);
    let section = section(&samples);
    bencher.counter(ItemsCount::new(samples.samples())).bench(|| section.decode());
}

#[divan::bench(args = SECONDS)]
fn decode_one_metric_of_one_gpu(bencher: divan::Bencher<'_, '_>, seconds: usize) {
    let section = section(&host(seconds, 1).remove(0));
    let keep = |gpu: Option<&Gpu>, metric: &MetricName| {
        metric.as_str() == "power_draw" && gpu.is_some_and(|gpu| gpu.index == "3")
    };
    bencher
        .counter(ItemsCount::new(seconds))
        .bench(|| section.decode_matching(keep).map(|samples| samples.samples()));
}

#[divan::bench]
fn dictionary(bencher: divan::Bencher<'_, '_>) {
    let section = section(&host(10, 1).remove(0));
    bencher.bench(|| section.dictionary());
}

#[divan::bench]
fn open_a_block_of_360_sections(bencher: divan::Bencher<'_, '_>) {
    let sections = host(10, 360).iter().map(section).collect();
    let bytes = block(sections).encode().expect("within limits");
    bencher
        .counter(ItemsCount::new(288_000_usize))
        .bench(|| Block::decode(bytes.clone()).map(|block| block.samples()));
}

#[divan::bench]
fn merge_360_sections(bencher: divan::Bencher<'_, '_>) {
    let parts = host(10, 360);
    bencher
        .counter(ItemsCount::new(288_000_usize))
        .with_inputs(|| parts.clone())
        .bench_values(merge);
}

fn main() {
    println!("bytes a sample, one host at 1 Hz, block and all:");
    for seconds in SECONDS {
        let samples = host(seconds, 1).remove(0);
        let bytes = block(vec![section(&samples)]).encode().expect("within limits").len();
        let each = bytes as f64 / samples.samples() as f64;
        println!("{seconds:>6} s {:>8} samples {bytes:>8} bytes {each:.3}", samples.samples());
    }
    let hour = merge(host(10, 360)).expect("parts of one host");
    let bytes = block(vec![section(&hour)]).encode().expect("within limits").len();
    let each = bytes as f64 / hour.samples() as f64;
    println!("merged from 360 sections: {} samples {bytes} bytes {each:.3}", hour.samples());
    divan::main();
}
