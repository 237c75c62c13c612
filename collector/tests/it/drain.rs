//! SIGTERM in mid-flow.

use std::time::{Duration, Instant};

use nexus_common::testing::{
    Fleet, eventually,
    truth::{Historian, assert_settles_to, audited, audited_until, held, owners},
};

/// From SIGTERM to the end, at most: what orchestrators are told.
const DRAIN_MAX: Duration = Duration::from_secs(6);

#[tokio::test]
async fn a_terminated_process_exits_cleanly_and_its_work_is_free_at_once() {
    // A lease that is far longer than any wait below: nothing here may rest on its end.
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "60"),
        ("COMMIT_AGE_MS", "300"),
        ("BATCH_SIZE", "800"),
        ("BACKLOG_MAX", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 150);
    for name in ["streamer-a", "streamer-b"] {
        fleet.stream(name, &file, &[]);
    }
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 2000).await;
    let roles =
        [("shards/", "streamer-a", "streamer-b"), ("partitions/", "collector-a", "collector-b")];
    for (kind, leaver, heir) in roles {
        eventually("both work", within, async || {
            let owners = owners(&etcd, kind).await;
            held(&owners, leaver) > 0 && held(&owners, heir) > 0
        })
        .await;
        let (status, took) = fleet.terminate(leaver).await;
        let ended = Instant::now();
        println!("{leaver} exited {took:?} after SIGTERM: {status}");
        assert!(status.success(), "{leaver}: {status}");
        assert!(took < DRAIN_MAX, "{leaver} took {took:?}");
        assert_eq!(held(&owners(&etcd, "").await, leaver), 0, "it gave back every claim");
        eventually("the heir has it all", Duration::from_secs(4), async || {
            let owners = owners(&etcd, kind).await;
            held(&owners, heir) == owners.len()
        })
        .await;
        println!("handed over {:?} after the exit", ended.elapsed());
    }
    let report = audited(&etcd).await;
    assert!(report.lanes_done < report.lanes, "all was over before anybody was terminated");
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    historian.assert_sound();
}

#[tokio::test]
async fn an_idle_process_and_one_that_waits_for_etcd_exit_cleanly() {
    let mut fleet = Fleet::new(&[]);
    fleet.collect("collector", &[]);
    fleet.start(nexus_common::model::Role::Streamer, "streamer", &[]);
    for name in ["collector", "streamer"] {
        fleet.wait_for_log(name, "session opened", Duration::from_secs(20)).await;
        let (status, took) = fleet.terminate(name).await;
        println!("idle {name} exited {took:?} after SIGTERM");
        assert!(status.success() && took < DRAIN_MAX, "{name}: {status} after {took:?}");
    }
    fleet.collect("orphan", &[]);
    fleet.wait_for_log("orphan", "session opened", Duration::from_secs(20)).await;
    fleet.etcd.kill();
    fleet.collect("waiting", &[]);
    fleet.wait_for_log("waiting", "waiting for etcd", Duration::from_secs(20)).await;
    for name in ["orphan", "waiting"] {
        let (status, took) = fleet.terminate(name).await;
        println!("{name} exited {took:?} after SIGTERM, without etcd");
        // Nothing can be given back without etcd, but nobody waits for ever.
        assert!(status.success() && took < Duration::from_secs(12), "{name}: {status}, {took:?}");
    }
}
