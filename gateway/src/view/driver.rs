//! Drives the fold: two watches in, published snapshots out. All of the view's standing I/O.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use nexus_common::{
    etcd::{Change, Error, Event, follow},
    keyspace::Keyspace,
    model::Lane,
    store::Reader,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    fold::{Fold, Lost, TruthChange},
    intake::{self, Intake, Planned},
    live::{self, News},
    load,
};

/// Watch answers that may wait while the view is loaded: a watch that is not read makes etcd
/// work (it reads all of history again for a laggard).
const EVENTS_MAX: usize = 4096;
/// Fetches of messages at once: enough to hide a round trip, few enough to bound memory
/// (16 messages of 512 KiB each, at most).
const FETCHES_MAX: usize = 16;
/// Shortest time between two published snapshots: each copies what changed in between.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// How long a commit may wait for its progress before the view is loaded again.
const HELD_MAX: Duration = Duration::from_secs(10);

/// One whole revision of truth with its messages, or a sign of life.
struct Batch {
    revision: i64,
    received: Instant,
    steps: Vec<TruthChange>,
}

/// Why the loop must load again.
#[derive(Debug, thiserror::Error)]
enum Again {
    #[error("a watch listed again: changes in between were missed")]
    Gap,
    #[error("commits waited too long for progress")]
    Held,
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Etcd(#[from] Error),
}

/// Keeps `shared` up to date until `stop`.
pub(super) async fn drive(shared: Arc<Shared>, stop: CancellationToken) {
    let etcd = shared.reader.etcd().clone();
    let (tell_truth, truth) = mpsc::channel(EVENTS_MAX);
    let (tell_places, places) = mpsc::channel(EVENTS_MAX);
    let mut watches = JoinSet::new();
    let keyspace = etcd.keyspace().clone();
    watches.spawn(follow(etcd.clone(), keyspace.truth(), tell_truth, stop.clone()));
    watches.spawn(follow(etcd, keyspace.places(), tell_places, stop.clone()));
    let mut driver = Driver::new(shared, truth, places);
    tokio::select! {
        () = stop.cancelled() => {}
        () = driver.run() => {}
    }
}

struct Driver {
    shared: Arc<Shared>,
    keyspace: Keyspace,
    truth: mpsc::Receiver<Event>,
    places: mpsc::Receiver<Event>,
    /// Revision of the last listing of each watch; none before the first.
    listed: (Option<i64>, Option<i64>),
    /// Revision of the load: what is not after it is in it.
    loaded: i64,
    partitions: u16,
    intake: Intake,
    waiting: VecDeque<(i64, Instant, Vec<Change>)>,
    fetching: FuturesOrdered<BoxFuture<'static, Result<Batch, Again>>>,
    held_since: Option<Instant>,
    /// What subscribers are told with the next snapshot.
    news: Vec<News>,
    dirty: bool,
    published: Instant,
}

impl Driver {
    fn new(
        shared: Arc<Shared>,
        truth: mpsc::Receiver<Event>,
        places: mpsc::Receiver<Event>,
    ) -> Self {
        Self {
            keyspace: shared.reader.etcd().keyspace().clone(),
            shared,
            truth,
            places,
            listed: (None, None),
            loaded: 0,
            partitions: 1,
            intake: Intake::default(),
            waiting: VecDeque::new(),
            fetching: FuturesOrdered::new(),
            held_since: None,
            news: Vec::new(),
            dirty: false,
            published: Instant::now(),
        }
    }

    /// Returns only when both watches are gone.
    async fn run(&mut self) {
        let mut pause = Duration::from_millis(50);
        loop {
            if !self.both_listed().await {
                return;
            }
            let began = Instant::now();
            let at_least = self.listed.0.max(self.listed.1).unwrap_or(0);
            let previous = self.shared.current();
            match load::load(&self.shared.reader, at_least, previous.as_deref()).await {
                Ok((fold, partitions)) => {
                    self.partitions = partitions;
                    self.begin(&fold, began);
                    pause = Duration::from_millis(50);
                    match self.keep(fold).await {
                        Ok(()) => return,
                        Err(why) => tracing::info!(%why, "loading the view again"),
                    }
                    self.shared.meters.reloads.inc();
                }
                Err(error) => {
                    tracing::warn!(%error, "could not load the view, trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// Waits until both watches have begun. False when one is gone.
    async fn both_listed(&mut self) -> bool {
        while self.listed.0.is_none() {
            match self.truth.recv().await {
                Some(Event::Snapshot { revision, .. }) => self.listed.0 = Some(revision),
                Some(_) => {}
                None => return false,
            }
        }
        while self.listed.1.is_none() {
            match self.places.recv().await {
                Some(Event::Snapshot { revision, .. }) => self.listed.1 = Some(revision),
                Some(_) => {}
                None => return false,
            }
        }
        true
    }

    fn begin(&mut self, fold: &Fold, began: Instant) {
        let now = fold.now();
        self.loaded = now.revision;
        self.intake = Intake::from(now.lanes.iter().map(|(lane, p)| (lane.clone(), p.next)));
        self.waiting.clear();
        self.fetching = FuturesOrdered::new();
        self.held_since = None;
        self.news.clear();
        self.shared.heard(began);
        self.shared.publish_loaded(Arc::new(fold.now().clone()));
        self.dirty = false;
        self.published = Instant::now();
        tracing::info!(
            revision = now.revision,
            blocks = now.block_count(),
            queued_messages = now.queue.messages,
            seconds = began.elapsed().as_secs_f64(),
            "view loaded"
        );
    }

    /// Applies what comes. `Ok` when a watch is gone.
    async fn keep(&mut self, mut fold: Fold) -> Result<(), Again> {
        loop {
            self.start_fetches()?;
            let publish_at = self.published + PUBLISH_EVERY;
            let check_at = Instant::now() + HELD_MAX / 10;
            tokio::select! {
                Some(batch) = self.fetching.next(), if !self.fetching.is_empty() => {
                    self.apply(&mut fold, batch?)?;
                }
                event = self.places.recv() => match event {
                    Some(event) => self.on_places(&mut fold, event)?,
                    None => return Ok(()),
                },
                event = self.truth.recv(), if self.waiting.is_empty() => match event {
                    Some(event) => self.on_truth(event)?,
                    None => return Ok(()),
                },
                () = sleep_until(publish_at), if self.dirty => self.publish(&fold),
                () = sleep_until(check_at) => {}
            }
            self.watch_held(&fold)?;
        }
    }

    fn on_truth(&mut self, event: Event) -> Result<(), Again> {
        let received = Instant::now();
        match event {
            Event::Snapshot { revision, .. } => {
                self.listed.0 = Some(revision);
                return if revision > self.loaded { Err(Again::Gap) } else { Ok(()) };
            }
            Event::Changes { changes, .. } => {
                let groups = intake::by_revision(changes, self.loaded);
                let groups = groups.into_iter().map(|(at, group)| (at, received, group));
                self.waiting.extend(groups);
            }
            Event::Alive => self.waiting.push_back((0, received, Vec::new())),
        }
        Ok(())
    }

    fn on_places(&mut self, fold: &mut Fold, event: Event) -> Result<(), Again> {
        match event {
            Event::Snapshot { revision, .. } => {
                self.listed.1 = Some(revision);
                if revision > self.loaded { Err(Again::Gap) } else { Ok(()) }
            }
            Event::Changes { changes, .. } => {
                for (revision, group) in intake::by_revision(changes, self.loaded) {
                    let mut steps = Vec::new();
                    for change in &group {
                        steps.extend(intake::place(&self.keyspace, change).map_err(Error::from)?);
                    }
                    if !steps.is_empty() {
                        fold.places(revision, steps)?;
                        self.dirty = true;
                    }
                }
                Ok(())
            }
            Event::Alive => Ok(()),
        }
    }

    /// Starts fetching for the revisions that wait, in their order.
    fn start_fetches(&mut self) -> Result<(), Again> {
        while self.fetching.len() < FETCHES_MAX {
            let Some((revision, received, group)) = self.waiting.pop_front() else { break };
            let mut planned = Vec::with_capacity(group.len());
            for change in &group {
                let plan = self.intake.plan(&self.keyspace, change);
                planned.extend(plan.map_err(Error::from)?);
            }
            let reader = self.shared.reader.clone();
            let partitions = self.partitions;
            let batch = async move {
                let mut steps = Vec::with_capacity(planned.len());
                for step in planned {
                    steps.push(complete(&reader, partitions, step).await?);
                }
                Ok(Batch { revision, received, steps })
            };
            self.fetching.push_back(batch.boxed());
        }
        Ok(())
    }

    fn apply(&mut self, fold: &mut Fold, batch: Batch) -> Result<(), Again> {
        if !batch.steps.is_empty() {
            self.news.extend(live::news(batch.revision, &batch.steps));
            fold.truth(batch.revision, batch.steps)?;
            self.dirty = true;
        }
        let idle = self.fetching.is_empty() && self.waiting.is_empty();
        if self.dirty && (idle || self.published.elapsed() >= PUBLISH_EVERY) {
            self.publish(fold);
        }
        self.shared.heard(batch.received);
        Ok(())
    }

    fn publish(&mut self, fold: &Fold) {
        let news = std::mem::take(&mut self.news);
        self.shared.publish(Arc::new(fold.now().clone()), news);
        self.dirty = false;
        self.published = Instant::now();
    }

    fn watch_held(&mut self, fold: &Fold) -> Result<(), Again> {
        if fold.held() == 0 {
            self.held_since = None;
            return Ok(());
        }
        let since = *self.held_since.get_or_insert_with(Instant::now);
        // While truth itself is being fetched, waiting is as it should be.
        if since.elapsed() > HELD_MAX && self.fetching.is_empty() {
            return Err(Again::Held);
        }
        Ok(())
    }
}

async fn complete(
    reader: &Reader,
    partitions: u16,
    planned: Planned,
) -> Result<TruthChange, Again> {
    let (lane, from, progress, revision) = match planned {
        Planned::Ready(change) => return Ok(change),
        Planned::Fetch { lane, from, progress, revision } => (lane, from, progress, revision),
    };
    let messages = if progress.next > from {
        fetch(reader, partitions, &lane, from..progress.next, revision).await?
    } else {
        Vec::new()
    };
    Ok(TruthChange::Progress(lane, progress, load::read_all(messages).await))
}

/// Tries until etcd answers; only a compacted revision ends it.
async fn fetch(
    reader: &Reader,
    partitions: u16,
    lane: &Lane,
    seqs: std::ops::Range<u64>,
    revision: i64,
) -> Result<Vec<nexus_common::queue::Received>, Again> {
    let partition = lane.partition(partitions);
    loop {
        let read = reader.messages(partition, lane, seqs.start, seqs.end, Some(revision)).await;
        match read {
            Ok(messages) => return Ok(messages),
            Err(error @ Error::Compacted { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, %lane, "could not fetch messages, trying again");
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}
