//! The control values: small JSON that a person can read with etcdctl.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    csv::{Follow, Followed, Mapping},
    key::BlockName,
    live::{Nvml, Scrape, Simulate},
};
use crate::model::{
    BucketId, Gpu, HostName, InstanceId, Lane, PartitionId, Role, ShardId, SourceId, Timestamp,
};

/// A value that is not what its key promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("value of {key} is not valid: {reason}")]
pub struct ValueError {
    /// The key.
    pub key: String,
    /// What the parser said.
    pub reason: String,
}

/// A control value as JSON. Serialising our own structs cannot fail; an empty value would be
/// refused by whoever reads it.
pub fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A control value from JSON.
///
/// # Errors
/// Names the key and what is wrong.
pub fn from_json<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, ValueError> {
    serde_json::from_slice(bytes).map_err(|e| ValueError {
        key: String::from_utf8_lossy(key).into_owned(),
        reason: e.to_string(),
    })
}

/// What was fixed when the keyspace was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Version of the keyspace layout.
    pub version: u32,
    /// Partitions of the queue, for ever: scaling moves ownership, never data.
    pub partitions: u16,
    /// Width of an ingest-time bucket.
    pub bucket_seconds: u32,
    /// When.
    pub created_at: Timestamp,
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceState {
    /// Takes work.
    Active,
    /// Gives work back and will exit.
    Draining,
}

/// A running process and its last figures, renewed every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Which kind of process.
    pub role: Role,
    /// Its name.
    pub instance: InstanceId,
    /// Operating system process id.
    pub pid: u32,
    /// Where it serves (API for a gateway, metrics for the others).
    pub address: String,
    /// Version of the program.
    pub version: String,
    /// What it is doing.
    pub state: InstanceState,
    /// It works on what it alone may work on, and takes no share of anything else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// When it started.
    pub started_at: Timestamp,
    /// Claims it holds.
    pub claims: u64,
    /// Rows read a second over the last period (streamers).
    pub rows_per_second: f64,
    /// Samples moved a second over the last period.
    pub samples_per_second: f64,
    /// Messages it knows to be waiting.
    pub backlog: u64,
    /// Age of the oldest of them, or staleness of a gateway's view, in milliseconds.
    pub lag_ms: u64,
}

/// Who holds a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimant {
    /// Which kind of process.
    pub role: Role,
    /// Its name.
    pub instance: InstanceId,
    /// Tells two lives of the same name apart.
    pub nonce: String,
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SourceKind {
    /// A CSV file.
    Csv {
        /// Where streamers open it.
        path: String,
        /// Its size when it was registered, in bytes.
        bytes: u64,
        /// xxh3 of its head and tail, to notice that it changed.
        fingerprint: String,
        /// Replay in time, if asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replay: Option<Replay>,
        /// What its columns mean, if its header does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mapping: Option<Box<Mapping>>,
    },
    /// A CSV file that somebody asked for and nobody opened yet: the first streamer that finds it
    /// puts `Csv` in its place.
    Declared {
        /// Where streamers shall look for it.
        path: String,
        /// Thousandths of real time; as fast as possible if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        speed_milli: Option<u64>,
        /// Begin again at the end, for ever.
        #[serde(default)]
        looped: bool,
        /// What its columns mean, if its header does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mapping: Option<Box<Mapping>>,
    },
    /// A CSV file that grows.
    Follow(Follow),
    /// Telemetry that is made up, at an interval.
    Simulate(Simulate),
    /// Exporters, asked at an interval.
    Scrape(Box<Scrape>),
    /// The GPUs of a host, asked at an interval by the streamer there.
    Nvml(Nvml),
    /// What others send to gateways: these work its shards, no streamer does.
    Push,
}

impl SourceKind {
    /// Whether it has no end of its own, be it that it follows the wall clock or a file: its
    /// shards are what its value says, whatever was cut before.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Follow(_) | Self::Simulate(_) | Self::Scrape(_) | Self::Nvml(_) | Self::Push
        )
    }

    /// Whether it is read by nobody: gateways enqueue what is sent to them.
    pub fn is_pushed(&self) -> bool {
        matches!(self, Self::Push)
    }

    /// Its name in control values and answers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Csv { .. } | Self::Declared { .. } | Self::Follow(_) => "csv",
            Self::Simulate(_) => "simulate",
            Self::Scrape(_) => "scrape",
            Self::Nvml(_) => "nvml",
            Self::Push => "push",
        }
    }

    /// Where its file lies, if it has one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Csv { path, .. } | Self::Declared { path, .. } => Some(path),
            Self::Follow(follow) => Some(&follow.path),
            Self::Simulate(_) | Self::Scrape(_) | Self::Nvml(_) | Self::Push => None,
        }
    }

    /// How often it is measured, in milliseconds; none of a file.
    pub fn interval_ms(&self) -> Option<u64> {
        match self {
            Self::Csv { .. } | Self::Declared { .. } | Self::Follow(_) | Self::Push => None,
            Self::Simulate(simulate) => Some(simulate.interval_ms),
            Self::Scrape(scrape) => Some(scrape.interval_ms),
            Self::Nvml(nvml) => Some(nvml.interval_ms),
        }
    }

    /// The only host whose streamers may work on it; any may if there is none.
    pub fn only_on(&self) -> Option<&HostName> {
        match self {
            Self::Nvml(nvml) => Some(&nvml.host),
            _ => None,
        }
    }
}

/// How a file is replayed: the same for all streamers, so that any of them can go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Thousandths of real time: 1000 is as it was recorded, 10000 ten times as fast.
    pub speed_milli: u64,
    /// Begin again at the end, for ever, with time moving on.
    pub looped: bool,
    /// When the replay began.
    pub wall_start: Timestamp,
    /// First instant in the file.
    pub source_start: Timestamp,
    /// First to last instant of the file plus one step, in milliseconds.
    pub span_ms: i64,
}

/// A declared source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it reads.
    #[serde(flatten)]
    pub kind: SourceKind,
    /// How many shards it was cut into; 0 while it is only declared.
    pub shards: u32,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Nobody shall read it now; progress stays where it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// A byte range of a file, `start..end`; milliseconds of a live source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRange {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
}

/// How far a shard was read. Every enqueue advances it in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Sequence number of the next message.
    pub next: u64,
    /// The shard's part of the file; of a live source, when it begins and ends, in milliseconds
    /// since the epoch.
    pub range: FileRange,
    /// Next byte to read; of a live source, the first millisecond nothing was enqueued for.
    pub offset: u64,
    /// How many times the range was read to its end (looped replay).
    #[serde(default)]
    pub round: u64,
    /// Rows taken.
    pub rows_accepted: u64,
    /// Rows taken that held no measurement (blank sentinels); part of `rows_accepted`.
    #[serde(default)]
    pub rows_absent: u64,
    /// Rows refused, by reason.
    #[serde(default)]
    pub rows_rejected: BTreeMap<String, u64>,
    /// Measurements of a live source that were due and that nobody made: an outage.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missed: u64,
    /// Samples enqueued.
    pub samples: u64,
    /// Thousandths of a sample enqueued a second, over some ten seconds before `at`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rate_milli: u64,
    /// What went wrong last: a row, a target or a GPU, of which the others are read on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// The file that is followed, where there may be several one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<Followed>,
    /// Nothing is left to read.
    #[serde(default)]
    pub done: bool,
    /// Create revision of the claim under which this was written; 0 at registration.
    #[serde(default)]
    pub claim: i64,
    /// When it was written.
    pub at: Timestamp,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Progress {
    /// A shard nobody has read from.
    pub fn untouched(range: FileRange, at: Timestamp) -> Self {
        Self {
            next: 0,
            offset: range.start,
            done: range.start == range.end,
            range,
            round: 0,
            rows_accepted: 0,
            rows_absent: 0,
            rows_rejected: BTreeMap::new(),
            missed: 0,
            samples: 0,
            rate_milli: 0,
            last_error: None,
            followed: None,
            claim: 0,
            at,
        }
    }

    /// Rows refused for any reason.
    pub fn rejected(&self) -> u64 {
        self.rows_rejected.values().sum()
    }

    /// Thousandths of a sample a second that are added to what others enqueue.
    pub(crate) fn rate_if_unfinished(&self) -> u64 {
        if self.done { 0 } else { self.rate_milli }
    }
}

/// Longest text of a [`LastError`], in bytes: what is wrong and where, in a value that is written
/// with every message.
const ERROR_BYTES_MAX: usize = 256;

/// What went wrong with a source that is read on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastError {
    /// When
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:05Z"))]
    pub at: Timestamp,
    /// What and where; at most 256 bytes
    #[cfg_attr(
        feature = "openapi",
        schema(example = "http://dgx-001:9400/metrics: connect: Connection refused")
    )]
    pub told: String,
}

impl LastError {
    /// What was told at an instant, cut where it is too long.
    pub fn new(at: Timestamp, told: &str) -> Self {
        let end = (0..=ERROR_BYTES_MAX.min(told.len())).rev().find(|i| told.is_char_boundary(*i));
        Self { at, told: told.get(..end.unwrap_or(0)).unwrap_or_default().to_owned() }
    }
}

/// How far a lane was committed. Every commit advances it in the same transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Sequence number of the next message to take.
    pub next: u64,
    /// Samples taken out of the queue, dead ones included.
    pub samples: u64,
    /// Samples of those that were set aside as undecodable.
    #[serde(default)]
    pub dead: u64,
    /// Create revision of the claim under which this was written.
    pub claim: i64,
}

/// A request whose samples were enqueued: whoever sends it again is told that they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Samples that were enqueued.
    pub samples: u64,
}

/// The messages `from..to` of one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneMove {
    /// Source of the lane.
    pub source: SourceId,
    /// Shard of the lane.
    pub shard: ShardId,
    /// First message moved.
    pub from: u64,
    /// First message not moved.
    pub to: u64,
}

impl LaneMove {
    /// The lane.
    pub fn lane(&self) -> Lane {
        Lane { source: self.source.clone(), shard: self.shard }
    }
}

/// What the last commit of a partition did. Watched: a reader that sees every one knows where
/// every sample lies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommitSummary {
    /// Counts the partition's commits from 1.
    pub number: u64,
    /// Messages that left the queue.
    #[serde(default)]
    pub lanes: Vec<LaneMove>,
    /// Blocks that came, as they stand below `blocks/`.
    #[serde(default)]
    pub added: Vec<String>,
    /// Blocks that went (merged into an added one).
    #[serde(default)]
    pub removed: Vec<String>,
    /// Create revision of the claim under which this was written.
    pub claim: i64,
}

impl CommitSummary {
    /// The added or removed names, parsed; a name that does not parse is left out.
    pub fn names(list: &[String]) -> impl Iterator<Item = BlockName> {
        list.iter().filter_map(|text| text.parse().ok())
    }
}

/// A cluster that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// When it was first seen.
    pub created_at: Timestamp,
}

/// A host that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// When it was first seen.
    pub created_at: Timestamp,
}

/// A GPU that was seen, as its telemetry last described it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    /// UUID of the physical GPU.
    pub uuid: String,
    /// Index on its host.
    pub index: String,
    /// Device name.
    pub device: String,
    /// Model.
    pub model: String,
    /// Driver version.
    #[serde(default)]
    pub driver: String,
    /// MIG profile; empty for a whole GPU.
    #[serde(default)]
    pub mig_profile: String,
    /// When this was written.
    pub updated_at: Timestamp,
}

impl GpuRecord {
    /// The record of a GPU described by its samples.
    pub fn of(gpu: &Gpu, updated_at: Timestamp) -> Self {
        Self {
            uuid: gpu.uuid.clone(),
            index: gpu.index.clone(),
            device: gpu.device.clone(),
            model: gpu.model.clone(),
            driver: gpu.driver.clone(),
            mig_profile: gpu.mig_profile.clone(),
            updated_at,
        }
    }
}

/// The first bucket that is kept. Not JSON: commits compare it as text, inside etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor(pub BucketId);

/// What left the store with a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Retired {
    /// Samples deleted.
    pub samples: u64,
    /// Blocks deleted.
    pub blocks: u64,
}

/// A message that could not be decoded. In etcd: this as one JSON line, then the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// What was wrong.
    pub reason: String,
    /// Samples that its key promised.
    pub samples: u64,
    /// Partition it stood in.
    pub partition: PartitionId,
    /// When it was set aside.
    pub at: Timestamp,
}
