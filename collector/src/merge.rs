//! Merging: the small blocks of one host and bucket become few. The owner of the host's
//! partition does it, by compare-and-swap on the inputs.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use nexus_common::{
    block::{Block, Section},
    etcd::{Error, Outcome},
    limits::BLOCK_BYTES_MAX,
    model::{BucketId, ClusterId, HostName, PartitionId, Timestamp},
    queue::Consumer,
    runtime::Life,
    store::{NewBlock, Reader, StoredBlock, Writer},
};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{interval, sleep},
};

use crate::{args::Args, plan};

/// Inputs of one merge: a compare and a delete each, well below a transaction.
const INPUTS_MAX: usize = 60;
/// A block at least this large is left alone: merging it again would save little.
const LARGE_BYTES: u64 = (BLOCK_BYTES_MAX / 4) as u64;
/// Small blocks of one host in the bucket that is still being filled, before they are merged.
const OPEN_BUCKET_BLOCKS: usize = 64;
/// How long after its end a bucket counts as closed: clocks differ, and commits take time.
const GRACE: Duration = Duration::from_secs(15);
/// Most jobs that wait at once; the next look finds the rest.
const JOBS_MAX: usize = 4096;
/// Most buckets looked at.
const BUCKETS_MAX: usize = 100_000;

/// Small blocks of one host in one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MergeJob {
    bucket: BucketId,
    cluster: ClusterId,
    host: HostName,
    inputs: Vec<StoredBlock>,
}

/// What there is to merge, found by looking at the store every now and then.
pub(crate) struct MergeJobs {
    partitions: u16,
    jobs: Mutex<BTreeMap<PartitionId, VecDeque<MergeJob>>>,
    found: Notify,
}

impl MergeJobs {
    /// Looks until the session ends.
    pub(crate) fn scout(life: &Life, args: &Args) -> Arc<Self> {
        let jobs = Arc::new(Self {
            partitions: life.config.partitions,
            jobs: Mutex::new(BTreeMap::new()),
            found: Notify::new(),
        });
        let (told, life) = (Arc::clone(&jobs), life.clone());
        let mut tick = interval(Duration::from_secs(args.merge_every_seconds));
        tokio::spawn(async move {
            let looking = async {
                let mut closed_until = BucketId::first();
                loop {
                    tick.tick().await;
                    if let Err(error) = told.look(&life, &mut closed_until).await {
                        tracing::warn!(%error, "could not look for blocks to merge");
                    }
                }
            };
            tokio::select! {
                () = life.session.lost().cancelled() => {}
                () = life.process.stop.cancelled() => {}
                () = looking => {}
            }
        });
        jobs
    }

    /// Looks at the buckets that are not known to be merged. A closed bucket without small
    /// blocks is not looked at again.
    async fn look(&self, life: &Life, merged_until: &mut BucketId) -> Result<(), Error> {
        let reader = Reader::new(life.process.etcd.clone());
        let before = Timestamp::saturating_from_millis(
            Timestamp::now().as_millis() - GRACE.as_millis() as i64,
        );
        let filling = BucketId::holding(before, life.config.bucket_seconds);
        let mut all_done = true;
        let mut buckets = reader.buckets(BUCKETS_MAX).await?;
        buckets.retain(|bucket| *bucket >= *merged_until);
        for bucket in buckets {
            let closed = bucket < filling;
            let (blocks, _) = reader.blocks(&reader.bucket_blocks(&bucket), None).await?;
            let found = jobs_of(blocks, if closed { 2 } else { OPEN_BUCKET_BLOCKS });
            all_done &= closed && found.is_empty();
            if all_done {
                merged_until.clone_from(&bucket);
            }
            self.offer(found);
        }
        Ok(())
    }

    fn offer(&self, found: Vec<MergeJob>) {
        let Ok(mut jobs) = self.jobs.lock() else { return };
        for job in found {
            let waiting = jobs.entry(job.host.partition(self.partitions)).or_default();
            let same = |w: &MergeJob| w.bucket == job.bucket && w.host == job.host;
            if waiting.len() < JOBS_MAX && !waiting.iter().any(same) {
                waiting.push_back(job);
            }
        }
        drop(jobs);
        self.found.notify_waiters();
    }

    /// The next job of `partition`, once there is one.
    pub(crate) async fn next(&self, partition: PartitionId) -> MergeJob {
        loop {
            let found = self.found.notified();
            let job = self
                .jobs
                .lock()
                .ok()
                .and_then(|mut jobs| jobs.get_mut(&partition).and_then(VecDeque::pop_front));
            if let Some(job) = job {
                return job;
            }
            found.await;
        }
    }
}

/// Groups the blocks of one bucket by host: hosts with at least `at_least` small ones.
fn jobs_of(blocks: Vec<StoredBlock>, at_least: usize) -> Vec<MergeJob> {
    let mut hosts: BTreeMap<(ClusterId, HostName), Vec<StoredBlock>> = BTreeMap::new();
    for block in blocks.into_iter().filter(|b| b.name.bytes < LARGE_BYTES) {
        let host = (block.name.cluster.clone(), block.name.host.clone());
        hosts.entry(host).or_default().push(block);
    }
    let mut jobs = Vec::new();
    for ((cluster, host), mut inputs) in hosts {
        if inputs.len() < at_least {
            continue;
        }
        // In time order, so that merged blocks overlap as little as possible.
        inputs.sort_by_key(|b| (b.name.start, b.name.end));
        inputs.truncate(fitting(&inputs));
        if let Some(bucket) = inputs.first().map(|b| b.name.bucket.clone()) {
            jobs.push(MergeJob { bucket, cluster, host, inputs });
        }
    }
    jobs
}

/// How many inputs, in order, can become one block: at least two.
fn fitting(inputs: &[StoredBlock]) -> usize {
    let mut bytes = 0;
    for (index, input) in inputs.iter().enumerate() {
        bytes += input.name.bytes;
        if index >= INPUTS_MAX || (bytes > 2 * LARGE_BYTES && index >= 2) {
            return index;
        }
    }
    inputs.len()
}

impl MergeJob {
    /// Reads the inputs, merges them, and swaps them for the result.
    pub(crate) async fn run(
        self,
        life: &Life,
        consumer: &mut Consumer,
        writer: &mut Writer,
    ) -> Result<Outcome, Error> {
        let reader = Reader::new(life.process.etcd.clone());
        let mut sections: Vec<Section> = Vec::new();
        for input in &self.inputs {
            let Some(bytes) = reader.block(&input.name, None).await? else {
                // Merged or retired by somebody else meanwhile.
                return Ok(Outcome::Stale);
            };
            match Block::decode(bytes) {
                Ok(block) => sections.extend(block.sections),
                Err(error) => {
                    let block = input.name.to_string();
                    tracing::error!(block, %error, "a stored block cannot be read");
                    sleep(Duration::from_millis(100)).await;
                    return Ok(Outcome::Stale);
                }
            }
        }
        let (cluster, host) = (self.cluster.clone(), self.host.clone());
        let made = spawn_blocking(move || outputs(&cluster, &host, &sections)).await;
        let Ok(Some(outputs)) = made else { return Ok(Outcome::Stale) };
        let (inputs, now) = (self.inputs.len(), outputs.len());
        if now >= inputs || total(&outputs) != self.samples() {
            return Ok(Outcome::Stale);
        }
        tracing::debug!(host = %self.host, bucket = %self.bucket, inputs, now, "merging");
        writer.merge(consumer, self.bucket, &self.inputs, &outputs).await
    }

    fn samples(&self) -> u64 {
        self.inputs.iter().map(|b| b.name.samples).sum()
    }
}

fn outputs(cluster: &ClusterId, host: &HostName, sections: &[Section]) -> Option<Vec<NewBlock>> {
    let merged = plan::merged(sections)?;
    plan::pack(cluster, host, vec![merged]).ok()
}

fn total(blocks: &[NewBlock]) -> u64 {
    blocks.iter().map(|b| b.samples).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(host: &str, start: i64, bytes: u64) -> StoredBlock {
        let name = format!(
            "20260101T000000Z/c/{host}/{start:013}-{:013}-0001.{start}.0-100-{bytes}",
            start + 9
        );
        StoredBlock { name: name.parse().unwrap(), mod_revision: 7 }
    }

    #[test]
    fn small_blocks_of_one_host_are_merged_in_time_order() {
        let blocks = vec![
            block("a", 30, 100),
            block("a", 10, 100),
            block("b", 10, 100),
            block("a", 20, LARGE_BYTES),
        ];
        let jobs = jobs_of(blocks, 2);
        assert_eq!(jobs.len(), 1);
        let starts: Vec<_> = jobs[0].inputs.iter().map(|b| b.name.start.as_millis()).collect();
        assert_eq!(starts, [10, 30]);
    }

    #[test]
    fn a_merge_fits_in_a_transaction_and_has_at_least_two_inputs() {
        let many: Vec<_> = (0..200).map(|i| block("a", i, 100)).collect();
        assert_eq!(jobs_of(many, 2)[0].inputs.len(), INPUTS_MAX);
        let heavy: Vec<_> = (0..9).map(|i| block("a", i, LARGE_BYTES - 1)).collect();
        assert_eq!(jobs_of(heavy, 2)[0].inputs.len(), 2);
    }
}
