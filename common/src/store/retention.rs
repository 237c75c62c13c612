//! Retention: history ends at the floor. First the floor moves, which freezes what lies below
//! it; then the frozen buckets are deleted slice by slice, and counted.

use std::{sync::Arc, time::Instant};

use super::reader::{Reader, StoredBlock};
use crate::{
    etcd::{Claim, Commit, Error, Etcd, Outcome, Position},
    keyspace::{Key, KeyRange, Retired, from_json, to_json},
    model::{BucketId, Timestamp},
    runtime::{Life, Metrics},
};

/// Most keys deleted in one transaction: more would be one long stall of etcd.
const SLICE_KEYS: usize = 1000;
/// Most buckets the floor passes in one cycle: a clock that jumps must not delete history.
const BUCKETS_A_CYCLE: usize = 2;
/// Most buckets looked at in one cycle.
const BUCKETS_SEEN: usize = 100_000;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Age of ingestion up to which history is kept, in seconds; 0 keeps all.
    pub age_seconds: u64,
    /// Bytes of blocks up to which history is kept; 0 keeps all.
    pub bytes: u64,
}

/// What one cycle did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// The floor afterwards.
    pub floor: Option<BucketId>,
    /// Blocks deleted.
    pub blocks: u64,
    /// Samples deleted with them.
    pub samples: u64,
}

/// The janitor's work, under `claims/janitor`.
pub struct Retention {
    etcd: Etcd,
    reader: Reader,
    metrics: Arc<Metrics>,
    claim: Claim,
    policy: Policy,
    bucket_seconds: u32,
}

impl Retention {
    /// Retention by `policy` under `claim`.
    pub fn new(life: &Life, claim: Claim, policy: Policy) -> Self {
        Self {
            etcd: life.process.etcd.clone(),
            reader: Reader::new(life.process.etcd.clone()),
            metrics: Arc::clone(&life.process.metrics),
            claim,
            policy,
            bucket_seconds: life.config.bucket_seconds,
        }
    }

    /// One cycle. `None` when the claim is no longer ours.
    ///
    /// # Errors
    /// When etcd does not answer: the next cycle goes on where this one stopped.
    pub async fn sweep(&self, now: Timestamp) -> Result<Option<Swept>, Error> {
        let key = self.etcd.keyspace().key(&Key::Floor);
        let Some(entry) = self.etcd.get(&key).await? else {
            return Ok(Some(Swept::default()));
        };
        let text = String::from_utf8_lossy(&entry.value);
        let mut floor: BucketId = text.parse().unwrap_or_else(|_| BucketId::first());
        let mut frozen_at = entry.mod_revision;
        let buckets = self.reader.buckets(BUCKETS_SEEN).await?;
        let kept: Vec<BucketId> = buckets.iter().filter(|b| **b >= floor).cloned().collect();
        let sizes = if self.policy.bytes > 0 { self.sizes(&kept).await? } else { Vec::new() };
        let next = next_floor(&self.policy, self.bucket_seconds, now, &kept, &sizes);
        if let Some(next) = next.filter(|next| *next > floor) {
            let position = Position::seen(key, Some(&entry));
            let value = next.as_str().as_bytes().to_vec();
            match self.applied(Commit::new(&self.claim, &position, value)).await? {
                Some(revision) => frozen_at = revision,
                None => return Ok(None),
            }
            tracing::info!(from = %floor, to = %next, "history now begins later");
            floor = next;
        }
        let mut swept = Swept { floor: Some(floor.clone()), ..Swept::default() };
        for bucket in buckets.into_iter().filter(|b| *b < floor) {
            if !self.empty(&bucket, frozen_at, &mut swept).await? {
                return Ok(None);
            }
        }
        Ok(Some(swept))
    }

    async fn sizes(&self, buckets: &[BucketId]) -> Result<Vec<u64>, Error> {
        let mut sizes = Vec::with_capacity(buckets.len());
        for bucket in buckets {
            let (blocks, _) = self.reader.blocks(&self.reader.bucket_blocks(bucket), None).await?;
            sizes.push(blocks.iter().map(|b| b.name.bytes).sum());
        }
        Ok(sizes)
    }

    /// Deletes a bucket that was frozen at a revision. False when the claim is no longer ours.
    async fn empty(
        &self,
        bucket: &BucketId,
        frozen_at: i64,
        swept: &mut Swept,
    ) -> Result<bool, Error> {
        let key = self.etcd.keyspace().key(&Key::Retired(bucket.clone()));
        let (entry, revision) = self.etcd.get_at(&key).await?;
        if revision < frozen_at {
            // A stale read: blocks that came before the freeze would be deleted with their
            // neighbours and not be counted. The next cycle reads again.
            return Ok(true);
        }
        let mut retired: Retired = match &entry {
            Some(entry) => from_json(&entry.key, &entry.value)?,
            None => Retired::default(),
        };
        let mut position = Position::seen(key, entry.as_ref());
        // At the revision of the count: if that is old news, its guard refuses what follows;
        // if it is not, the bucket holds exactly what it held then.
        let range = self.reader.bucket_blocks(bucket);
        let (blocks, _) = self.reader.blocks(&range, Some(revision)).await?;
        for slice in blocks.chunks(SLICE_KEYS) {
            let samples: u64 = slice.iter().map(|b| b.name.samples).sum();
            retired.samples += samples;
            retired.blocks += slice.len() as u64;
            let mut commit = Commit::new(&self.claim, &position, to_json(&retired));
            commit.delete(&self.exactly(slice), slice.len() as i64);
            let Some(revision) = self.applied(commit).await? else { return Ok(false) };
            position.mod_revision = revision;
            swept.blocks += slice.len() as u64;
            swept.samples += samples;
        }
        Ok(true)
    }

    /// The range from the first to the last block of a slice. Nothing is added to a frozen
    /// bucket, so it holds the slice and no more.
    fn exactly(&self, slice: &[StoredBlock]) -> KeyRange {
        let key = |block: Option<&StoredBlock>| {
            block.map_or_else(Vec::new, |b| {
                self.etcd.keyspace().key(&Key::Block(b.name.clone())).into_bytes()
            })
        };
        let mut end = key(slice.last());
        end.push(0);
        KeyRange { start: key(slice.first()), end }
    }

    /// The revision it made, or none when it was not applied.
    async fn applied(&self, commit: Commit<'_>) -> Result<Option<i64>, Error> {
        let started = Instant::now();
        let outcome = commit.run(&self.etcd).await;
        self.metrics.count_txn("retire", started, outcome.as_ref());
        Ok(match outcome? {
            Outcome::Committed { revision, .. } => Some(revision),
            Outcome::Fenced | Outcome::Stale => None,
        })
    }
}

/// Where history should begin: the later of what age and size ask for, at most two filled
/// buckets further, never past the newest bucket (or, by age, past the newest bucket minus the
/// retention: without new data nothing ages).
fn next_floor(
    policy: &Policy,
    bucket_seconds: u32,
    now: Timestamp,
    kept: &[BucketId],
    sizes: &[u64],
) -> Option<BucketId> {
    let newest = kept.last()?;
    let by_age = (policy.age_seconds > 0).then(|| {
        let age = i64::try_from(policy.age_seconds).unwrap_or(i64::MAX).saturating_mul(1000);
        let from = now.min(newest.start()).as_millis().saturating_sub(age);
        BucketId::holding(Timestamp::saturating_from_millis(from), bucket_seconds)
    });
    let mut total: u64 = sizes.iter().sum();
    let mut by_size = None;
    if policy.bytes > 0 {
        for (size, pair) in sizes.iter().zip(kept.windows(2)) {
            if total <= policy.bytes {
                break;
            }
            total -= size;
            by_size = Some(pair[1].clone());
        }
    }
    let wanted = by_age.max(by_size)?;
    let allowed = kept.get(BUCKETS_A_CYCLE).unwrap_or(newest);
    Some(wanted.min(allowed.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(list: &[i64]) -> Vec<BucketId> {
        let hour =
            |h: &i64| BucketId::holding(Timestamp::from_millis(h * 3_600_000).unwrap(), 3600);
        list.iter().map(hour).collect()
    }

    fn check(policy: Policy, now_hour: i64, kept: &[i64], sizes: &[u64], expected: Option<i64>) {
        let now = Timestamp::from_millis(now_hour * 3_600_000).unwrap();
        let floor = next_floor(&policy, 3600, now, &hours(kept), sizes);
        assert_eq!(floor, expected.map(|h| hours(&[h]).remove(0)));
    }

    #[test]
    fn age_keeps_what_is_young_enough() {
        let day = Policy { age_seconds: 86_400, bytes: 0 };
        check(day, 1030, &[1005, 1006, 1030], &[], Some(1006));
        check(day, 1030, &[], &[], None);
        check(Policy { age_seconds: 0, bytes: 0 }, 1030, &[1, 1030], &[], None);
    }

    #[test]
    fn a_clock_that_jumps_a_year_deletes_nothing() {
        let day = Policy { age_seconds: 86_400, bytes: 0 };
        check(day, 1030 + 8760, &[1010, 1020, 1030], &[], Some(1006));
    }

    #[test]
    fn the_floor_passes_at_most_two_filled_buckets_a_cycle() {
        let hour = Policy { age_seconds: 3600, bytes: 0 };
        check(hour, 1030, &[1001, 1002, 1003, 1004, 1030], &[], Some(1003));
    }

    #[test]
    fn size_drops_the_oldest_but_never_the_newest() {
        let small = Policy { age_seconds: 0, bytes: 10 };
        check(small, 1030, &[1001, 1002, 1003], &[6, 6, 6], Some(1003));
        check(small, 1030, &[1001, 1002, 1003], &[2, 6, 4], Some(1002));
        check(small, 1030, &[1003], &[100], None);
        check(small, 1030, &[1001, 1002], &[1, 1], None);
    }
}
