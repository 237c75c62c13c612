//! One lease a process: kept, lost, given up.

use std::time::{Duration, Instant};

use nexus_common::{
    etcd::{Commit, Error, Outcome, Position, Session},
    keyspace::ClaimItem,
    model::{InstanceId, Role},
    testing::{Proxy, TestEtcd, eventually},
};
use tokio::time::timeout;

use crate::given::claimed;

/// Seconds that the lease has left, as etcd tells; below 0 when it is gone.
fn remaining(server: &TestEtcd, lease: i64) -> i64 {
    let told = server.etcdctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
    let json: serde_json::Value = serde_json::from_str(&told).unwrap();
    json["ttl"].as_i64().unwrap()
}

#[tokio::test]
async fn a_session_whose_lease_is_revoked_is_told_within_its_ttl_and_its_claims_are_gone() {
    let server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 3).await;
    let etcd = &life.process.etcd;
    let claim = claimed(&life, ClaimItem::Janitor).await;
    let position = Position { key: "/telemetry/jobs/a".to_owned(), mod_revision: 0 };

    server.etcdctl(&["lease", "revoke", &format!("{:x}", life.session.lease())]);
    assert_eq!(etcd.get(claim.key()).await.unwrap(), None);
    let fenced = Commit::new(&claim, &position, b"1".to_vec()).run(etcd).await.unwrap();
    assert!(matches!(fenced, Outcome::Fenced), "{fenced:?}");
    let told = timeout(Duration::from_secs(3), life.session.lost().cancelled()).await;
    assert!(told.is_ok() && claim.is_lost());
}

#[tokio::test]
async fn a_session_that_reconnects_to_find_its_lease_gone_is_told_at_once() {
    let server = TestEtcd::start();
    let proxy = Proxy::start(&server.endpoint());
    let wired = server.connect_through(&proxy, Duration::from_secs(3)).await;
    let name = InstanceId::new("one").unwrap();
    // Renewed every five seconds; without an answer it would be given up after 14.
    let session = Session::open(&wired, Role::Collector, name, 15).await.unwrap();
    server.etcdctl(&["lease", "revoke", &format!("{:x}", session.lease())]);
    proxy.cut();
    let told = timeout(Duration::from_secs(9), session.lost().cancelled()).await;
    assert!(told.is_ok());
}

#[tokio::test]
async fn a_session_outlives_a_restart_of_etcd_that_is_shorter_than_its_ttl() {
    let mut server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 10).await;
    let etcd = &life.process.etcd;
    let claim = claimed(&life, ClaimItem::Janitor).await;

    server.kill();
    server.restart();
    // A lease that etcd has read from its disk runs down until somebody renews it.
    let mut lowest = i64::MAX;
    eventually("the lease is renewed again", Duration::from_secs(9), || {
        let left = remaining(&server, life.session.lease());
        lowest = lowest.min(left);
        async move { left > lowest }
    })
    .await;
    assert!(!life.session.lost().is_cancelled());
    let position = Position { key: "/telemetry/jobs/a".to_owned(), mod_revision: 0 };
    let outcome = Commit::new(&claim, &position, b"1".to_vec()).run(etcd).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_session_is_given_up_within_its_ttl_when_etcd_dies_and_a_commit_then_ends_at_once() {
    let mut server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 3).await;
    let claim = claimed(&life, ClaimItem::Janitor).await;

    let killed = Instant::now();
    server.kill();
    let told = timeout(Duration::from_secs(10), life.session.lost().cancelled()).await;
    assert!(told.is_ok());
    assert!(killed.elapsed() < Duration::from_secs(3), "told after {:?}", killed.elapsed());

    let position = Position { key: "/telemetry/jobs/a".to_owned(), mod_revision: 0 };
    let commit = Commit::new(&claim, &position, b"1".to_vec()).run(&life.process.etcd);
    let ended = timeout(Duration::from_secs(5), commit).await.expect("nobody waits for etcd");
    assert!(matches!(ended, Err(Error::SessionLost { .. })), "{ended:?}");
}

#[tokio::test]
async fn revoking_or_dropping_a_session_frees_its_claims_at_once() {
    let server = TestEtcd::start();
    let first = server.life(Role::Collector, "one", 60).await;
    let etcd = first.process.etcd.clone();
    let claim = claimed(&first, ClaimItem::Janitor).await;
    first.session.revoke().await;
    assert_eq!(etcd.get(claim.key()).await.unwrap(), None);

    let second = server.life(Role::Collector, "two", 60).await;
    claimed(&second, ClaimItem::Janitor).await;
    drop(second);
    eventually("the dropped session's claim is free", Duration::from_secs(5), || async {
        etcd.get(claim.key()).await.unwrap().is_none()
    })
    .await;
}
