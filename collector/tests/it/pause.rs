//! A process that stands still past its lease, with requests on the wire that arrive when others
//! have long taken over.

use std::time::{Duration, Instant};

use nexus_common::{
    model::Role,
    testing::{
        Fleet, LOOK, Proxy, eventually,
        truth::{Historian, assert_settles_to, audited, audited_until, held, is_settled, owners},
    },
};
use tokio::time::sleep;

/// How long a process goes on while its requests are held: what it is about to write is written.
const HELD_FOR: Duration = Duration::from_millis(100);
/// How long the late requests are watched.
const WATCHED_FOR: Duration = Duration::from_millis(500);

/// Stops `{role}-a` with writes on the wire; `{role}-b` takes over and ends the work; then the
/// writes arrive, and the process wakes up. Nothing may change.
async fn check_late_writes_change_nothing(role: Role, kind: &str) {
    let (victim, heir) = (&format!("{role}-a"), &format!("{role}-b"));
    // Small messages, taken at once: some write is always on its way.
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "1"),
        ("BATCH_SIZE", "50"),
        ("BACKLOG_MAX", "1000"),
        ("PARALLEL_SHARDS", "8"),
    ]);
    let wire = Proxy::start(&fleet.etcd.endpoint());
    let file = fleet.generate("telemetry.csv", 300);
    let through = ["--etcd-endpoints", &wire.endpoint()];
    let csv = ["--csv-file", file.to_str().unwrap()];
    let within = Duration::from_secs(60);
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    match role {
        Role::Streamer => fleet.collect("collector", &[]),
        _ => {
            fleet.start(role, victim, &through);
            fleet.start(role, heir, &[]);
            eventually("both share", within, async || {
                let owners = owners(&etcd, kind).await;
                held(&owners, victim) > 0 && held(&owners, victim) == held(&owners, heir)
            })
            .await;
            fleet.stream("streamer", &file, &[]);
        }
    }
    if role == Role::Streamer {
        fleet.start(role, victim, &[&csv[..], &through[..]].concat());
        fleet.start(role, heir, &csv);
        eventually("both share", within, async || {
            let owners = owners(&etcd, kind).await;
            held(&owners, victim) > 0 && held(&owners, heir) > 0
        })
        .await;
    }
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 0).await;

    wire.hold_requests();
    sleep(HELD_FOR).await;
    let report = audited(&etcd).await;
    assert!(!is_settled(&report), "all was over before the process stood still");
    fleet.signal(victim, "STOP");
    eventually("its claims end", within, async || held(&owners(&etcd, kind).await, victim) == 0)
        .await;
    assert_settles_to(&mut fleet, &file, within).await;

    wire.pass();
    let passed = Instant::now();
    while passed.elapsed() < WATCHED_FOR {
        audited(&etcd).await;
        sleep(LOOK).await;
    }
    fleet.signal(victim, "CONT");
    fleet.wait_for_log(victim, "session lost", within).await;
    eventually("it lives again", within, async || {
        fleet.log(victim).matches("session opened").count() == 2
    })
    .await;
    assert_settles_to(&mut fleet, &file, within).await;
    // No position was ever written under an older claim than before.
    historian.assert_sound();
}

#[tokio::test]
async fn what_a_collector_wrote_before_it_lost_its_lease_changes_nothing_when_it_arrives_late() {
    check_late_writes_change_nothing(Role::Collector, "partitions/").await;
}

#[tokio::test]
async fn what_a_streamer_wrote_before_it_lost_its_lease_changes_nothing_when_it_arrives_late() {
    check_late_writes_change_nothing(Role::Streamer, "shards/").await;
}
