//! What waits for one subscriber: bounded in number and in age. Who is too slow loses all of it at
//! once, is told so, and goes on from the latest.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Acquire},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use nexus_common::{
    block::Section,
    model::{ClusterId, HostName, HostSamples},
};
use tokio::sync::OnceCell;

use super::point::{self, LiveFilter, LivePoint};

/// Most updates that wait for one subscriber: a publication brings up to 16 messages of at most
/// 96 hosts, and two of those may come before a task has its turn.
pub(super) const UPDATES_MAX: usize = 4096;
/// Most samples in them: one largest message must always fit.
pub(super) const SAMPLES_MAX: u64 = 1 << 19;
/// Longest an update waits: who is further behind than this no longer sees what is, and what
/// waits keeps its message in memory.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(2);
/// Samples in one part of a message from which on it is decoded on a thread of its own: below, it
/// takes less than handing it over and back.
const INLINE_SAMPLES_MAX: u64 = 4096;

/// One host's part of a message that became visible.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) revision: i64,
    pub(super) cluster: ClusterId,
    pub(super) host: HostName,
    pub(super) sections: Arc<[Section]>,
    pub(super) samples: u64,
    /// The sections once more, if all of them are decoded already.
    decoded: Vec<Arc<HostSamples>>,
    /// Decoded by the first who wants it, for all.
    points: OnceCell<Vec<Arc<LivePoint>>>,
}

impl Update {
    pub(super) fn new(
        revision: i64,
        cluster: ClusterId,
        host: HostName,
        sections: Arc<[Section]>,
    ) -> Self {
        let samples = sections.iter().map(Section::samples).sum();
        let decoded = Vec::new();
        Self { revision, cluster, host, sections, samples, decoded, points: OnceCell::new() }
    }

    /// With what is in its sections, unless something is missing.
    pub(super) fn decoded(self, decoded: Vec<Arc<HostSamples>>) -> Self {
        let all = decoded.len() == self.sections.len();
        Self { decoded: if all { decoded } else { Vec::new() }, ..self }
    }

    /// Its points.
    pub(super) async fn points(&self) -> &[Arc<LivePoint>] {
        let decode = || async {
            if !self.decoded.is_empty() {
                return point::points_in(&self.decoded, &self.cluster, self.revision);
            }
            if self.samples <= INLINE_SAMPLES_MAX {
                return point::points_of(&self.sections, &self.cluster, self.revision);
            }
            let (sections, cluster) = (Arc::clone(&self.sections), self.cluster.clone());
            let revision = self.revision;
            let decoded = move || point::points_of(&sections, &cluster, revision);
            // A panic in a decoder is a fault of ours, and was met when the view read the same.
            tokio::task::spawn_blocking(decoded).await.unwrap_or_default()
        };
        self.points.get_or_init(decode).await
    }
}

/// Why something was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The subscriber was slower than what came.
    Slow,
    /// The revision to go on from is older than what is kept for that.
    Window,
    /// The gateway lost its watch and read everything anew.
    Reload,
}

impl GapReason {
    /// As a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Window => "window",
            Self::Reload => "reload",
        }
    }
}

/// What was skipped. The latest of everything that matches follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// First revision of which something was skipped.
    pub from: i64,
    /// Last one; what follows is newer.
    pub to: i64,
    /// Skipped updates (what one message told of one host); none if that is not known.
    pub updates: Option<u64>,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    updates: VecDeque<(Instant, Arc<Update>)>,
    samples: u64,
    lost: Option<Gap>,
    waker: Option<Waker>,
}

impl Queue {
    /// Loses what waits and what comes until [`Queue::take_lost`].
    pub(super) fn lose(&mut self, reason: GapReason, from: i64, known: bool) {
        let first = self.updates.front().map_or(from, |(_, update)| update.revision);
        let waiting = self.updates.len() as u64;
        self.updates = VecDeque::new();
        self.samples = 0;
        let gap = self.lost.get_or_insert(Gap { reason, from: first, to: from, updates: Some(0) });
        gap.reason = reason;
        gap.updates = gap.updates.filter(|_| known).map(|n| n + waiting);
    }

    /// The loss, if there is one. Nothing is lost from here on.
    pub(super) fn take_lost(&mut self) -> Option<Gap> {
        self.lost.take()
    }
}

/// A subscriber's place.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) filter: LiveFilter,
    /// Only what is newer is for it.
    pub(super) after: i64,
    queue: Mutex<Queue>,
}

impl Seat {
    pub(super) fn new(filter: LiveFilter, after: i64) -> Self {
        Self { filter, after, queue: Mutex::default() }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        // What a panic leaves behind is whole: every change is one step.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an update for later. Whether that made it lose what waited.
    pub(super) fn push(&self, update: &Arc<Update>, now: Instant) -> bool {
        if update.revision <= self.after {
            return false;
        }
        let mut queue = self.queue();
        if let Some(gap) = &mut queue.lost {
            gap.to = update.revision;
            gap.updates = gap.updates.map(|n| n + 1);
            return false;
        }
        // Found twice: by its id and by its UUID.
        if queue.updates.back().is_some_and(|(_, last)| Arc::ptr_eq(last, update)) {
            return false;
        }
        queue.updates.push_back((now, Arc::clone(update)));
        queue.samples += update.samples;
        let waited = queue.updates.front().map_or(Duration::ZERO, |(at, _)| now - *at);
        let full = queue.updates.len() > UPDATES_MAX || queue.samples > SAMPLES_MAX;
        if full || waited > WAIT_MAX {
            queue.lose(GapReason::Slow, update.revision, true);
            if let Some(gap) = &mut queue.lost {
                gap.to = update.revision;
            }
            return true;
        }
        false
    }

    pub(super) fn take_waker(&self) -> Option<Waker> {
        self.queue().waker.take()
    }

    /// Ready once a whole revision, or a loss, is there.
    pub(super) fn poll_ready(&self, cx: &mut Context<'_>, dispatched: &AtomicI64) -> Poll<()> {
        let mut queue = self.queue();
        // Read under the lock: who dispatches takes the waker after it has advanced this.
        let whole = dispatched.load(Acquire);
        let first = queue.updates.front();
        if queue.lost.is_some() || first.is_some_and(|(_, update)| update.revision <= whole) {
            return Poll::Ready(());
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes all updates of the next whole revision; `Err` when there is a loss.
    pub(super) fn take(&self, dispatched: &AtomicI64) -> Result<Vec<Arc<Update>>, ()> {
        let mut queue = self.queue();
        if queue.lost.is_some() {
            return Err(());
        }
        let whole = dispatched.load(Acquire);
        let mut taken: Vec<Arc<Update>> = Vec::new();
        while let Some((_, update)) = queue.updates.front() {
            let same = taken.first().is_none_or(|first| first.revision == update.revision);
            if update.revision > whole || !same {
                break;
            }
            let Some((_, update)) = queue.updates.pop_front() else { break };
            queue.samples -= update.samples;
            taken.push(update);
        }
        Ok(taken)
    }
}
