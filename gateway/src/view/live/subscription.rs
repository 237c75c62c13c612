//! One subscriber's end.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use nexus_common::model::{ClusterId, HostName};

use super::{
    super::{Shared, Snapshot},
    point::{self, LiveFilter, LivePoint},
    seat::{Gap, GapReason, Seat, Update},
    window::Next,
};

/// Points of a snapshot handed over at once, give or take a host: few enough to bound memory.
const SNAPSHOT_POINTS: usize = 256;

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Since {
    /// With what comes next.
    #[default]
    Now,
    /// With the latest of each GPU, then what comes next.
    Latest,
    /// With what came after this revision. If that is no longer kept: with a gap and the latest.
    After(i64),
}

/// What a subscriber gets.
#[derive(Debug)]
pub enum LiveEvent {
    /// Points: everything that matches of one revision, or a part of a snapshot.
    Points(Vec<Arc<LivePoint>>),
    /// Something was skipped; a snapshot follows.
    Gap(Gap),
}

/// The latest values, host by host.
#[derive(Debug)]
struct Latest {
    snapshot: Arc<Snapshot>,
    hosts: VecDeque<(ClusterId, HostName)>,
}

/// A subscription; dropping it ends it.
///
/// What it holds in memory is bounded: what waits is shared with all others and at most two
/// seconds old. Who does not fetch it in time loses it and gets a [`Gap`] with a snapshot instead.
pub struct Subscription {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    /// Revision at which it was opened.
    revision: i64,
    /// Revisions `(after, until]` still have to be read from the window.
    catching_up: Option<(i64, i64)>,
    latest: Option<Latest>,
    batch: Vec<Arc<Update>>,
}

impl Subscription {
    pub(super) fn open(shared: Arc<Shared>, filter: LiveFilter, from: Since) -> Option<Self> {
        let live = &shared.live;
        let mut state = live.state();
        let snapshot = shared.current()?;
        let revision = live.dispatched();
        let after = match from {
            Since::After(after) => after.max(revision),
            Since::Now | Since::Latest => revision,
        };
        let seat = Arc::new(Seat::new(filter, after));
        state.list(&seat.filter).push(Arc::clone(&seat));
        drop(state);
        live.meters.subscriptions.inc();
        let mut new =
            Self { seat, revision, catching_up: None, latest: None, batch: Vec::new(), shared };
        match from {
            Since::Now => {}
            Since::Latest => new.begin_latest(snapshot),
            Since::After(after) if after < revision => new.catching_up = Some((after, revision)),
            Since::After(_) => {}
        }
        Some(new)
    }

    /// The revision at which it was opened: what came until then is not told unless it was asked
    /// for.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What it wants.
    pub fn filter(&self) -> &LiveFilter {
        &self.seat.filter
    }

    /// The next event. Safe to cancel: what was not returned comes again.
    pub async fn next(&mut self) -> LiveEvent {
        loop {
            poll_fn(|cx| self.poll_ready(cx)).await;
            if let Some(event) = self.take().await {
                return event;
            }
        }
    }

    /// Ready when [`Subscription::take`] is worth calling: for who waits for several at once.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.catching_up.is_some() || self.latest.is_some() || !self.batch.is_empty() {
            return Poll::Ready(());
        }
        self.seat.poll_ready(cx, &self.shared.live.dispatched)
    }

    /// What is there now; none if nothing of it matches. Safe to cancel.
    pub async fn take(&mut self) -> Option<LiveEvent> {
        if self.batch.is_empty()
            && let Some(event) = self.fetch()
        {
            return self.count(event);
        }
        let mut points = Vec::new();
        for update in &self.batch {
            points.extend(point::wanted(update.points().await, &self.seat.filter));
        }
        self.batch.clear();
        self.count(LiveEvent::Points(points))
    }

    fn count(&self, event: LiveEvent) -> Option<LiveEvent> {
        let meters = &self.shared.live.meters;
        match &event {
            LiveEvent::Points(points) if points.is_empty() => return None,
            LiveEvent::Points(points) => {
                meters.points.inc_by(points.len() as u64);
            }
            LiveEvent::Gap(gap) => {
                meters.skipped.inc_by(gap.updates.unwrap_or(0));
            }
        }
        Some(event)
    }

    /// Fills the batch, or returns what needs no decoding.
    fn fetch(&mut self) -> Option<LiveEvent> {
        if let Some((after, until)) = self.catching_up {
            return self.catch_up(after, until);
        }
        if let Some(latest) = &mut self.latest {
            let points = latest.next(&self.seat.filter);
            if latest.hosts.is_empty() {
                self.latest = None;
            }
            return Some(LiveEvent::Points(points));
        }
        match self.seat.take(&self.shared.live.dispatched) {
            Ok(updates) => {
                self.batch = updates;
                None
            }
            Err(()) => self.begin_again(None),
        }
    }

    fn catch_up(&mut self, after: i64, until: i64) -> Option<LiveEvent> {
        let next = self.shared.live.state().window.next(&self.seat.filter, after, until);
        match next {
            Next::Gone => {
                self.shared.live.meters.gap(GapReason::Window);
                let gap =
                    Gap { reason: GapReason::Window, from: after + 1, to: until, updates: None };
                return self.begin_again(Some(gap));
            }
            Next::Updates(updates) => {
                let read = updates.first().map_or(until, |update| update.revision);
                self.catching_up = Some((read, until));
                self.batch = updates;
            }
            Next::More(read) => self.catching_up = Some((read, until)),
            Next::End => self.catching_up = None,
        }
        None
    }

    /// Goes on from the latest values: takes the loss (`gap`, or the one of the seat) and a
    /// snapshot in one step, so that whatever comes later is newer than it.
    fn begin_again(&mut self, gap: Option<Gap>) -> Option<LiveEvent> {
        let state = self.shared.live.state();
        let mut queue = self.seat.queue();
        if gap.is_some() {
            queue.lose(GapReason::Window, 0, false);
        }
        let lost = queue.take_lost();
        let snapshot = self.shared.current();
        drop(queue);
        drop(state);
        self.catching_up = None;
        let mut gap = gap.or(lost)?;
        if let Some(snapshot) = snapshot {
            gap.to = gap.to.max(snapshot.revision);
            self.begin_latest(snapshot);
        }
        Some(LiveEvent::Gap(gap))
    }

    fn begin_latest(&mut self, snapshot: Arc<Snapshot>) {
        let hosts: VecDeque<_> = point::hosts(&snapshot, &self.seat.filter).into();
        self.latest = (!hosts.is_empty()).then_some(Latest { snapshot, hosts });
    }
}

impl Latest {
    fn next(&mut self, filter: &LiveFilter) -> Vec<Arc<LivePoint>> {
        let mut points = Vec::new();
        while points.len() < SNAPSHOT_POINTS {
            let Some((cluster, name)) = self.hosts.pop_front() else { break };
            if let Some((_, host)) = self.snapshot.host(cluster.as_str(), name.as_str()) {
                let place = (&cluster, &name);
                points.extend(point::latest(place, host, filter, self.snapshot.revision));
            }
        }
        points
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.live.state().remove(&self.seat);
        self.shared.live.meters.subscriptions.dec();
    }
}
