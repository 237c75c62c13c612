//! This host's GPUs, through a library that does as it is told: see `fake_nvml.c`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    time::Instant,
};

use nexus_common::{
    keyspace::{ClaimItem, Claimant, Key, Progress, from_json},
    model::{Lane, ShardId},
    testing::TestEtcd,
};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    live::{Seen, queued, source},
    process::{Case, LOOK, SOON, Streamer},
};

/// The library, compiled once.
fn compiled() -> PathBuf {
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fake_nvml.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", source, "-ldl", "-o"])
            .arg(folder.path().join("fake.so"))
            .status()
            .expect("a C compiler is needed: cc");
        assert!(built.success(), "{source}");
        folder
    });
    folder.path().join("fake.so")
}

/// A host's GPUs.
struct Fake {
    library: PathBuf,
}

impl Fake {
    fn new(case: &Case, name: &str) -> Self {
        let fake = Self { library: case.path(name) };
        std::fs::copy(compiled(), &fake.library).unwrap();
        fake.shall("");
        fake
    }

    fn path(&self) -> &str {
        self.library.to_str().unwrap()
    }

    /// What the GPUs do from now on. At once: no call sees half of it.
    fn shall(&self, control: &str) {
        let (new, now) = (format!("{}.new", self.path()), format!("{}.control", self.path()));
        std::fs::write(&new, control).unwrap();
        std::fs::rename(new, now).unwrap();
    }

    /// How often a line stands in what the library noted.
    fn noted(&self, line: &str) -> usize {
        let log = std::fs::read_to_string(format!("{}.log", self.path())).unwrap_or_default();
        log.lines().filter(|noted| *noted == line).count()
    }

    fn flags(&self, host: &str) -> Vec<String> {
        let flags = ["--nvml-library", self.path(), "--host-name", host, "--backlog-max", "100000"];
        flags.map(str::to_owned).to_vec()
    }

    /// `nexus-streamer nvml` at this host's GPUs, every tenth of a second.
    fn stream(&self, case: &Case, host: &str, more: &[&str]) -> Streamer {
        let flags = self.flags(host);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        case.start(&[&["nvml", "--interval", "100ms"], flags.as_slice(), more].concat())
    }
}

async fn progress(case: &Case, source: &str) -> Progress {
    let lane = Lane { source: source.parse().unwrap(), shard: ShardId(0) };
    let key = case.etcd.keyspace().key(&Key::Shard(lane));
    let entry = case.etcd.get(&key).await.unwrap().unwrap();
    from_json(&entry.key, &entry.value).unwrap()
}

/// Waits until what is queued is as it shall be.
async fn seen_until(case: &Case, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
    let since = Instant::now();
    loop {
        let seen = queued(case).await;
        if condition(&seen) {
            return seen;
        }
        assert!(since.elapsed() < SOON, "not within {SOON:?}: {what}");
        sleep(LOOK).await;
    }
}

/// The instants at which a GPU told a metric, and what it told.
fn series<'a>(seen: &'a Seen, gpu: &str, metric: &str) -> BTreeMap<i64, f64> {
    let of = |key: &&'a (String, String, String, i64)| key.1 == gpu && key.2 == metric;
    seen.keys().filter(of).map(|key| (key.3, seen[key])).collect()
}

/// What every GPU of the fake tells; the second value is of how much more the next GPU tells.
const TOLD: [(&str, f64, f64); 46] = [
    ("gpu_utilization[]", 10.0, 1.0),
    ("memory_utilization[]", 20.0, 1.0),
    ("encoder_utilization[]", 1.0, 1.0),
    ("decoder_utilization[]", 2.0, 1.0),
    ("DCGM_FI_DEV_FB_TOTAL[]", 8000.0, 0.0),
    ("DCGM_FI_DEV_FB_RESERVED[]", 100.0, 0.0),
    ("memory_used_mb[]", 800.0, 1.0),
    ("memory_free_mb[]", 7099.0, -1.0),
    ("temperature[]", 40.0, 1.0),
    ("memory_temperature[]", 82.0, 0.0),
    ("DCGM_FI_DEV_SLOWDOWN_TEMP[]", 87.0, 1.0),
    ("DCGM_FI_DEV_SHUTDOWN_TEMP[]", 92.0, 1.0),
    ("power_draw[]", 350.5, 0.001),
    ("DCGM_FI_DEV_POWER_USAGE_INSTANT[]", 0.186, 0.0),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT[]", 700.0, 0.001),
    ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT[]", 650.0, 0.001),
    ("total_energy_mj[]", 5_000_000_000.0, 0.0),
    ("sm_clock_mhz[]", 1100.0, 1.0),
    ("memory_clock_mhz[]", 1200.0, 1.0),
    ("DCGM_FI_DEV_VIDEO_CLOCK[]", 1300.0, 1.0),
    ("DCGM_FI_DEV_FAN_SPEED[]", 31.0, 1.0),
    ("DCGM_FI_DEV_PSTATE[]", 0.0, 1.0),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS[]", 4.0, 0.0),
    ("throttle_reason[(\"reason\", \"sw_power_cap\")]", 1.0, 0.0),
    ("throttle_reason[(\"reason\", \"hw_slowdown\")]", 0.0, 0.0),
    ("DCGM_FI_DEV_PCIE_TX_THROUGHPUT[]", 5000.0, 1.0),
    ("DCGM_FI_DEV_PCIE_RX_THROUGHPUT[]", 5001.0, 1.0),
    ("DCGM_FI_DEV_PCIE_LINK_GEN[]", 5.0, 0.0),
    ("DCGM_FI_DEV_PCIE_LINK_WIDTH[]", 16.0, 0.0),
    ("pcie_replay_count[]", 94.0, 0.0),
    ("DCGM_FI_DEV_ECC_CURRENT[]", 1.0, 0.0),
    ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL[]", 3.0, 0.0),
    ("DCGM_FI_DEV_ECC_DBE_AGG_TOTAL[]", 6.0, 0.0),
    ("DCGM_FI_DEV_RETIRED_SBE[]", 29.0, 0.0),
    ("DCGM_FI_DEV_RETIRED_PENDING[]", 31.0, 0.0),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS[]", 142.0, 0.0),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS[]", 143.0, 0.0),
    ("DCGM_FI_DEV_ROW_REMAP_PENDING[]", 144.0, 0.0),
    ("DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL[]", 38.0, 0.0),
    ("DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL[]", 59.0, 0.0),
    ("compute_processes[]", 12.0, 0.0),
    ("graphics_processes[]", 0.0, 0.0),
    ("process_memory_mb[(\"rank\", \"1\")]", 12.0, 0.0),
    ("process_pid[(\"rank\", \"1\")]", 111.0, 0.0),
    ("process_memory_mb[(\"rank\", \"8\")]", 5.0, 0.0),
    ("xid_error[]", 0.0, 0.0),
];

#[tokio::test]
async fn values_arrive_as_they_were_told_on_the_grid_and_under_the_names_of_csv_files() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/gpus").await;
    let fake = Fake::new(&case, "fake.so");
    let streamer = fake.stream(&case, "dgx-1", &[]);
    let watched = |seen: &Seen| {
        ["GPU-0", "GPU-1"].iter().all(|gpu| series(seen, gpu, "xid_error[]").len() > 3)
            && series(seen, "GPU-0", "DCGM_FI_PROF_SM_ACTIVE[]").len() > 3
    };
    seen_until(&case, "all is told", watched).await;
    fake.shall("value 7\n");
    let energy = |seen: &Seen, value: f64| {
        series(seen, "GPU-0", "total_energy_mj[]").values().any(|told| *told == value)
    };
    seen_until(&case, "another value is told", |seen| energy(seen, 5_000_000_007.0)).await;
    streamer.terminate().await;
    assert_eq!(fake.noted("init 0"), 2, "once to look whether it is there");

    let seen = queued(&case).await;
    let report = case.audited_until("all is told", |_| true).await;
    assert_eq!(seen.len() as u64, report.samples.queued);
    assert!(seen.keys().all(|key| key.0 == "dgx-1" && key.3 % 100 == 0));
    for (metric, first, step) in TOLD {
        for (gpu, nth) in [("GPU-0", 0.0), ("GPU-1", 1.0)] {
            let told = series(&seen, gpu, metric);
            let value = told.values().next().copied();
            assert_eq!(
                value.map(|v| (v * 1e6).round()),
                Some(((first + nth * step) * 1e6).round()),
                "{gpu} {metric}"
            );
        }
    }
    let between = |gpu, metric| series(&seen, gpu, metric).values().next().copied();
    assert_eq!(between("GPU-0", "DCGM_FI_PROF_SM_ACTIVE[]"), Some(0.02));
    assert_eq!(between("GPU-0", "DCGM_FI_PROF_NVLINK_RX_BYTES[]"), Some(60.0 * 1_048_576.0));
    assert_eq!(between("GPU-1", "DCGM_FI_PROF_SM_ACTIVE[]"), None);
    // What is not supported is left out, whatever else is told.
    assert_eq!(between("GPU-0", "DCGM_FI_DEV_ROW_REMAP_FAILURE[]"), None);
    assert_eq!(between("GPU-0", "process_memory_mb[(\"rank\", \"9\")]"), None);
    let progress = progress(&case, "nvml-dgx-1").await;
    assert_eq!((progress.rejected(), progress.rows_accepted), (0, seen.len() as u64));
    assert_eq!(logged(&case, "DCGM_FI_DEV_ROW_REMAP_FAILURE (").len(), 2, "once a GPU");
}

/// Lines of the log that hold `text`.
fn logged(case: &Case, text: &str) -> Vec<String> {
    let log = std::fs::read_to_string(case.path("streamer.log")).unwrap();
    log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_gpu_that_hangs_stops_nobody_and_is_asked_once() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/hangs").await;
    let fake = Fake::new(&case, "fake.so");
    fake.shall("gpus 3\n");
    let streamer = fake.stream(&case, "h", &[]);
    let told = |seen: &Seen, gpu: &str| series(seen, gpu, "temperature[]").len();
    // XIDs are waited for: nobody but its thread has anything to ask a GPU from then on.
    let settled = |seen: &Seen| {
        ["GPU-0", "GPU-1", "GPU-2"].iter().all(|gpu| series(seen, gpu, "xid_error[]").len() > 3)
    };
    seen_until(&case, "all answer", settled).await;
    fake.shall("gpus 3\nhang 1\n");
    streamer.wait_for_log("a GPU does not answer").await;
    let then = queued(&case).await;
    let others =
        |seen: &Seen| ["GPU-0", "GPU-2"].iter().all(|gpu| told(seen, gpu) >= told(&then, gpu) + 20);
    let since = seen_until(&case, "the others go on", others).await;
    assert_eq!(told(&since, "GPU-1"), told(&then, "GPU-1"));
    assert_eq!(fake.noted("hang 1"), 1, "one thread is in there, and no other joins it");
    let hung = progress(&case, "nvml-h").await.rows_rejected["GPU hung"];
    assert!(hung >= 20, "{hung}");
    let error = progress(&case, "nvml-h").await.last_error.unwrap();
    assert_eq!(error.told, "GPU hung: 1 GPU-1");
    // Nor when the source is given back and taken up again.
    assert!(source(&case, &["pause", "nvml-h"]).0);
    case.idle().await;
    assert!(source(&case, &["resume", "nvml-h"]).0);
    let paused = queued(&case).await;
    seen_until(&case, "the others go on again", |seen| {
        told(seen, "GPU-0") > told(&paused, "GPU-0") + 5
    })
    .await;
    assert_eq!(fake.noted("hang 1"), 1, "the thread of before still is in there");
    fake.shall("gpus 3\n");
    streamer.wait_for_log("a GPU answers again").await;
    seen_until(&case, "it is back", |seen| told(seen, "GPU-1") > told(&then, "GPU-1") + 3).await;
    // One that hangs for good does not keep the process from ending.
    fake.shall("gpus 3\nhang 2\n");
    let hangs = Instant::now();
    while fake.noted("hang 2") == 0 {
        assert!(hangs.elapsed() < SOON);
        sleep(LOOK).await;
    }
    streamer.terminate().await;
    case.audited_until("nothing is lost", |_| true).await;
}

#[tokio::test]
async fn gpus_come_and_go_and_xids_have_their_own_times() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/changes").await;
    let fake = Fake::new(&case, "fake.so");
    fake.shall("blank 1\n");
    let streamer = fake.stream(&case, "h", &[]);
    let xids = |seen: &Seen, gpu: &str| -> BTreeMap<i64, f64> { series(seen, gpu, "xid_error[]") };
    let seen = seen_until(&case, "XIDs are waited for", |seen| {
        xids(seen, "GPU-0").len() > 3 && xids(seen, "GPU-1").len() > 3
    });
    let seen = seen.await;
    // Blanks are no values, and told as such.
    assert!(series(&seen, "GPU-1", "temperature[]").is_empty());
    assert!(series(&seen, "GPU-1", "memory_used_mb[]").is_empty());
    assert!(series(&seen, "GPU-1", "total_energy_mj[]").is_empty());
    assert!(progress(&case, "nvml-h").await.rows_absent > 20);

    fake.shall("xid 0 31 1\nxid 1 13 2\n");
    let both = |seen: &Seen| {
        xids(seen, "GPU-0").values().any(|v| *v == 31.0)
            && xids(seen, "GPU-1").values().any(|v| *v == 13.0)
    };
    seen_until(&case, "both are told", both).await;
    // It falls off the bus: its last word, then nothing; the other goes on.
    fake.shall("lost 1\nxid 1 79 3\n");
    streamer.wait_for_log("a GPU is lost").await;
    let seen =
        seen_until(&case, "its last word", |seen| xids(seen, "GPU-1").values().any(|v| *v == 79.0));
    let seen = seen.await;
    assert!(xids(&seen, "GPU-1").keys().any(|at| at % 100 != 0), "at its own time");
    // NVML is opened anew until it is back, with another beside it.
    streamer.wait_for_log("looking for GPUs anew").await;
    fake.shall("gpus 3\n");
    let told = |seen: &Seen, gpu: &str| series(seen, gpu, "temperature[]").len();
    seen_until(&case, "they are here", |seen| told(seen, "GPU-1") > 3 && told(seen, "GPU-2") > 3)
        .await;
    fake.shall("gpus 1\n");
    streamer.wait_for_log("a GPU that was here is gone").await;
    let before = told(&queued(&case).await, "GPU-0");
    seen_until(&case, "the other goes on", |seen| told(seen, "GPU-0") > before + 3).await;
    // The driver goes and comes back.
    fake.shall("driver 0\n");
    streamer.wait_for_log("waiting for NVIDIA's driver").await;
    fake.shall("mig 0\nbare 1\n");
    let instance = "GPU-0:MIG-0-4";
    let seen =
        seen_until(&case, "instances", |seen| series(seen, instance, "memory_used_mb[]").len() > 2);
    let seen = seen.await;
    let of = |metric: &str| series(&seen, instance, metric).into_values().next();
    assert_eq!((of("memory_used_mb[]"), of("temperature[]")), (Some(100.0), None));
    let gpus: BTreeSet<&str> = seen.keys().map(|key| key.1.as_str()).collect();
    assert_eq!(gpus, BTreeSet::from(["GPU-0", "GPU-0:MIG-0-1", instance, "GPU-1", "GPU-2"]));
    streamer.terminate().await;
    let closed = fake.noted("shutdown 0");
    assert!(
        (closed..=closed + 1).contains(&fake.noted("init 0")),
        "it was closed before it was opened"
    );
    case.audited_until("nothing is lost", |_| true).await;
}

#[tokio::test]
async fn without_a_driver_it_says_so_and_ends_or_waits() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/none").await;
    let fake = Fake::new(&case, "fake.so");
    fake.shall("driver 0\n");
    let check = |library: &str, expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_nexus-streamer"))
            .env_clear()
            .envs(case.env())
            .args(["nvml", "--host-name", "h", "--nvml-library", library])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(69), "{said}");
        assert!(said.lines().count() == 1 && said.contains(expected), "{said}");
        assert!(said.contains(library) && said.contains("--wait"), "{said}");
    };
    check(fake.path(), "NVIDIA driver is not loaded");
    check("/nowhere/libnvidia-ml.so", "cannot open shared object file");
    assert!(!source(&case, &["list"]).1.contains("nvml"), "nothing was asked for");

    let streamer = fake.stream(&case, "h", &["--wait"]);
    streamer.wait_for_log("waiting for NVIDIA's driver").await;
    fake.shall("");
    let told = |seen: &Seen| series(seen, "GPU-1", "temperature[]").len() > 3;
    seen_until(&case, "it came", told).await;
    assert!(progress(&case, "nvml-h").await.missed > 0, "an outage is counted");
    streamer.terminate().await;
}

#[tokio::test]
async fn only_a_streamer_on_the_host_claims_its_gpus() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/hosts").await;
    let (a, b) = (Fake::new(&case, "a.so"), Fake::new(&case, "b.so"));
    a.shall("gpus 1\n");
    b.shall("gpus 1\nvalue 100\n");
    let both = "sources: [{name: gpus-a, nvml: {host: a, interval: 100ms}}, {name: gpus-b, nvml: {host: b, interval: 100ms}}]";
    let file = case.write("sources.yaml", both);
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let run = |fake: &Fake, host: &str, name: &str| {
        let flags = fake.flags(host);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let told: &[&str] = &["--log-level", "nexus_common=debug,info"];
        case.start(&[&["run", "--instance-id", name], told, flags.as_slice()].concat())
    };
    // Alone, it leaves the other's alone, for as long as an orphan would wait and longer.
    let first = run(&a, "a", "on-a");
    let of = |seen: &Seen, host: &str| seen.keys().filter(|key| key.0 == host).count();
    let seen = seen_until(&case, "its own are told", |seen| {
        series(seen, "GPU-0", "temperature[]").len() > 40
    });
    assert_eq!(of(&seen.await, "b"), 0);
    let claims = logged(&case, "claimed item=");
    assert!(claims.iter().any(|line| line.contains("gpus-a")), "{claims:?}");
    assert!(!claims.iter().any(|line| line.contains("gpus-b")), "{claims:?}");
    let second = run(&b, "b", "on-b");
    let spare = run(&a, "a", "spare-of-a");
    spare.wait_for_log("spare-of-a").await;
    let seen = seen_until(&case, "the others are told", |seen| of(seen, "b") > 400).await;
    for ((host, _, metric, _), value) in &seen {
        if metric == "temperature[]" {
            assert_eq!(*value, if host == "a" { 40.0 } else { 140.0 }, "{host}");
        }
    }
    let owner = |source: &str| {
        let lane = Lane { source: source.parse().unwrap(), shard: ShardId(0) };
        let key = case.etcd.keyspace().key(&Key::Claim(ClaimItem::Shard(lane)));
        let etcd = case.etcd.clone();
        async move {
            let entry = etcd.get(&key).await.unwrap()?;
            let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
            Some(claimant.instance.to_string())
        }
    };
    assert_eq!(owner("gpus-a").await.as_deref(), Some("on-a"));
    assert_eq!(owner("gpus-b").await.as_deref(), Some("on-b"));
    // Another one on the same host takes over; one elsewhere does not.
    first.kill();
    second.kill();
    let since = Instant::now();
    while owner("gpus-a").await.as_deref() != Some("spare-of-a") || owner("gpus-b").await.is_some()
    {
        assert!(since.elapsed() < SOON, "{:?} {:?}", owner("gpus-a").await, owner("gpus-b").await);
        sleep(LOOK).await;
    }
    let before = queued(&case).await;
    let seen = seen_until(&case, "it is told on", |seen| of(seen, "a") > of(&before, "a") + 200);
    let seen = seen.await;
    assert_eq!(of(&seen, "b"), of(&before, "b"));
    assert_eq!(owner("gpus-b").await, None);
    // What is on a host stays there.
    let moved = both.replace("host: b", "host: a");
    let file = case.write("moved.yaml", moved);
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(!good && said.contains("gpus-b reads the GPUs of b"), "{said}");
    spare.terminate().await;
    case.audited_until("nothing is there twice", |_| true).await;
}

#[tokio::test]
async fn one_that_streams_gpus_takes_no_share_of_anything_else() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/apart").await;
    let fake = Fake::new(&case, "fake.so");
    let apart = fake.stream(&case, "h", &["--instance-id", "apart"]);
    let told = |seen: &Seen| series(seen, "GPU-1", "temperature[]").len() > 3;
    seen_until(&case, "GPUs are told", told).await;
    let eight = "sources: [{name: sim, simulate: {hosts: 8, gpus: 1, interval: 100ms}}]";
    let file = case.write("sources.yaml", eight);
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let other = case.start(&["--instance-id", "other", "--host-name", "elsewhere"]);
    let owners = || async {
        let range = case.etcd.keyspace().prefix("claims/shards/");
        let claims = case.etcd.range(&range, Default::default()).await.unwrap().entries;
        let mut owners: Vec<String> = Vec::new();
        for entry in claims {
            let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
            owners.push(claimant.instance.to_string());
        }
        owners.sort();
        owners
    };
    let expected = [vec!["apart"], vec!["other"; 8]].concat();
    let since = Instant::now();
    while owners().await != expected {
        assert!(since.elapsed() < SOON, "{:?}", owners().await);
        sleep(LOOK).await;
    }
    // All are measured, and nobody gives any back because there are two.
    let hosts = |seen: &Seen| seen.keys().filter(|key| key.0.starts_with("sim-")).count();
    seen_until(&case, "all are measured", |seen| hosts(seen) > 8 * 12 * 20).await;
    assert_eq!(owners().await, expected);
    apart.terminate().await;
    other.terminate().await;
}
