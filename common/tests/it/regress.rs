//! An etcd that is not the one it was: restored from a snapshot, or another on the same port.

use std::time::Duration;

use nexus_common::{
    etcd::{Commit, Error, Etcd, Outcome, Position, Session, follow},
    keyspace::ClaimItem,
    model::Role,
    runtime::run,
    testing::{TestEtcd, eventually},
};
use tokio::{sync::mpsc, time::timeout};

use crate::given::{claimed, clean, keys};

const KEY: &str = "/telemetry/clusters/regress";

/// Writes `value` at a revision of its own.
async fn write(etcd: &Etcd, value: &str) {
    etcd.describe(&[(KEY.to_owned(), value.as_bytes().to_vec())]).await.unwrap();
}

/// Waits until etcd is taken for another, whose every answer says so.
async fn regressed(etcd: &Etcd) -> String {
    let within = Duration::from_secs(10);
    eventually("the other etcd is noticed", within, || async {
        let _ = etcd.revision().await; // fails while etcd starts, and from then on
        etcd.regressed().is_cancelled()
    })
    .await;
    let error = etcd.get(KEY).await.unwrap_err();
    assert!(matches!(error, Error::Regressed { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn an_etcd_that_was_restored_from_a_snapshot_is_noticed_before_anything_is_written() {
    let mut server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 60).await;
    let etcd = life.process.etcd.clone();
    let claim = claimed(&life, ClaimItem::Janitor).await;
    // Every process follows something: a broken connection is noticed even by who is idle.
    let (tell, mut events) = mpsc::channel(64);
    let range = etcd.keyspace().prefix("claims/");
    tokio::spawn(follow(etcd.clone(), range, tell, life.process.stop.clone()));
    events.recv().await.unwrap();
    write(&etcd, "before").await;
    let snapshot = server.save_snapshot();
    for _ in 0..10 {
        write(&etcd, "after").await;
    }
    server.kill();
    server.restore(&snapshot);
    server.restart();

    // The claim and the position are in the snapshot: both guards would hold.
    let position = Position { key: "/telemetry/jobs/a".to_owned(), mod_revision: 0 };
    let refused = Commit::new(&claim, &position, b"1".to_vec()).run(&etcd).await;
    assert!(matches!(refused, Err(Error::Regressed { .. })), "{refused:?}");
    assert!(regressed(&etcd).await.contains("it is back at revision"));
    let anew = server.connect().await;
    assert_eq!(anew.get(&position.key).await.unwrap(), None);
    assert_eq!(anew.get(KEY).await.unwrap().unwrap().value, "before");
    // Who begins anew goes on from what there is.
    let applied = Commit::new(&claim, &position, b"1".to_vec()).run(&anew).await.unwrap();
    assert!(matches!(applied, Outcome::Committed { .. }), "{applied:?}");
}

#[tokio::test]
async fn another_etcd_on_the_same_port_is_noticed_whatever_its_revision() {
    let mut server = TestEtcd::start();
    let etcd = server.connect().await;
    write(&etcd, "mine").await;
    server.kill();
    let mut other = TestEtcd::in_place_of(&server);
    let stranger = other.connect().await;
    for _ in 0..10 {
        write(&stranger, "another's").await;
    }
    assert!(regressed(&etcd).await.contains("it is cluster"));
    assert!(stranger.revision().await.unwrap() > 10);
    other.kill();
}

#[tokio::test]
async fn an_etcd_that_restarts_or_is_compacted_is_still_the_same() {
    let mut server = TestEtcd::start();
    let etcd = server.connect().await;
    for round in 0..3 {
        write(&etcd, "again").await;
        let revision = etcd.revision().await.unwrap();
        server.etcdctl(&["compact", &revision.to_string()]);
        server.kill();
        server.restart();
        write(&etcd, "and again").await;
        assert!(etcd.revision().await.unwrap() > revision, "round {round}");
    }
    assert!(!etcd.regressed().is_cancelled());
    clean(&etcd).await;
}

#[tokio::test]
async fn a_process_ends_by_itself_and_leaves_the_restored_etcd_as_it_is() {
    let mut server = TestEtcd::start();
    let process = server.process(Role::Collector, "one", 60).await;
    process.enter_keyspace().await.unwrap();
    let snapshot = server.save_snapshot();
    let etcd = process.etcd.clone();
    let address = "127.0.0.1:1".parse().unwrap();
    let running = tokio::spawn(run(process, address, |life| async move {
        // Work that would never notice by itself.
        life.session.lost().cancelled().await;
        Ok(())
    }));
    eventually("it is there", Duration::from_secs(10), || async {
        !keys(&etcd, "instances/").await.is_empty()
    })
    .await;
    server.kill();
    server.restore(&snapshot);
    server.restart();
    let ended = timeout(Duration::from_secs(10), running).await.expect("it ends").unwrap();
    let error = ended.unwrap_err();
    assert!(error.to_string().contains("restored from a snapshot or replaced"), "{error}");
    let anew = server.connect().await;
    assert_eq!(keys(&anew, "instances/").await, Vec::<String>::new());
    // A new life begins as if nothing had been.
    let opened = Session::open(&anew, Role::Collector, "one".parse().unwrap(), 5).await;
    opened.unwrap().revoke().await;
}
