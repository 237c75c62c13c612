//! Without etcd for a while.

use std::time::Duration;

use nexus_common::testing::{
    Fleet,
    truth::{Historian, assert_settles_to, audited, audited_until, is_settled},
};

use tokio::time::sleep;

const FLOW: [(&str, &str); 4] = [
    ("LEASE_TTL_SECONDS", "3"),
    ("COMMIT_AGE_MS", "200"),
    ("BATCH_SIZE", "500"),
    ("BACKLOG_MAX", "2"),
];
/// How long etcd is away: three leases.
const OUTAGE: Duration = Duration::from_secs(10);
/// Processor time that waiting may cost over [`OUTAGE`]: a tenth of one core. Work that was begun
/// is finished in it, too.
const CPU_MAX: Duration = Duration::from_secs(1);

/// Waits for `duration`, and fails if a process spins meanwhile.
async fn wait_watching_cpu(fleet: &Fleet, duration: Duration) {
    let before: Vec<_> = fleet.names().iter().map(|name| (name.clone(), fleet.cpu(name))).collect();
    sleep(duration).await; // what is tested is that nothing happens meanwhile
    for (name, used) in before {
        let spent = fleet.cpu(&name) - used;
        println!("{name} used {spent:?} of processor time in {duration:?} without etcd");
        assert!(spent < CPU_MAX, "{name} used {spent:?} in {duration:?}");
    }
}

#[tokio::test]
async fn an_outage_of_etcd_is_waited_out_and_loses_nothing() {
    let mut fleet = Fleet::new(&FLOW);
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
    audited_until(&etcd, "data flows", within, |r| r.samples.committed > 5000).await;
    fleet.etcd.kill();
    wait_watching_cpu(&fleet, OUTAGE).await;
    for name in fleet.names() {
        let log = fleet.log(&name);
        let told = log.contains("waiting for etcd") || log.contains("interrupted");
        assert!(told, "{name} does not say that etcd is away");
    }
    fleet.assert_alive();
    fleet.etcd.restart();
    let report = audited(&etcd).await;
    assert!(!is_settled(&report), "all was over before the outage");
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    historian.assert_sound();
}

#[tokio::test]
async fn processes_that_start_before_etcd_wait_for_it_and_say_so() {
    let mut fleet = Fleet::new(&FLOW);
    let file = fleet.generate("telemetry.csv", 10);
    fleet.etcd.kill();
    fleet.stream("streamer", &file, &[]);
    fleet.collect("collector", &[]);
    for name in ["streamer", "collector"] {
        fleet.wait_for_log(name, "waiting for etcd", Duration::from_secs(20)).await;
    }
    wait_watching_cpu(&fleet, OUTAGE / 2).await;
    fleet.etcd.restart();
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
}

/// Every moment of a start is one at which etcd may go away.
#[tokio::test]
async fn processes_survive_an_etcd_that_comes_and_goes_while_they_start() {
    let mut fleet = Fleet::new(&FLOW);
    let file = fleet.generate("telemetry.csv", 10);
    let mut started = 0;
    for pause in [20, 60, 120, 200] {
        started += 1;
        fleet.stream(&format!("streamer-{started}"), &file, &[]);
        fleet.collect(&format!("collector-{started}"), &[]);
        sleep(Duration::from_millis(pause)).await; // the moment that is tested
        fleet.etcd.kill();
        sleep(Duration::from_secs(2)).await; // longer than a read is tried again
        fleet.assert_alive();
        fleet.etcd.restart();
    }
    for name in fleet.names() {
        fleet.wait_for_log(&name, "session opened", Duration::from_secs(20)).await;
    }
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
}
