//! An etcd that gets full.

use std::time::{Duration, Instant};

use nexus_common::testing::{
    Fleet, LOOK, TestEtcd,
    truth::{assert_settles_to, audited, audited_until},
};
use tokio::time::sleep;

pub(crate) const QUOTA: u64 = 32 << 20;
/// What somebody else keeps in the same etcd: a little below the 80 % at which streamers pause.
const JUNK: u64 = QUOTA / 100 * 76;

/// A small etcd, most of which is taken.
async fn small_etcd() -> TestEtcd {
    let server = TestEtcd::with_flags(&[&format!("--quota-backend-bytes={QUOTA}")]);
    let etcd = server.connect().await;
    let mut key = 0;
    while etcd.used_bytes().await.unwrap() < JUNK {
        key += 1;
        let value = (format!("/junk/{key}"), vec![b'x'; 256 << 10]);
        etcd.describe(&[value]).await.unwrap();
        sleep(LOOK).await; // etcd counts what its backend has committed
    }
    server
}

/// Frees what was deleted and overwritten.
fn compact(etcd: &TestEtcd) {
    let status = etcd.etcdctl(&["endpoint", "status", "--write-out=fields"]);
    let line = status.lines().find(|line| line.starts_with("\"Revision\"")).unwrap();
    etcd.etcdctl(&["compact", "--physical", line.split(" : ").nth(1).unwrap()]);
}

#[tokio::test]
async fn streamers_pause_before_etcd_is_full_and_go_on_when_there_is_room() {
    let quota = QUOTA.to_string();
    let mut fleet = Fleet::on(
        small_etcd().await,
        &[
            ("LEASE_TTL_SECONDS", "10"),
            ("COMMIT_AGE_MS", "200"),
            // Many small messages, and nothing but etcd's size that holds back.
            ("BATCH_SIZE", "20"),
            ("BACKLOG_MAX", "100000"),
            ("ETCD_QUOTA_BYTES", &quota),
        ],
    );
    let file = fleet.generate("telemetry.csv", 900);
    let etcd = fleet.etcd.connect().await;
    fleet.stream("streamer", &file, &[]);
    let within = Duration::from_secs(60);
    fleet.wait_for_log("streamer", "backpressure: etcd is 80 % full", within).await;
    assert_eq!(fleet.etcd.etcdctl(&["alarm", "list"]), "");
    let held = audited(&etcd).await;
    assert!(held.lanes_done < held.lanes, "all fitted in: nothing was held back");
    assert!(held.samples.queued > 0, "it was full from the beginning");
    let used = etcd.used_bytes().await.unwrap();
    println!("{} samples queued, {used} of {QUOTA} bytes used", held.samples.queued);
    assert!(used < QUOTA, "{used}");

    // Draining needs room of its own, and has it.
    fleet.collect("collector", &[]);
    audited_until(&etcd, "the queue is drained", within, |r| r.messages == 0).await;
    assert_eq!(fleet.etcd.etcdctl(&["alarm", "list"]), "");
    fleet.etcd.etcdctl(&["del", "--prefix", "/junk/"]);
    compact(&fleet.etcd);
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    assert_eq!(fleet.etcd.etcdctl(&["alarm", "list"]), "");
}

#[tokio::test]
async fn an_etcd_that_ran_out_of_space_is_healed_unattended_and_nothing_is_lost() {
    let etcd = TestEtcd::with_flags(&[&format!("--quota-backend-bytes={QUOTA}")]);
    let quota = QUOTA.to_string();
    let mut fleet = Fleet::on(
        etcd,
        &[
            ("LEASE_TTL_SECONDS", "10"),
            ("COMMIT_AGE_MS", "200"),
            ("BATCH_SIZE", "500"),
            ("BACKLOG_MAX", "2"),
            ("ETCD_QUOTA_BYTES", &quota),
        ],
    );
    let file = fleet.generate("telemetry.csv", 150);
    fleet.stream("streamer", &file, &[]);
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 2000).await;
    fleet.etcd.fill_with_history();
    let raised = Instant::now();
    let before = audited(&etcd).await;
    assert!(before.lanes_done < before.lanes, "all was over before the alarm");
    fleet.wait_for_logs("etcd takes writes again", Duration::from_secs(60)).await;
    let healed = raised.elapsed();
    let more = before.samples.committed + 1;
    audited_until(&etcd, "data flows again", within, |r| r.samples.committed > more).await;
    println!("healed after {healed:?}, data flows again after {:?}", raised.elapsed());
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    assert_eq!(fleet.etcd.etcdctl(&["alarm", "list"]), "");
}

#[tokio::test]
async fn collectors_that_restart_under_the_alarm_heal_etcd_before_they_have_a_session() {
    let etcd = TestEtcd::with_flags(&[&format!("--quota-backend-bytes={QUOTA}")]);
    let mut fleet = Fleet::on(
        etcd,
        &[
            ("LEASE_TTL_SECONDS", "3"),
            ("COMMIT_AGE_MS", "200"),
            ("BATCH_SIZE", "500"),
            ("BACKLOG_MAX", "2"),
        ],
    );
    let file = fleet.generate("telemetry.csv", 150);
    fleet.stream("streamer", &file, &[]);
    fleet.collect("before", &[]);
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(60);
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 2000).await;
    fleet.kill("before");
    fleet.etcd.fill_with_history();
    // The streamer loses its session too: nobody has one.
    fleet.kill("streamer");
    fleet.stream("streamer-again", &file, &[]);
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let begun = Instant::now();
    fleet.wait_for_logs("etcd takes writes again", within).await;
    println!("healed after {:?} without any session", begun.elapsed());
    assert_settles_to(&mut fleet, &file, within).await;
    assert_eq!(fleet.etcd.etcdctl(&["alarm", "list"]), "");
}
