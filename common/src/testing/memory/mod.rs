//! An etcd in memory: the same protocol, spoken below the client, without a socket. It is what
//! thousands of schedules run on; a test compares its answers with those of a real one.
//!
//! It knows what Nexus uses: ranges, transactions, leases, watches, compaction, and etcd's way of
//! refusing. It does not sort, nest transactions, or authenticate, and says so when asked to.

mod mvcc;
mod refusal;
mod service;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use etcd_client::proto::{
    PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchResponse,
    PbWatchServer,
};
use tokio::{sync::mpsc, time::Instant};
use tower::{ServiceExt, util::BoxCloneSyncService};

pub use mvcc::Change;
use mvcc::{Mvcc, within};

use super::wire::{WireAnswer, WireChannel, WireRequest};

/// How often leases are looked at, as in etcd.
const LEASES_EVERY: Duration = Duration::from_millis(500);

/// An etcd in memory. Clones are the same one.
#[derive(Clone)]
pub struct MemoryEtcd(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    began: Instant,
}

#[derive(Default)]
struct State {
    mvcc: Mvcc,
    watchers: Vec<Watcher>,
    /// Changes that watchers were told.
    told: usize,
}

/// Someone who wants to hear of a range.
struct Watcher {
    id: i64,
    key: Vec<u8>,
    range_end: Vec<u8>,
    prev_kv: bool,
    /// First revision to tell.
    from: i64,
    to: mpsc::Sender<Result<PbWatchResponse, tonic::Status>>,
}

impl MemoryEtcd {
    /// An empty one. Needs a runtime; its leases run on the runtime's clock, paused or not.
    pub fn start() -> Self {
        let etcd = Self(Arc::new(Shared { state: Mutex::default(), began: Instant::now() }));
        let weak = Arc::downgrade(&etcd.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEASES_EVERY).await;
                let Some(shared) = weak.upgrade() else { return };
                let etcd = MemoryEtcd(shared);
                let now = etcd.now_ms();
                etcd.change(|mvcc| mvcc.expire(now));
            }
        });
        etcd
    }

    /// A channel to it.
    pub fn channel(&self) -> WireChannel {
        let kv = PbKvServer::new(self.clone()).max_decoding_message_size(2 << 20);
        let watch = PbWatchServer::new(self.clone());
        let lease = PbLeaseServer::new(self.clone());
        let maintenance = PbMaintenanceServer::new(self.clone());
        BoxCloneSyncService::new(tower::service_fn(move |request: WireRequest| {
            let (kv, watch) = (kv.clone(), watch.clone());
            let (lease, maintenance) = (lease.clone(), maintenance.clone());
            async move {
                let service = request.uri().path().split('/').nth(1).unwrap_or_default();
                let answer: Result<WireAnswer, std::convert::Infallible> = match service {
                    "etcdserverpb.KV" => kv.oneshot(request).await,
                    "etcdserverpb.Watch" => watch.oneshot(request).await,
                    "etcdserverpb.Lease" => lease.oneshot(request).await,
                    "etcdserverpb.Maintenance" => maintenance.oneshot(request).await,
                    _ => Ok(service::not_here(request.uri().path()).into_http()),
                };
                answer.map_err(|never| match never {})
            }
        }))
    }

    /// Every write so far, oldest first.
    pub fn history(&self) -> Vec<Change> {
        self.state().mvcc.history.clone()
    }

    /// Refuses writes from now on, as etcd does when its space is used up, or takes them again.
    pub fn set_out_of_space(&self, out_of_space: bool) {
        self.state().mvcc.out_of_space = out_of_space;
    }

    /// Forgets all but the newest `revisions`.
    pub fn compact_to_last(&self, revisions: i64) {
        self.change(|mvcc| {
            let at = mvcc.revision() - revisions;
            if at > mvcc.compacted().max(0) {
                // Neither compacted already nor in the future.
                let _ = mvcc.compact(at);
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn now_ms(&self) -> u64 {
        self.0.began.elapsed().as_millis() as u64
    }

    fn header(&self) -> PbResponseHeader {
        self.state().mvcc.header()
    }

    /// Changes the state and tells who watches.
    fn change<T>(&self, change: impl FnOnce(&mut Mvcc) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state.mvcc);
        state.tell();
        result
    }
}

impl State {
    /// Tells the watchers what they have not heard. One that does not keep up is cut off.
    fn tell(&mut self) {
        let news = &self.mvcc.history[self.told..];
        self.told = self.mvcc.history.len();
        self.watchers.retain(|watcher| {
            news.iter().all(|change| watcher.told(std::slice::from_ref(change), &self.mvcc))
        });
    }
}

impl Watcher {
    /// Whether it could be told.
    fn told(&self, changes: &[Change], mvcc: &Mvcc) -> bool {
        let mut events = Vec::new();
        for event in changes.iter().filter(|c| c.revision >= self.from).flat_map(|c| &c.events) {
            let (key, revision) =
                event.kv.as_ref().map_or((&[][..], 0), |kv| (&kv.key, kv.mod_revision));
            if within(key, &self.key, &self.range_end) {
                let mut event = event.clone();
                // What was before it is looked up a revision earlier.
                if !self.prev_kv || revision <= mvcc.compacted() {
                    event.prev_kv = None;
                }
                events.push(event);
            }
        }
        if events.is_empty() {
            return !self.to.is_closed();
        }
        let header = Some(mvcc.header());
        let answer = PbWatchResponse { header, watch_id: self.id, events, ..Default::default() };
        self.to.try_send(Ok(answer)).is_ok()
    }
}
