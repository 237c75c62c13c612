//! The pipeline itself: sources, figures, the audit.

use std::sync::Arc;

use async_graphql::{Enum, ID, Object, SimpleObject};
use nexus_common::{
    audit::AuditReport,
    keyspace::{self, LastError, Progress},
    model::{SourceId, Timestamp},
    sources,
};

use super::scalars::{Count, Time};
use crate::{
    rest::SourceResource,
    view::{Host, Snapshot},
    web::App,
};

/// What becomes of a source
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "sources::SourceState")]
pub(super) enum SourceState {
    /// No streamer has found its file yet
    Declared,
    /// It is read
    Running,
    /// It is not read; what was read stays, and so does how far
    Paused,
    /// It was read to its end
    Done,
}

/// What went wrong with a source that is read on
#[derive(SimpleObject)]
pub(super) struct SourceError {
    /// When
    at: Time,
    /// What and where
    told: String,
}

/// A declared source.
#[derive(SimpleObject)]
pub(super) struct Source {
    /// Its id
    id: ID,
    /// `csv`, `simulate`, `scrape`, `nvml` or `push`
    kind: String,
    /// What becomes of it
    state: SourceState,
    /// Where streamers look for its file; null if it has none
    path: Option<String>,
    /// Size of the file; null until a streamer opened it
    bytes: Option<Count>,
    /// How much faster than recorded it is replayed; null if as fast as possible
    replay_speed: Option<f64>,
    /// Whether it begins again at its end, for ever
    looped: bool,
    /// How often it is measured, in seconds; null of a file
    interval_seconds: Option<f64>,
    /// Shards it was cut into
    shards: Count,
    /// Of those, read to the end
    shards_done: Count,
    /// Rows taken
    rows_accepted: Count,
    /// Rows refused
    rows_rejected: Count,
    /// Measurements that were due and that nobody made
    missed: Count,
    /// Samples enqueued
    samples: Count,
    /// Samples enqueued a second, over some ten seconds up to `lastEnqueuedAt`; 0 unless it is read
    samples_per_second: f64,
    /// When something of it was enqueued last; null before that
    last_enqueued_at: Option<Time>,
    /// What went wrong last with a row, a target or a GPU; null if nothing did
    last_error: Option<SourceError>,
    /// When it was registered
    created_at: Time,
}

impl Source {
    /// A source, with what `snapshot` knows of its progress.
    pub(super) fn of(id: &SourceId, source: &keyspace::Source, snapshot: &Snapshot) -> Self {
        let resource = SourceResource::of(id, source, snapshot);
        Self {
            id: ID(resource.id),
            kind: resource.kind,
            state: resource.state.into(),
            path: resource.path,
            bytes: resource.bytes.map(Count),
            replay_speed: resource.replay_speed,
            looped: resource.looped,
            interval_seconds: resource.interval_seconds,
            shards: Count(resource.shards),
            shards_done: Count(resource.shards_done),
            rows_accepted: Count(resource.rows_accepted),
            rows_rejected: Count(resource.rows_rejected),
            missed: Count(resource.missed),
            samples: Count(resource.samples),
            samples_per_second: resource.samples_per_second,
            last_enqueued_at: resource.last_enqueued_at.map(Time),
            last_error: resource
                .last_error
                .map(|LastError { at, told }| SourceError { at: Time(at), told }),
            created_at: Time(resource.created_at),
        }
    }
}

/// Figures of the whole pipeline, at one revision.
#[derive(Clone)]
pub(super) struct Pipeline {
    snapshot: Arc<Snapshot>,
    staleness_ms: Option<u64>,
}

impl Pipeline {
    pub(super) fn of(app: &App, snapshot: &Arc<Snapshot>) -> Self {
        let age = app.view.staleness();
        let staleness_ms = age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Self { snapshot: Arc::clone(snapshot), staleness_ms }
    }

    fn lanes(&self, of: impl Fn(&Progress) -> u64) -> Count {
        Count(self.snapshot.lanes.values().map(|progress| of(progress)).sum())
    }

    fn hosts(&self, of: impl Fn(&Host) -> u64) -> Count {
        Count(self.snapshot.hosts().map(|(_, _, host)| of(host)).sum())
    }
}

/// Figures of the whole pipeline, at one revision
#[Object]
impl Pipeline {
    /// The revision they are of
    async fn revision(&self) -> Count {
        Count(u64::try_from(self.snapshot.revision).unwrap_or(0))
    }

    /// Age of what the gateway last heard, in milliseconds
    async fn staleness_ms(&self) -> Option<Count> {
        self.staleness_ms.map(Count)
    }

    /// Rows taken
    async fn rows_accepted(&self) -> Count {
        self.lanes(|p| p.rows_accepted)
    }

    /// Rows taken that held no measurement; part of `rowsAccepted`
    async fn rows_absent(&self) -> Count {
        self.lanes(|p| p.rows_absent)
    }

    /// Rows refused
    async fn rows_rejected(&self) -> Count {
        self.lanes(Progress::rejected)
    }

    /// Samples enqueued since the beginning
    async fn samples_accepted(&self) -> Count {
        self.lanes(|p| p.samples)
    }

    /// Samples in the queue
    async fn samples_queued(&self) -> Count {
        Count(self.snapshot.queue.samples)
    }

    /// Samples in blocks
    async fn samples_stored(&self) -> Count {
        Count(self.snapshot.stored_samples())
    }

    /// Samples deleted by retention
    async fn samples_retired(&self) -> Count {
        Count(self.snapshot.retired.values().map(|retired| retired.samples).sum())
    }

    /// Messages in the queue
    async fn messages_queued(&self) -> Count {
        Count(self.snapshot.queue.messages)
    }

    /// Bytes of those
    async fn bytes_queued(&self) -> Count {
        Count(self.snapshot.queue.bytes)
    }

    /// Blocks
    async fn blocks(&self) -> Count {
        self.snapshot.block_count().into()
    }

    /// Bytes of blocks
    async fn bytes_stored(&self) -> Count {
        self.hosts(Host::stored_bytes)
    }

    /// Declared sources
    async fn sources(&self) -> Count {
        self.snapshot.sources.len().into()
    }

    /// Their shards
    async fn shards(&self) -> Count {
        self.snapshot.lanes.len().into()
    }

    /// Of those, read to the end
    async fn shards_done(&self) -> Count {
        self.lanes(|p| u64::from(p.done))
    }

    /// Instant of the newest sample
    async fn last_updated(&self) -> Option<Time> {
        let newest = self.snapshot.clusters.values().filter_map(|c| c.newest()).max();
        newest.map(|at| Time(Timestamp::saturating_from_millis(at)))
    }
}

/// What the audit found
#[derive(SimpleObject)]
pub(super) struct Audit {
    /// Whether every invariant holds
    clean: bool,
    /// The revision at which all of this was read
    revision: Count,
    /// Rows read from sources
    rows_offered: Count,
    /// Rows taken
    rows_accepted: Count,
    /// Rows refused
    rows_rejected: Count,
    /// Samples enqueued since the beginning
    samples_accepted: Count,
    /// Of those, still in the queue
    samples_queued: Count,
    /// Of those, taken out of the queue
    samples_committed: Count,
    /// Of those, in blocks
    samples_stored: Count,
    /// Of those, deleted by retention
    samples_retired: Count,
    /// Of those, set aside as undecodable
    samples_dead: Count,
    /// Samples that are missing or too many; 0 when the law holds
    delta: Count,
    /// How many violations there are
    violation_count: Count,
    /// The first hundred of them
    violations: Vec<String>,
}

impl From<AuditReport> for Audit {
    fn from(report: AuditReport) -> Self {
        let samples = &report.samples;
        Self {
            clean: report.clean,
            revision: Count(u64::try_from(report.revision).unwrap_or(0)),
            rows_offered: Count(report.rows.offered),
            rows_accepted: Count(report.rows.accepted),
            rows_rejected: Count(report.rows.rejected),
            samples_accepted: Count(samples.accepted),
            samples_queued: Count(samples.queued),
            samples_committed: Count(samples.committed),
            samples_stored: Count(samples.stored),
            samples_retired: Count(samples.retired),
            samples_dead: Count(samples.dead),
            delta: Count(report.delta),
            violation_count: Count(report.violation_count),
            violations: report.violations,
        }
    }
}
