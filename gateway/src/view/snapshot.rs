//! What the view knows at one revision: cheap to clone, never changed once it is published.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use nexus_common::{
    block::Section,
    keyspace::{BlockName, Progress, Retired, Source},
    model::{
        BucketId, ClusterId, Gpu, GpuId, HostName, Labels, Lane, MetricName, SourceId, Timestamp,
    },
};

/// Everything there is at one revision of what says which samples exist.
///
/// Clusters, hosts, GPUs and queues stand behind `Arc`: a clone shares them, and a change copies
/// only what it touches.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Revision up to which every change of the set of samples is in here.
    pub revision: i64,
    /// Revision of the last commit in here: where its blocks lie.
    pub places_revision: i64,
    /// First bucket that is served.
    pub floor: BucketId,
    /// What retention deleted.
    pub retired: Arc<BTreeMap<BucketId, Retired>>,
    /// Declared sources.
    pub sources: Arc<BTreeMap<SourceId, Source>>,
    /// How far each shard was read.
    pub lanes: BTreeMap<Lane, Arc<Progress>>,
    /// Clusters that were seen.
    pub clusters: BTreeMap<ClusterId, Arc<Cluster>>,
    /// Where a GPU is, by its id and by its UUID.
    pub gpus: Arc<GpuPlaces>,
    /// What is still in the queue, or known only from there.
    pub queue: QueueTotals,
}

/// Where GPUs are, by id and by UUID.
pub type GpuPlaces = BTreeMap<String, BTreeSet<GpuPlace>>;

/// Where a GPU is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpuPlace {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its host.
    pub host: HostName,
    /// Its id.
    pub gpu: GpuId,
}

/// Messages in hand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// How many.
    pub messages: u64,
    /// Samples that their keys promise.
    pub samples: u64,
    /// Their bytes, all in memory: back-pressure on the streamers bounds them.
    pub bytes: u64,
    /// Samples of those that cannot be decoded: a collector will set them aside.
    pub unreadable_samples: u64,
}

/// A cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// When it was first seen; none until the inventory says so.
    pub created_at: Option<Timestamp>,
    /// Its hosts.
    pub hosts: BTreeMap<HostName, Arc<Host>>,
}

/// A host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// When it was first seen; none until the inventory says so.
    pub created_at: Option<Timestamp>,
    /// Its GPUs.
    pub gpus: BTreeMap<GpuId, Arc<GpuState>>,
    /// Latest values of the host itself.
    pub own: Arc<Latest>,
    /// Its blocks.
    pub blocks: Arc<BTreeSet<Arc<BlockName>>>,
    /// Its part of the messages in hand, by lane.
    pub queue: BTreeMap<Lane, Arc<VecDeque<QueuedPart>>>,
    /// Newest instant of a sample.
    pub newest: Option<i64>,
}

/// One host's part of a message.
#[derive(Debug, Clone)]
pub struct QueuedPart {
    /// The message's place in its lane.
    pub seq: u64,
    /// Samples, still encoded.
    pub sections: Arc<[Section]>,
}

/// A GPU and its latest values.
#[derive(Debug, Clone)]
pub struct GpuState {
    /// As its telemetry last described it.
    pub about: Gpu,
    /// Its latest values.
    pub latest: Latest,
}

/// The newest value of each series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Latest(BTreeMap<(MetricName, Labels), (i64, f64)>);

impl Latest {
    /// Takes a value; of two at one instant the later read stays.
    pub fn put(&mut self, metric: &MetricName, labels: &Labels, at: i64, value: f64) {
        let key = (metric.clone(), labels.clone());
        let kept = self.0.entry(key).or_insert((at, value));
        if at >= kept.0 {
            *kept = (at, value);
        }
    }

    /// Metric, labels, instant (milliseconds since the epoch), value.
    pub fn iter(&self) -> impl Iterator<Item = (&MetricName, &Labels, i64, f64)> {
        self.0.iter().map(|((metric, labels), (at, value))| (metric, labels, *at, *value))
    }

    /// Newest instant.
    pub fn newest(&self) -> Option<i64> {
        self.0.values().map(|(at, _)| *at).max()
    }

    /// Forgets what is older than `oldest`.
    pub fn forget_before(&mut self, oldest: i64) {
        self.0.retain(|_, (at, _)| *at >= oldest);
    }
}

impl Host {
    /// First and last instant of what is served of it.
    pub fn span(&self) -> Option<(i64, i64)> {
        let blocks = self.blocks.iter().map(|b| (b.start.as_millis(), b.end.as_millis()));
        let sections = self.sections().map(|s| (s.start().as_millis(), s.end().as_millis()));
        blocks.chain(sections).reduce(|(s, e), (start, end)| (s.min(start), e.max(end)))
    }

    /// Everything of it that is in the queue.
    pub fn sections(&self) -> impl Iterator<Item = &Section> {
        self.queue.values().flat_map(|lane| lane.iter()).flat_map(|part| part.sections.iter())
    }

    /// Samples in blocks.
    pub fn stored_samples(&self) -> u64 {
        self.blocks.iter().map(|b| b.samples).sum()
    }

    /// Bytes of blocks.
    pub fn stored_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.bytes).sum()
    }

    /// Samples in the queue.
    pub fn queued_samples(&self) -> u64 {
        self.sections().map(Section::samples).sum()
    }
}

impl Cluster {
    /// Newest instant of a sample of any host.
    pub fn newest(&self) -> Option<i64> {
        self.hosts.values().filter_map(|h| h.newest).max()
    }
}

impl Snapshot {
    /// Nothing, at `revision`.
    pub fn empty(revision: i64) -> Self {
        Self {
            revision,
            places_revision: revision,
            floor: BucketId::first(),
            retired: Arc::default(),
            sources: Arc::default(),
            lanes: BTreeMap::new(),
            clusters: BTreeMap::new(),
            gpus: Arc::default(),
            queue: QueueTotals::default(),
        }
    }

    /// A host, if it is known.
    pub fn host(&self, cluster: &str, host: &str) -> Option<(&HostName, &Arc<Host>)> {
        self.clusters.get(cluster)?.hosts.get_key_value(host)
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = (&ClusterId, &HostName, &Arc<Host>)> {
        self.clusters.iter().flat_map(|(id, c)| c.hosts.iter().map(move |(n, h)| (id, n, h)))
    }

    /// Where GPUs are that go by `text`: the one with that id, else all with that UUID (the
    /// instances of a MIG GPU share one).
    pub fn places_of(&self, text: &str) -> Vec<GpuPlace> {
        let Some(places) = self.gpus.get(text) else { return Vec::new() };
        let exact: Vec<_> = places.iter().filter(|p| p.gpu.as_str() == text).cloned().collect();
        if exact.is_empty() { places.iter().cloned().collect() } else { exact }
    }

    /// Blocks that are served.
    pub fn block_count(&self) -> usize {
        self.hosts().map(|(_, _, h)| h.blocks.len()).sum()
    }

    /// Samples in blocks that are served.
    pub fn stored_samples(&self) -> u64 {
        self.hosts().map(|(_, _, h)| h.stored_samples()).sum()
    }
}
