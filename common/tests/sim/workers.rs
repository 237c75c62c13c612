//! The cast: streamers, collectors and janitors, written on the same library as the real ones.
//! They pause, get killed and start again; the seed says when.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use nexus_common::{
    etcd::{Claim, Entry, Error, Etcd, Outcome},
    keyspace::{ClaimItem, Progress, from_json},
    model::{ClusterId, HostName, Lane, PartitionId, Role, Timestamp},
    queue::{Consumer, Enqueued, Intake, Message, Producer, Received},
    runtime::Life,
    store::{NewBlock, Policy, Reader, Retention, StoredBlock, Writer},
    testing::try_life_on,
};
use tokio::time::sleep;

use crate::schedule::{PARTITIONS, Stage, lanes};

/// Lease of every session, in seconds: the shortest that is allowed.
const TTL: i64 = 3;
/// What is kept: short, so that history ends while the schedule runs.
const POLICY: Policy = Policy { age_seconds: 2, bytes: 0 };

/// What somebody does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Streamer,
    Collector,
    /// In a process of its own here; a collector's second task in Nexus.
    Janitor,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Streamer => "streamer",
            Part::Collector => "collector",
            Part::Janitor => "janitor",
        }
    }

    fn role(self) -> Role {
        match self {
            Part::Streamer => Role::Streamer,
            Part::Collector | Part::Janitor => Role::Collector,
        }
    }
}

/// A process, through all its lives.
pub(crate) struct Worker<'a> {
    stage: &'a Stage,
    part: Part,
    number: u32,
    rng: Rng,
}

/// Why a life went on to its end without an error.
type Lived = Result<(), Error>;

impl<'a> Worker<'a> {
    pub(crate) fn new(stage: &'a Stage, part: Part, number: u32, rng: Rng) -> Self {
        Self { stage, part, number, rng }
    }

    /// Lives until the schedule ends: killed now and then, and started again.
    pub(crate) async fn work(mut self) {
        for incarnation in 0.. {
            let who = format!("{}-{}.{incarnation}", self.part.name(), self.number);
            let (etcd, _wire) = self.stage.connect(&who).await;
            let lifetime = Duration::from_millis(match self.rng.u8(..4) {
                0 => self.rng.u64(..3_000),
                _ => self.rng.u64(..60_000),
            });
            let (stage, part, rng) = (self.stage, self.part, self.rng.fork());
            let lives = Lives { stage, who: &who, part, rng };
            tokio::select! {
                biased;
                () = lives.one_after_another(etcd) => {}
                () = sleep(lifetime) => {}
            }
            // As by kill -9: nothing it had under way gets out, its lease is not given back.
            stage.chaos.note(&who, "is killed");
            stage.chaos.cut_off(&who, Duration::from_secs(100_000));
            sleep(Duration::from_millis(self.rng.u64(..2_000))).await;
        }
    }
}

/// Session after session of one process.
struct Lives<'a> {
    stage: &'a Stage,
    who: &'a str,
    part: Part,
    rng: Rng,
}

impl Lives<'_> {
    async fn one_after_another(mut self, etcd: Etcd) {
        loop {
            let life = match try_life_on(etcd.clone(), self.part.role(), "worker", TTL).await {
                Ok(life) => life,
                Err(_) => {
                    sleep(Duration::from_millis(500)).await;
                    continue;
                }
            };
            let lost = life.session.lost().clone();
            tokio::select! {
                biased;
                () = lost.cancelled() => {}
                ended = self.live(&life) => if let Err(error) = ended {
                    self.stage.chaos.note(self.who, &format!("begins anew: {error}"));
                }
            }
        }
    }

    async fn live(&mut self, life: &Life) -> Lived {
        loop {
            match self.part {
                Part::Streamer => {
                    let lane = self.one_of(&lanes());
                    if let Some(claim) = self.claim(life, ClaimItem::Shard(lane.clone())).await? {
                        self.stream(life, claim, lane).await?;
                    }
                }
                Part::Collector => {
                    let partition = PartitionId(self.rng.u16(..PARTITIONS));
                    if let Some(claim) = self.claim(life, ClaimItem::Partition(partition)).await? {
                        self.collect(life, claim, partition).await?;
                    }
                }
                Part::Janitor => {
                    if let Some(claim) = self.claim(life, ClaimItem::Janitor).await? {
                        self.tidy_up(life, claim).await?;
                    }
                }
            }
            // Long enough that others get their turn: waiting costs nothing here.
            sleep(Duration::from_millis(self.rng.u64(100..3_000))).await;
        }
    }

    async fn claim(&self, life: &Life, item: ClaimItem) -> Result<Option<Claim>, Error> {
        Claim::take(&life.process.etcd, &life.session, item).await
    }

    fn one_of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.rng.usize(..list.len())].clone()
    }

    /// Does nothing for a while, now and then, be it awake or cut off.
    async fn hesitate(&mut self) {
        match self.rng.u8(..30) {
            0 => {
                let lasting = Duration::from_millis(self.rng.u64(..9_000));
                self.stage.chaos.cut_off(self.who, lasting);
                sleep(lasting).await;
            }
            1 => {
                let lasting = Duration::from_millis(self.rng.u64(..9_000));
                self.stage.chaos.note(self.who, &format!("sleeps for {lasting:?}"));
                sleep(lasting).await;
            }
            2 => self.stage.chaos.hold_up(self.who, Duration::from_millis(self.rng.u64(..9_000))),
            3..10 => sleep(Duration::from_millis(self.rng.u64(..50))).await,
            _ => {}
        }
    }

    async fn release(&mut self, life: &Life, claim: Claim) -> Lived {
        // What fails here the lease's end does.
        let _ = claim.release(&life.process.etcd).await;
        Ok(())
    }

    async fn stream(&mut self, life: &Life, claim: Claim, lane: Lane) -> Lived {
        let opened = Producer::open(life, claim.clone(), lane.clone()).await?;
        let Some(mut producer) = opened else { return Ok(()) };
        for _ in 0..self.rng.u32(2..12) {
            if producer.progress().done {
                break;
            }
            sleep(Duration::from_millis(self.rng.u64(..800))).await;
            let (messages, progress) = self.read_source(&lane, producer.progress());
            self.hesitate().await;
            match producer.enqueue(&messages, progress).await {
                Ok(Enqueued::Committed | Enqueued::Moved) => {}
                Ok(Enqueued::Fenced) => return Ok(()),
                // As the streamer does: it opens the shard again.
                Err(error) if life.session.lost().is_cancelled() => return Err(error),
                Err(_) => match Producer::open(life, claim.clone(), lane.clone()).await? {
                    Some(opened) => producer = opened,
                    None => return Ok(()),
                },
            }
        }
        self.release(life, claim).await
    }

    /// The samples from the progress on, each a line that names it.
    fn read_source(&mut self, lane: &Lane, progress: &Progress) -> (Vec<Message>, Progress) {
        let mut next = progress.clone();
        let mut messages = Vec::new();
        for _ in 0..self.rng.u32(1..4) {
            let samples = self.rng.u64(1..6).min(next.range.end - next.offset);
            if samples == 0 {
                break;
            }
            let line = |n: u64| format!("{}:{n}\n", lane.shard.0);
            let text: String = (next.offset..next.offset + samples).map(line).collect();
            messages.push(Message { bytes: Bytes::from(text), samples });
            next.offset += samples;
            next.samples += samples;
            next.rows_accepted += samples;
        }
        next.done = next.offset == next.range.end;
        (messages, next)
    }

    async fn collect(&mut self, life: &Life, claim: Claim, partition: PartitionId) -> Lived {
        let mut consumer = Consumer::open(life, claim.clone(), partition).await?;
        let mut writer = Writer::open(life).await?;
        for _ in 0..self.rng.u32(2..12) {
            let outcome = match self.rng.u8(..4) {
                0 => self.merge(life, &mut consumer, &mut writer).await,
                _ => self.commit(life, &mut consumer, &mut writer).await,
            };
            match outcome {
                Ok(Some(Outcome::Fenced)) => return Ok(()),
                Ok(_) => {}
                Err(error) if life.session.lost().is_cancelled() => return Err(error),
                // As the collector does: it reads where it stands before it goes on.
                Err(_) => consumer.read_again().await?,
            }
        }
        self.release(life, claim).await
    }

    async fn commit(
        &mut self,
        life: &Life,
        consumer: &mut Consumer,
        writer: &mut Writer,
    ) -> Result<Option<Outcome>, Error> {
        let mut intake = Intake::default();
        let mut blocks = Vec::new();
        for lane in lanes() {
            if lane.partition(life.config.partitions) != consumer.partition() {
                continue;
            }
            let limit = self.rng.usize(1..6);
            let messages = consumer.receive(&lane, consumer.next(&lane), limit).await?;
            if !messages.is_empty() {
                blocks.push(block_of(&messages));
            }
            intake.messages.extend(messages);
        }
        if blocks.is_empty() {
            sleep(Duration::from_millis(self.rng.u64(..1_000))).await;
            return Ok(None);
        }
        self.hesitate().await;
        writer.commit(consumer, &intake, &blocks).await.map(Some)
    }

    async fn merge(
        &mut self,
        life: &Life,
        consumer: &mut Consumer,
        writer: &mut Writer,
    ) -> Result<Option<Outcome>, Error> {
        let reader = Reader::new(life.process.etcd.clone());
        let Some(bucket) = reader.buckets(4).await?.pop() else { return Ok(None) };
        let (all, _) = reader.blocks(&reader.bucket_blocks(&bucket), None).await?;
        // Of this partition only, as the collector does: another one's are another's to merge.
        let ours = |b: &StoredBlock| b.name.partition == consumer.partition();
        let inputs: Vec<StoredBlock> = all.into_iter().filter(ours).take(3).collect();
        if inputs.len() < 2 {
            return Ok(None);
        }
        let mut text = Vec::new();
        for input in &inputs {
            match reader.block(&input.name, None).await? {
                Some(bytes) => text.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
        let samples = inputs.iter().map(|b| b.name.samples).sum();
        self.hesitate().await;
        let merged = [new_block(text.into(), samples)];
        writer.merge(consumer, bucket, &inputs, &merged).await.map(Some)
    }

    async fn tidy_up(&mut self, life: &Life, claim: Claim) -> Lived {
        let retention = Retention::new(life, claim.clone(), POLICY);
        for _ in 0..self.rng.u32(1..6) {
            if let Ok(None) = retention.sweep(Timestamp::now()).await {
                return Ok(());
            }
            self.hesitate().await;
            sleep(Duration::from_millis(self.rng.u64(100..1_500))).await;
        }
        self.release(life, claim).await
    }
}

fn block_of(messages: &[Received]) -> NewBlock {
    let text: Vec<u8> = messages.iter().flat_map(|m| m.bytes.iter().copied()).collect();
    new_block(text.into(), messages.iter().map(|m| m.samples).sum())
}

fn new_block(bytes: Bytes, samples: u64) -> NewBlock {
    NewBlock {
        cluster: ClusterId::new("c").unwrap(),
        host: HostName::new("h").unwrap(),
        start: Timestamp::EPOCH,
        end: Timestamp::EPOCH,
        samples,
        bytes,
    }
}

/// Returns when every lane is read to its end and nothing is queued.
pub(crate) async fn finished(etcd: &Etcd) {
    let keyspace = etcd.keyspace();
    let ranges = [keyspace.prefix("shards/"), keyspace.prefix("queue/")];
    loop {
        let [shards, queued] = &etcd.ranges(&ranges).await.unwrap()[..] else { unreachable!() };
        let done = |e: &Entry| from_json::<Progress>(&e.key, &e.value).unwrap().done;
        if shards.entries.iter().all(done) && queued.entries.is_empty() {
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
}
