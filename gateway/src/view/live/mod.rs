//! Subscribing to what the view learns.
//!
//! What a message told of one host is an *update*. When the view publishes a snapshot, the updates
//! that are new in it are handed to the subscribers they are for, found by host or GPU, a whole
//! revision at a time. A commit only moves samples, so it is no update: each is handed over once.
//! Updates travel encoded; the first subscriber that wants one decodes it for all.
//!
//! Nobody is waited for: a subscriber that is too slow loses what waits for it, is told by a
//! [`Gap`], and goes on from the latest values, which the snapshot has anyway. So one that never
//! reads costs almost nothing.

mod inventory;
mod meters;
mod point;
mod seat;
mod subscription;
#[cfg(test)]
mod tests;
mod window;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicI64,
            Ordering::{Acquire, Release},
        },
    },
    time::Instant,
};

use nexus_common::model::GpuId;
use tokio::sync::broadcast;

use super::{Shared, Snapshot, View, fold::TruthChange};
pub use inventory::InventoryChange;
pub use meters::LiveMeters;
pub use point::{LiveFilter, LivePoint};
pub use seat::{Gap, GapReason};
use seat::{Seat, Update};
pub use subscription::{LiveEvent, Since, Subscription};
use window::Window;

/// An update and which GPUs it tells of.
#[derive(Debug)]
pub(super) struct News {
    update: Arc<Update>,
    /// Id, and UUID if it is another text.
    gpus: Vec<(GpuId, Option<String>)>,
}

/// The updates in a revision of truth, before the fold takes it.
pub(super) fn news(revision: i64, changes: &[TruthChange]) -> Vec<News> {
    let mut found = Vec::new();
    for change in changes {
        let TruthChange::Progress(_, _, arrived) = change else { continue };
        for content in arrived.iter().filter_map(|message| message.content.as_ref().ok()) {
            for (host, sections) in &content.hosts {
                let (cluster, host) = (content.cluster.clone(), host.clone());
                let told = || content.news.iter().filter(|news| news.host == host);
                let decoded: Vec<_> = told().filter_map(|news| news.samples.clone()).collect();
                let named = told().flat_map(|news| &news.gpus).map(|gpu| {
                    let uuid = (gpu.uuid != gpu.id.as_str()).then(|| gpu.uuid.clone());
                    (gpu.id.clone(), uuid)
                });
                let gpus = named.collect();
                let update = Update::new(revision, cluster, host, Arc::clone(sections));
                found.push(News { update: Arc::new(update.decoded(decoded)), gpus });
            }
        }
    }
    found
}

/// Where subscribers sit.
#[derive(Debug)]
pub(super) struct Live {
    state: Mutex<State>,
    inventory: broadcast::Sender<Arc<InventoryChange>>,
    /// Revision up to which everything was handed over.
    dispatched: AtomicI64,
    meters: LiveMeters,
}

#[derive(Debug, Default)]
struct State {
    /// Those who want any host, or any of a cluster.
    wide: Vec<Arc<Seat>>,
    by_host: HashMap<String, Vec<Arc<Seat>>>,
    by_gpu: HashMap<String, Vec<Arc<Seat>>>,
    window: Window,
}

impl State {
    /// The list a seat of this filter stands in.
    fn list(&mut self, filter: &LiveFilter) -> &mut Vec<Arc<Seat>> {
        match (&filter.gpu, &filter.host) {
            (Some(gpu), _) => self.by_gpu.entry(gpu.clone()).or_default(),
            (None, Some(host)) => self.by_host.entry(host.clone()).or_default(),
            (None, None) => &mut self.wide,
        }
    }

    fn remove(&mut self, seat: &Arc<Seat>) {
        let list = self.list(&seat.filter);
        list.retain(|other| !Arc::ptr_eq(other, seat));
        if !list.is_empty() {
            return;
        }
        match (&seat.filter.gpu, &seat.filter.host) {
            (Some(gpu), _) => drop(self.by_gpu.remove(gpu)),
            (None, Some(host)) => drop(self.by_host.remove(host)),
            (None, None) => {}
        }
    }

    fn seats(&self) -> impl Iterator<Item = &Arc<Seat>> {
        let lists = self.by_host.values().chain(self.by_gpu.values());
        self.wide.iter().chain(lists.flatten())
    }

    /// Everyone an update is for, possibly twice.
    fn wanting(&self, news: &News) -> impl Iterator<Item = &Arc<Seat>> {
        let update = &news.update;
        let by_host = self.by_host.get(update.host.as_str());
        let ids = news.gpus.iter().filter_map(|(id, _)| self.by_gpu.get(id.as_str()));
        let uuids = news.gpus.iter().filter_map(|(_, uuid)| self.by_gpu.get(uuid.as_ref()?));
        let lists = by_host.into_iter().chain(ids).chain(uuids);
        let seats = self.wide.iter().chain(lists.flatten());
        seats.filter(|seat| seat.filter.wants_host(&update.cluster, &update.host))
    }
}

impl Live {
    /// Without subscribers; counts in `meters`.
    pub(super) fn new(meters: LiveMeters) -> Self {
        Self {
            state: Mutex::default(),
            inventory: broadcast::Sender::new(inventory::CHANGES_MAX),
            dispatched: AtomicI64::new(0),
            meters,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic leaves behind is at worst an update that was not handed over.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes by `publish` what is at `revision`, with the updates that are new in it.
    pub(super) fn dispatch(&self, revision: i64, news: Vec<News>, publish: impl FnOnce()) {
        let mut state = self.state();
        publish();
        let now = Instant::now();
        let mut touched: Vec<Arc<Seat>> = Vec::new();
        for one in news {
            for seat in state.wanting(&one) {
                if seat.push(&one.update, now) {
                    self.meters.gap(GapReason::Slow);
                }
                touched.push(Arc::clone(seat));
            }
            state.window.push(one.update);
        }
        self.dispatched.store(revision, Release);
        drop(state);
        let wakers = touched.iter().filter_map(|seat| seat.take_waker());
        wakers.for_each(std::task::Waker::wake);
    }

    /// Publishes what was loaded anew at `revision`: what came in between is not known.
    pub(super) fn reset(&self, revision: i64, publish: impl FnOnce()) {
        let mut state = self.state();
        publish();
        let from = self.dispatched.swap(revision, Release).saturating_add(1);
        state.window = Window::after(revision);
        let mut wakers = Vec::new();
        for seat in state.seats() {
            self.meters.gap(GapReason::Reload);
            let mut queue = seat.queue();
            queue.lose(GapReason::Reload, from, false);
            drop(queue);
            wakers.extend(seat.take_waker());
        }
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Tells what changed among the GPUs. Called while `publish` holds everyone off.
    fn tell_inventory(&self, before: Option<&Snapshot>, now: &Snapshot) {
        if self.inventory.receiver_count() == 0 {
            return;
        }
        if let Some(change) = before.and_then(|before| InventoryChange::between(before, now)) {
            // Nobody listens any more: nobody misses it.
            let _ = self.inventory.send(Arc::new(change));
        }
    }

    fn dispatched(&self) -> i64 {
        self.dispatched.load(Acquire)
    }
}

impl Shared {
    /// Publishes a snapshot and what is new in it.
    pub(super) fn publish(&self, snapshot: Arc<Snapshot>, news: Vec<News>) {
        self.live.dispatch(snapshot.revision, news, || self.replace(snapshot));
    }

    /// Publishes a snapshot that was loaded.
    pub(super) fn publish_loaded(&self, snapshot: Arc<Snapshot>) {
        let revision = snapshot.revision;
        self.live.reset(revision, || self.replace(snapshot));
    }

    fn replace(&self, snapshot: Arc<Snapshot>) {
        self.meters.revision.set(snapshot.revision);
        let before = self.current.send_replace(Some(Arc::clone(&snapshot)));
        self.live.tell_inventory(before.as_deref(), &snapshot);
    }
}

impl View {
    /// Subscribes to points that match `filter`. None before the first load.
    ///
    /// A subscriber that keeps up gets each point once, in the order of revisions; see
    /// [`Subscription`] for what happens to others. Dropping it unsubscribes.
    pub fn live(&self, filter: LiveFilter, from: Since) -> Option<Subscription> {
        Subscription::open(Arc::clone(&self.0), filter, from)
    }
    /// The inventory, and what changes in it from there on. None before the first load.
    pub fn inventory(&self) -> Option<(Arc<Snapshot>, broadcast::Receiver<Arc<InventoryChange>>)> {
        // No change can be told in between.
        let _state = self.0.live.state();
        Some((self.0.current()?, self.0.live.inventory.subscribe()))
    }
}
