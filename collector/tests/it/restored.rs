//! An etcd that was put back to a snapshot under running processes.

use std::time::Duration;

use nexus_common::testing::{
    Fleet,
    truth::{assert_settles_to, audited, audited_until},
};

#[tokio::test]
async fn processes_stop_when_etcd_was_restored_and_new_ones_store_every_row_once() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "200"),
        ("BATCH_SIZE", "500"),
        ("BACKLOG_MAX", "2"),
    ]);
    let file = fleet.generate("telemetry.csv", 150);
    fleet.stream("streamer", &file, &[]);
    fleet.collect("collector", &[]);
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 1000).await;
    let snapshot = fleet.etcd.save_snapshot();
    let then = audited(&etcd).await.samples.committed;
    audited_until(&etcd, "more flows", within, |r| r.samples.committed > then + 1000).await;
    fleet.etcd.kill();
    fleet.etcd.restore(&snapshot);
    fleet.etcd.restart();
    for name in ["streamer", "collector"] {
        let status = fleet.wait_for_exit(name, Duration::from_secs(15)).await;
        assert_eq!(status.code(), Some(1), "{name}: {status}");
        assert!(fleet.log(name).contains("restored from a snapshot or replaced"), "{name}");
    }
    // This handle knows the past that was, too, though it asked nothing meanwhile.
    assert!(etcd.revision().await.is_err());
    let etcd = fleet.etcd.connect().await;
    let back = audited(&etcd).await;
    assert!(back.samples.committed < then + 1000, "something was written by those who stopped");
    fleet.stream("streamer", &file, &[]);
    fleet.collect("collector", &[]);
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
}
