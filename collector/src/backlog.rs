//! What waits in the queue, told by the progress of the shards: tiny keys, watched.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use nexus_common::{
    etcd::{Change, Entry, Event, follow},
    keyspace::{Key, Progress, from_json},
    model::{Lane, PartitionId},
    runtime::Life,
};
use tokio::sync::{mpsc, watch};

/// How far a lane was filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Sequence number behind the last message.
    pub(crate) next: u64,
    /// Samples enqueued since the beginning.
    pub(crate) samples: u64,
    /// Nothing more will come.
    pub(crate) done: bool,
    /// When it last grew.
    pub(crate) grew_at: Instant,
}

/// The heads of a partition's lanes.
pub(crate) type Heads = BTreeMap<Lane, Head>;

/// The heads of all lanes, by partition.
pub(crate) struct Backlog {
    partitions: Vec<watch::Sender<Heads>>,
}

impl Backlog {
    /// Follows the shards until the session or the process ends.
    pub(crate) fn follow(life: &Life) -> Arc<Self> {
        let count = life.config.partitions;
        let partitions = (0..count).map(|_| watch::Sender::new(Heads::new())).collect();
        let backlog = Arc::new(Self { partitions });
        let (tell, mut events) = mpsc::channel(64);
        let keyspace = life.process.etcd.keyspace().clone();
        let stop = life.session.lost().child_token();
        let watching =
            follow(life.process.etcd.clone(), keyspace.prefix("shards/"), tell, stop.clone());
        let told = Arc::clone(&backlog);
        tokio::spawn(async move {
            let fold = async {
                while let Some(event) = events.recv().await {
                    told.on(event, |entry| {
                        let Ok(Key::Shard(lane)) = keyspace.parse(&entry.key) else { return None };
                        match from_json::<Progress>(&entry.key, &entry.value) {
                            Ok(progress) => Some((lane, progress)),
                            Err(error) => {
                                tracing::warn!(%error, "a shard that cannot be read is left out");
                                None
                            }
                        }
                    });
                }
            };
            tokio::join!(watching, fold);
        });
        backlog
    }

    /// The heads of one partition, and word of their changes.
    pub(crate) fn of(&self, partition: PartitionId) -> watch::Receiver<Heads> {
        // The pool only claims partitions that exist.
        let index = usize::from(partition.0).min(self.partitions.len().saturating_sub(1));
        self.partitions[index].subscribe()
    }

    fn on(&self, event: Event, parse: impl Fn(&Entry) -> Option<(Lane, Progress)>) {
        let entries: Vec<Entry> = match event {
            Event::Snapshot { entries, .. } => entries,
            Event::Changes { changes, .. } => changes
                .into_iter()
                .filter_map(|change| match change {
                    Change::Put(entry) => Some(entry),
                    // A withdrawn source: what is queued of it is still taken.
                    Change::Delete(..) => None,
                })
                .collect(),
            Event::Alive => return,
        };
        for (lane, progress) in entries.iter().filter_map(parse) {
            let partition = lane.partition(self.partitions.len() as u16);
            self.partitions[usize::from(partition.0)].send_if_modified(|heads| {
                let old = heads.get(&lane);
                let grown = old.is_none_or(|old| old.next < progress.next);
                let changed = grown || old.is_some_and(|old| old.done != progress.done);
                let head = Head {
                    next: progress.next,
                    samples: progress.samples,
                    done: progress.done,
                    grew_at: Instant::now(),
                };
                if changed {
                    heads.insert(lane, head);
                }
                changed
            });
        }
    }
}
