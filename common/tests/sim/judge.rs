//! What must hold at every revision of a schedule, whoever did what, and at its end.

use std::collections::BTreeMap;

use bytes::Bytes;
use nexus_common::{
    audit,
    etcd::Entry,
    keyspace::{ClaimItem, CommitSummary, Cursor, Key, Keyspace, Progress, from_json},
    model::{BucketId, Lane},
    testing::Change,
};

use crate::schedule::lanes;

/// What a schedule achieved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) revisions: u64,
    /// Revisions at which the whole keyspace was audited.
    pub(crate) audits: u64,
    pub(crate) samples: u64,
    pub(crate) retired: u64,
}

/// The keyspace at a revision, and what is known of the way there.
#[derive(Default)]
struct Judge {
    keyspace: Keyspace,
    /// In key order.
    entries: Vec<Entry>,
    furthest: BTreeMap<String, u64>,
    floor: Option<BucketId>,
    /// Samples in blocks that retention deleted.
    retired: Vec<String>,
    verdict: Verdict,
}

/// Goes through all writes, oldest first. `complete` when every sample is to be there at the end.
pub(crate) fn judge(history: &[Change], samples: u64, complete: bool) -> Result<Verdict, String> {
    let mut judge = Judge::default();
    for change in history {
        judge.take(change).map_err(|what| format!("at revision {}: {what}", change.revision))?;
    }
    judge.count(samples, complete)?;
    Ok(judge.verdict)
}

impl Judge {
    fn take(&mut self, change: &Change) -> Result<(), String> {
        self.verdict.revisions += 1;
        let mut matters = false;
        let mut gone = Vec::new();
        let mut retires = false;
        for event in &change.events {
            let kv = event.kv.as_ref().ok_or("an event without a key")?;
            let key = self.keyspace.parse(&kv.key).map_err(|e| e.to_string())?;
            matters |= !matches!(key, Key::Claim(_) | Key::Instance(..));
            retires |= matches!(key, Key::Retired(_));
            let at = self.entries.binary_search_by(|e| e.key.as_slice().cmp(&kv.key));
            if event.r#type == 1 {
                let entry =
                    self.entries.remove(at.map_err(|_| "a deleted key that was not there")?);
                if matches!(key, Key::Block(_)) {
                    gone.push(entry.value);
                }
                continue;
            }
            let entry = Entry {
                key: kv.key.clone(),
                value: Bytes::copy_from_slice(&kv.value),
                create_revision: kv.create_revision,
                mod_revision: kv.mod_revision,
                lease: kv.lease,
            };
            self.forward(&key, &entry)?;
            match at {
                Ok(at) => self.entries[at] = entry,
                Err(at) => self.entries.insert(at, entry),
            }
        }
        if retires {
            self.retired.extend(gone.iter().flat_map(lines));
        }
        self.owners(change)?;
        if matters {
            self.verdict.audits += 1;
            let report = audit::check(&self.keyspace, change.revision, &self.entries);
            if !report.clean {
                return Err(report.violations.join("; "));
            }
        }
        Ok(())
    }

    /// No position goes back, nor does the floor, below which nothing is put.
    fn forward(&mut self, key: &Key, entry: &Entry) -> Result<(), String> {
        let text = String::from_utf8_lossy(&entry.key).into_owned();
        let position = match key {
            Key::Shard(_) => self.value::<Progress>(entry)?.next,
            Key::Cursor(..) => self.value::<Cursor>(entry)?.next,
            Key::Commit(_) => self.value::<CommitSummary>(entry)?.number,
            Key::Floor => {
                let floor: Option<BucketId> =
                    std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
                if floor < self.floor {
                    return Err(format!("the floor went back to {floor:?}"));
                }
                self.floor = floor;
                return Ok(());
            }
            // What janitor counts and deletes is frozen: nothing comes to it.
            Key::Block(name) if self.floor.as_ref().is_some_and(|floor| name.bucket < *floor) => {
                return Err(format!("{text} was put below the floor"));
            }
            _ => return Ok(()),
        };
        let furthest = self.furthest.entry(text.clone()).or_default();
        if position < *furthest {
            return Err(format!("{text} went back from {furthest} to {position}"));
        }
        *furthest = position;
        Ok(())
    }

    /// Whoever wrote a position held the claim at that very revision.
    fn owners(&self, change: &Change) -> Result<(), String> {
        for kv in change.events.iter().filter(|e| e.r#type == 0).filter_map(|e| e.kv.as_ref()) {
            let key = self.keyspace.parse(&kv.key).map_err(|e| e.to_string())?;
            let entry = Entry {
                key: kv.key.clone(),
                value: Bytes::copy_from_slice(&kv.value),
                create_revision: 0,
                mod_revision: 0,
                lease: 0,
            };
            let (item, claim) = match key {
                Key::Shard(lane) => (ClaimItem::Shard(lane), self.value::<Progress>(&entry)?.claim),
                Key::Cursor(partition, _) => {
                    (ClaimItem::Partition(partition), self.value::<Cursor>(&entry)?.claim)
                }
                Key::Commit(partition) => {
                    (ClaimItem::Partition(partition), self.value::<CommitSummary>(&entry)?.claim)
                }
                _ => continue,
            };
            // What stood there before anybody began has no owner.
            if claim != 0 && self.claimed_at(item) != Some(claim) {
                let text = String::from_utf8_lossy(&kv.key);
                return Err(format!("{text} was written under claim {claim}, which did not stand"));
            }
        }
        Ok(())
    }

    fn claimed_at(&self, item: ClaimItem) -> Option<i64> {
        let key = self.keyspace.key(&Key::Claim(item)).into_bytes();
        let at = self.entries.binary_search_by(|e| e.key.cmp(&key)).ok()?;
        Some(self.entries[at].create_revision)
    }

    fn value<T: serde::de::DeserializeOwned>(&self, entry: &Entry) -> Result<T, String> {
        from_json(&entry.key, &entry.value).map_err(|e| e.to_string())
    }

    /// Every sample that was taken from a source is in exactly one place.
    fn count(&mut self, samples: u64, complete: bool) -> Result<(), String> {
        let mut held: BTreeMap<String, u64> = BTreeMap::new();
        let mut taken: BTreeMap<Lane, u64> = BTreeMap::new();
        for entry in &self.entries {
            match self.keyspace.parse(&entry.key).map_err(|e| e.to_string())? {
                Key::Block(_) | Key::Message(..) => {
                    for line in lines(&entry.value) {
                        *held.entry(line).or_default() += 1;
                    }
                }
                Key::Shard(lane) => {
                    taken.insert(lane, self.value::<Progress>(entry)?.offset);
                }
                _ => {}
            }
        }
        for line in &self.retired {
            *held.entry(line.clone()).or_default() += 1;
        }
        self.verdict.retired = self.retired.len() as u64;
        for lane in lanes() {
            let taken = taken.get(&lane).copied().unwrap_or(0);
            if complete && taken != samples {
                return Err(format!("lane {lane}: {taken} of {samples} samples were taken"));
            }
            for n in 0..taken {
                let line = format!("{}:{n}", lane.shard.0);
                match held.remove(&line) {
                    Some(1) => self.verdict.samples += 1,
                    Some(times) => return Err(format!("sample {line} is there {times} times")),
                    None => return Err(format!("sample {line} is lost")),
                }
            }
        }
        match held.into_keys().next() {
            Some(line) => Err(format!("sample {line} came from nowhere")),
            None => Ok(()),
        }
    }
}

fn lines(value: &Bytes) -> Vec<String> {
    String::from_utf8_lossy(value).lines().map(str::to_owned).collect()
}
