//! What tests begin with: lanes, messages of real blocks, claims.

use bytes::Bytes;
use nexus_common::{
    audit::{AuditReport, audit},
    block::{Block, Section},
    etcd::{Claim, Etcd, RangeRead},
    keyspace::{ClaimItem, FileRange, Key, Progress, to_json},
    model::{
        ClusterId, HostName, HostSamples, Labels, Lane, MetricName, SeriesSamples, ShardId,
        SourceId, Timestamp,
    },
    queue::{Consumer, Message, Producer},
    runtime::Life,
    store::NewBlock,
};

pub(crate) fn lane(shard: u32) -> Lane {
    Lane { source: SourceId::new("demo").unwrap(), shard: ShardId(shard) }
}

pub(crate) fn cluster() -> ClusterId {
    ClusterId::new("local-cluster").unwrap()
}

pub(crate) fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

/// `samples` samples of one series of `host`, a second apart from second `start` on.
pub(crate) fn samples(host_name: &str, start: i64, samples: i64) -> HostSamples {
    let timestamps: Vec<i64> = (0..samples).map(|i| (start + i) * 1000).collect();
    let values = timestamps.iter().map(|t| (t / 1000 % 97) as f64).collect();
    let metric = MetricName::new("DCGM_FI_DEV_GPU_TEMP").unwrap();
    let series = SeriesSamples { gpu: None, metric, labels: Labels::default(), timestamps, values };
    HostSamples { host: host(host_name), gpus: Vec::new(), series: vec![series] }
}

pub(crate) fn encoded(hosts: &[HostSamples]) -> Bytes {
    let sections = hosts.iter().map(|h| Section::encode(h).unwrap()).collect();
    Block { cluster: cluster(), sections }.encode().unwrap()
}

pub(crate) fn message(host_name: &str, start: i64, count: i64) -> Message {
    let bytes = encoded(&[samples(host_name, start, count)]);
    Message { bytes, samples: count.unsigned_abs() }
}

/// One block of everything `hosts` hold, which is all of one host.
pub(crate) fn block(hosts: Vec<HostSamples>) -> NewBlock {
    let merged = nexus_common::block::merge(hosts).unwrap();
    let times = || merged.series.iter().flat_map(|s| s.timestamps.iter().copied());
    NewBlock {
        cluster: cluster(),
        host: merged.host.clone(),
        start: Timestamp::from_millis(times().min().unwrap()).unwrap(),
        end: Timestamp::from_millis(times().max().unwrap()).unwrap(),
        samples: merged.samples() as u64,
        bytes: encoded(std::slice::from_ref(&merged)),
    }
}

pub(crate) async fn claimed(life: &Life, item: ClaimItem) -> Claim {
    let taken = Claim::take(&life.process.etcd, &life.session, item).await.unwrap();
    taken.expect("the item is free")
}

/// A registered shard that nobody has read from.
pub(crate) async fn registered(etcd: &Etcd, lane: &Lane) {
    let key = etcd.keyspace().key(&Key::Shard(lane.clone()));
    let progress = Progress::untouched(FileRange { start: 0, end: 1000 }, Timestamp::now());
    assert!(etcd.create(&[(key, to_json(&progress))]).await.unwrap());
}

/// A producer of a new lane.
pub(crate) async fn producer(life: &Life, lane: &Lane) -> Producer {
    registered(&life.process.etcd, lane).await;
    let claim = claimed(life, ClaimItem::Shard(lane.clone())).await;
    Producer::open(life, claim, lane.clone()).await.unwrap().unwrap()
}

/// A consumer of the partition that carries `lane`.
pub(crate) async fn consumer(life: &Life, lane: &Lane) -> Consumer {
    let partition = lane.partition(life.config.partitions);
    let claim = claimed(life, ClaimItem::Partition(partition)).await;
    Consumer::open(life, claim, partition).await.unwrap()
}

/// The progress with `messages` counted in: a row for each sample.
pub(crate) fn counted(progress: &Progress, messages: &[Message]) -> Progress {
    let samples: u64 = messages.iter().map(|m| m.samples).sum();
    let mut next = progress.clone();
    next.samples += samples;
    next.rows_accepted += samples;
    next.offset += samples;
    next
}

/// Keys below `path`, as text.
pub(crate) async fn keys(etcd: &Etcd, path: &str) -> Vec<String> {
    let how = RangeRead { keys_only: true, ..RangeRead::default() };
    let listing = etcd.range(&etcd.keyspace().prefix(path), how).await.unwrap();
    listing.entries.into_iter().map(|e| String::from_utf8(e.key).unwrap()).collect()
}

pub(crate) async fn clean(etcd: &Etcd) -> AuditReport {
    let report = audit(etcd).await.unwrap();
    assert!(report.clean, "{:?}", report.violations);
    report
}
