//! Fills a keyspace as streamers and collectors do: the same producer, consumer and writer.

use std::collections::BTreeMap;

use nexus_common::{
    block::{Block, Section},
    etcd::{Claim, Etcd, Outcome},
    keyspace::{ClaimItem, FileRange, Key, Progress, Source, SourceKind, to_json},
    model::{
        Gpu, HostName, HostSamples, Labels, Lane, PartitionId, Role, SeriesSamples, ShardId,
        Timestamp,
    },
    queue::{Consumer, Enqueued, Intake, Message, Producer},
    runtime::Life,
    store::{Description, Inventory, NewBlock, StoredBlock, Writer},
    testing::TestEtcd,
};

/// The cluster of everything here.
pub(crate) const CLUSTER: &str = "local-cluster";
/// The first instant of the export users have: 2025-07-18T20:42:34Z.
pub(crate) const T0: i64 = 1_752_871_354_000;

/// A pipeline's writing half.
pub(crate) struct Pipeline {
    pub(crate) etcd: Etcd,
    streamer: Life,
    collector: Life,
    producers: BTreeMap<Lane, Producer>,
    consumers: BTreeMap<PartitionId, Consumer>,
    writer: Writer,
    inventory: Inventory,
}

impl Pipeline {
    /// In a keyspace that is new.
    pub(crate) async fn new(etcd: &TestEtcd) -> Self {
        let streamer = etcd.life(Role::Streamer, "streamer-1", 60).await;
        let collector = etcd.life(Role::Collector, "collector-1", 60).await;
        let writer = Writer::open(&collector).await.unwrap();
        let etcd = etcd.connect().await;
        let inventory = Inventory::open(etcd.clone()).await.unwrap();
        Self {
            etcd,
            streamer,
            collector,
            producers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            writer,
            inventory,
        }
    }

    /// Registers a source of `shards` shards.
    pub(crate) async fn source(&self, id: &str, shards: u32) -> Vec<Lane> {
        let keyspace = self.etcd.keyspace();
        let source: nexus_common::model::SourceId = id.parse().unwrap();
        let now = Timestamp::now();
        let kind = SourceKind::Csv {
            path: "export.csv".to_owned(),
            bytes: 1000,
            fingerprint: "f".to_owned(),
            replay: None,
            mapping: None,
        };
        let value = to_json(&Source { kind, shards, created_at: now, paused: false });
        let mut entries = vec![(keyspace.key(&Key::Source(source.clone())), value)];
        let lane = |n| Lane { source: source.clone(), shard: ShardId(n) };
        let lanes: Vec<Lane> = (0..shards).map(lane).collect();
        for lane in &lanes {
            let progress = Progress::untouched(FileRange { start: 0, end: 1000 }, now);
            entries.push((keyspace.key(&Key::Shard(lane.clone())), to_json(&progress)));
        }
        assert!(self.etcd.create(&entries).await.unwrap());
        lanes
    }

    /// Enqueues one message of some hosts' samples.
    pub(crate) async fn enqueue(&mut self, lane: &Lane, hosts: &[HostSamples]) {
        let sections: Vec<Section> = hosts.iter().map(|h| Section::encode(h).unwrap()).collect();
        let block = Block { cluster: CLUSTER.parse().unwrap(), sections };
        let (samples, bytes) = (block.samples(), block.encode().unwrap());
        self.enqueue_raw(lane, Message { bytes, samples }, samples).await;
    }

    /// Enqueues any bytes.
    pub(crate) async fn enqueue_raw(&mut self, lane: &Lane, message: Message, rows: u64) {
        if !self.producers.contains_key(lane) {
            let item = ClaimItem::Shard(lane.clone());
            let claim = Claim::take(&self.etcd, &self.streamer.session, item).await.unwrap();
            let opened = Producer::open(&self.streamer, claim.unwrap(), lane.clone()).await;
            self.producers.insert(lane.clone(), opened.unwrap().unwrap());
        }
        let producer = self.producers.get_mut(lane).unwrap();
        let mut progress = producer.progress().clone();
        progress.samples += message.samples;
        progress.rows_accepted += rows;
        assert_eq!(producer.enqueue(&[message], progress).await.unwrap(), Enqueued::Committed);
    }

    /// Takes up to `count` messages of a lane out of the queue and into blocks by host.
    pub(crate) async fn commit(&mut self, lane: &Lane, count: usize) -> usize {
        let partition = lane.partition(self.collector.config.partitions);
        self.open_consumer(partition).await;
        let consumer = self.consumers.get_mut(&partition).unwrap();
        let messages = consumer.receive(lane, consumer.next(lane), count).await.unwrap();
        let mut intake = Intake { messages, dead: Vec::new() };
        let mut hosts: BTreeMap<HostName, Vec<Section>> = BTreeMap::new();
        for (index, message) in intake.messages.iter().enumerate() {
            match Block::decode(message.bytes.clone()) {
                Ok(block) => block
                    .sections
                    .into_iter()
                    .for_each(|s| hosts.entry(s.host().clone()).or_default().push(s)),
                Err(error) => intake.dead.push((index, error.to_string())),
            }
        }
        let cluster = CLUSTER.parse().unwrap();
        for section in hosts.values().flatten() {
            let description = Description::of(&cluster, section).unwrap();
            self.inventory.describe(&description).await.unwrap();
        }
        let blocks: Vec<NewBlock> =
            hosts.into_iter().map(|(host, sections)| new_block(host, sections)).collect();
        let outcome = self.writer.commit(consumer, &intake, &blocks).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        intake.messages.len()
    }

    /// Merges all blocks of a host into one.
    pub(crate) async fn merge(&mut self, host: &str) {
        let reader = nexus_common::store::Reader::new(self.etcd.clone());
        let (blocks, _) = reader.blocks(&reader.all_blocks(), None).await.unwrap();
        let inputs: Vec<StoredBlock> =
            blocks.into_iter().filter(|b| b.name.host.as_str() == host).collect();
        let mut parts = Vec::new();
        for input in &inputs {
            let bytes = reader.block(&input.name, None).await.unwrap().unwrap();
            let sections = Block::decode(bytes).unwrap().sections;
            parts.extend(sections.iter().map(|s| s.decode().unwrap()));
        }
        let merged = nexus_common::block::merge(parts).unwrap();
        let section = Section::encode(&merged).unwrap();
        let output = new_block(host.parse().unwrap(), vec![section]);
        let partition = inputs[0].name.host.partition(self.collector.config.partitions);
        self.open_consumer(partition).await;
        let consumer = self.consumers.get_mut(&partition).unwrap();
        let bucket = inputs[0].name.bucket.clone();
        let outcome = self.writer.merge(consumer, bucket, &inputs, &[output]).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    async fn open_consumer(&mut self, partition: PartitionId) {
        if self.consumers.contains_key(&partition) {
            return;
        }
        let item = ClaimItem::Partition(partition);
        let claim = Claim::take(&self.etcd, &self.collector.session, item).await.unwrap();
        let opened = Consumer::open(&self.collector, claim.unwrap(), partition).await;
        self.consumers.insert(partition, opened.unwrap());
    }
}

fn new_block(host: HostName, sections: Vec<Section>) -> NewBlock {
    let start = sections.iter().map(Section::start).min().unwrap();
    let end = sections.iter().map(Section::end).max().unwrap();
    let block = Block { cluster: CLUSTER.parse().unwrap(), sections };
    NewBlock {
        cluster: block.cluster.clone(),
        host,
        start,
        end,
        samples: block.samples(),
        bytes: block.encode().unwrap(),
    }
}

/// The UUID of a GPU of a host.
pub(crate) fn uuid(host: &str, index: usize) -> String {
    format!("GPU-{host}-{index:04}")
}

/// A GPU of a host.
pub(crate) fn gpu(host: &str, index: usize) -> Gpu {
    Gpu {
        id: uuid(host, index).parse().unwrap(),
        uuid: uuid(host, index),
        index: index.to_string(),
        device: format!("nvidia{index}"),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        driver: "535.129.03".to_owned(),
        mig_profile: String::new(),
    }
}

/// Samples of `gpus` GPUs of a host: each of `metrics` at each of `times`, valued by `value`.
pub(crate) fn samples(
    host: &str,
    gpus: usize,
    metrics: &[&str],
    times: &[i64],
    value: impl Fn(usize, i64) -> f64,
) -> HostSamples {
    let series = |index: usize, metric: &str| SeriesSamples {
        gpu: Some(index as u32),
        metric: metric.parse().unwrap(),
        labels: Labels::default(),
        timestamps: times.to_vec(),
        values: times.iter().map(|&at| value(index, at)).collect(),
    };
    HostSamples {
        host: host.parse().unwrap(),
        gpus: (0..gpus).map(|index| gpu(host, index)).collect(),
        series: (0..gpus)
            .flat_map(|index| metrics.iter().map(move |metric| (index, metric)))
            .map(|(index, metric)| series(index, metric))
            .collect(),
    }
}

/// The export users have, of one host: ten metrics at four instants a second apart.
pub(crate) fn export(host: &str, gpus: usize) -> HostSamples {
    let families: [(i64, &[&str]); 4] = [
        (T0, &["gpu_utilization", "memory_utilization", "power_draw"]),
        (T0 + 1000, &["temperature", "memory_used_mb", "memory_free_mb"]),
        (T0 + 2000, &["decoder_utilization"]),
        (T0 + 3000, &["encoder_utilization", "sm_clock_mhz", "memory_clock_mhz"]),
    ];
    let parts = families.map(|(at, metrics)| samples(host, gpus, metrics, &[at], |i, _| i as f64));
    nexus_common::block::merge(parts.to_vec()).unwrap()
}
