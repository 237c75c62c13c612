//! An etcd of three members that lose their leader, all of themselves, or one for ever.

use std::time::{Duration, Instant};

use nexus_common::testing::{Server, TestCluster};
use tokio::time::sleep;

use crate::{
    Scale,
    flow::{Flow, WITHIN},
    report::Report,
};

const LEADER_LOST_MAX: Duration = Duration::from_secs(3);
/// A lane or partition that was written within this before a fault is expected to go on.
pub(crate) const ALIVE_WITHIN: Duration = Duration::from_secs(2);
/// What a process may hold at most, in bytes, while etcd is away: it stores nothing meanwhile.
const MEMORY_MAX: u64 = 256 << 20;
/// A leader that stands still; longer than an election.
const SILENCE: Duration = Duration::from_secs(8);
/// Finding out that a member is silent takes longer than that one is dead.
const SILENCE_MAX: Duration = Duration::from_secs(7);

impl<S: Server> Flow<S> {
    /// Waits until what flowed before `since` flows again, and tells how long it did not.
    pub(crate) async fn resumes(&self, since: Instant) -> Vec<Duration> {
        let keys = self.pulse.alive_at(since, ALIVE_WITHIN);
        self.pulse.pauses(&keys, since, WITHIN).await
    }

    /// No process was restarted, and none lost its session.
    pub(crate) fn assert_undisturbed(&mut self) {
        self.fleet.assert_alive();
        for name in self.fleet.names() {
            let log = self.fleet.log(&name);
            assert!(!log.contains("session lost"), "{name} lost its session:\n{log}");
            assert_eq!(log.matches(" starting ").count(), 1, "{name} was restarted");
        }
    }
}

pub(crate) async fn leader(scale: Scale, mut report: Report) -> Report {
    let env = [("LEASE_TTL_SECONDS", "10")];
    let seconds = 500 + 100 * u64::from(scale.rounds);
    let mut flow = Flow::start(TestCluster::start(), &env, seconds).await;
    let mut pauses = Vec::new();
    for _ in 0..scale.rounds {
        sleep(ALIVE_WITHIN).await; // what flows must be known
        let leader = flow.fleet.etcd.leader();
        let killed = Instant::now();
        flow.fleet.etcd.kill(leader);
        report.fault("kill -9 of etcd's leader", 1);
        pauses.extend(flow.resumes(killed).await);
        flow.audit().await;
        flow.fleet.etcd.restart(leader);
    }
    flow.assert_undisturbed();
    flow.assert_unfinished().await;
    report.times("leader killed, a lane or partition stands still", pauses, Some(LEADER_LOST_MAX));
    sleep(ALIVE_WITHIN).await;
    let leader = flow.fleet.etcd.leader();
    let stopped = Instant::now();
    flow.fleet.etcd.stop(leader);
    report.fault("SIGSTOP of etcd's leader", 1);
    let pauses = flow.resumes(stopped).await;
    sleep(SILENCE.saturating_sub(stopped.elapsed())).await; // what is tested
    flow.fleet.etcd.resume(leader);
    report.times(
        "leader stopped for 8 s, a lane or partition stands still",
        pauses,
        Some(SILENCE_MAX),
    );
    let mut pauses = Vec::new();
    for member in 0..flow.fleet.etcd.size() {
        sleep(ALIVE_WITHIN).await;
        let told = Instant::now();
        flow.fleet.etcd.terminate(member);
        report.fault("SIGTERM of etcd's members", 1);
        pauses.extend(flow.resumes(told).await);
        flow.fleet.etcd.restart(member);
    }
    flow.fleet.assert_alive();
    let names = flow.fleet.names();
    let lost =
        names.iter().map(|n| flow.fleet.log(n).matches("session lost").count()).sum::<usize>();
    let told = format!("{lost} of {}", names.len());
    report.fact("sessions lost to the stopped leader and the restart", told, "-", true);
    report.times(
        "rolling restart, a lane or partition stands still",
        pauses,
        Some(LEADER_LOST_MAX),
    );
    flow.finish(&mut report).await;
    report
}

pub(crate) async fn outage(scale: Scale, mut report: Report) -> Report {
    let env = [("LEASE_TTL_SECONDS", "10")];
    let mut flow = Flow::start(TestCluster::start(), &env, 800).await;
    sleep(ALIVE_WITHIN).await;
    let keys = flow.pulse.alive_at(Instant::now(), ALIVE_WITHIN);
    (0..flow.fleet.etcd.size()).for_each(|member| flow.fleet.etcd.kill(member));
    report.fault("kill -9 of all of etcd", 1);
    let names = flow.fleet.names();
    let spent =
        |flow: &Flow<TestCluster>| -> Duration { names.iter().map(|n| flow.fleet.cpu(n)).sum() };
    let before = spent(&flow);
    sleep(Duration::from_secs(scale.outage_seconds)).await; // what is tested
    flow.fleet.assert_alive();
    let busy = (spent(&flow) - before).as_secs_f64() / scale.outage_seconds as f64;
    flow.fleet.etcd.restart_all();
    let restarted = Instant::now();
    let pauses = flow.pulse.pauses(&keys, restarted, WITHIN).await;
    let memory = names.iter().map(|name| flow.fleet.peak_memory(name)).max().unwrap();
    let what = format!("all of etcd away for {} s: back, until all flows", scale.outage_seconds);
    report.times(&what, pauses, Some(Duration::from_secs(15)));
    let told = format!("{:.0} % of a core", busy * 100.0);
    report.fact("four processes meanwhile", told, "50 %", busy < 0.5);
    let told = format!("{} MiB", memory >> 20);
    report.fact("largest of them", told, "256 MiB", memory < MEMORY_MAX);
    flow.assert_unfinished().await;
    flow.finish(&mut report).await;
    report
}

pub(crate) async fn replace(_: Scale, mut report: Report) -> Report {
    let env = [("LEASE_TTL_SECONDS", "10")];
    let mut flow = Flow::start(TestCluster::start(), &env, 800).await;
    sleep(ALIVE_WITHIN).await;
    let lost = flow.fleet.etcd.leader();
    let killed = Instant::now();
    flow.fleet.etcd.kill(lost);
    report.fault("members of etcd lost with their data", 1);
    let mut pauses = flow.resumes(killed).await;
    let began = Instant::now();
    flow.fleet.etcd.replace(lost);
    pauses.extend(flow.resumes(began).await);
    sleep(ALIVE_WITHIN).await;
    // Two of the three that are left include the new one: it must have it all.
    let other = (lost + 1) % flow.fleet.etcd.size();
    let killed = Instant::now();
    flow.fleet.etcd.kill(other);
    report.fault("kill -9 of etcd's members", 1);
    pauses.extend(flow.resumes(killed).await);
    flow.fleet.etcd.restart(other);
    report.times(
        "member replaced, a lane or partition stands still",
        pauses,
        Some(LEADER_LOST_MAX),
    );
    flow.assert_undisturbed();
    flow.assert_unfinished().await;
    flow.finish(&mut report).await;
    report
}
