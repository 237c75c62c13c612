//! One claimed shard: read, enqueue, and hold back when the queue is full.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nexus_common::{
    crash_point,
    etcd::{Claim, Error},
    keyspace::{ClaimItem, Progress, Replay, Source, SourceKind},
    model::{HostName, IdError, Lane},
    queue::{Enqueued, Producer},
    runtime::{Life, Work},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::sleep,
};

use crate::{
    args::Args,
    askers::Askers,
    prepare::{PrepareError, Prepared, Task},
    source::{
        CsvFile, FileError,
        csv::SeriesCache,
        fetched::Fetched,
        scrape::{discover::Discovered, fetch::FetchError, target::TargetFiles},
    },
    sources::Sources,
};

/// Pause after something failed, and between looks at a full queue.
const PAUSE: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(25);
/// Least time between two log lines about the same thing.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Rejected rows told in one line's time.
const REJECTS_TOLD: usize = 5;

/// What the shards of a process share.
pub(crate) struct Shards {
    pub(crate) life: Life,
    pub(crate) args: Arc<Args>,
    pub(crate) sources: Arc<Sources>,
    /// This host, by the name under which its GPUs are known.
    pub(crate) host: Option<HostName>,
    /// How many shards are read at the same time.
    pub(crate) permits: Arc<Semaphore>,
    /// Series met by shards that ended: the next one of the same file meets them again.
    pub(crate) cache: Arc<Mutex<Option<SeriesCache>>>,
    /// Files of targets that were read.
    pub(crate) target_files: Arc<TargetFiles>,
    /// Files that lie on web servers.
    pub(crate) fetched: Arc<Fetched>,
    /// Lists of targets that others keep.
    pub(crate) discovered: Arc<Discovered>,
    /// Who asks targets.
    pub(crate) askers: Arc<Askers>,
    /// Whether etcd is too full to take more.
    pub(crate) full: Arc<AtomicBool>,
    pub(crate) told: Arc<Mutex<Told>>,
}

/// When rejected rows and waiting were last told.
#[derive(Default)]
pub(crate) struct Told {
    rejects: Option<(Instant, usize)>,
    waiting: Option<Instant>,
}

/// Why work on a shard ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShardError {
    #[error(transparent)]
    Etcd(#[from] Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("prepare to ask targets")]
    Fetch(#[from] FetchError),
    #[error("name what is measured")]
    Name(#[from] IdError),
    #[error("a thread of ours panicked")]
    Thread(#[from] tokio::task::JoinError),
}

/// How work on a shard goes on.
pub(crate) enum Go {
    /// Open it again: its progress is not what we thought.
    Again,
    /// Nothing more to do.
    Ended,
}

impl Shards {
    /// Works until the shard's end, or until asked to leave, fenced, or out of session.
    pub(crate) async fn serve(self: Arc<Self>, work: Work) {
        let ClaimItem::Shard(lane) = work.claim.item().clone() else { return };
        let lost = self.life.session.lost().clone();
        // Anew for whoever waits for it: one that is over must not be asked again.
        let gone = || async {
            tokio::select! {
                () = work.leave.cancelled() => {}
                () = lost.cancelled() => {}
            }
        };
        loop {
            let ended = self.stream(&lane, work.claim.clone(), &work.busy, pin!(gone())).await;
            match ended {
                Ok(Go::Again) => {}
                Ok(Go::Ended) | Err(ShardError::Etcd(Error::SessionLost { .. })) => return,
                Err(ShardError::File(error)) => {
                    crash_point!("source.changed");
                    tracing::error!(%lane, %error, "the source cannot be read here, leaving it to others");
                    self.sources.shun(&lane.source);
                    return;
                }
                Err(
                    error @ (ShardError::Prepare(_) | ShardError::Name(_) | ShardError::Fetch(_)),
                ) => {
                    let error = anyhow::Error::from(error);
                    tracing::error!(%lane, error = format!("{error:#}"), "the shard cannot be read on, leaving it to others");
                    self.sources.shun(&lane.source);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%lane, %error, "interrupted, going on from the last commit");
                    tokio::select! {
                        () = gone() => return,
                        () = sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    /// From the shard's progress on, until something ends it.
    async fn stream(
        &self,
        lane: &Lane,
        claim: Claim,
        busy: &AtomicBool,
        mut gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        let Some(source) = self.sources.get(&lane.source) else { return Ok(Go::Ended) };
        if source.kind.is_live() {
            return self.follow(lane, claim, &source, busy, gone).await;
        }
        let SourceKind::Csv { path, bytes, fingerprint, replay, mapping } = source.kind else {
            return Ok(Go::Ended);
        };
        // A paced shard mostly sleeps, and must not keep others from running.
        let _permit = if replay.is_none() {
            tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                permit = Arc::clone(&self.permits).acquire_owned() => permit.ok(),
            }
        } else {
            None
        };
        busy.store(true, Relaxed);
        let Some(producer) = Producer::open(&self.life, claim, lane.clone()).await? else {
            return Ok(Go::Ended);
        };
        if producer.progress().done {
            return Ok(Go::Ended);
        }
        let start = producer.progress().range.start;
        let fetched = Arc::clone(&self.fetched);
        let file = spawn_blocking(move || {
            fetched
                .open_same(&path, bytes, &fingerprint, mapping)?
                .at_shard(start)
                .map_err(|error| error.of(&path))
        })
        .await??;
        self.pump(producer, file, replay, gone).await
    }

    /// From now on, along the wall clock. It mostly sleeps, and must not keep others from running.
    async fn follow(
        &self,
        lane: &Lane,
        claim: Claim,
        source: &Source,
        busy: &AtomicBool,
        gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        busy.store(true, Relaxed);
        let producer = Producer::open(&self.life, claim, lane.clone()).await?;
        let Some(producer) = producer.filter(|producer| !producer.progress().done) else {
            return Ok(Go::Ended);
        };
        match source.kind {
            SourceKind::Simulate(_) => self.simulate(producer, gone).await,
            SourceKind::Scrape(_) => self.scrape(producer, gone).await,
            SourceKind::Follow(_) => self.tail(producer, gone).await,
            SourceKind::Nvml(_) => self.measure(producer, gone).await,
            SourceKind::Csv { .. } | SourceKind::Declared { .. } | SourceKind::Push => {
                Ok(Go::Ended)
            }
        }
    }

    /// Reads in a thread, enqueues here: while one batch is on its way to etcd, the next is read.
    async fn pump(
        &self,
        mut producer: Producer,
        file: CsvFile,
        replay: Option<Replay>,
        mut gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        let looped = replay.as_ref().is_some_and(|r| r.looped);
        let progress = producer.progress();
        let task = Task {
            file,
            cluster: self.life.process.args.cluster_id.clone(),
            range: progress.range.clone(),
            offset: progress.offset,
            round: progress.round,
            rows_max: self.args.batch_size,
            replay,
        };
        // One batch waits while one is being sent: two in memory, with the one being read three.
        let (to, mut prepared) = mpsc::channel(1);
        let cache = self.cache.lock().ok().and_then(|mut c| c.take()).unwrap_or_default();
        let keep = Arc::clone(&self.cache);
        let reading = spawn_blocking(move || {
            let cache = task.run(cache, &to);
            if let Ok(mut kept) = keep.lock() {
                *kept = Some(cache);
            }
        });
        let go = loop {
            let next = tokio::select! {
                () = gone.as_mut() => break Ok(Go::Ended),
                next = prepared.recv() => next,
            };
            let batch = match next {
                Some(Ok(batch)) => batch,
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(Go::Ended),
            };
            let room = self.wait_for_room(&mut producer);
            tokio::select! {
                () = gone.as_mut() => break Ok(Go::Ended),
                waited = room => waited?,
            }
            let next = batch.advance(producer.progress(), looped);
            match self.enqueue(&mut producer, &batch, next).await {
                Ok(Enqueued::Committed) if producer.progress().done => break Ok(Go::Ended),
                Ok(Enqueued::Committed) => {}
                Ok(Enqueued::Moved) => break Ok(Go::Again),
                Ok(Enqueued::Fenced) => {
                    tracing::info!(lane = %producer.lane(), "the shard is somebody else's now");
                    break Ok(Go::Ended);
                }
                Err(error) => break Err(error.into()),
            }
        };
        self.life.process.metrics.figures.backlog.store(0, Relaxed);
        drop(prepared);
        reading.await?;
        go
    }

    /// Enqueues a batch with the progress it leads to.
    pub(crate) async fn enqueue(
        &self,
        producer: &mut Producer,
        batch: &Prepared,
        next: Progress,
    ) -> Result<Enqueued, Error> {
        let enqueued = producer.enqueue(&batch.messages, next).await?;
        if enqueued == Enqueued::Committed {
            let metrics = &self.life.process.metrics;
            metrics.count_rows("accepted", batch.batch.rows_accepted);
            for (reason, rows) in &batch.batch.rejected {
                metrics.count_rows(reason.as_str(), *rows);
            }
            metrics.figures.backlog.store(producer.backlog(), Relaxed);
            self.tell_rejects(producer.lane(), batch);
        }
        Ok(enqueued)
    }

    /// Holds back while the lane is too deep or etcd too full: nothing is dropped.
    pub(crate) async fn wait_for_room(&self, producer: &mut Producer) -> Result<(), Error> {
        let started = Instant::now();
        let max = self.args.backlog_max;
        loop {
            let full = self.full.load(Relaxed);
            if producer.has_room(max).await? && !full {
                return Ok(());
            }
            self.tell_waiting(producer, full);
            sleep(LOOK).await;
            let metrics = &self.life.process.metrics;
            metrics.backpressure_seconds.inc_by(LOOK.as_secs_f64());
            metrics.figures.lag_ms.store(started.elapsed().as_millis() as u64, Relaxed);
        }
    }

    fn tell_waiting(&self, producer: &Producer, full: bool) {
        let Ok(mut told) = self.told.lock() else { return };
        if told.waiting.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        told.waiting = Some(Instant::now());
        if full {
            tracing::warn!("backpressure: etcd is 80 % full, waiting for retention to make room");
        } else {
            let (lane, waiting) = (producer.lane(), producer.backlog());
            tracing::warn!(%lane, waiting, "backpressure: waiting for collectors to take messages");
        }
    }

    fn tell_rejects(&self, lane: &Lane, batch: &Prepared) {
        let Ok(mut told) = self.told.lock() else { return };
        for reject in &batch.rejects {
            let (since, count) = match told.rejects {
                Some((since, count)) if since.elapsed() < TELL_EVERY => (since, count),
                _ => (Instant::now(), 0),
            };
            told.rejects = Some((since, count + 1));
            if count < REJECTS_TOLD {
                tracing::warn!(
                    %lane,
                    byte = reject.offset,
                    row = reject.row,
                    reason = %reject.reason,
                    detail = reject.detail,
                    "row rejected"
                );
            } else if count == REJECTS_TOLD {
                tracing::warn!(%lane, "more rows are rejected; they are counted by reason in the shard's progress");
            }
        }
    }
}
