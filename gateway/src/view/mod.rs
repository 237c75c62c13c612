//! One view that everything served is read from, and that never writes.
//!
//! [`Fold`] is the state and how two watches change it, without I/O; the driver feeds it and
//! publishes a [`Snapshot`] after each revision; queries are answered from one snapshot alone.

mod arrival;
mod cache;
mod driver;
mod fold;
mod intake;
mod live;
mod load;
mod meters;
mod points;
mod query;
mod snapshot;
#[cfg(test)]
mod tests;
mod windows;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use nexus_common::{
    etcd::{Error, Etcd},
    keyspace::BlockName,
    store::Reader,
};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub use arrival::{Arrived, Content, HostNews, SeriesNews};
pub use fold::{Fold, Lost, PlaceChange, TruthChange};
pub use live::{
    Gap, GapReason, InventoryChange, LiveEvent, LiveFilter, LiveMeters, LivePoint, Since,
    Subscription,
};
pub use meters::Meters;
pub use points::{Point, PointKey};
pub use query::{Answer, Query, QueryError, Target, Which};
pub use snapshot::{
    Cluster, GpuPlace, GpuPlaces, GpuState, Host, Latest, QueueTotals, QueuedPart, Snapshot,
};
pub use windows::{Agg, Step};

/// A handle to the view, cheap to clone.
#[derive(Clone)]
pub struct View(Arc<Shared>);

/// What the driver writes and handles read.
struct Shared {
    reader: Reader,
    current: watch::Sender<Option<Arc<Snapshot>>>,
    started: Instant,
    /// Milliseconds after `started` up to which everything heard is in the view; -1 for never.
    heard_ms: AtomicI64,
    cache: Mutex<cache::Cache>,
    queries: Semaphore,
    live: live::Live,
    meters: Meters,
}

impl Shared {
    fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.borrow().clone()
    }

    fn heard(&self, at: Instant) {
        let since = at.saturating_duration_since(self.started).as_millis();
        self.heard_ms.fetch_max(i64::try_from(since).unwrap_or(i64::MAX), Relaxed);
    }
}

/// A block that a snapshot names and etcd no longer has.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockGone {
    /// Merged or retired, and history that far back is compacted.
    #[error("block {0} is gone")]
    Gone(BlockName),
    /// etcd does not answer.
    #[error(transparent)]
    Etcd(#[from] Error),
}

impl View {
    /// A view of `etcd`'s keyspace that keeps at most `cache_bytes` of fetched blocks. Empty
    /// until [`View::run`] has loaded it.
    pub fn new(etcd: Etcd, cache_bytes: usize) -> Self {
        let meters = Meters::default();
        Self(Arc::new(Shared {
            reader: Reader::new(etcd),
            current: watch::Sender::new(None),
            started: Instant::now(),
            heard_ms: AtomicI64::new(-1),
            cache: Mutex::new(cache::Cache::new(cache_bytes)),
            queries: Semaphore::new(query::QUERIES_MAX),
            live: live::Live::new(meters.live.clone()),
            meters,
        }))
    }

    /// Follows etcd until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        driver::drive(Arc::clone(&self.0), stop).await;
    }

    /// The newest snapshot; none before the first load.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.0.current()
    }

    /// Tells when another snapshot was published. Slow readers miss the ones in between.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.0.current.subscribe()
    }

    /// Age of the newest word from etcd that is in the view in full; none before the first load.
    pub fn staleness(&self) -> Option<Duration> {
        let heard = u64::try_from(self.0.heard_ms.load(Relaxed)).ok()?;
        Some(self.0.started.elapsed().saturating_sub(Duration::from_millis(heard)))
    }

    /// etcd, for what is read on demand.
    pub fn etcd(&self) -> &Etcd {
        self.0.reader.etcd()
    }

    /// Its metrics, brought up to date.
    pub fn meters(&self) -> &Meters {
        let meters = &self.0.meters;
        if let Ok(cache) = self.0.cache.lock() {
            meters.cache_bytes.set(i64::try_from(cache.bytes()).unwrap_or(i64::MAX));
        }
        if let Some(staleness) = self.staleness() {
            meters.staleness_seconds.set(staleness.as_secs_f64());
        }
        if let Some(snapshot) = self.snapshot() {
            let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            meters.blocks.set(gauge(snapshot.block_count() as u64));
            meters.queued_messages.set(gauge(snapshot.queue.messages));
            meters.queued_bytes.set(gauge(snapshot.queue.bytes));
        }
        meters
    }

    /// A block that `snapshot` names. Names never repeat and blocks never change, so the newest
    /// revision serves; what was merged or retired since is read where the snapshot's commits end.
    async fn block(&self, name: &Arc<BlockName>, snapshot: &Snapshot) -> Result<Bytes, BlockGone> {
        if let Some(bytes) = self.0.cache.lock().ok().and_then(|mut cache| cache.get(name)) {
            self.0.meters.hits.inc();
            return Ok(bytes);
        }
        self.0.meters.misses.inc();
        let reader = &self.0.reader;
        let found = match reader.block(name, None).await? {
            Some(bytes) => Some(bytes),
            None => match reader.block(name, Some(snapshot.places_revision)).await {
                Err(Error::Compacted { .. }) => None,
                read => read?,
            },
        };
        let bytes = found.ok_or_else(|| BlockGone::Gone((**name).clone()))?;
        if let Ok(mut cache) = self.0.cache.lock() {
            cache.put(name, bytes.clone());
        }
        Ok(bytes)
    }
}
