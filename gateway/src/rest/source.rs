//! A source as it is told: what is wanted of it, and how far it was read. Pure.

use std::collections::BTreeMap;

use nexus_common::{
    keyspace::{LastError, Progress, Source, SourceKind},
    model::{SourceId, Timestamp},
    sources::{SourceState, Standing},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::view::Snapshot;

/// A source.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SourceResource {
    /// Its id
    #[schema(example = "rack-7")]
    pub id: String,
    /// `csv`, `simulate`, `scrape`, `nvml` or `push`
    #[schema(example = "csv")]
    pub kind: String,
    /// What becomes of it
    pub state: SourceState,
    /// Where streamers look for its file; null if it has none
    #[schema(example = "/data/rack-7.csv")]
    pub path: Option<String>,
    /// Size of the file as it lies; null until a streamer opened it
    #[schema(example = 1_048_576)]
    pub bytes: Option<u64>,
    /// How much faster than recorded it is replayed; null if as fast as possible
    #[schema(example = 1.0)]
    pub replay_speed: Option<f64>,
    /// Whether it begins again at its end, for ever
    #[schema(example = false)]
    pub looped: bool,
    /// How often it is measured, in seconds; null of a file
    #[schema(example = 15.0)]
    pub interval_seconds: Option<f64>,
    /// Shards it was cut into
    #[schema(example = 8)]
    pub shards: u64,
    /// Of those, read to the end
    #[schema(example = 3)]
    pub shards_done: u64,
    /// Who works on a shard of it now: streamers, or gateways where it is sent to them; null if etcd does not answer
    #[schema(example = json!(["streamer-1"]))]
    pub owners: Option<Vec<String>>,
    /// Bytes read so far, of `bytes` (of what is in it where it is packed); starts again with each round of a looped source
    #[schema(example = 393_216)]
    pub bytes_read: u64,
    /// Rows taken
    #[schema(example = 2470)]
    pub rows_accepted: u64,
    /// Rows refused
    #[schema(example = 0)]
    pub rows_rejected: u64,
    /// Rows refused, by reason
    #[schema(example = json!({"bad-time": 0}))]
    pub rows_rejected_by_reason: BTreeMap<String, u64>,
    /// Measurements that were due and that nobody made
    #[schema(example = 0)]
    pub missed: u64,
    /// Samples enqueued
    #[schema(example = 2470)]
    pub samples: u64,
    /// Samples enqueued a second, over some ten seconds up to `last_enqueued_at`; 0 unless it is
    /// read
    #[schema(example = 247.0)]
    pub samples_per_second: f64,
    /// When something of it was enqueued last; null before that
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T14:00:05Z")]
    pub last_enqueued_at: Option<Timestamp>,
    /// What went wrong last with a row, a target or a GPU; null if nothing did
    pub last_error: Option<LastError>,
    /// When it was registered
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:00Z")]
    pub created_at: Timestamp,
}

impl SourceResource {
    /// A source, with what `snapshot` knows of its progress; nobody knows who reads it.
    pub(crate) fn of(id: &SourceId, source: &Source, snapshot: &Snapshot) -> Self {
        let lanes = snapshot.lanes.iter().filter(|(lane, _)| lane.source == *id);
        let lanes: Vec<&Progress> = lanes.map(|(_, progress)| progress.as_ref()).collect();
        let standing = Standing::of(source, &lanes);
        let (bytes, speed, looped) = match &source.kind {
            SourceKind::Declared { speed_milli, looped, .. } => (None, *speed_milli, *looped),
            SourceKind::Csv { bytes, replay, .. } => {
                let speed = replay.as_ref().map(|r| r.speed_milli);
                (Some(*bytes), speed, replay.as_ref().is_some_and(|r| r.looped))
            }
            _ => (None, None, false),
        };
        let milli = |value: u64| value as f64 / 1000.0;
        Self {
            id: id.to_string(),
            kind: source.kind.as_str().to_owned(),
            rows_rejected: standing.rejected(),
            state: standing.state,
            path: source.kind.path().map(str::to_owned),
            bytes,
            replay_speed: speed.map(milli),
            looped,
            interval_seconds: source.kind.interval_ms().map(milli),
            shards: source.shards.into(),
            shards_done: standing.shards_done,
            owners: None,
            bytes_read: standing.bytes_read,
            rows_accepted: standing.rows_accepted,
            rows_rejected_by_reason: standing.rows_rejected,
            missed: standing.missed,
            samples: standing.samples,
            samples_per_second: standing.samples_per_second,
            last_enqueued_at: standing.last_enqueued_at,
            last_error: standing.last_error,
            created_at: source.created_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nexus_common::{keyspace::FileRange, model::Lane};

    use super::*;

    #[test]
    fn figures_are_added_up_over_the_shards_of_the_source_alone() {
        let mut snapshot = Snapshot::empty(7);
        let mut lanes = Vec::new();
        for (name, shard, rejected) in [("a", 0, 1), ("a", 1, 2), ("b", 0, 40)] {
            let range = FileRange { start: 10, end: 20 };
            let mut progress = Progress::untouched(range, Timestamp::EPOCH);
            (progress.next, progress.offset, progress.samples) = (3, 15, 100);
            progress.rows_rejected.insert("bad-time".to_owned(), rejected);
            let shard = nexus_common::model::ShardId(shard);
            lanes.push((Lane { source: name.parse().unwrap(), shard }, Arc::new(progress)));
        }
        snapshot.lanes.extend(lanes);
        let kind = SourceKind::Declared {
            path: "/a".to_owned(),
            speed_milli: Some(2500),
            looped: true,
            mapping: None,
        };
        let source = Source { kind, shards: 0, created_at: Timestamp::EPOCH, paused: false };
        let of = SourceResource::of(&"a".parse().unwrap(), &source, &snapshot);
        assert_eq!((of.samples, of.rows_rejected, of.bytes_read), (200, 3, 10));
        assert_eq!(of.rows_rejected_by_reason["bad-time"], 3);
        assert_eq!((of.replay_speed, of.looped, of.bytes), (Some(2.5), true, None));
        assert_eq!(of.last_enqueued_at, Some(Timestamp::EPOCH));
    }
}
