//! How a source stands: what the progress of its shards adds up to. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    keyspace::{LastError, Progress, Source, SourceKind},
    model::Timestamp,
};

/// What becomes of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Declared, Self::Running, Self::Paused, Self::Done];
        all.into_iter().find(|state| state.as_str() == text)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
        }
    }
}

/// A source's figures, over all of its shards.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// What becomes of it.
    pub state: SourceState,
    /// Shards that were read to the end.
    pub shards_done: u64,
    /// Bytes of its file that were read (of what is in it where it is packed); 0 of a source
    /// without a file. Starts again with each round of a looped one.
    pub bytes_read: u64,
    /// Rows taken.
    pub rows_accepted: u64,
    /// Rows refused, by reason.
    pub rows_rejected: BTreeMap<String, u64>,
    /// Measurements that were due and that nobody made.
    pub missed: u64,
    /// Samples enqueued.
    pub samples: u64,
    /// Samples enqueued a second, over some ten seconds up to `last_enqueued_at`; 0 unless it is
    /// read.
    pub samples_per_second: f64,
    /// When something of it was enqueued last.
    pub last_enqueued_at: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
}

impl Standing {
    /// Of `source`, whose shards are as far as `lanes` says.
    pub fn of(source: &Source, lanes: &[&Progress]) -> Self {
        let sum = |of: fn(&Progress) -> u64| lanes.iter().map(|progress| of(progress)).sum();
        let mut rows_rejected = BTreeMap::new();
        for (reason, rows) in lanes.iter().flat_map(|progress| &progress.rows_rejected) {
            *rows_rejected.entry(reason.clone()).or_default() += rows;
        }
        let enqueued = lanes.iter().filter(|progress| progress.next > 0);
        let errors = lanes.iter().filter_map(|progress| progress.last_error.as_ref());
        let shards_done = sum(|p| u64::from(p.done));
        let state = state(source, shards_done);
        Self {
            state,
            shards_done,
            bytes_read: match source.kind.path() {
                Some(_) => sum(|p| p.offset.saturating_sub(p.range.start)),
                // The position of a source that follows the clock is a time.
                None => 0,
            },
            rows_accepted: sum(|p| p.rows_accepted),
            rows_rejected,
            missed: sum(|p| p.missed),
            samples: sum(|p| p.samples),
            samples_per_second: match state {
                SourceState::Running => sum(Progress::rate_if_unfinished) as f64 / 1000.0,
                _ => 0.0,
            },
            last_enqueued_at: enqueued.map(|progress| progress.at).max(),
            last_error: errors.max_by_key(|error| error.at).cloned(),
        }
    }

    /// Rows refused, for any reason.
    pub fn rejected(&self) -> u64 {
        self.rows_rejected.values().sum()
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
    use super::*;
    use crate::keyspace::FileRange;

    fn declared() -> SourceKind {
        let path = "/a".to_owned();
        SourceKind::Declared { path, speed_milli: None, looped: false, mapping: None }
    }

    fn csv() -> SourceKind {
        let (path, fingerprint) = ("/a".to_owned(), String::new());
        SourceKind::Csv { path, bytes: 1, fingerprint, replay: None, mapping: None }
    }

    fn source(kind: SourceKind, paused: bool) -> Source {
        Source { kind, shards: 2, created_at: Timestamp::EPOCH, paused }
    }

    #[test]
    fn the_state_follows_from_what_is_wanted_and_what_was_done() {
        let check = |kind: SourceKind, paused: bool, done: u64, expected: SourceState| {
            let source = source(kind, paused);
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
    fn figures_are_added_up_over_the_shards() {
        let at = |ms: i64| Timestamp::from_millis(ms).unwrap();
        let lane = |rejected: u64, ms: i64, error: Option<&str>| {
            let mut progress = Progress::untouched(FileRange { start: 10, end: 20 }, at(ms));
            (progress.next, progress.offset, progress.samples) = (3, 15, 100);
            (progress.rate_milli, progress.missed) = (1500, 7);
            progress.rows_rejected.insert("bad-time".to_owned(), rejected);
            progress.last_error = error.map(|told| LastError::new(at(ms), told));
            progress
        };
        let lanes = [lane(1, 5, Some("old")), lane(2, 9, Some("new")), lane(0, 11, None)];
        let of = |paused| Standing::of(&source(csv(), paused), &lanes.each_ref());
        let standing = of(false);
        assert_eq!((standing.samples, standing.rejected(), standing.bytes_read), (300, 3, 15));
        assert_eq!((standing.missed, standing.samples_per_second), (21, 4.5));
        assert_eq!(standing.last_enqueued_at, Some(at(11)));
        assert_eq!(standing.last_error.unwrap().told, "new");
        assert_eq!(of(true).samples_per_second, 0.0, "it is not read");
    }
}
