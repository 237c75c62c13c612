//! A process that stands still past its lease, while others take over, and wakes up again.

use std::time::Duration;

use nexus_common::{model::Role, testing::eventually};

use crate::{
    fleet::Fleet,
    truth::{Historian, assert_settles_to, audited_until, held, owners},
};

/// Stops `victim`, lets others take over, wakes it: it must notice, and change nothing.
async fn check_wakes_up_fenced(role: Role, kind: &str, victim: &str) {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "200"),
        ("BATCH_SIZE", "500"),
        ("BACKLOG_MAX", "2"),
        ("LOG_LEVEL", "debug"),
    ]);
    let file = fleet.generate("telemetry.csv", 160);
    for name in ["streamer-a", "streamer-b"] {
        fleet.stream(name, &file, &[]);
    }
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    eventually("it works", within, async || held(&owners(&etcd, kind).await, victim) > 0).await;
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 5000).await;
    fleet.signal(victim, "STOP");
    // Its own instance key ends with its lease, too.
    eventually("its claims end", within, async || held(&owners(&etcd, kind).await, victim) == 0)
        .await;
    let before = audited_until(&etcd, "others go on", within, |_| true).await;
    audited_until(&etcd, "others go on", within, |r| {
        r.samples.committed > before.samples.committed + 5000
    })
    .await;
    fleet.signal(victim, "CONT");
    fleet.wait_for_log(victim, "session lost", within).await;
    assert_eq!(fleet.log(victim).matches("starting").count(), 1, "{role} went on as it was");
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    // No position was ever written under an older claim than before.
    historian.assert_sound();
}

#[tokio::test]
async fn a_collector_that_wakes_up_after_its_lease_changes_nothing() {
    check_wakes_up_fenced(Role::Collector, "partitions/", "collector-a").await;
}

#[tokio::test]
async fn a_streamer_that_wakes_up_after_its_lease_changes_nothing() {
    check_wakes_up_fenced(Role::Streamer, "shards/", "streamer-a").await;
}
