//! The audit that runs in production.

use std::time::Duration;

use nexus_common::{
    keyspace::{Key, Retired, to_json},
    model::BucketId,
    testing::{Fleet, truth::assert_settles_to},
};

#[tokio::test]
async fn the_janitor_tells_of_a_broken_law_once_and_of_its_repair() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "200"),
        ("AUDIT_EVERY_SECONDS", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 5);
    fleet.stream("streamer", &file, &[]);
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    assert_settles_to(&mut fleet, &file, Duration::from_secs(30)).await;
    let etcd = fleet.etcd.connect().await;
    let (broken, whole) = ("broken invariants", "clean again");
    assert!(!fleet.logs().contains(broken));
    // Seven samples that nobody ever saw are said to have been retired.
    let key = etcd.keyspace().key(&Key::Retired(BucketId::first()));
    let lie = Retired { samples: 7, blocks: 1 };
    assert!(etcd.create(&[(key.clone(), to_json(&lie))]).await.unwrap());
    fleet.wait_for_logs(broken, Duration::from_secs(20)).await;
    let told = fleet.logs();
    assert!(told.contains("delta=7"), "{told}");
    fleet.etcd.etcdctl(&["del", &key]);
    fleet.wait_for_logs(whole, Duration::from_secs(20)).await;
    // One of two is the janitor, and it says each thing once.
    assert_eq!(fleet.logs().matches(broken).count(), 1);
    assert_eq!(fleet.logs().matches(whole).count(), 1);
}
