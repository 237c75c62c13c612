//! Leases that end early, processes that wake up too late, an etcd that is full.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use nexus_common::{
    audit::audit,
    etcd::RangeRead,
    keyspace::{ClaimItem, Claimant, Key, from_json},
    model::{PartitionId, Role},
    testing::{
        LOOK, Proxy, TestEtcd, eventually,
        truth::{audited_until, held, owners},
    },
};
use tokio::time::sleep;

use crate::{
    Scale,
    flow::{Flow, WITHIN, lease, took},
    report::Report,
};

const BACK_MAX: Duration = Duration::from_secs(2);
const HEALED_MAX: Duration = Duration::from_secs(60);
const ROLES: [(Role, &str); 2] = [(Role::Streamer, "shards/"), (Role::Collector, "partitions/")];
/// How long a process goes on while its requests are held: what it is about to write is written.
const HELD_FOR: Duration = Duration::from_millis(100);
/// An etcd that is filled quickly.
const QUOTA: u64 = 32 << 20;

/// Leases revoked and claims deleted behind the back of their owners; a claim without a lease.
pub(crate) async fn session(scale: Scale, mut report: Report) -> Report {
    let seconds = 300 + 100 * u64::from(scale.rounds);
    let mut flow = Flow::start(TestEtcd::start(), &[("LEASE_TTL_SECONDS", "3")], seconds).await;
    let (mut noticed, mut back, mut reclaimed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=scale.rounds as usize {
        for (role, kind) in ROLES {
            let name = format!("{role}-a");
            let works = async || held(&owners(&flow.etcd, kind).await, &name) > 0;
            eventually("it works", WITHIN, works).await;
            let before = lease(&flow.etcd, role, &name).await.unwrap();
            flow.fleet.etcd.etcdctl(&["lease", "revoke", &format!("{before:x}")]);
            let revoked = Instant::now();
            report.fault("leases revoked", 1);
            let lost = async || flow.fleet.log(&name).matches("session lost").count() == round;
            eventually("it notices", WITHIN, lost).await;
            noticed.push(revoked.elapsed());
            let lost = Instant::now();
            eventually("it is back", WITHIN, async || {
                let now = lease(&flow.etcd, role, &name).await;
                now.is_some_and(|now| now != before) && works().await
            })
            .await;
            back.push(lost.elapsed());
        }
        let claims = flow.etcd.keyspace().prefix("claims/");
        let listed = flow.etcd.range(&claims, RangeRead::default()).await.unwrap().entries;
        for (_, kind) in ROLES {
            let entry = listed.iter().find(|e| String::from_utf8_lossy(&e.key).contains(kind));
            let entry = entry.expect("something is claimed");
            let key = String::from_utf8(entry.key.clone()).unwrap();
            flow.fleet.etcd.etcdctl(&["del", &key]);
            report.fault("claims deleted", 1);
            let again = async || {
                let now = flow.etcd.get(&key).await.unwrap();
                now.is_some_and(|now| now.create_revision > entry.create_revision)
            };
            reclaimed.push(took("it is claimed again", again).await);
        }
    }
    let refused = |(role, _): &(Role, &str)| {
        flow.fleet.metric(&format!("{role}-a"), "nexus_txns_total{", "result=\"fenced\"")
    };
    let refused: f64 = ROLES.iter().map(refused).sum();
    report.fact("writes of owners that lost a claim unawares, refused", refused, "-", true);
    report.times("revoked lease noticed, lease 3 s", noticed, None);
    report.times("session lost, until it has another and claims under it", back, Some(BACK_MAX));
    report.times("deleted claim, until claimed again", reclaimed, None);
    immortal(&mut flow, &mut report).await;
    flow.assert_unfinished().await;
    flow.finish(&mut report).await;
    report
}

/// A claim that no lease will ever end: told, found by the audit, and over when deleted.
async fn immortal(flow: &mut Flow<TestEtcd>, report: &mut Report) {
    for letter in ["a", "b"] {
        let (status, _) = flow.fleet.terminate(&format!("collector-{letter}")).await;
        assert!(status.success(), "{status}");
    }
    let item = ClaimItem::Partition(PartitionId(7));
    let key = flow.etcd.keyspace().key(&Key::Claim(item.clone()));
    let value = br#"{"role":"collector","instance":"ghost","nonce":"0"}"#.to_vec();
    assert!(flow.etcd.create(&[(key.clone(), value)]).await.unwrap(), "{key} stands");
    report.fault("claims without a lease planted", 1);
    for letter in ["a", "b"] {
        flow.fleet.collect(&format!("collector-{letter}"), &[]);
    }
    flow.fleet.wait_for_logs("a claim without a lease will never end", WITHIN).await;
    let found = audit(&flow.etcd).await.unwrap();
    assert_eq!((found.violation_count, found.delta), (1, 0), "{found:#?}");
    flow.fleet.etcd.etcdctl(&["del", &key]);
    let taken = async || owners(&flow.etcd, "partitions/").await.contains_key(&item);
    let took = took("it is claimed", taken).await;
    report.times("claim without a lease deleted, until claimed", vec![took], None);
}

/// SIGSTOP beyond the lease with requests on the wire, which arrive when others have taken over.
pub(crate) async fn zombie(scale: Scale, mut report: Report) -> Report {
    let seconds = 400 + 250 * u64::from(scale.rounds);
    let env = [("LEASE_TTL_SECONDS", "3"), ("COMMIT_AGE_MS", "1")];
    let mut flow = Flow::new(TestEtcd::start(), &env, 1, seconds).await;
    let upstream = flow.fleet.etcd.endpoint();
    let wires = ROLES.map(|_| Proxy::start(&upstream));
    for (wire, (role, _)) in wires.iter().zip(ROLES) {
        let through = ["--etcd-endpoints", &wire.endpoint()];
        match role {
            Role::Streamer => {
                flow.stream("streamer-a", 0, &through);
                flow.stream("streamer-b", 0, &[]);
            }
            _ => {
                flow.fleet.collect("collector-a", &through);
                flow.fleet.collect("collector-b", &[]);
            }
        }
    }
    flow.flows().await;
    let (mut applied, mut awake) = (0, Vec::new());
    for round in 1..=scale.rounds as usize {
        for (role, kind) in ROLES {
            let name = format!("{role}-a");
            let works = async || held(&owners(&flow.etcd, kind).await, &name) > 0;
            eventually("it works", WITHIN, works).await;
        }
        flow.flows().await;
        let old = claims_of(&flow, "-a").await;
        wires.iter().for_each(Proxy::hold_requests);
        sleep(HELD_FOR).await;
        let stop = |signal| ROLES.map(|(role, _)| flow.fleet.signal(&format!("{role}-a"), signal));
        stop("STOP");
        for (role, kind) in ROLES {
            let name = format!("{role}-a");
            let gone = async || held(&owners(&flow.etcd, kind).await, &name) == 0;
            eventually("its claims end", WITHIN, gone).await;
        }
        flow.flows().await; // others work where it did
        let before = flow.etcd.revision().await.unwrap();
        wires.iter().for_each(Proxy::pass);
        sleep(HELD_FOR).await;
        flow.audit().await;
        let stop = |signal| ROLES.map(|(role, _)| flow.fleet.signal(&format!("{role}-a"), signal));
        stop("CONT");
        report.fault("SIGSTOP of processes beyond their lease", 2);
        let woken = Instant::now();
        for (role, _) in ROLES {
            let name = format!("{role}-a");
            let opened = format!("{name} has another session");
            let again = async || flow.fleet.log(&name).matches("session opened").count() > round;
            eventually(&opened, WITHIN, again).await;
            awake.push(woken.elapsed());
        }
        applied += written_under(&flow, &old, before).await;
    }
    flow.assert_unfinished().await;
    let late: u64 = wires.iter().map(|wire| wire.count().held).sum();
    report.fact("requests that came when others had taken over", late, "some", late > 0);
    report.fact("late writes that changed a position", applied, "0", applied == 0);
    report.times("woken, until it has another session", awake, None);
    flow.finish(&mut report).await;
    report
}

/// Create revisions of the claims of all whose name ends so.
async fn claims_of(flow: &Flow<TestEtcd>, ending: &str) -> BTreeSet<i64> {
    let range = flow.etcd.keyspace().prefix("claims/");
    let listed = flow.etcd.range(&range, RangeRead::default()).await.unwrap().entries;
    let theirs = listed.iter().filter(|entry| {
        let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
        claimant.instance.as_str().ends_with(ending)
    });
    theirs.map(|entry| entry.create_revision).collect()
}

/// How many positions were last written behind a revision and under one of these claims.
async fn written_under(flow: &Flow<TestEtcd>, claims: &BTreeSet<i64>, behind: i64) -> usize {
    let mut found = 0;
    for path in ["shards/", "cursors/", "commits/"] {
        let range = flow.etcd.keyspace().prefix(path);
        let listed = flow.etcd.range(&range, RangeRead::default()).await.unwrap().entries;
        let written = listed.iter().filter(|entry| entry.mod_revision > behind);
        let claim = |value: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(value).unwrap();
            value["claim"].as_i64().expect("a position names its claim")
        };
        found += written.filter(|entry| claims.contains(&claim(&entry.value))).count();
    }
    found
}

/// An etcd that is filled until it takes no more.
pub(crate) async fn nospace(scale: Scale, mut report: Report) -> Report {
    let (mut healed, mut flowing) = (Vec::new(), Vec::new());
    let quota = QUOTA.to_string();
    // One etcd a round, as every round leaves another; ten are as good as twenty.
    for _ in 0..scale.rounds.div_ceil(6) {
        let etcd = TestEtcd::with_flags(&[&format!("--quota-backend-bytes={QUOTA}")]);
        let env = [("LEASE_TTL_SECONDS", "10"), ("ETCD_QUOTA_BYTES", &*quota)];
        let mut flow = Flow::start(etcd, &env, 400).await;
        flow.fleet.etcd.fill_with_history();
        let raised = Instant::now();
        report.fault("etcd out of space", 1);
        let more = flow.audit().await.samples.committed + 1;
        flow.fleet.wait_for_logs("etcd takes writes again", WITHIN).await;
        healed.push(raised.elapsed());
        audited_until(&flow.etcd, "data flows", WITHIN, |r| r.samples.committed > more).await;
        flowing.push(raised.elapsed());
        flow.assert_unfinished().await;
        sleep(LOOK).await;
        flow.finish(&mut report).await;
    }
    report.times("NOSPACE raised, until writes are taken again", healed, Some(HEALED_MAX));
    report.times("NOSPACE raised, until data flows", flowing, Some(HEALED_MAX));
    report
}
