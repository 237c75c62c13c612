//! Writes blocks, always in a commit of a partition.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;

use super::reader::StoredBlock;
use crate::{
    etcd::{Commit, Error, Etcd, Outcome, Position},
    keyspace::{BlockName, CommitSummary, Key},
    model::{BucketId, ClusterId, HostName, Timestamp},
    queue::{Consumer, Intake},
    runtime::{Life, Metrics},
};

/// A block that is to be stored.
#[derive(Debug, Clone)]
pub struct NewBlock {
    /// Cluster of the host.
    pub cluster: ClusterId,
    /// Host whose samples it holds.
    pub host: HostName,
    /// First instant in it.
    pub start: Timestamp,
    /// Last instant in it.
    pub end: Timestamp,
    /// Samples in it.
    pub samples: u64,
    /// The block.
    pub bytes: Bytes,
}

/// Adds blocks to the store under a partition's claim.
pub struct Writer {
    etcd: Etcd,
    metrics: Arc<Metrics>,
    bucket_seconds: u32,
    floor: BucketId,
}

impl Writer {
    /// Reads where history begins.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn open(life: &Life) -> Result<Self, Error> {
        let mut writer = Self {
            etcd: life.process.etcd.clone(),
            metrics: Arc::clone(&life.process.metrics),
            bucket_seconds: life.config.bucket_seconds,
            floor: BucketId::first(),
        };
        writer.read_floor().await?;
        Ok(writer)
    }

    async fn read_floor(&mut self) -> Result<(), Error> {
        if let Some(floor) = read_floor(&self.etcd).await? {
            self.floor = floor;
        }
        Ok(())
    }

    /// The bucket that is filled at `now`. A clock that is behind retention fills the first
    /// bucket that is kept: a lagging clock must not lose what it is told to store.
    pub fn bucket_at(&self, now: Timestamp) -> BucketId {
        BucketId::holding(now, self.bucket_seconds).max(self.floor.clone())
    }

    /// Takes `intake` out of the queue and puts `blocks` into the store, in one transaction.
    /// After `Stale` everything has been read again: plan anew.
    ///
    /// # Errors
    /// When the outcome cannot be found out: `read_again` has been tried, plan anew.
    pub async fn commit(
        &mut self,
        consumer: &mut Consumer,
        intake: &Intake,
        blocks: &[NewBlock],
    ) -> Result<Outcome, Error> {
        let bucket = self.bucket_at(Timestamp::now());
        self.write(consumer, intake, blocks, bucket, &[], "commit").await
    }

    /// Replaces `inputs`, all of one bucket, by `outputs` with the same samples.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub async fn merge(
        &mut self,
        consumer: &mut Consumer,
        bucket: BucketId,
        inputs: &[StoredBlock],
        outputs: &[NewBlock],
    ) -> Result<Outcome, Error> {
        self.write(consumer, &Intake::default(), outputs, bucket, inputs, "merge").await
    }

    async fn write(
        &mut self,
        consumer: &mut Consumer,
        intake: &Intake,
        blocks: &[NewBlock],
        bucket: BucketId,
        inputs: &[StoredBlock],
        op: &'static str,
    ) -> Result<Outcome, Error> {
        let names = names(consumer, blocks, &bucket);
        let summary = CommitSummary {
            added: names.iter().map(BlockName::to_string).collect(),
            removed: inputs.iter().map(|block| block.name.to_string()).collect(),
            ..CommitSummary::default()
        };
        let (mut commit, taken) = consumer.begin(intake, summary);
        self.fill(&mut commit, &names, blocks, &bucket, inputs);
        let started = Instant::now();
        let outcome = commit.run(&self.etcd).await;
        self.metrics.count_txn(op, started, outcome.as_ref());
        match &outcome {
            Ok(done @ Outcome::Committed { .. }) => {
                consumer.settle(taken, done);
                let bytes = blocks.iter().map(|b| b.bytes.len() as u64).sum();
                let samples: u64 = blocks.iter().map(|b| b.samples).sum();
                if inputs.is_empty() {
                    self.metrics.count_samples(samples, bytes);
                }
            }
            Ok(Outcome::Fenced) => {}
            Ok(Outcome::Stale) | Err(_) => {
                self.read_floor().await?;
                consumer.read_again().await?;
            }
        }
        outcome
    }

    fn fill(
        &self,
        commit: &mut Commit<'_>,
        names: &[BlockName],
        blocks: &[NewBlock],
        bucket: &BucketId,
        inputs: &[StoredBlock],
    ) {
        let keyspace = self.etcd.keyspace();
        if (!blocks.is_empty() || !inputs.is_empty()) && !left_out!(NoFloor) {
            // '~' sorts behind every character of a bucket: floor <= bucket.
            commit.require_value_below(&keyspace.key(&Key::Floor), &format!("{bucket}~"));
        }
        for input in inputs {
            let key = keyspace.key(&Key::Block(input.name.clone()));
            commit.require_unchanged(&Position { key, mod_revision: input.mod_revision });
            commit.delete_key(&keyspace.key(&Key::Block(input.name.clone())));
        }
        for (name, block) in names.iter().zip(blocks) {
            commit.put(&keyspace.key(&Key::Block(name.clone())), block.bytes.to_vec());
        }
    }
}

fn names(consumer: &Consumer, blocks: &[NewBlock], bucket: &BucketId) -> Vec<BlockName> {
    let name = |(ordinal, block): (u32, &NewBlock)| BlockName {
        bucket: bucket.clone(),
        cluster: block.cluster.clone(),
        host: block.host.clone(),
        start: block.start,
        end: block.end,
        partition: consumer.partition(),
        commit: consumer.next_number(),
        ordinal,
        samples: block.samples,
        bytes: block.bytes.len() as u64,
    };
    (0..).zip(blocks).map(name).collect()
}

pub(super) async fn read_floor(etcd: &Etcd) -> Result<Option<BucketId>, Error> {
    let entry = etcd.get(&etcd.keyspace().key(&Key::Floor)).await?;
    Ok(entry.and_then(|e| std::str::from_utf8(&e.value).ok().and_then(|t| t.parse().ok())))
}
