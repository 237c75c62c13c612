//! The queue: streamers append messages to lanes, collectors take them in order.
//!
//! [`Producer`] owns a shard's progress, [`Consumer`] a partition's cursors. Neither trusts what
//! it remembers: every write is a [`Commit`].

mod pack;

pub use pack::{fits, messages, messages_of_good, pack, sections_of_good};

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    crash_in_flight, crash_point,
    etcd::{Claim, Commit, Error, Etcd, Outcome, Position, RangeRead},
    keyspace::{
        CommitSummary, Cursor, DeadLetter, Key, KeyRange, Keyspace, LaneMove, Progress, Receipt,
        from_json, to_json,
    },
    limits::{BLOCK_BYTES_MAX, ENQUEUE_MESSAGES_MAX, TXN_BYTES_MAX},
    model::{Lane, PartitionId, SourceId, Timestamp},
    runtime::{Life, Metrics},
};

/// Messages read in one request: together below the answer limit.
const RECEIVE_PAGE: usize = 16;

/// Over how long a lane's rate is measured: long enough for what comes every few seconds.
const RATE_OVER: Duration = Duration::from_secs(10);
/// And the first time.
const RATE_FIRST: Duration = Duration::from_secs(1);

/// One message, ready to be sent.
#[derive(Debug, Clone)]
pub struct Message {
    /// A block.
    pub bytes: Bytes,
    /// Samples in it: part of the key, so that it is counted even if it cannot be read.
    pub samples: u64,
}

/// What became of an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The messages are durable and the progress moved.
    Committed,
    /// The shard is no longer ours: drop everything that was read.
    Fenced,
    /// The progress was not as we saw it; it was read again: go on from there.
    Moved,
}

/// Appends messages to one lane under the claim on its shard.
pub struct Producer {
    etcd: Etcd,
    metrics: Arc<Metrics>,
    claim: Claim,
    lane: Lane,
    partition: PartitionId,
    progress: Progress,
    position: Position,
    /// First message not yet taken, as last seen.
    cursor: u64,
    /// When the present measurement of the rate began, and the samples enqueued until then.
    rated: (Instant, u64),
}

impl Producer {
    /// Reads where the shard stands. `None` if there is no such shard.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn open(life: &Life, claim: Claim, lane: Lane) -> Result<Option<Self>, Error> {
        let etcd = life.process.etcd.clone();
        let partition = lane.partition(life.config.partitions);
        let key = etcd.keyspace().key(&Key::Shard(lane.clone()));
        let Some(entry) = etcd.get(&key).await? else { return Ok(None) };
        let progress: Progress = from_json(&entry.key, &entry.value)?;
        let mut producer = Self {
            metrics: Arc::clone(&life.process.metrics),
            claim,
            lane,
            partition,
            rated: (Instant::now(), progress.samples),
            progress,
            position: Position::seen(key, Some(&entry)),
            cursor: 0,
            etcd,
        };
        producer.look_at_cursor().await?;
        Ok(Some(producer))
    }

    /// How far the shard was read.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The lane.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Messages of this lane that nobody has taken yet, as last seen.
    pub fn backlog(&self) -> u64 {
        self.progress.next.saturating_sub(self.cursor)
    }

    /// Whether fewer than `max` messages wait. It looks before it says no: what was taken since the
    /// last look is not known yet.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn has_room(&mut self, max: u64) -> Result<bool, Error> {
        if self.backlog() >= max {
            self.look_at_cursor().await?;
        }
        Ok(self.backlog() < max)
    }

    /// Looks how far the lane was committed.
    async fn look_at_cursor(&mut self) -> Result<(), Error> {
        if let Some(entry) = self.etcd.get(&self.cursor_key()).await? {
            self.cursor = from_json::<Cursor>(&entry.key, &entry.value)?.next;
        }
        Ok(())
    }

    /// How many bytes of messages fit in one enqueue.
    pub fn room() -> usize {
        // The progress, its cursor and the keys need far less than the rest.
        TXN_BYTES_MAX - 64 * 1024
    }

    /// Appends `messages` and moves the progress to `progress` (whose `next`, `claim`, `at` and
    /// `rate_milli` are filled in here), in one transaction.
    ///
    /// # Errors
    /// When the outcome cannot be found out, or etcd refuses: open the producer again before
    /// doing anything else.
    pub async fn enqueue(
        &mut self,
        messages: &[Message],
        progress: Progress,
    ) -> Result<Enqueued, Error> {
        self.enqueue_with(messages, progress, |_| {}).await
    }

    /// [`Producer::enqueue`], only if `source` still is as it was seen and none of the requests
    /// whose samples these are was enqueued before; each leaves its receipt. `Moved` may also mean
    /// that there is such a request: [`receipts`] tells.
    ///
    /// # Errors
    /// As there, also when the lease of the receipts is gone.
    pub async fn enqueue_once(
        &mut self,
        messages: &[Message],
        progress: Progress,
        source: &Position,
        requests: &[(u128, Receipt)],
        lease: i64,
    ) -> Result<Enqueued, Error> {
        let keyspace = self.etcd.keyspace().clone();
        let id = self.lane.source.clone();
        self.enqueue_with(messages, progress, |commit| {
            commit.require_unchanged(source);
            for (hash, receipt) in requests {
                let key = keyspace.key(&Key::Request(id.clone(), *hash));
                commit.create(&key, to_json(receipt), lease);
            }
        })
        .await
    }

    async fn enqueue_with(
        &mut self,
        messages: &[Message],
        mut progress: Progress,
        add: impl FnOnce(&mut Commit<'_>),
    ) -> Result<Enqueued, Error> {
        debug_assert!(messages.len() <= ENQUEUE_MESSAGES_MAX);
        debug_assert!(messages.iter().all(|m| m.bytes.len() <= BLOCK_BYTES_MAX));
        progress.next = self.progress.next + messages.len() as u64;
        progress.claim = self.claim.create_revision();
        progress.at = Timestamp::now();
        let rated = self.rate(&mut progress);
        let mut commit = Commit::new(&self.claim, &self.position, to_json(&progress));
        for (seq, message) in (self.progress.next..).zip(messages) {
            let key = Key::Message(self.partition, self.lane.clone(), seq, message.samples);
            commit.put(&self.etcd.keyspace().key(&key), message.bytes.to_vec());
        }
        add(&mut commit);
        commit.read(&self.cursor_key());
        let started = Instant::now();
        crash_point!("enqueue.before_send");
        let outcome = crash_in_flight!("enqueue", commit.run(&self.etcd)).await;
        self.metrics.count_txn("enqueue", started, outcome.as_ref());
        match outcome? {
            Outcome::Committed { revision, reads } => {
                crash_point!("enqueue.applied");
                self.position.mod_revision = revision;
                self.progress = progress;
                self.rated = rated.unwrap_or(self.rated);
                if let Some(Some(entry)) = reads.and_then(|reads| reads.into_iter().next()) {
                    self.cursor = from_json::<Cursor>(&entry.key, &entry.value)?.next;
                }
                let (samples, bytes) = messages
                    .iter()
                    .fold((0, 0), |(s, b), m| (s + m.samples, b + m.bytes.len() as u64));
                self.metrics.count_samples(samples, bytes);
                Ok(Enqueued::Committed)
            }
            Outcome::Fenced => {
                crash_point!("enqueue.fenced");
                Ok(Enqueued::Fenced)
            }
            Outcome::Stale => self.read_again().await,
        }
    }

    /// Fills in the rate where there is enough to tell it from: of the first second, if nothing
    /// was told before. Returns where the next measurement begins, if this one ended.
    fn rate(&self, progress: &mut Progress) -> Option<(Instant, u64)> {
        let (since, before) = self.rated;
        let took = since.elapsed();
        let enough = if progress.rate_milli == 0 { RATE_FIRST } else { RATE_OVER };
        if took < enough {
            return None;
        }
        let samples = progress.samples.saturating_sub(before) as f64;
        progress.rate_milli = (samples * 1000.0 / took.as_secs_f64()).round() as u64;
        Some((Instant::now(), progress.samples))
    }

    async fn read_again(&mut self) -> Result<Enqueued, Error> {
        let Some(entry) = self.etcd.get(&self.position.key).await? else {
            // The source was withdrawn.
            return Ok(Enqueued::Fenced);
        };
        self.progress = from_json(&entry.key, &entry.value)?;
        self.position = Position::seen(self.position.key.clone(), Some(&entry));
        self.look_at_cursor().await?;
        Ok(Enqueued::Moved)
    }

    fn cursor_key(&self) -> String {
        self.etcd.keyspace().key(&Key::Cursor(self.partition, self.lane.clone()))
    }
}

/// Which of some requests to `source` were enqueued already, as far as receipts are kept.
///
/// # Errors
/// When etcd does not answer.
pub async fn receipts(etcd: &Etcd, source: &SourceId, hashes: &[u128]) -> Result<Vec<bool>, Error> {
    let ranges: Vec<KeyRange> = hashes
        .iter()
        .map(|hash| KeyRange::one(&etcd.keyspace().key(&Key::Request(source.clone(), *hash))))
        .collect();
    let found = etcd.ranges(&ranges).await?;
    Ok(found.iter().map(|listing| !listing.entries.is_empty()).collect())
}

/// A message taken from a lane, not yet committed.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its lane.
    pub lane: Lane,
    /// Its sequence number.
    pub seq: u64,
    /// Samples that its key promises.
    pub samples: u64,
    /// The block.
    pub bytes: Bytes,
}

/// One lane's cursor, as we last saw or wrote it.
#[derive(Debug, Clone)]
struct LaneCursor {
    cursor: Cursor,
    position: Position,
}

/// What a commit takes out of the queue.
#[derive(Debug, Default)]
pub struct Intake {
    /// Whole messages, by lane, in order and without a gap from the cursor on.
    pub messages: Vec<Received>,
    /// Those of them that could not be decoded: position in `messages` and why.
    pub dead: Vec<(usize, String)>,
}

/// Takes messages from the lanes of one partition under the claim on it.
pub struct Consumer {
    etcd: Etcd,
    claim: Claim,
    partition: PartitionId,
    lanes: BTreeMap<Lane, LaneCursor>,
    commits: Position,
    number: u64,
}

impl Consumer {
    /// Reads where the partition stands.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn open(life: &Life, claim: Claim, partition: PartitionId) -> Result<Self, Error> {
        let mut consumer = Self {
            etcd: life.process.etcd.clone(),
            claim,
            partition,
            lanes: BTreeMap::new(),
            commits: Position { key: String::new(), mod_revision: 0 },
            number: 0,
        };
        consumer.read_again().await?;
        Ok(consumer)
    }

    /// Reads the cursors and the last commit again, at one revision.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn read_again(&mut self) -> Result<(), Error> {
        let keyspace = self.etcd.keyspace().clone();
        let key = keyspace.key(&Key::Commit(self.partition));
        let ranges = [
            keyspace.prefix(&format!("commits/{}", self.partition)),
            keyspace.prefix(&format!("cursors/{}/", self.partition)),
        ];
        let mut listings = self.etcd.ranges(&ranges).await?.into_iter();
        let commits = listings.next().unwrap_or_default();
        let last = commits.entries.first();
        self.number = match last {
            Some(entry) => from_json::<CommitSummary>(&entry.key, &entry.value)?.number,
            None => 0,
        };
        self.commits = Position::seen(key, last);
        self.lanes.clear();
        for entry in listings.next().unwrap_or_default().entries {
            if let Key::Cursor(_, lane) = keyspace.parse(&entry.key)? {
                let key = String::from_utf8_lossy(&entry.key).into_owned();
                let cursor = from_json(&entry.key, &entry.value)?;
                let position = Position::seen(key, Some(&entry));
                self.lanes.insert(lane, LaneCursor { cursor, position });
            }
        }
        Ok(())
    }

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The claim it works under.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Sequence number of the next message to take from `lane`.
    pub fn next(&self, lane: &Lane) -> u64 {
        self.lanes.get(lane).map_or(0, |l| l.cursor.next)
    }

    /// Samples of `lane` that were taken so far.
    pub fn samples(&self, lane: &Lane) -> u64 {
        self.lanes.get(lane).map_or(0, |l| l.cursor.samples)
    }

    /// Number that the next commit will have.
    pub fn next_number(&self) -> u64 {
        self.number + 1
    }

    /// The messages of `lane` from `from` on: at most `limit`, stopping at the first gap. A read
    /// may be stale; the sequence numbers say so, and the cursor's guard makes it harmless.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn receive(
        &self,
        lane: &Lane,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Received>, Error> {
        let keyspace = self.etcd.keyspace();
        let begin = if left_out!(NoContiguity) { 0 } else { from };
        let range = keyspace.messages(self.partition, lane, begin, Keyspace::SEQ_END);
        let how =
            RangeRead { limit: Some(limit), page: RECEIVE_PAGE.min(limit), ..RangeRead::default() };
        let listing = self.etcd.range(&range, how).await?;
        let mut messages: Vec<Received> = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            let Key::Message(_, lane, seq, samples) = keyspace.parse(&entry.key)? else { break };
            if seq != from + messages.len() as u64 && !left_out!(NoContiguity) {
                break;
            }
            messages.push(Received { lane, seq, samples, bytes: entry.value });
        }
        Ok(messages)
    }

    /// Begins a commit that takes `intake` out of the queue and leaves `summary` behind (whose
    /// `number`, `lanes` and `claim` are filled in here). The store adds its blocks; then
    /// [`Consumer::settle`] with what became of it.
    pub fn begin(&self, intake: &Intake, mut summary: CommitSummary) -> (Commit<'_>, Taken) {
        let taken = self.take(intake);
        summary.number = self.next_number();
        summary.claim = self.claim.create_revision();
        summary.lanes = taken.moves();
        let mut commit = Commit::new(&self.claim, &self.commits, to_json(&summary));
        let keyspace = self.etcd.keyspace();
        for (lane, cursor, from) in &taken.lanes {
            let position = self.lanes.get(lane).map_or_else(
                || {
                    let key = keyspace.key(&Key::Cursor(self.partition, lane.clone()));
                    Position { key, mod_revision: 0 }
                },
                |l| l.position.clone(),
            );
            commit.advance(&position, to_json(cursor));
            let range = keyspace.messages(self.partition, lane, *from, cursor.next);
            commit.delete(
                &range,
                i64::try_from(cursor.next.saturating_sub(*from)).unwrap_or(i64::MAX),
            );
        }
        for (index, reason) in &intake.dead {
            if let Some(message) = intake.messages.get(*index) {
                let key = keyspace.key(&Key::Dead(message.lane.clone(), message.seq));
                commit.put(&key, self.dead_letter(message, reason));
            }
        }
        (commit, taken)
    }

    fn take(&self, intake: &Intake) -> Taken {
        let mut lanes: BTreeMap<Lane, (Cursor, u64)> = BTreeMap::new();
        for (index, message) in intake.messages.iter().enumerate() {
            let (cursor, _) = lanes.entry(message.lane.clone()).or_insert_with(|| {
                let known = self.lanes.get(&message.lane);
                let mut cursor = known.map_or_else(Cursor::default, |l| l.cursor.clone());
                cursor.claim = self.claim.create_revision();
                let from = cursor.next;
                (cursor, from)
            });
            debug_assert!(
                cursor.next == message.seq || left_out!(NoContiguity),
                "messages are contiguous from the cursor"
            );
            cursor.next = message.seq + 1;
            cursor.samples += message.samples;
            if intake.dead.iter().any(|(dead, _)| *dead == index) {
                cursor.dead += message.samples;
            }
        }
        let lanes = lanes.into_iter().map(|(lane, (cursor, from))| (lane, cursor, from)).collect();
        Taken { lanes }
    }

    fn dead_letter(&self, message: &Received, reason: &str) -> Vec<u8> {
        let letter = DeadLetter {
            reason: reason.to_owned(),
            samples: message.samples,
            partition: self.partition,
            at: Timestamp::now(),
        };
        let mut value = to_json(&letter);
        value.push(b'\n');
        value.extend_from_slice(&message.bytes);
        value
    }

    /// Takes note of what became of a commit. After anything but `Committed`, call
    /// [`Consumer::read_again`] before the next one (unless fenced: then stop).
    pub fn settle(&mut self, taken: Taken, outcome: &Outcome) {
        let Outcome::Committed { revision, .. } = outcome else { return };
        self.number += 1;
        self.commits.mod_revision = *revision;
        for (lane, cursor, _) in taken.lanes {
            let key = self.etcd.keyspace().key(&Key::Cursor(self.partition, lane.clone()));
            let position = Position { key, mod_revision: *revision };
            self.lanes.insert(lane, LaneCursor { cursor, position });
        }
    }
}

/// The cursors as a commit will leave them: lane, cursor, first message taken.
#[derive(Debug, Default)]
pub struct Taken {
    lanes: Vec<(Lane, Cursor, u64)>,
}

impl Taken {
    fn moves(&self) -> Vec<LaneMove> {
        let to_move = |(lane, cursor, from): &(Lane, Cursor, u64)| LaneMove {
            source: lane.source.clone(),
            shard: lane.shard,
            from: *from,
            to: cursor.next,
        };
        self.lanes.iter().map(to_move).collect()
    }
}
