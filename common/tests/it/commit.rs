//! The guarded write, and what becomes of it when the wire fails.

use std::time::Duration;

use nexus_common::{
    etcd::{Claim, Commit, Entry, Error, Etcd, Outcome, Position},
    keyspace::{ClaimItem, Key},
    limits::{TXN_BYTES_MAX, TXN_OPS_MAX},
    model::{PartitionId, Role},
    runtime::Life,
    testing::{Proxy, TestEtcd, eventually},
};

use crate::given::{claimed, keys, lane};

const KEY: &str = "/telemetry/jobs/a";

fn position(mod_revision: i64) -> Position {
    Position { key: KEY.to_owned(), mod_revision }
}

async fn stands(etcd: &Etcd) -> Entry {
    etcd.get(KEY).await.unwrap().expect("the position exists")
}

async fn life(server: &TestEtcd) -> (Life, Claim) {
    let life = server.life(Role::Collector, "one", 60).await;
    let claim = claimed(&life, ClaimItem::Janitor).await;
    (life, claim)
}

async fn committed(etcd: &Etcd, claim: &Claim, at: &Position, value: &str) -> i64 {
    match Commit::new(claim, at, value.as_bytes().to_vec()).run(etcd).await.unwrap() {
        Outcome::Committed { revision, .. } => revision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_commit_is_applied_under_both_guards_and_else_changes_nothing() {
    let server = TestEtcd::start();
    let (one, claim) = life(&server).await;
    let etcd = &one.process.etcd;

    let first = committed(etcd, &claim, &position(0), "1").await;
    assert_eq!(stands(etcd).await.mod_revision, first);
    let second = committed(etcd, &claim, &position(first), "2").await;

    // The rightful owner, from an old position.
    let stale = Commit::new(&claim, &position(first), b"3".to_vec()).run(etcd).await.unwrap();
    assert!(matches!(stale, Outcome::Stale), "{stale:?}");
    // Somebody else wrote the position.
    server.etcdctl(&["put", KEY, "by hand"]);
    let stale = Commit::new(&claim, &position(second), b"3".to_vec()).run(etcd).await.unwrap();
    assert!(matches!(stale, Outcome::Stale), "{stale:?}");

    // The claim is deleted by hand and taken by another, from the right position.
    server.etcdctl(&["del", claim.key()]);
    let two = server.life(Role::Collector, "two", 60).await;
    let theirs = claimed(&two, ClaimItem::Janitor).await;
    let now = stands(etcd).await;
    let mut late = Commit::new(&claim, &position(now.mod_revision), b"4".to_vec());
    late.put("/telemetry/jobs/late", b"x".to_vec());
    let fenced = late.run(etcd).await.unwrap();
    assert!(matches!(fenced, Outcome::Fenced), "{fenced:?}");
    assert_eq!(stands(etcd).await, now);
    assert_eq!(keys(etcd, "jobs/").await, [KEY]);
    committed(etcd, &theirs, &position(now.mod_revision), "5").await;
}

#[tokio::test]
async fn a_commit_that_was_applied_but_never_answered_is_found_applied_and_not_repeated() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let direct = life.process.etcd.clone();
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_secs(10)).await;
    let first = committed(&wired, &claim, &position(0), "1").await;

    proxy.hold_answers();
    let sent = tokio::spawn(async move {
        let mut commit = Commit::new(&claim, &position(first), b"2".to_vec());
        commit.put("/telemetry/jobs/a/effect", b"once".to_vec());
        commit.read(KEY);
        commit.run(&wired).await.unwrap()
    });
    eventually("etcd has applied it", Duration::from_secs(5), || async {
        stands(&direct).await.mod_revision > first
    })
    .await;
    let applied = stands(&direct).await;
    proxy.cut();

    let outcome = sent.await.unwrap();
    let Outcome::Committed { revision, reads: None } = outcome else { panic!("{outcome:?}") };
    let now = stands(&direct).await;
    assert_eq!((now.mod_revision, &*now.value), (revision, &b"2"[..]));
    assert_eq!(now, applied);
    let effect = direct.get("/telemetry/jobs/a/effect").await.unwrap().unwrap();
    assert_eq!((effect.create_revision, effect.mod_revision), (revision, revision));
}

#[tokio::test]
async fn a_commit_that_never_reached_etcd_is_sent_again_and_applied_once() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let direct = life.process.etcd.clone();
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_millis(500)).await;
    let first = committed(&wired, &claim, &position(0), "1").await;

    proxy.hold_requests();
    let mut sent = tokio::spawn(async move {
        let mut commit = Commit::new(&claim, &position(first), b"2".to_vec());
        commit.read(KEY);
        commit.run(&wired).await.unwrap()
    });
    // Longer than one request may wait: at least one try has failed by then.
    let early = tokio::time::timeout(Duration::from_millis(700), &mut sent).await;
    assert!(early.is_err(), "nothing can have been decided: {early:?}");
    assert_eq!(stands(&direct).await.mod_revision, first);
    proxy.cut();
    let outcome = sent.await.unwrap();
    let Outcome::Committed { revision, reads: Some(reads) } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(stands(&direct).await.mod_revision, revision);
    assert_eq!(reads.len(), 1);
}

#[tokio::test]
async fn a_commit_whose_repetitions_all_reach_etcd_moves_the_position_once() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let direct = life.process.etcd.clone();
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_millis(300)).await;
    let first = committed(&wired, &claim, &position(0), "1").await;

    // Every try arrives, and none is answered in time.
    proxy.hold_answers();
    let mut sent = tokio::spawn(async move {
        Commit::new(&claim, &position(first), b"2".to_vec()).run(&wired).await.unwrap()
    });
    let early = tokio::time::timeout(Duration::from_millis(1500), &mut sent).await;
    assert!(early.is_err(), "nothing can have been decided: {early:?}");
    proxy.pass();
    let outcome = sent.await.unwrap();
    let Outcome::Committed { revision, reads: None } = outcome else { panic!("{outcome:?}") };
    let now = stands(&direct).await;
    assert_eq!((now.mod_revision, &*now.value), (revision, &b"2"[..]));
    // Nothing else was written: the next revision is the next write's.
    assert_eq!(direct.revision().await.unwrap(), revision);
}

#[tokio::test]
async fn a_commit_that_etcd_could_not_take_is_refused_before_it_is_sent() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let etcd = &life.process.etcd;
    let before = etcd.revision().await.unwrap();

    let mut many = Commit::new(&claim, &position(0), b"1".to_vec());
    (1..TXN_OPS_MAX).for_each(|i| many.put(&format!("{KEY}/{i}"), Vec::new()));
    assert_eq!(many.ops(), TXN_OPS_MAX);
    many.put(&format!("{KEY}/more"), Vec::new());
    let refused = many.run(etcd).await;
    assert!(matches!(refused, Err(Error::TooLarge { what: "operations", .. })), "{refused:?}");

    let mut large = Commit::new(&claim, &position(0), b"1".to_vec());
    large.put(&format!("{KEY}/large"), vec![0; TXN_BYTES_MAX]);
    let refused = large.run(etcd).await;
    assert!(matches!(refused, Err(Error::TooLarge { what: "bytes", .. })), "{refused:?}");
    assert_eq!(etcd.revision().await.unwrap(), before);

    // At both bounds etcd takes it.
    let mut full = Commit::new(&claim, &position(0), b"1".to_vec());
    (2..TXN_OPS_MAX).for_each(|i| full.put(&format!("{KEY}/{i}"), Vec::new()));
    let room = TXN_BYTES_MAX - full.bytes() - KEY.len() - "/large".len() - 32;
    full.put(&format!("{KEY}/large"), vec![0; room]);
    assert_eq!((full.ops(), full.bytes()), (TXN_OPS_MAX, TXN_BYTES_MAX));
    let outcome = full.run(etcd).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_commit_deletes_exactly_the_messages_it_names() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let etcd = &life.process.etcd;
    let key = |shard: u32, seq: u64| {
        etcd.keyspace().key(&Key::Message(PartitionId(1), lane(shard), seq, 10))
    };
    let all = [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)].map(|(s, n)| (key(s, n), vec![1]));
    assert!(etcd.create(&all).await.unwrap());

    let mut commit = Commit::new(&claim, &position(0), b"1".to_vec());
    commit.delete(&etcd.keyspace().messages(PartitionId(1), &lane(1), 0, 3), 3);
    commit.delete_key(&key(2, 0));
    let outcome = commit.run(etcd).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    assert_eq!(keys(etcd, "queue/").await, [key(0, 0), key(1, 3)]);
}

#[tokio::test]
async fn a_bound_on_a_value_holds_only_for_a_key_that_exists() {
    let server = TestEtcd::start();
    let (life, claim) = life(&server).await;
    let etcd = &life.process.etcd;
    let bounded = |bound: &'static str| {
        let mut commit = Commit::new(&claim, &position(0), b"1".to_vec());
        commit.require_value_below("/telemetry/jobs/edge", bound);
        commit
    };
    assert!(matches!(bounded("m").run(etcd).await.unwrap(), Outcome::Stale));
    server.etcdctl(&["put", "/telemetry/jobs/edge", "m"]);
    assert!(matches!(bounded("m").run(etcd).await.unwrap(), Outcome::Stale));
    assert!(matches!(bounded("m~").run(etcd).await.unwrap(), Outcome::Committed { .. }));
}
