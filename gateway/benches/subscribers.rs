//! Live streams under load: latency from a source to WebSocket clients, memory, and what clients
//! that never read do to others. Run it by `scripts/bench-live.sh`, which raises the limit of open
//! files; the gateway, the collector and the streamer are processes of their own, etcd is real.
//!
//!   SUBSCRIBERS (5000), STUCK (1000), SECONDS_EACH (30), ROUNDS (6), PHASES (fan,stuck,flow,idle)

// A benchmark may panic: then there is no figure.
#![allow(clippy::unwrap_used)]

#[path = "subscribers/client.rs"]
mod client;
#[path = "subscribers/idle.rs"]
mod idle;
#[path = "../tests/it/pipeline.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod pipeline;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use client::{Clock, figures, stuck, subscriber};
use nexus_common::{
    model::{Lane, Timestamp},
    testing::{TestEtcd, free_port},
};
use pipeline::{Pipeline, samples, uuid};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until},
};

const HOSTS: usize = 31;
const GPUS: usize = 8;
/// Metrics of each GPU, as in the export users have.
const METRICS: [&str; 10] = [
    "decoder_utilization",
    "encoder_utilization",
    "gpu_utilization",
    "memory_clock_mhz",
    "memory_free_mb",
    "memory_used_mb",
    "memory_utilization",
    "power_draw",
    "sm_clock_mhz",
    "temperature",
];

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// Where a program is: in NEXUS_BIN_DIR, or beside this.
fn binary(role: &str) -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_nexus-gateway"));
    let name = format!("nexus-{role}");
    std::env::var("NEXUS_BIN_DIR")
        .map_or(beside.with_file_name(&name), |dir| Path::new(&dir).join(name))
}

/// A process of ours; ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(role: &str, etcd: &TestEtcd, flags: &[&str]) -> Self {
        let program = binary(role);
        let mut command = Command::new(&program);
        command.arg("run").args(flags).env("ETCD_ENDPOINTS", etcd.endpoint());
        command.env("LOG_LEVEL", "warn").stdout(Stdio::null());
        let child = command.spawn();
        Self(child.unwrap_or_else(|e| panic!("{}: {e}: run make build-nexus", program.display())))
    }

    /// Resident memory in MiB, and seconds of processor time so far.
    fn figures(&self) -> (f64, f64) {
        let read = |file| std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap();
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        (kib / 1024.0, ticks / 100.0)
    }
}

/// A gateway that is ready.
async fn gateway(etcd: &TestEtcd) -> (Process, SocketAddr) {
    let address: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let process = Process::start("gateway", etcd, &["--listen", &address.to_string()]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client::is_ready(address).await {
        assert!(Instant::now() < deadline, "the gateway is not ready");
        sleep(Duration::from_millis(50)).await;
    }
    (process, address)
}

/// Every GPU tells its ten metrics once a second, host after host; values are when they were
/// enqueued. Ends with `stop`.
async fn produce(mut pipeline: Pipeline, lane: Lane, clock: Clock, stop: watch::Receiver<bool>) {
    let begin = tokio::time::Instant::now();
    for second in 0.. {
        for host in 0..HOSTS {
            let at =
                Duration::from_secs(second) + Duration::from_secs(1) * host as u32 / HOSTS as u32;
            sleep_until(begin + at).await;
            if *stop.borrow() {
                return;
            }
            let now = Timestamp::now().as_millis();
            let sent = clock.micros();
            let told = samples(&format!("h{host}"), GPUS, &METRICS, &[now], |_, _| sent);
            pipeline.enqueue(&lane, &[told]).await;
        }
    }
}

/// What the system holds for all TCP connections of this machine, in MiB.
fn system() -> f64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    let pages: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    pages * 4096.0 / 1024.0 / 1024.0
}

/// Subscribes to all there is.
const ALL: &str = r#"{"type":"subscribe","topic":"telemetry"}"#;

fn subscribe_to(index: usize) -> String {
    let gpu = uuid(&format!("h{}", index % HOSTS), index / HOSTS % GPUS);
    format!(r#"{{"type":"subscribe","topic":"telemetry","filters":{{"gpu_uuid":"{gpu}"}}}}"#)
}

/// `count` subscribers of one GPU each for some seconds: their latencies, one list each.
async fn listen(address: SocketAddr, count: usize, clock: Clock, seconds: usize) -> Vec<Vec<u32>> {
    let (tell, begin) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for index in 0..count {
        let frame = subscribe_to(index);
        tasks.spawn(subscriber(address, frame, clock.clone(), begin.clone()));
        // As many at once as a listener's backlog takes.
        if index % 100 == 99 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    sleep(Duration::from_secs(3)).await;
    tell.send(true).unwrap();
    sleep(Duration::from_secs(seconds as u64)).await;
    drop(tell);
    tasks.join_all().await
}

/// Clients that never read, on a thread of their own: what they cost themselves must not hold up
/// those who measure.
fn never_read(address: SocketAddr, count: usize, ended: watch::Receiver<bool>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for index in 0..count {
            clients.spawn(stuck(address, index, ALL.to_owned(), ended.clone()));
        }
        clients.join_all().await;
    });
}

/// Many subscribers of one GPU each, then the same with some of everything that never read.
async fn fan(with_stuck: bool) {
    let (count, seconds) = (setting("SUBSCRIBERS", 5000), setting("SECONDS_EACH", 30));
    let etcd = TestEtcd::with_flags(&["--snapshot-count=2000"]);
    let pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    let _collector = Process::start("collector", &etcd, &[]);
    let (gateway, address) = gateway(&etcd).await;
    let clock = Clock::default();
    let (tell, stop) = watch::channel(false);
    let producing = tokio::spawn(produce(pipeline, lane, clock.clone(), stop));
    sleep(Duration::from_secs(2)).await;
    let (empty, _) = gateway.figures();

    let mut rounds = Vec::new();
    for round in 0..if with_stuck { setting("ROUNDS", 6) } else { 1 } {
        let stuck_now = round % 2 == 1;
        let number = if stuck_now { setting("STUCK", 1000) } else { 0 };
        let (end, ended) = watch::channel(false);
        let stuck = std::thread::spawn(move || never_read(address, number, ended));
        let before = gateway.figures();
        let sampling = async {
            let (mut memory, mut kernel) = (0.0_f64, 0.0_f64);
            for _ in 0..seconds {
                sleep(Duration::from_secs(1)).await;
                memory = memory.max(gateway.figures().0);
                kernel = kernel.max(system());
            }
            (memory, gateway.figures().1, kernel)
        };
        let (lists, during) =
            tokio::join!(listen(address, count, clock.clone(), seconds), sampling);
        drop(end);
        stuck.join().unwrap();
        let cpu = (during.1 - before.1) / seconds as f64 * 100.0;
        let figures = figures(&lists, count * seconds);
        println!(
            "{count} subscribers of one GPU at 1 Hz, {number} that never read: {figures}; \
             gateway {:.0} MiB ({empty:.0} without anyone), TCP of the machine {:.0} MiB, \
             {cpu:.0} % of a core",
            during.0, during.2
        );
        rounds.push((stuck_now, figures.p99, during.0, during.2));
        if with_stuck {
            sleep(Duration::from_secs(2)).await;
        }
    }
    if with_stuck {
        // The middle of the rounds: one with a pause of the machine in it tells nothing.
        let middle = |stuck: bool, of: fn(&(bool, f64, f64, f64)) -> f64| {
            let mut all: Vec<f64> = rounds.iter().filter(|one| one.0 == stuck).map(of).collect();
            all.sort_by(f64::total_cmp);
            all[(all.len() - 1) / 2]
        };
        let each = |of: fn(&(bool, f64, f64, f64)) -> f64| {
            (middle(true, of) - middle(false, of)) * 1024.0 / setting("STUCK", 1000) as f64
        };
        println!(
            "p99 with / without those that never read: {:.2}; each takes {:.0} KiB of the gateway \
             and {:.0} KiB of the system",
            middle(true, |p| p.1) / middle(false, |p| p.1),
            each(|p| p.2),
            each(|p| p.3)
        );
    }
    tell.send(true).unwrap();
    producing.await.unwrap();
}

/// A replayed file of about 25,000 samples a second through every process: a row's time is when
/// it is due, so latency is all from there on.
async fn flow() {
    let seconds = setting("SECONDS_EACH", 30);
    let etcd = TestEtcd::with_flags(&["--snapshot-count=2000"]);
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("flow.csv");
    generate(&csv, (HOSTS, GPUS), (seconds + 10) * 10);
    let _collector = Process::start("collector", &etcd, &[]);
    let (gateway, address) = gateway(&etcd).await;
    let path = csv.to_str().unwrap();
    let _streamer =
        Process::start("streamer", &etcd, &["--csv-file", path, "--replay-speed", "10"]);
    let (tell, begin) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let clients = setting("FLOW_SUBSCRIBERS", 4);
    for _ in 0..clients {
        let clock = Clock::of_timestamps();
        tasks.spawn(subscriber(address, ALL.to_owned(), clock, begin.clone()));
    }
    sleep(Duration::from_secs(6)).await;
    let before = gateway.figures();
    tell.send(true).unwrap();
    sleep(Duration::from_secs(seconds as u64)).await;
    let after = gateway.figures();
    drop(tell);
    let lists = tasks.join_all().await;
    let points: usize = lists.iter().map(Vec::len).sum::<usize>() / clients;
    let figures = figures(&lists, points * clients);
    println!(
        "a replayed file, {} samples/s, to {clients} subscribers of everything: {figures}; gateway \
         {:.0} MiB, {:.0} % of a core",
        points * METRICS.len() / seconds,
        after.0,
        (after.1 - before.1) / seconds as f64 * 100.0
    );
}

fn generate(csv: &Path, (hosts, gpus): (usize, usize), seconds: usize) {
    let (hosts, gpus, seconds) = (hosts.to_string(), gpus.to_string(), seconds.to_string());
    let flags = ["--hosts", &hosts, "--gpus-per-host", &gpus, "--seconds", &seconds, "--seed", "1"];
    let status =
        Command::new(binary("streamer")).arg("generate").args(flags).arg("--out").arg(csv).status();
    assert!(status.unwrap().success());
}

fn main() {
    // Asked by `cargo test --benches`: there is nothing to test here.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let phases = std::env::var("PHASES").unwrap_or_else(|_| "fan,stuck,flow,idle".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for phase in phases.split(',') {
            match phase {
                "fan" => fan(false).await,
                "stuck" => fan(true).await,
                "flow" => flow().await,
                "idle" => idle::idle().await,
                other => panic!("PHASES: {other:?} is not one of fan, stuck, flow, idle"),
            }
        }
    });
}
