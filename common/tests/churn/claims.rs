//! Who has what: after a death, a leave, a join.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use nexus_common::{
    etcd::{Change, Event, follow},
    keyspace::{ClaimItem, Key},
    limits::PARTITIONS_DEFAULT,
    model::{PartitionId, Role},
    testing::{
        LOOK, TestEtcd, eventually,
        truth::{held, owners},
    },
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Scale,
    flow::{Flow, WITHIN},
    report::Report,
    wire::DRAIN_MAX,
};

const TTL: Duration = Duration::from_secs(3);
/// What a takeover may take beyond the lease.
const TAKEOVER_MORE: Duration = Duration::from_millis(1500);
const HANDOVER_MAX: Duration = Duration::from_millis(300);
const PARTITIONS: usize = PARTITIONS_DEFAULT as usize;

/// kill -9 of a streamer and a collector at once, and how long their items are nobody's.
pub(crate) async fn takeover(scale: Scale, mut report: Report) -> Report {
    let seconds = 400 + 120 * u64::from(scale.rounds);
    let mut flow = Flow::start(TestEtcd::start(), &[("LEASE_TTL_SECONDS", "3")], seconds).await;
    let (mut shards, mut partitions) = (Vec::new(), Vec::new());
    let victims = [(Role::Streamer, "shards/"), (Role::Collector, "partitions/")];
    for _ in 0..scale.rounds {
        for (role, kind) in victims {
            let [a, b] = ["a", "b"].map(|letter| format!("{role}-{letter}"));
            let even = async || {
                let owners = owners(&flow.etcd, kind).await;
                held(&owners, &a) > 0 && held(&owners, &a) == held(&owners, &b)
            };
            eventually("both work", WITHIN, even).await;
        }
        let mut waiting: BTreeSet<ClaimItem> = BTreeSet::new();
        for (role, kind) in victims {
            let name = format!("{role}-a");
            let owners = owners(&flow.etcd, kind).await;
            waiting.extend(owners.into_iter().filter(|(_, o)| *o == name).map(|(item, _)| item));
        }
        let killed = Instant::now();
        victims.iter().for_each(|(role, _)| flow.fleet.kill(&format!("{role}-a")));
        report.fault("kill -9 of processes", 2);
        while !waiting.is_empty() {
            assert!(killed.elapsed() < WITHIN, "nobody takes over {waiting:?}");
            let owners = owners(&flow.etcd, "").await;
            let taken = |item: &ClaimItem| owners.get(item).is_some_and(|o| o.ends_with("-b"));
            for item in waiting.iter().filter(|item| taken(item)) {
                let list =
                    if matches!(item, ClaimItem::Shard(_)) { &mut shards } else { &mut partitions };
                list.push(killed.elapsed());
            }
            waiting.retain(|item| !taken(item));
            sleep(LOOK / 10).await;
        }
        flow.stream("streamer-a", 0, &[]);
        flow.fleet.collect("collector-a", &[]);
    }
    flow.assert_unfinished().await;
    let bound = Some(TTL + TAKEOVER_MORE);
    report.times("takeover of shards after kill -9, lease 3 s", shards, bound);
    report.times("takeover of partitions after kill -9, lease 3 s", partitions, bound);
    flow.finish(&mut report).await;
    report
}

/// When claims came and went.
struct Ledger {
    events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    /// When each item lost its owner.
    free_since: BTreeMap<Vec<u8>, Instant>,
    gaps: Vec<Duration>,
    moved: BTreeSet<Vec<u8>>,
}

impl Ledger {
    fn follow(flow: &Flow<TestEtcd>) -> Self {
        let (tell, events) = mpsc::channel(1024);
        let (range, stop) =
            (flow.etcd.keyspace().prefix("claims/partitions/"), CancellationToken::new());
        tokio::spawn(follow(flow.etcd.clone(), range, tell, stop.clone()));
        let (free_since, gaps, moved) = Default::default();
        Self { events, stop, free_since, gaps, moved }
    }

    /// Takes note of what happens for a while.
    async fn watch(&mut self, mut over: impl AsyncFnMut() -> bool) {
        loop {
            tokio::select! {
                event = self.events.recv() => self.note(event),
                () = sleep(LOOK) => if self.free_since.is_empty() && over().await { return },
            }
        }
    }

    fn note(&mut self, event: Option<Event>) {
        let Some(Event::Changes { changes, .. }) = event else { return };
        for change in changes {
            match change {
                Change::Put(entry) => {
                    if let Some(since) = self.free_since.remove(&entry.key) {
                        self.gaps.push(since.elapsed());
                        self.moved.insert(entry.key);
                    }
                }
                Change::Delete(key, _) => {
                    self.free_since.insert(key, Instant::now());
                }
            }
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Collectors leave and join: how long what moves is nobody's, and whether what stays pauses.
pub(crate) async fn handover(scale: Scale, mut report: Report) -> Report {
    let seconds = 200 + 40 * u64::from(scale.rounds);
    let env = [("LEASE_TTL_SECONDS", "10")];
    let mut flow = Flow::new(TestEtcd::start(), &env, 4, seconds).await;
    for nth in 0..4 {
        flow.stream(&format!("streamer-{nth}"), nth, &[]);
    }
    for letter in ["a", "b", "c"] {
        flow.fleet.collect(&format!("collector-{letter}"), &[]);
    }
    flow.flows().await;
    let shares = async |flow: &Flow<TestEtcd>, names: &[&str]| {
        let owners = owners(&flow.etcd, "partitions/").await;
        is_even(&owners, names)
    };
    let all = ["collector-a", "collector-b", "collector-c"];
    eventually("all share", WITHIN, async || shares(&flow, &all).await).await;
    let quiet = Instant::now();
    sleep(Duration::from_secs(2)).await; // what is measured: the flow without any handover
    let quiet_gaps = flow.pulse.gaps(quiet, Instant::now(), |_| true);
    let (mut gaps, mut exits, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        let mut ledger = Ledger::follow(&flow);
        sleep(LOOK).await;
        let begun = Instant::now();
        let (status, exit) = flow.fleet.terminate("collector-c").await;
        assert!(status.success(), "{status}");
        exits.push(exit);
        ledger.watch(async || shares(&flow, &all[..2]).await).await;
        flow.fleet.collect("collector-c", &[]);
        ledger.watch(async || shares(&flow, &all).await).await;
        let of = |key: &[u8]| {
            let claim = |moved: &Vec<u8>| match flow.etcd.keyspace().parse(moved) {
                Ok(Key::Claim(ClaimItem::Partition(p))) => {
                    key == flow.etcd.keyspace().key(&Key::Commit(p)).as_bytes()
                }
                _ => false,
            };
            // Lanes wait for their partition, so only partitions tell.
            !String::from_utf8_lossy(key).contains("/commits/") || ledger.moved.iter().any(claim)
        };
        others.extend(flow.pulse.gaps(begun, Instant::now(), |key| !of(key)));
        gaps.append(&mut ledger.gaps);
        report.fault("SIGTERM of processes", 1);
    }
    flow.assert_unfinished().await;
    report.times("handover of a partition, from given back to taken", gaps, Some(HANDOVER_MAX));
    report.times("SIGTERM to exit, in mid-flow", exits, Some(DRAIN_MAX));
    report.times("between commits of a partition, nothing moving", quiet_gaps, None);
    report.times("between commits of one that stays, others moving", others, Some(HANDOVER_MAX));
    flow.finish(&mut report).await;
    report
}

/// Whether everything is owned, and nobody has more than a fair share.
fn is_even(owners: &BTreeMap<ClaimItem, String>, names: &[&str]) -> bool {
    let most = PARTITIONS.div_ceil(names.len());
    owners.len() == PARTITIONS && names.iter().all(|name| (1..=most).contains(&held(owners, name)))
}

/// One collector, eight, three, while data flows.
pub(crate) async fn scale(_: Scale, mut report: Report) -> Report {
    let env = [("LEASE_TTL_SECONDS", "3")];
    let mut flow = Flow::new(TestEtcd::start(), &env, 1, 1500).await;
    flow.stream("streamer-a", 0, &[]);
    flow.stream("streamer-b", 0, &[]);
    let mut nobodys = Vec::new();
    let mut running = 0;
    for wanted in [1, 8, 3] {
        let names: Vec<String> = (0..wanted).map(|n| format!("collector-{n}")).collect();
        (running..wanted).for_each(|n| flow.fleet.collect(&format!("collector-{n}"), &[]));
        let begun = Instant::now();
        let mut exits = Vec::new();
        for n in wanted..running {
            let (status, exit) = flow.fleet.terminate(&format!("collector-{n}")).await;
            assert!(status.success(), "{status}");
            exits.push(exit);
        }
        let mut free: BTreeMap<ClaimItem, Instant> = BTreeMap::new();
        loop {
            let owners = owners(&flow.etcd, "partitions/").await;
            for number in 0..PARTITIONS_DEFAULT {
                let item = ClaimItem::Partition(PartitionId(number));
                if !owners.contains_key(&item) {
                    free.entry(item).or_insert_with(Instant::now);
                } else if let Some(since) = free.remove(&item) {
                    nobodys.push(since.elapsed());
                }
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            if is_even(&owners, &names) {
                break;
            }
            assert!(begun.elapsed() < WITHIN, "not shared evenly: {owners:?}");
            sleep(LOOK / 5).await;
        }
        let what = format!("collectors {running} to {wanted}, until shared evenly");
        report.times(&what, vec![begun.elapsed()], None);
        if !exits.is_empty() {
            report.times("SIGTERM to exit, scaling down", exits, Some(DRAIN_MAX));
        }
        running = wanted;
        flow.flows().await;
    }
    report.fault("collectors joined", 8);
    report.fault("SIGTERM of processes", 5);
    report.times("a partition is nobody's", nobodys, Some(TTL + Duration::from_secs(3)));
    flow.assert_unfinished().await;
    flow.finish(&mut report).await;
    report
}
