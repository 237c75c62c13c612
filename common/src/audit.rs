//! The conservation law: nothing lost, nothing twice, checked by one read at one revision.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    etcd::{Entry, Error, Etcd, RangeRead},
    keyspace::{Cursor, Key, Keyspace, Progress, Retired, from_json},
    model::{BucketId, Lane},
};

/// Most violations that are told in full; the rest is only counted.
const VIOLATIONS_TOLD: usize = 100;

/// Rows as the streamers counted them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RowCounts {
    /// Rows read from sources.
    pub offered: u64,
    /// Rows taken.
    pub accepted: u64,
    /// Rows taken that held no measurement; part of `accepted`.
    pub absent: u64,
    /// Rows refused.
    pub rejected: u64,
    /// Rows refused, by reason.
    pub rejected_by_reason: BTreeMap<String, u64>,
}

/// Samples by where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SampleCounts {
    /// Enqueued since the beginning.
    pub accepted: u64,
    /// Of those, still in the queue.
    pub queued: u64,
    /// Of those, taken out of the queue.
    pub committed: u64,
    /// Of those, in blocks.
    pub stored: u64,
    /// Of those, deleted by retention.
    pub retired: u64,
    /// Of those, set aside as undecodable.
    pub dead: u64,
}

/// What the audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// Whether every invariant holds.
    pub clean: bool,
    /// The revision at which all of this was read.
    pub revision: i64,
    /// Rows.
    pub rows: RowCounts,
    /// Samples.
    pub samples: SampleCounts,
    /// Lanes with progress.
    pub lanes: u64,
    /// Of those, read to the end.
    pub lanes_done: u64,
    /// Messages in the queue.
    pub messages: u64,
    /// Blocks in the store.
    pub blocks: u64,
    /// Bytes of blocks in the store.
    pub block_bytes: u64,
    /// Samples that are missing or too many, 0 when the law holds.
    pub delta: u64,
    /// How many violations there are.
    pub violation_count: u64,
    /// The first of them.
    pub violations: Vec<String>,
}

/// Reads everything the law speaks of at one revision and checks it.
///
/// # Errors
/// When etcd does not answer, or compacts the revision under us (then try again).
pub async fn audit(etcd: &Etcd) -> Result<AuditReport, Error> {
    let mut revision = None;
    let mut entries = Vec::new();
    let ranges = [
        ("shards/", false),
        ("cursors/", false),
        ("retention/", false),
        ("claims/", true),
        ("instances/", true),
        ("sources/", true),
        ("commits/", true),
        ("clusters/", true),
        ("dead/", true),
        ("queue/", true),
        ("blocks/", true),
    ];
    for (path, keys_only) in ranges {
        let range = etcd.keyspace().prefix(path);
        let how = RangeRead { revision, keys_only, page: 2000, ..RangeRead::default() };
        let listing = etcd.range(&range, how).await?;
        revision = Some(listing.revision);
        entries.extend(listing.entries);
    }
    Ok(check(etcd.keyspace(), revision.unwrap_or(0), &entries))
}

/// Checks the law over all keys of one revision. Pure. Values are needed below `shards/`,
/// `cursors/` and `retention/` only.
pub fn check(keyspace: &Keyspace, revision: i64, entries: &[Entry]) -> AuditReport {
    let mut audit = Audit::default();
    for entry in entries {
        audit.take(keyspace, entry);
    }
    audit.finish(revision)
}

#[derive(Default)]
struct Audit {
    report: AuditReport,
    progress: BTreeMap<Lane, Progress>,
    cursors: BTreeMap<Lane, Cursor>,
    queue: BTreeMap<Lane, Vec<(u64, u64)>>,
    dead: BTreeSet<(Lane, u64)>,
    floor: Option<BucketId>,
    retired: BTreeMap<BucketId, Retired>,
}

impl Audit {
    fn breach(&mut self, text: String) {
        self.report.violation_count += 1;
        if self.report.violations.len() < VIOLATIONS_TOLD {
            self.report.violations.push(text);
        }
    }

    fn take(&mut self, keyspace: &Keyspace, entry: &Entry) {
        let text = String::from_utf8_lossy(&entry.key).into_owned();
        let key = match keyspace.parse(&entry.key) {
            Ok(key) => key,
            Err(error) => return self.breach(error.to_string()),
        };
        let leased = matches!(key, Key::Claim(_) | Key::Instance(..) | Key::Request(..));
        if leased != (entry.lease != 0) {
            let said = if leased { "has no lease: it will never end" } else { "has a lease" };
            self.breach(format!("{text} {said}"));
        }
        let result = match key {
            Key::Shard(lane) => from_json(&entry.key, &entry.value).map(|p| {
                self.progress.insert(lane, p);
            }),
            Key::Cursor(_, lane) => from_json(&entry.key, &entry.value).map(|c| {
                if self.cursors.insert(lane, c).is_some() {
                    self.breach(format!("{text}: the lane has a cursor in another partition, too"));
                }
            }),
            Key::Message(_, lane, seq, samples) => {
                self.report.messages += 1;
                self.queue.entry(lane).or_default().push((seq, samples));
                Ok(())
            }
            Key::Block(name) => {
                self.report.blocks += 1;
                self.report.block_bytes += name.bytes;
                self.report.samples.stored += name.samples;
                Ok(())
            }
            Key::Dead(lane, seq) => {
                self.dead.insert((lane, seq));
                Ok(())
            }
            Key::Floor => {
                self.floor = std::str::from_utf8(&entry.value).ok().and_then(|t| t.parse().ok());
                if self.floor.is_none() {
                    self.breach(format!("{text} is not a bucket"));
                }
                Ok(())
            }
            Key::Retired(bucket) => from_json(&entry.key, &entry.value).map(|r| {
                self.retired.insert(bucket, r);
            }),
            _ => Ok(()),
        };
        if let Err(error) = result {
            self.breach(error.to_string());
        }
    }

    fn finish(mut self, revision: i64) -> AuditReport {
        self.report.revision = revision;
        self.count();
        self.contiguity();
        self.retention();
        let samples = &self.report.samples;
        let kept = samples.stored + samples.retired + samples.dead;
        let moved = samples.committed + samples.queued;
        let delta = samples.accepted.abs_diff(moved) + samples.committed.abs_diff(kept);
        let told = format!(
            "conservation: accepted {} = committed {} + queued {}; committed = stored {} + retired {} + dead {}",
            samples.accepted,
            samples.committed,
            samples.queued,
            samples.stored,
            samples.retired,
            samples.dead,
        );
        self.report.delta = delta;
        if delta != 0 {
            self.breach(told);
        }
        self.report.clean = self.report.violation_count == 0;
        self.report
    }

    fn count(&mut self) {
        let report = &mut self.report;
        for progress in self.progress.values() {
            report.lanes += 1;
            report.lanes_done += u64::from(progress.done);
            report.rows.accepted += progress.rows_accepted;
            report.rows.absent += progress.rows_absent;
            report.samples.accepted += progress.samples;
            for (reason, rows) in &progress.rows_rejected {
                report.rows.rejected += rows;
                *report.rows.rejected_by_reason.entry(reason.clone()).or_default() += rows;
            }
        }
        report.rows.offered = report.rows.accepted + report.rows.rejected;
        for cursor in self.cursors.values() {
            report.samples.committed += cursor.samples;
            report.samples.dead += cursor.dead;
        }
        report.samples.queued = self.queue.values().flatten().map(|(_, n)| n).sum();
        report.samples.retired = self.retired.values().map(|r| r.samples).sum();
    }

    /// For every lane the queue holds exactly what lies between cursor and progress.
    fn contiguity(&mut self) {
        let lanes: BTreeSet<Lane> = self
            .progress
            .keys()
            .chain(self.cursors.keys())
            .chain(self.queue.keys())
            .cloned()
            .collect();
        for lane in lanes {
            let to = self.progress.get(&lane).map_or(0, |p| p.next);
            let from = self.cursors.get(&lane).map_or(0, |c| c.next);
            let held = self.queue.remove(&lane).unwrap_or_default();
            if from > to {
                self.breach(format!("lane {lane}: cursor {from} is past progress {to}"));
            } else if !held.iter().map(|(seq, _)| *seq).eq(from..to) {
                self.breach(format!(
                    "lane {lane}: the queue should hold messages {from}..{to} and holds {} others",
                    held.len()
                ));
            }
            let late = self.dead.iter().find(|(l, seq)| *l == lane && *seq >= from).cloned();
            if let Some((_, seq)) = late {
                self.breach(format!("lane {lane}: dead letter {seq} was not taken yet"));
            }
        }
    }

    fn retention(&mut self) {
        let Some(floor) = self.floor.clone() else {
            if !self.progress.is_empty() {
                self.breach("retention/floor is missing: nothing can be committed".to_owned());
            }
            return;
        };
        let early = self.retired.keys().find(|bucket| **bucket >= floor).cloned();
        if let Some(bucket) = early {
            self.breach(format!("bucket {bucket} was retired, but history begins at {floor}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        keyspace::{FileRange, to_json},
        model::{PartitionId, ShardId, SourceId, Timestamp},
    };

    fn lane() -> Lane {
        Lane { source: SourceId::new("demo").unwrap(), shard: ShardId(0) }
    }

    fn entry(key: &Key, value: Vec<u8>) -> Entry {
        Entry {
            key: Keyspace::default().key(key).into_bytes(),
            value: Bytes::from(value),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        }
    }

    /// A lane that enqueued three messages of ten samples, the first of which was committed.
    fn sound() -> Vec<Entry> {
        let mut progress = Progress::untouched(FileRange { start: 0, end: 9 }, Timestamp::EPOCH);
        (progress.next, progress.samples, progress.rows_accepted) = (3, 30, 30);
        let cursor = Cursor { next: 1, samples: 10, dead: 0, claim: 1 };
        let block = "20260101T000000Z/c/h/0000000000000-0000000000009-0001.1.0-10-5";
        let message = |seq| Key::Message(PartitionId(1), lane(), seq, 10);
        vec![
            entry(&Key::Shard(lane()), to_json(&progress)),
            entry(&Key::Cursor(PartitionId(1), lane()), to_json(&cursor)),
            entry(&message(1), vec![]),
            entry(&message(2), vec![]),
            entry(&Key::Block(block.parse().unwrap()), vec![]),
            entry(&Key::Floor, b"00000101T000000Z".to_vec()),
        ]
    }

    fn audited(entries: &[Entry]) -> AuditReport {
        check(&Keyspace::default(), 7, entries)
    }

    #[test]
    fn a_sound_keyspace_is_clean() {
        let report = audited(&sound());
        assert!(report.clean, "{:?}", report.violations);
        let expected = SampleCounts {
            accepted: 30,
            queued: 20,
            committed: 10,
            stored: 10,
            retired: 0,
            dead: 0,
        };
        assert_eq!(report.samples, expected);
        assert_eq!((report.delta, report.revision, report.rows.offered), (0, 7, 30));
    }

    #[test]
    fn a_lost_message_a_lost_block_and_a_doubled_one_are_found() {
        let mut lost_message = sound();
        lost_message.remove(2);
        let report = audited(&lost_message);
        assert_eq!((report.delta, report.violation_count), (10, 2));

        let mut lost_block = sound();
        lost_block.remove(4);
        assert_eq!(audited(&lost_block).delta, 10);

        let mut doubled = sound();
        let twice = "20260101T000000Z/c/h/0000000000000-0000000000009-0001.2.0-10-5";
        doubled.push(entry(&Key::Block(twice.parse().unwrap()), vec![]));
        assert_eq!(audited(&doubled).delta, 10);
    }

    #[test]
    fn a_missing_floor_is_found() {
        let mut entries = sound();
        entries.pop();
        let report = audited(&entries);
        assert_eq!((report.violation_count, report.delta), (1, 0));
    }

    #[test]
    fn leases_stand_where_they_belong() {
        let mut entries = sound();
        entries.push(entry(&Key::Claim(crate::keyspace::ClaimItem::Janitor), vec![]));
        entries[0].lease = 5;
        let report = audited(&entries);
        assert_eq!(report.violation_count, 2);
        assert!(!report.clean);
    }
}
