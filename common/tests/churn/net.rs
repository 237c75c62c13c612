//! Networks that are slow, lossy or divided.
//!
//! Divided ones are real: every member of etcd in a network namespace of its own, joined by a
//! bridge in the one this program runs in. `scripts/churn.sh` gives it a new one, so that all of
//! it is gone when the program ends. A route into nowhere drops what goes one way.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nexus_common::{
    model::Role,
    testing::{
        Faults, Proxy, TestCluster, TestEtcd, eventually,
        truth::{held, owners},
    },
};
use tokio::time::sleep;

use crate::{
    Scale,
    flow::{Flow, WITHIN},
    members::ALIVE_WITHIN,
    report::Report,
};

/// Longer than an election, shorter than a lease of ten seconds.
const DIVIDED_FOR: Duration = Duration::from_secs(6);
/// Finding out, an election, and asking another member.
const DIVIDED_MAX: Duration = Duration::from_secs(7);
/// 5 % of packets lost cost a repetition each: what TCP waits at least, and half as much again.
const REPEATED: Duration = Duration::from_millis(300);

/// Every answer and request takes 200 ms, more or less 100, and one in twenty a repetition more.
pub(crate) async fn slow(_: Scale, mut report: Report) -> Report {
    let env = [("LEASE_TTL_SECONDS", "10"), ("BATCH_SIZE", "500")];
    let mut flow = Flow::new(TestEtcd::start(), &env, 1, 400).await;
    let faults = Faults {
        seed: 5,
        delayed: 0.05,
        delay_max: REPEATED,
        latency: (Duration::from_millis(100), Duration::from_millis(300)),
        ..Faults::default()
    };
    let wire = Proxy::faulty(&flow.fleet.etcd.endpoint(), faults);
    let through = ["--etcd-endpoints", &wire.endpoint()];
    for letter in ["a", "b"] {
        flow.stream(&format!("streamer-{letter}"), 0, &through);
        flow.fleet.collect(&format!("collector-{letter}"), &through);
    }
    flow.flows().await;
    let since = flow.audit().await.samples.committed;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        flow.flows().await;
        sleep(Duration::from_secs(1)).await; // a lease's length and more of such a wire
    }
    let rate =
        (flow.audit().await.samples.committed - since) as f64 / begun.elapsed().as_secs_f64();
    report.fault("answers and requests delayed", wire.count().delayed);
    let told = format!("{rate:.0} samples/s, no session lost");
    report.fact("200 ms more or less 100 each way, 5 % repeated", told, "no session lost", true);
    flow.assert_undisturbed();
    wire.set_faults(Faults::default());
    flow.finish(&mut report).await;
    report
}

/// A bridge, and namespaces that hang on it.
struct Net {
    holders: Vec<Child>,
}

impl Net {
    /// Why this cannot be had, if it cannot.
    fn new(size: usize) -> Result<Self, String> {
        if std::env::var_os("CHURN_NETNS").is_none() {
            return Err("no network namespace of our own: needs root, unshare and ip".to_owned());
        }
        run(&["ip", "link", "set", "lo", "up"])?;
        run(&["ip", "link", "add", "nexus0", "type", "bridge"])?;
        run(&["ip", "addr", "add", "10.79.0.1/24", "dev", "nexus0"])?;
        run(&["ip", "link", "set", "nexus0", "up"])?;
        let mut net = Self { holders: Vec::new() };
        for index in 0..size {
            net.add(index)?;
        }
        Ok(net)
    }

    fn add(&mut self, index: usize) -> Result<(), String> {
        // Holds the namespace; ends by itself, should we not end it.
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "3600"]).stdin(Stdio::null());
        self.holders.push(command.spawn().map_err(|e| e.to_string())?);
        let pid = self.holders[index].id().to_string();
        let (here, there) = (format!("nexus{index}h"), format!("nexus{index}n"));
        run(&["ip", "link", "add", &here, "type", "veth", "peer", "name", &there])?;
        run(&["ip", "link", "set", &here, "master", "nexus0", "up"])?;
        // Until unshare has made it, the namespace is still ours.
        let deadline = Instant::now() + Duration::from_secs(5);
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        while of(&pid) == of("self") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        run(&["ip", "link", "set", &there, "netns", &pid])?;
        self.within(index, &["ip", "link", "set", "lo", "up"])?;
        let address = format!("{}/24", address(index));
        self.within(index, &["ip", "addr", "add", &address, "dev", &there])?;
        self.within(index, &["ip", "link", "set", &there, "up"])
    }

    /// What a command must begin with to run there.
    fn by(&self, index: usize) -> Vec<String> {
        let pid = self.holders[index].id();
        ["nsenter", "-t", &pid.to_string(), "-n", "--"].map(str::to_owned).to_vec()
    }

    fn within(&self, index: usize, command: &[&str]) -> Result<(), String> {
        let by = self.by(index);
        let all: Vec<&str> = by.iter().map(String::as_str).chain(command.iter().copied()).collect();
        run(&all)
    }

    /// What goes from one to another does not arrive (or does again).
    fn block(&self, verb: &str, from: usize, to: usize) {
        let to = format!("{}/32", address(to));
        self.within(from, &["ip", "route", verb, "blackhole", &to]).unwrap();
    }

    /// The same, to everybody out here.
    fn block_out(&self, verb: &str, from: usize) {
        self.within(from, &["ip", "route", verb, "blackhole", "10.79.0.1/32"]).unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

fn address(index: usize) -> String {
    format!("10.79.0.{}", 10 + index)
}

fn run(command: &[&str]) -> Result<(), String> {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let output = output.map_err(|e| format!("{}: {e}", command[0]))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", command.join(" "))) }
}

/// Which part of the network is away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Divided {
    Minority,
    LeaderFromPeers,
    LeaderFromAll,
    LeaderSpeaksInVain,
}

pub(crate) async fn partition(scale: Scale, mut report: Report) -> Report {
    const MEMBERS: usize = 3;
    let net = match Net::new(MEMBERS + 1) {
        Ok(net) => net,
        Err(why) => {
            report.skipped("partitions of the network", &why);
            return report;
        }
    };
    if let Err(why) =
        net.within(0, &["tc", "qdisc", "add", "dev", "nexus0n", "root", "netem", "delay", "1ms"])
    {
        report.skipped("tc netem; the phase `slow` delays by proxies instead", &why);
    } else {
        net.within(0, &["tc", "qdisc", "del", "dev", "nexus0n", "root"]).unwrap();
    }
    let places = (0..MEMBERS).map(|index| (address(index), net.by(index)));
    let env = [("LEASE_TTL_SECONDS", "10")];
    let mut flow = Flow::start(TestCluster::start_on(places), &env, 1500).await;
    for divided in [
        Divided::Minority,
        Divided::LeaderFromPeers,
        Divided::LeaderFromAll,
        Divided::LeaderSpeaksInVain,
    ] {
        let mut pauses = Vec::new();
        for _ in 0..scale.rounds.div_ceil(10) {
            sleep(ALIVE_WITHIN).await;
            let leader = flow.fleet.etcd.leader();
            let victim = if divided == Divided::Minority { (leader + 1) % MEMBERS } else { leader };
            let began = Instant::now();
            divide(&net, divided, victim, "add");
            report.fault("partitions of the network", 1);
            pauses.extend(flow.resumes(began).await);
            sleep(DIVIDED_FOR.saturating_sub(began.elapsed())).await; // what is tested
            divide(&net, divided, victim, "del");
            flow.audit().await;
            eventually("all members answer", WITHIN, async || flow.fleet.etcd.all_answer()).await;
        }
        report.times(
            &format!("{divided:?}, a lane or partition stands still"),
            pauses,
            Some(DIVIDED_MAX),
        );
    }
    flow.assert_undisturbed();
    client_side(&net, &mut flow, &mut report).await;
    flow.assert_unfinished().await;
    flow.finish(&mut report).await;
    report
}

/// `verb` is add or del.
fn divide(net: &Net, divided: Divided, victim: usize, verb: &str) {
    for other in (0..3).filter(|other| *other != victim) {
        net.block(verb, victim, other);
        if divided != Divided::LeaderSpeaksInVain {
            net.block(verb, other, victim);
        }
    }
    if matches!(divided, Divided::Minority | Divided::LeaderFromAll) {
        net.block_out(verb, victim);
    }
}

/// A collector on the other side of the network, cut off for longer than its lease.
async fn client_side(net: &Net, flow: &mut Flow<TestCluster>, report: &mut Report) {
    const FAR: usize = 3;
    let ttl = ["--lease-ttl-seconds", "3"];
    flow.fleet.start_by(&net.by(FAR), Role::Collector, "collector-far", &ttl);
    let holds = async |flow: &Flow<TestCluster>| {
        held(&owners(&flow.etcd, "partitions/").await, "collector-far")
    };
    eventually("it works", WITHIN, async || holds(flow).await > 10).await;
    let began = Instant::now();
    (0..3).for_each(|member| net.block("add", FAR, member));
    report.fault("partitions of the network", 1);
    eventually("others have its work", WITHIN, async || holds(flow).await == 0).await;
    let bound = Duration::from_millis(4500);
    let what = "collector cut off, until its partitions are free, lease 3 s";
    report.times(what, vec![began.elapsed()], Some(bound));
    flow.flows().await;
    (0..3).for_each(|member| net.block("del", FAR, member));
    let healed = Instant::now();
    eventually("it works again", WITHIN, async || holds(flow).await > 10).await;
    report.times("reached again, until it works again", vec![healed.elapsed()], None);
}
