//! A source as it is told: what is wanted of it, and how far it was read. Pure.

use std::{collections::BTreeMap, sync::Arc};

use nexus_common::{
    keyspace::{Progress, Source, SourceKind},
    model::{SourceId, Timestamp},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::view::Snapshot;

/// What becomes of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// No streamer has found its file yet
    Declared,
    /// It is read
    Running,
    /// It is not read; what was read stays, and so does how far
    Paused,
    /// It was read to its end
    Done,
}

impl SourceState {
    /// Reads its name.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "declared" => Some(Self::Declared),
            "running" => Some(Self::Running),
            "paused" => Some(Self::Paused),
            "done" => Some(Self::Done),
            _ => None,
        }
    }
}

/// A source.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SourceResource {
    /// Its id
    #[schema(example = "rack-7")]
    pub id: String,
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
    /// Shards it was cut into
    #[schema(example = 8)]
    pub shards: u64,
    /// Of those, read to the end
    #[schema(example = 3)]
    pub shards_done: u64,
    /// Streamers that read a shard of it now; null if etcd does not answer
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
    /// Samples enqueued
    #[schema(example = 2470)]
    pub samples: u64,
    /// When something of it was enqueued last; null before that
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T14:00:05Z")]
    pub last_enqueued_at: Option<Timestamp>,
    /// When it was registered
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:00Z")]
    pub created_at: Timestamp,
}

impl SourceResource {
    /// A source, with what `snapshot` knows of its progress; nobody knows who reads it.
    pub(crate) fn of(id: &SourceId, source: &Source, snapshot: &Snapshot) -> Self {
        let lanes = snapshot.lanes.iter().filter(|(lane, _)| lane.source == *id);
        let lanes: Vec<&Arc<Progress>> = lanes.map(|(_, progress)| progress).collect();
        let sum = |of: fn(&Progress) -> u64| lanes.iter().map(|p| of(p)).sum();
        let (path, bytes, speed, looped) = match &source.kind {
            SourceKind::Declared { path, speed_milli, looped, .. } => {
                (Some(path), None, *speed_milli, *looped)
            }
            SourceKind::Csv { path, bytes, replay, .. } => {
                let speed = replay.as_ref().map(|r| r.speed_milli);
                (Some(path), Some(*bytes), speed, replay.as_ref().is_some_and(|r| r.looped))
            }
            SourceKind::Follow(follow) => (Some(&follow.path), None, None, false),
            SourceKind::Simulate(_)
            | SourceKind::Scrape(_)
            | SourceKind::Nvml(_)
            | SourceKind::Push => (None, None, None, false),
        };
        let mut rejected = BTreeMap::new();
        for (reason, rows) in lanes.iter().flat_map(|progress| &progress.rows_rejected) {
            *rejected.entry(reason.clone()).or_default() += rows;
        }
        let enqueued = lanes.iter().filter(|progress| progress.next > 0);
        let shards_done = sum(|p| u64::from(p.done));
        Self {
            id: id.to_string(),
            state: state(source, shards_done),
            path: path.cloned(),
            bytes,
            replay_speed: speed.map(|milli| milli as f64 / 1000.0),
            looped,
            shards: source.shards.into(),
            shards_done,
            owners: None,
            // The position of a source that follows the clock is a time.
            bytes_read: match source.kind.is_live() && path.is_none() {
                true => 0,
                false => sum(|p| p.offset.saturating_sub(p.range.start)),
            },
            rows_accepted: sum(|p| p.rows_accepted),
            rows_rejected: sum(Progress::rejected),
            rows_rejected_by_reason: rejected,
            samples: sum(|p| p.samples),
            last_enqueued_at: enqueued.map(|progress| progress.at).max(),
            created_at: source.created_at,
        }
    }
}

fn state(source: &Source, shards_done: u64) -> SourceState {
    let declared = matches!(source.kind, SourceKind::Declared { .. });
    if !declared && shards_done == u64::from(source.shards) {
        SourceState::Done
    } else if source.paused {
        SourceState::Paused
    } else if declared {
        SourceState::Declared
    } else {
        SourceState::Running
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::{keyspace::FileRange, model::Lane};

    use super::*;

    #[test]
    fn the_state_follows_from_what_is_wanted_and_what_was_done() {
        let declared = || SourceKind::Declared {
            path: "/a".to_owned(),
            speed_milli: None,
            looped: false,
            mapping: None,
        };
        let csv = || SourceKind::Csv {
            path: "/a".to_owned(),
            bytes: 1,
            fingerprint: String::new(),
            replay: None,
            mapping: None,
        };
        let check = |kind: SourceKind, paused: bool, done: u64, expected: SourceState| {
            let source = Source { kind, shards: 2, created_at: Timestamp::EPOCH, paused };
            assert_eq!(state(&source, done), expected, "{source:?} {done}");
        };
        check(declared(), false, 0, SourceState::Declared);
        check(declared(), true, 0, SourceState::Paused);
        check(csv(), false, 1, SourceState::Running);
        check(csv(), true, 1, SourceState::Paused);
        check(csv(), true, 2, SourceState::Done);
        check(csv(), false, 2, SourceState::Done);
    }

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
