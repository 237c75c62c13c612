//! Everything at once: wires that lose, delay and break, and processes that die, stand still and
//! leave.

use std::time::{Duration, Instant};

use nexus_common::{
    model::Role,
    testing::{Faults, Proxy, TestEtcd, truth::is_settled},
};
use tokio::time::sleep;

use crate::{Scale, flow::Flow, report::Report};

/// Of each role.
const PROCESSES: usize = 3;
/// Between two faults of processes.
const EVERY: Duration = Duration::from_millis(700);
/// Beyond a lease of three seconds.
const STANDSTILL: Duration = Duration::from_secs(4);
/// What a process may take to leave.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(6);

struct Victim {
    role: Role,
    name: String,
    wire: Proxy,
    /// Stands still until then.
    stopped: Option<Instant>,
}

pub(crate) async fn wire(scale: Scale, mut report: Report) -> Report {
    let seed = crate::number("CHURN_SEED", u64::from(std::process::id()));
    println!("  CHURN_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    // A hundred faults a second is usual; twice as long is allowed. 320 rows a second of file.
    let seconds_max = 60 + scale.faults / 50;
    let env = [("LEASE_TTL_SECONDS", "3"), ("BATCH_SIZE", "100"), ("PARALLEL_SHARDS", "4")];
    let mut flow = Flow::new(TestEtcd::start(), &env, 1, seconds_max * 12).await;
    let upstream = flow.fleet.etcd.endpoint();
    let mut victims: Vec<Victim> = (0..2 * PROCESSES)
        .map(|number| {
            let role = if number < PROCESSES { Role::Streamer } else { Role::Collector };
            let faults = Faults {
                seed: seed.wrapping_add(number as u64),
                lost: 0.002,
                delayed: 0.1,
                delay_max: Duration::from_millis(100),
                ..Faults::default()
            };
            let wire = Proxy::faulty(&upstream, faults);
            Victim { role, name: format!("{role}-{number}"), wire, stopped: None }
        })
        .collect();
    victims.iter().for_each(|victim| victim.start(&mut flow));
    flow.flows().await;
    let (begun, mut next, mut exits) = (Instant::now(), Instant::now() + EVERY, Vec::new());
    loop {
        let law = flow.audit().await;
        let wires: u64 = victims.iter().map(|v| v.wire.count().sum()).sum();
        if report.faults() + wires >= scale.faults {
            break;
        }
        assert!(!is_settled(&law), "all was stored after {wires} faults");
        assert!(begun.elapsed() < Duration::from_secs(seconds_max), "only {wires} faults");
        for victim in &mut victims {
            if victim.stopped.is_some_and(|until| Instant::now() > until) {
                flow.fleet.signal(&victim.name, "CONT");
                victim.stopped = None;
            }
        }
        if Instant::now() > next {
            next = Instant::now() + EVERY;
            let victim = &mut victims[random.usize(..2 * PROCESSES)];
            if let Some(exit) = victim.strike(&mut flow, &mut report, random.u32(..10)).await {
                exits.push(exit);
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    for victim in &mut victims {
        let count = victim.wire.count();
        report.fault("answers and requests lost with their connections", count.lost);
        report.fault("answers and requests delayed", count.delayed);
        report.fault("connections cut", count.cut);
        victim.wire.set_faults(Faults::default());
        if victim.stopped.take().is_some() {
            flow.fleet.signal(&victim.name, "CONT");
        }
    }
    if !exits.is_empty() {
        report.times("SIGTERM to exit, on faulty wires", exits, Some(DRAIN_MAX));
    }
    flow.finish(&mut report).await;
    report
}

impl Victim {
    fn start(&self, flow: &mut Flow<TestEtcd>) {
        let flags = ["--etcd-endpoints", &self.wire.endpoint()];
        match self.role {
            Role::Streamer => flow.stream(&self.name, 0, &flags),
            _ => flow.fleet.collect(&self.name, &flags),
        }
    }

    /// Does it some harm. How long it took to leave, if it was told to.
    async fn strike(
        &mut self,
        flow: &mut Flow<TestEtcd>,
        report: &mut Report,
        choice: u32,
    ) -> Option<Duration> {
        if self.stopped.is_some() {
            return None;
        }
        match choice {
            0..4 => {
                flow.fleet.kill(&self.name);
                self.start(flow);
                report.fault("kill -9 of processes", 1);
            }
            4..6 => {
                flow.fleet.signal(&self.name, "STOP");
                self.stopped = Some(Instant::now() + STANDSTILL);
                report.fault("SIGSTOP of processes beyond their lease", 1);
            }
            6..9 => {
                // Requests pass, answers do not, then all is gone: done, and not known.
                self.wire.hold_answers();
                sleep(Duration::from_millis(30)).await;
                self.wire.cut();
            }
            _ => {
                let (status, took) = flow.fleet.terminate(&self.name).await;
                assert!(status.success(), "{}: {status}", self.name);
                self.start(flow);
                report.fault("SIGTERM of processes", 1);
                return Some(took);
            }
        }
        None
    }
}
