//! From watched keys to what the fold takes. Pure: says which messages must be fetched, and at
//! which revision.

use std::collections::{HashMap, VecDeque};

use nexus_common::{
    etcd::{Change, Entry},
    keyspace::{Key, Keyspace, Progress, ValueError, from_json},
    model::Lane,
};

use super::fold::{PlaceChange, TruthChange};

/// One change of truth, before its messages are there.
#[derive(Debug)]
pub(super) enum Planned {
    /// Nothing is missing.
    Ready(TruthChange),
    /// The messages `from..progress.next` are needed, as they stood at `revision`: the very
    /// transaction that moved the progress put them, so there they certainly are.
    Fetch { lane: Lane, from: u64, progress: Box<Progress>, revision: i64 },
}

/// Remembers how far each lane was asked for; runs ahead of the fold.
#[derive(Debug, Default)]
pub(super) struct Intake {
    next: HashMap<Lane, u64>,
}

impl Intake {
    /// Goes on from lanes as they were loaded.
    pub(super) fn from(lanes: impl Iterator<Item = (Lane, u64)>) -> Self {
        Self { next: lanes.collect() }
    }

    /// What a change of truth asks for; nothing if it is none of our keys.
    pub(super) fn plan(
        &mut self,
        keyspace: &Keyspace,
        change: &Change,
    ) -> Result<Option<Planned>, ValueError> {
        let planned = match change {
            Change::Put(entry) => match keyspace.parse(&entry.key) {
                Ok(Key::Shard(lane)) => {
                    let progress: Progress = from_json(&entry.key, &entry.value)?;
                    let from = self.next.insert(lane.clone(), progress.next).unwrap_or(0);
                    let (progress, revision) = (Box::new(progress), entry.mod_revision);
                    Planned::Fetch { lane, from, progress, revision }
                }
                Ok(Key::Source(id)) => Planned::Ready(TruthChange::Source(
                    id,
                    Some(from_json(&entry.key, &entry.value)?),
                )),
                Ok(Key::Floor) => Planned::Ready(TruthChange::Floor(floor(entry)?)),
                Ok(Key::Retired(bucket)) => Planned::Ready(TruthChange::Retired(
                    bucket,
                    Some(from_json(&entry.key, &entry.value)?),
                )),
                _ => return Ok(None),
            },
            Change::Delete(key, _) => match keyspace.parse(key) {
                Ok(Key::Shard(lane)) => {
                    self.next.remove(&lane);
                    Planned::Ready(TruthChange::ShardGone(lane))
                }
                Ok(Key::Source(id)) => Planned::Ready(TruthChange::Source(id, None)),
                Ok(Key::Retired(bucket)) => Planned::Ready(TruthChange::Retired(bucket, None)),
                _ => return Ok(None),
            },
        };
        Ok(Some(planned))
    }
}

/// What a change of places means; nothing if it says nothing about where samples lie.
pub(super) fn place(
    keyspace: &Keyspace,
    change: &Change,
) -> Result<Option<PlaceChange>, ValueError> {
    let place = match change {
        Change::Put(entry) => {
            let (key, value) = (&entry.key, &entry.value);
            match keyspace.parse(key) {
                Ok(Key::Commit(partition)) => {
                    PlaceChange::Commit(partition, from_json(key, value)?)
                }
                Ok(Key::Cluster(cluster)) => PlaceChange::Cluster(cluster, from_json(key, value)?),
                Ok(Key::Host(cluster, host)) => {
                    PlaceChange::Host(cluster, host, from_json(key, value)?)
                }
                Ok(Key::Gpu(cluster, host, gpu)) => {
                    PlaceChange::Gpu(cluster, host, gpu, Some(from_json(key, value)?))
                }
                _ => return Ok(None),
            }
        }
        Change::Delete(key, _) => match keyspace.parse(key) {
            Ok(Key::Gpu(cluster, host, gpu)) => PlaceChange::Gpu(cluster, host, gpu, None),
            _ => return Ok(None),
        },
    };
    Ok(Some(place))
}

/// The retention floor, which is text.
pub(super) fn floor(entry: &Entry) -> Result<nexus_common::model::BucketId, ValueError> {
    let text = String::from_utf8_lossy(&entry.value);
    text.parse().map_err(|_| ValueError {
        key: String::from_utf8_lossy(&entry.key).into_owned(),
        reason: format!("{text:?} is not a bucket"),
    })
}

/// The revision of a change.
pub(super) fn revision(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Delete(_, revision) => *revision,
    }
}

/// Splits changes, which are in the order of their revisions, into whole revisions, leaving out
/// what is not after `applied`.
pub(super) fn by_revision(changes: Vec<Change>, applied: i64) -> VecDeque<(i64, Vec<Change>)> {
    let mut groups: VecDeque<(i64, Vec<Change>)> = VecDeque::new();
    for change in changes.into_iter().filter(|c| revision(c) > applied) {
        let at = revision(&change);
        match groups.back_mut() {
            Some((last, group)) if *last == at => group.push(change),
            _ => groups.push_back((at, vec![change])),
        }
    }
    groups
}
