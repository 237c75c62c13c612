//! The one task of a gateway that enqueues what is sent to it: all that waits, as far as it fits in
//! one transaction, then each sender is answered.
//!
//! A request is in one transaction or in none. What was asked of etcd and not answered may have
//! happened; the receipts, written in the same transaction, tell, also another gateway.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use nexus_common::{
    block::Section,
    etcd::Etcd,
    keyspace::{LastError, Progress, Receipt},
    limits::{ENQUEUE_MESSAGES_MAX, TXN_OPS_MAX},
    model::{ClusterId, SourceId, Timestamp},
    queue::{Enqueued, Message, Producer, receipts},
    runtime::Life,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{
    ROOM_WITHIN, Refusal,
    limits::WAITING_MAX,
    samples::{Tally, Told, packed_messages},
    seat::{ReceiptLease, Seat, SeatError},
};

/// How often it is tried again at once: longer, and whoever sent it should know.
const TRIES: u32 = 3;
/// How often it is looked whether there is room again: a collector commits some times a second.
const LOOK: Duration = Duration::from_millis(25);
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(100);
/// What a receipt needs in a transaction: its key twice, its value, and what is around them.
const RECEIPT_BYTES: usize = 1024;
/// Most requests in one transaction: a receipt each, compared and put, besides the claim, the
/// progress, the source and the cursor.
const TOGETHER_MAX: usize = 60;

const _: () = {
    assert!(TOGETHER_MAX + 3 <= TXN_OPS_MAX);
    assert!(TOGETHER_MAX < ENQUEUE_MESSAGES_MAX);
};

/// What becomes of a request that could be stored: whether it is there only since now.
pub(super) type Answer = Result<Stored, Refusal>;

/// Since when samples are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// Since this request.
    Now,
    /// Since an earlier one that was the same.
    Before,
}

/// A request that waits.
pub(super) struct Pending {
    pub(super) told: Told,
    /// When it began to wait.
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
}

impl Pending {
    fn bytes(&self) -> usize {
        let sections = self.told.sections.values().flatten();
        sections.map(Section::byte_len).sum::<usize>() + RECEIPT_BYTES
    }

    fn answer(self, answer: Answer) {
        // Whoever does not listen any more sends it again, and is told then.
        let _ = self.answer.send(answer);
    }
}

/// What a writer is told once.
pub(super) struct Setup {
    pub(super) source: SourceId,
    pub(super) backlog_max: u64,
    pub(super) full: Arc<AtomicBool>,
}

/// Enqueues, session after session. What waits outlives a session; the seat does not.
pub(super) struct Writer {
    setup: Setup,
    from: mpsc::Receiver<Pending>,
    waiting: VecDeque<Pending>,
    seat: Option<Seat>,
    lease: ReceiptLease,
    failures: u32,
}

/// How a transaction went.
enum Went {
    /// On to the next.
    On,
    /// Not at all: the same again, from what etcd holds.
    Again,
}

impl Writer {
    pub(super) fn new(setup: Setup, from: mpsc::Receiver<Pending>) -> Self {
        let (waiting, lease) = (VecDeque::new(), ReceiptLease::default());
        Self { setup, from, waiting, seat: None, lease, failures: 0 }
    }

    /// Works until the session's end; when the process stops, until everything that came before
    /// is answered.
    pub(super) async fn run(&mut self, life: &Life) {
        (self.seat, self.lease) = (None, ReceiptLease::default());
        tokio::select! {
            () = life.session.lost().cancelled() => {}
            () = self.work(life) => {}
        }
        life.process.metrics.figures.claims.store(0, Relaxed);
    }

    async fn work(&mut self, life: &Life) {
        while self.has_work(life).await {
            self.step(life).await;
        }
        if let Some(seat) = self.seat.take() {
            seat.release(&life.process.etcd).await;
        }
    }

    /// Waits for something to do. False when there will be nothing more.
    async fn has_work(&mut self, life: &Life) -> bool {
        while let Some(at) = self.waiting.iter().position(|one| one.answer.is_closed()) {
            // It was not promised, and will be sent again.
            self.waiting.remove(at);
        }
        if self.waiting.is_empty() {
            let stop = &life.process.stop;
            let first = tokio::select! {
                first = self.from.recv() => first,
                () = stop.cancelled() => {
                    self.from.close();
                    self.from.recv().await
                }
            };
            self.waiting.extend(first);
        }
        while self.waiting.len() < WAITING_MAX {
            let Ok(one) = self.from.try_recv() else { break };
            self.waiting.push_back(one);
        }
        !self.waiting.is_empty()
    }

    /// One transaction, or a reason why there is none.
    async fn step(&mut self, life: &Life) {
        let went = match self.try_step(life).await {
            Ok(went) => went,
            Err(SeatError::Refused(refusal)) => {
                self.leave(&life.process.etcd).await;
                return self.refuse(&refusal);
            }
            Err(SeatError::Etcd(error)) => {
                tracing::warn!(%error, "what was sent could not be enqueued, looking again");
                // It may be gone: another is granted.
                self.lease = ReceiptLease::default();
                Went::Again
            }
            Err(SeatError::Source(error)) => {
                tracing::warn!(%error, "the source of what is sent cannot be read");
                Went::Again
            }
        };
        match went {
            Went::On => self.failures = 0,
            Went::Again => {
                self.failures += 1;
                if self.failures >= TRIES {
                    self.failures = 0;
                    return self.refuse(&Refusal::Etcd);
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn try_step(&mut self, life: &Life) -> Result<Went, SeatError> {
        let etcd = &life.process.etcd;
        let Self { setup, waiting, seat, lease, .. } = self;
        let seat = ready(seat, life, &setup.source).await?;
        if setup.full.load(Relaxed) {
            // Room is made by retention, and that takes long.
            self.refuse(&Refusal::Full);
            return Ok(Went::On);
        }
        if !seat.producer.has_room(setup.backlog_max).await? {
            let (waiting, max) = (seat.producer.backlog(), setup.backlog_max);
            self.refuse_older(ROOM_WITHIN, &Refusal::Backlog { waiting, max });
            sleep(LOOK).await;
            life.process.metrics.backpressure_seconds.inc_by(LOOK.as_secs_f64());
            return Ok(Went::On);
        }
        let batch = Batch::of(waiting).map_err(|error| {
            tracing::error!(%error, "what was sent cannot be packed");
            Refusal::Internal
        })?;
        let lease = lease.of(etcd, batch.requests.len()).await?;
        let progress = batch.advance(seat.producer.progress());
        // Until an answer says where it stands.
        seat.stale = true;
        let enqueued = seat
            .producer
            .enqueue_once(&batch.messages, progress, &seat.source, &batch.requests, lease)
            .await?;
        match enqueued {
            Enqueued::Committed => {
                seat.stale = false;
                self.answer(&batch.hashes(), Stored::Now);
                Ok(Went::On)
            }
            Enqueued::Moved => {
                // By ourselves, without hearing of it; or one of these was enqueued before; or the
                // source is another now.
                let there = receipts(etcd, &setup.source, &batch.hashes()).await?;
                let known = batch.hashes().into_iter().zip(there).filter(|(_, there)| *there);
                let known: Vec<u128> = known.map(|(hash, _)| hash).collect();
                self.answer(&known, Stored::Before);
                Ok(if known.is_empty() { Went::Again } else { Went::On })
            }
            Enqueued::Fenced => {
                tracing::info!("the shard is somebody else's now, claiming another");
                self.seat = None;
                Ok(Went::Again)
            }
        }
    }

    async fn leave(&mut self, etcd: &Etcd) {
        if let Some(seat) = self.seat.take() {
            seat.release(etcd).await;
        }
    }

    /// Answers whoever sent one of these.
    fn answer(&mut self, hashes: &[u128], stored: Stored) {
        let (done, rest) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<VecDeque<_>, _>(|one| hashes.contains(&one.told.hash));
        self.waiting = rest;
        let mut seen: Vec<u128> = Vec::with_capacity(hashes.len());
        for one in done {
            // The same twice in one transaction: it was stored for the first.
            let first = !seen.contains(&one.told.hash);
            seen.push(one.told.hash);
            one.answer(Ok(if first { stored } else { Stored::Before }));
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.refuse_older(Duration::ZERO, refusal);
    }

    /// Refuses what has waited for so long: the first ones.
    fn refuse_older(&mut self, age: Duration, refusal: &Refusal) {
        while self.waiting.front().is_some_and(|one| one.since.elapsed() >= age) {
            let Some(one) = self.waiting.pop_front() else { break };
            one.answer(Err(refusal.clone()));
        }
    }
}

/// A seat that knows where it stands.
async fn ready<'a>(
    seat: &'a mut Option<Seat>,
    life: &Life,
    source: &SourceId,
) -> Result<&'a mut Seat, SeatError> {
    match seat.as_mut() {
        Some(known) if known.stale => known.reopen(life).await?,
        Some(_) => {}
        None => *seat = Some(Seat::take(life, source).await?),
    }
    life.process.metrics.figures.claims.store(1, Relaxed);
    seat.as_mut().ok_or_else(|| Refusal::Internal.into())
}

/// What goes into one transaction.
struct Batch {
    messages: Vec<Message>,
    requests: Vec<(u128, Receipt)>,
    tally: Tally,
}

impl Batch {
    /// As many requests as fit, the oldest first; at least one.
    fn of(waiting: &VecDeque<Pending>) -> Result<Self, nexus_common::block::EncodeError> {
        let mut taken: Vec<&Pending> = Vec::new();
        let mut bytes = 0;
        for one in waiting {
            if taken.iter().any(|other| other.told.hash == one.told.hash) {
                continue;
            }
            bytes += one.bytes();
            if !taken.is_empty() && (bytes > Producer::room() || taken.len() >= TOGETHER_MAX) {
                break;
            }
            taken.push(one);
        }
        loop {
            let batch = Self::packed(&taken)?;
            if batch.fits() || taken.len() < 2 {
                return Ok(batch);
            }
            taken.truncate(taken.len() / 2);
        }
    }

    fn packed(taken: &[&Pending]) -> Result<Self, nexus_common::block::EncodeError> {
        let sections = taken.iter().flat_map(|one: &&Pending| {
            let sections: &BTreeMap<ClusterId, Vec<Section>> = &one.told.sections;
            sections
        });
        let mut tally = Tally::default();
        for one in taken {
            tally.add(&one.told.tally);
        }
        let receipt = |one: &&Pending| (one.told.hash, Receipt { samples: one.told.tally.samples });
        let requests = taken.iter().map(receipt).collect();
        Ok(Self { messages: packed_messages(sections)?, requests, tally })
    }

    fn fits(&self) -> bool {
        let bytes: usize = self.messages.iter().map(|message| message.bytes.len()).sum();
        bytes + self.requests.len() * RECEIPT_BYTES <= Producer::room()
            && self.messages.len() <= ENQUEUE_MESSAGES_MAX
            && self.messages.len() + self.requests.len() + 2 <= TXN_OPS_MAX
    }

    fn hashes(&self) -> Vec<u128> {
        self.requests.iter().map(|(hash, _)| *hash).collect()
    }

    /// The progress with all of this in it.
    fn advance(&self, progress: &Progress) -> Progress {
        let mut next = progress.clone();
        next.samples += self.tally.samples;
        next.rows_accepted += self.tally.samples + self.tally.absent;
        next.rows_absent += self.tally.absent;
        if let Some(told) = &self.tally.first_refused {
            next.last_error = Some(LastError::new(Timestamp::now(), told));
        }
        for (reason, samples) in &self.tally.refused {
            *next.rows_rejected.entry((*reason).to_owned()).or_default() += samples;
        }
        next
    }
}
