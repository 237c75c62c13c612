//! The sources and shards in etcd, watched: what there is to work on.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use nexus_common::{
    etcd::{Change, Entry, Event, follow},
    keyspace::{ClaimItem, Key, Keyspace, Progress, Source, SourceKind, from_json},
    model::{HostName, Lane, SourceId},
    runtime::Life,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval},
};

/// How long a source that cannot be read here is left to others.
const SHUN_FOR: Duration = Duration::from_secs(30);
/// Withdrawn files that are remembered: people withdraw few while a session lasts.
const WITHDRAWN_MAX: usize = 1000;

/// What is known of sources and shards.
pub(crate) struct Sources {
    known: Mutex<Known>,
    items: watch::Sender<BTreeSet<ClaimItem>>,
    own_items: watch::Sender<BTreeSet<ClaimItem>>,
    uncut: watch::Sender<BTreeSet<SourceId>>,
}

#[derive(Default)]
struct Known {
    sources: BTreeMap<SourceId, Source>,
    unfinished: BTreeSet<Lane>,
    finished: BTreeSet<Lane>,
    /// Sources that have all their shards, so that nobody counts these again.
    whole: BTreeSet<SourceId>,
    shunned: HashMap<SourceId, Instant>,
    /// What sources read that were withdrawn while we looked.
    withdrawn: Vec<SourceKind>,
    /// Where we are.
    host: Option<HostName>,
    /// Everything but what only a streamer on this host may work on is left to others.
    apart: bool,
}

impl Sources {
    /// Follows sources and shards until the session ends; we are on `host`.
    pub(crate) fn follow(life: &Life, host: Option<HostName>) -> Arc<Self> {
        let sources = Arc::new(Self {
            known: Mutex::new(Known { host, apart: life.process.apart, ..Known::default() }),
            items: watch::Sender::new(BTreeSet::new()),
            own_items: watch::Sender::new(BTreeSet::new()),
            uncut: watch::Sender::new(BTreeSet::new()),
        });
        let (tell, mut events) = mpsc::channel(64);
        let keyspace = life.process.etcd.keyspace().clone();
        let stop = life.session.lost().child_token();
        let watching = follow(life.process.etcd.clone(), keyspace.truth(), tell, stop);
        let told = Arc::clone(&sources);
        tokio::spawn(async move {
            let fold = async {
                // A source that was shunned comes back by itself.
                let mut tick = interval(Duration::from_secs(5));
                loop {
                    tokio::select! {
                        event = events.recv() => match event {
                            Some(event) => told.on(&keyspace, event),
                            None => return,
                        },
                        _ = tick.tick() => told.publish(),
                    }
                }
            };
            tokio::join!(watching, fold);
        });
        sources
    }

    /// Shards to claim, any streamer's.
    pub(crate) fn items(&self) -> watch::Receiver<BTreeSet<ClaimItem>> {
        self.items.subscribe()
    }

    /// Shards to claim that only a streamer on this host may work on.
    pub(crate) fn own_items(&self) -> watch::Receiver<BTreeSet<ClaimItem>> {
        self.own_items.subscribe()
    }

    /// Sources whose shards are not all there.
    pub(crate) fn uncut(&self) -> watch::Receiver<BTreeSet<SourceId>> {
        self.uncut.subscribe()
    }

    /// What a source reads.
    pub(crate) fn get(&self, source: &SourceId) -> Option<Source> {
        self.known.lock().ok().and_then(|known| known.sources.get(source).cloned())
    }

    /// What sources read: first of those that were read to the end or withdrawn while we looked,
    /// then of all others.
    pub(crate) fn read_and_unread(&self) -> (Vec<SourceKind>, Vec<SourceKind>) {
        self.known.lock().map(|known| known.read_and_unread()).unwrap_or_default()
    }

    /// Leaves a source to others for a while: it cannot be read here.
    pub(crate) fn shun(&self, source: &SourceId) {
        if let Ok(mut known) = self.known.lock() {
            known.shunned.insert(source.clone(), Instant::now() + SHUN_FOR);
        }
        self.publish();
    }

    fn on(&self, keyspace: &Keyspace, event: Event) {
        let Ok(mut known) = self.known.lock() else { return };
        match event {
            Event::Snapshot { entries, .. } => {
                known.sources.clear();
                known.unfinished.clear();
                known.finished.clear();
                known.whole.clear();
                entries.iter().for_each(|entry| known.put(keyspace, entry));
            }
            Event::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        Change::Put(entry) => known.put(keyspace, &entry),
                        Change::Delete(key, _) => known.delete(keyspace, &key),
                    }
                }
            }
            Event::Alive => return,
        }
        drop(known);
        self.publish();
    }

    fn publish(&self) {
        let Ok(mut known) = self.known.lock() else { return };
        let now = Instant::now();
        known.shunned.retain(|_, until| *until > now);
        let shared = if known.apart { BTreeSet::new() } else { known.items(None) };
        replace(&self.items, shared);
        let own = known.host.as_ref().map(|host| known.items(Some(host)));
        replace(&self.own_items, own.unwrap_or_default());
        replace(&self.uncut, known.uncut());
    }
}

fn replace<T: PartialEq>(told: &watch::Sender<T>, now: T) {
    told.send_if_modified(|old| {
        let changed = *old != now;
        *old = now;
        changed
    });
}

impl Known {
    /// Whether a source shall be read, and by us. One that is paused, or gone, is left: its shards
    /// are given back after the message in hand.
    fn is_open(&self, id: &SourceId) -> bool {
        self.sources.get(id).is_some_and(|source| !source.paused) && !self.shunned.contains_key(id)
    }

    /// What is to be read and may be read on `host` only, or anywhere if there is none.
    fn items(&self, host: Option<&HostName>) -> BTreeSet<ClaimItem> {
        let open = self.unfinished.iter().filter(|lane| self.is_open(&lane.source));
        let open = open.filter(|lane| !self.is_too_many(lane));
        let open = open.filter(|lane| {
            let source = self.sources.get(&lane.source);
            source.is_some_and(|s| s.kind.only_on() == host && !s.kind.is_pushed())
        });
        open.cloned().map(ClaimItem::Shard).collect()
    }

    /// Whether its source has become so small that this shard has nothing to do.
    fn is_too_many(&self, lane: &Lane) -> bool {
        let source = self.sources.get(&lane.source);
        source.is_some_and(|source| source.kind.is_live() && lane.shard.0 >= source.shards)
    }

    fn uncut(&mut self) -> BTreeSet<SourceId> {
        let unknown = self.sources.iter().filter(|(id, _)| !self.whole.contains(*id));
        let whole = unknown.filter(|(id, source)| {
            let lanes = self.unfinished.iter().chain(&self.finished);
            let shards = lanes.filter(|lane| lane.source == **id).count();
            !matches!(source.kind, SourceKind::Declared { .. }) && shards >= source.shards as usize
        });
        let whole: Vec<SourceId> = whole.map(|(id, _)| id.clone()).collect();
        self.whole.extend(whole);
        let open = self.sources.iter().filter(|(id, s)| self.is_open(id) && !s.kind.is_pushed());
        let ours = open.filter(|(_, source)| {
            !self.apart || (self.host.is_some() && source.kind.only_on() == self.host.as_ref())
        });
        ours.map(|(id, _)| id).filter(|id| !self.whole.contains(*id)).cloned().collect()
    }

    fn put(&mut self, keyspace: &Keyspace, entry: &Entry) {
        let result = match keyspace.parse(&entry.key) {
            Ok(Key::Source(id)) => from_json(&entry.key, &entry.value).map(|source| {
                // It may have more shards than before.
                self.whole.remove(&id);
                self.sources.insert(id, source);
            }),
            Ok(Key::Shard(lane)) => {
                from_json::<Progress>(&entry.key, &entry.value).map(|progress| {
                    let (into, out_of) = if progress.done {
                        (&mut self.finished, &mut self.unfinished)
                    } else {
                        (&mut self.unfinished, &mut self.finished)
                    };
                    out_of.remove(&lane);
                    into.insert(lane);
                })
            }
            _ => return,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "a source or shard that cannot be read is left out");
        }
    }

    fn read_and_unread(&self) -> (Vec<SourceKind>, Vec<SourceKind>) {
        let unfinished: BTreeSet<_> = self.unfinished.iter().map(|lane| &lane.source).collect();
        let kinds = self.sources.iter().map(|(id, source)| {
            let done = self.whole.contains(id) && !unfinished.contains(id);
            (done, source.kind.clone())
        });
        let (done, others): (Vec<_>, Vec<_>) = kinds.partition(|(done, _)| *done);
        let done = done.into_iter().map(|(_, kind)| kind);
        let read = self.withdrawn.iter().cloned().chain(done).collect();
        (read, others.into_iter().map(|(_, kind)| kind).collect())
    }

    fn delete(&mut self, keyspace: &Keyspace, key: &[u8]) {
        match keyspace.parse(key) {
            Ok(Key::Source(id)) => {
                // Only what is told to be withdrawn: that a listing lacks one says less.
                if let Some(source) = self.sources.remove(&id)
                    && matches!(source.kind, SourceKind::Csv { .. })
                    && self.withdrawn.len() < WITHDRAWN_MAX
                {
                    self.withdrawn.push(source.kind);
                }
                self.whole.remove(&id);
            }
            Ok(Key::Shard(lane)) => {
                self.unfinished.remove(&lane);
                self.finished.remove(&lane);
                self.whole.remove(&lane.source);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::{
        keyspace::{FileRange, to_json},
        model::{ShardId, Timestamp},
    };

    use super::*;

    #[test]
    fn a_file_is_read_when_all_its_shards_are_or_when_it_was_withdrawn() {
        let keyspace = Keyspace::default();
        let kind = |name: &str| {
            let (path, fingerprint) = (format!("/{name}.csv"), String::new());
            SourceKind::Csv { path, bytes: 1, fingerprint, replay: None, mapping: None }
        };
        let entry = |key: &Key, value: Vec<u8>| Entry {
            key: keyspace.key(key).into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        };
        let source_key = |name: &str| Key::Source(name.parse().unwrap());
        let mut known = Known::default();
        let check = |known: &mut Known, read: &[&str], unread: &[&str]| {
            known.uncut(); // as every change does
            let expected = [read, unread].map(|names| names.iter().map(|n| kind(n)).collect());
            assert_eq!(known.read_and_unread(), expected.into());
        };
        for name in ["a", "b"] {
            let created_at = Timestamp::EPOCH;
            let source = Source { kind: kind(name), shards: 2, created_at, paused: false };
            known.put(&keyspace, &entry(&source_key(name), to_json(&source)));
        }
        let put = |known: &mut Known, name: &str, shard: u32, done: bool| {
            let untouched = Progress::untouched(FileRange { start: 0, end: 1 }, Timestamp::EPOCH);
            let lane = Lane { source: name.parse().unwrap(), shard: ShardId(shard) };
            let progress = to_json(&Progress { done, ..untouched });
            known.put(&keyspace, &entry(&Key::Shard(lane), progress));
        };
        put(&mut known, "a", 0, true);
        check(&mut known, &[], &["a", "b"]); // it is only half cut
        put(&mut known, "a", 1, false);
        check(&mut known, &[], &["a", "b"]);
        put(&mut known, "a", 1, true);
        check(&mut known, &["a"], &["b"]);
        known.delete(&keyspace, keyspace.key(&source_key("b")).as_bytes());
        check(&mut known, &["b", "a"], &[]);
    }
}
