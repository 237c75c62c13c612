//! List, then watch: what a follower is told.

use std::{collections::BTreeMap, time::Duration};

use nexus_common::{
    etcd::{Change, Entry, Etcd, Event, RangeRead, follow},
    testing::{Proxy, TestEtcd},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a follower knows: key to value and revision.
type Known = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

struct Follower {
    events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    known: Known,
    revision: i64,
    snapshots: usize,
    alive: usize,
}

impl Follower {
    fn of(etcd: &Etcd) -> Self {
        let (tell, events) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let range = etcd.keyspace().prefix("jobs/");
        tokio::spawn(follow(etcd.clone(), range, tell, stop.clone()));
        Self { events, stop, known: Known::new(), revision: 0, snapshots: 0, alive: 0 }
    }

    async fn next(&mut self) {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("an event in time");
        match event.expect("the follower goes on") {
            Event::Snapshot { revision, entries } => {
                assert!(revision >= self.revision, "history went back");
                self.snapshots += 1;
                self.revision = revision;
                self.known.clear();
                entries.into_iter().for_each(|entry| self.put(entry));
            }
            Event::Changes { revision, changes } => {
                for change in changes {
                    let at = match change {
                        Change::Put(entry) => {
                            let at = entry.mod_revision;
                            self.put(entry);
                            at
                        }
                        Change::Delete(key, at) => {
                            assert!(self.known.remove(&key).is_some(), "deleted twice");
                            at
                        }
                    };
                    assert!(at > self.revision && at <= revision, "told out of order or twice");
                }
                self.revision = revision;
            }
            Event::Alive => self.alive += 1,
        }
    }

    fn put(&mut self, entry: Entry) {
        self.known.insert(entry.key, (entry.value.to_vec(), entry.mod_revision));
    }

    /// Takes events until it knows what etcd holds.
    async fn catch_up(&mut self, etcd: &Etcd) {
        let range = etcd.keyspace().prefix("jobs/");
        let listing = etcd.range(&range, RangeRead::default()).await.unwrap();
        let there: Known = listing
            .entries
            .into_iter()
            .map(|e| (e.key.clone(), (e.value.to_vec(), e.mod_revision)))
            .collect();
        let learn = async {
            while self.known != there {
                self.next().await;
            }
        };
        timeout(PATIENCE, learn).await.expect("the follower learns what etcd holds");
    }
}

async fn put(etcd: &Etcd, n: usize) {
    etcd.describe(&[(format!("/telemetry/jobs/{n}"), vec![1; 8])]).await.unwrap();
}

#[tokio::test]
async fn a_follower_is_told_a_snapshot_and_then_every_change_in_order() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    put(&etcd, 0).await;
    let mut follower = Follower::of(&etcd);
    follower.next().await;
    assert_eq!((follower.snapshots, follower.known.len()), (1, 1));

    for n in 1..50 {
        put(&etcd, n % 5).await;
    }
    server.etcdctl(&["del", "/telemetry/jobs/3"]);
    server.etcdctl(&["put", "/telemetry/other", "not ours"]);
    follower.catch_up(&etcd).await;
    assert_eq!((follower.snapshots, follower.known.len()), (1, 4));

    follower.stop.cancel();
    while let Some(event) = timeout(PATIENCE, follower.events.recv()).await.unwrap() {
        assert_eq!(event, Event::Alive);
    }
}

#[tokio::test]
async fn a_follower_that_stalled_past_a_compaction_is_told_a_new_snapshot() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_secs(3)).await;
    put(&etcd, 0).await;
    let mut follower = Follower::of(&wired);
    follower.next().await;

    // What is told from now on never comes; the next connection begins behind the compaction.
    proxy.hold_answers();
    for n in 1..20 {
        put(&etcd, n).await;
    }
    server.etcdctl(&["del", "/telemetry/jobs/1"]);
    put(&etcd, 20).await;
    let revision = etcd.revision().await.unwrap();
    server.etcdctl(&["compact", &revision.to_string()]);
    proxy.cut();

    follower.catch_up(&etcd).await;
    let snapshots = follower.snapshots;
    assert!(snapshots > 1, "a watch cannot go on from a compacted revision");
    put(&etcd, 21).await;
    follower.catch_up(&etcd).await;
    assert_eq!(follower.snapshots, snapshots);
}

#[tokio::test]
async fn a_follower_that_does_not_take_loses_the_watch_and_is_told_a_new_snapshot() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let mut follower = Follower::of(&etcd);
    follower.next().await;
    // One change waits in the channel, the next cannot be told for longer than a second.
    for n in 0..5 {
        put(&etcd, n).await;
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    put(&etcd, 5).await;
    follower.catch_up(&etcd).await;
    assert_eq!((follower.snapshots, follower.known.len()), (2, 6));
}

#[tokio::test]
async fn a_follower_whose_connection_is_cut_goes_on_without_listing_again() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_secs(3)).await;
    put(&etcd, 0).await;
    let mut follower = Follower::of(&wired);
    follower.catch_up(&etcd).await;
    for n in 1..9 {
        proxy.cut();
        put(&etcd, n).await;
        server.etcdctl(&["del", &format!("/telemetry/jobs/{}", n - 1)]);
        follower.catch_up(&etcd).await;
    }
    assert_eq!(follower.snapshots, 1);
}

#[tokio::test]
async fn a_restart_of_etcd_loses_no_change() {
    let mut server = TestEtcd::start();
    let etcd = server.connect().await;
    put(&etcd, 0).await;
    let mut follower = Follower::of(&etcd);
    follower.catch_up(&etcd).await;
    for round in 1..3 {
        put(&etcd, 10 * round).await;
        server.kill();
        server.restart();
        server.etcdctl(&["del", &format!("/telemetry/jobs/{}", 10 * (round - 1))]);
        put(&etcd, 10 * round + 1).await;
        follower.catch_up(&etcd).await;
    }
}

#[tokio::test]
async fn a_quiet_watch_says_that_it_lives() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let mut follower = Follower::of(&etcd);
    while follower.alive < 2 {
        follower.next().await;
    }
    assert_eq!(follower.snapshots, 1);
}
