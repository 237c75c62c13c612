//! Sources that follow the wall clock: each tick at most once, whoever measures and however often
//! they are killed, changed or paused.

use std::{collections::BTreeMap, process::Command};

use nexus_common::{
    block::Block,
    etcd::RangeRead,
    keyspace::{Key, Progress, from_json},
    model::{Lane, ShardId, Timestamp},
    testing::TestEtcd,
};

use crate::process::Case;

/// Every sample in the queue: host, GPU, metric, time, value.
pub(crate) type Seen = BTreeMap<(String, String, String, i64), f64>;

/// All samples queued. None may be there twice.
pub(crate) async fn queued(case: &Case) -> Seen {
    let range = case.etcd.keyspace().prefix("queue/");
    let how = RangeRead { page: 64, ..RangeRead::default() };
    let mut seen = Seen::new();
    for entry in case.etcd.range(&range, how).await.unwrap().entries {
        for section in Block::decode(entry.value).unwrap().sections {
            let host = section.decode().unwrap();
            for series in &host.series {
                let gpu = series.gpu.map_or("", |nth| host.gpus[nth as usize].id.as_str());
                for (at, value) in series.timestamps.iter().zip(&series.values) {
                    let labels: Vec<_> = series.labels.iter().collect();
                    let metric = format!("{}{labels:?}", series.metric);
                    let key = (host.host.to_string(), gpu.to_owned(), metric, *at);
                    let before = seen.insert(key.clone(), *value);
                    assert_eq!(before, None, "there twice: {key:?}");
                }
            }
        }
    }
    seen
}

async fn progress(case: &Case, source: &str, shard: u32) -> Progress {
    let lane = Lane { source: source.parse().unwrap(), shard: ShardId(shard) };
    let key = case.etcd.keyspace().key(&Key::Shard(lane));
    let entry = case.etcd.get(&key).await.unwrap().unwrap();
    from_json(&entry.key, &entry.value).unwrap()
}

/// Runs `nexus-streamer source ...` to its end: what it said, and whether it was content.
pub(crate) fn source(case: &Case, flags: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_nexus-streamer"))
        .env_clear()
        .envs(case.env())
        .arg("source")
        .args(flags)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

const FLAGS: [&str; 2] = ["--backlog-max", "100000"];

#[tokio::test]
async fn streamers_that_are_killed_leave_outages_and_no_doubles() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/simulated").await;
    let file = case.write(
        "sources.yaml",
        "sources: [{name: sim, simulate: {hosts: 3, gpus: 2, interval: 100ms, seed: 5}}]",
    );
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good && said == "sim created\n", "{said}");
    let first = case.start(&FLAGS);
    case.audited_until("it is measured", |r| r.lanes == 3 && r.samples.queued > 500).await;
    let second = case.start(&FLAGS);
    second.wait_for_log("session").await;
    first.kill();
    let before = case.audited_until("it stands", |_| true).await.samples.queued;
    case.audited_until("somebody takes over", |r| r.samples.queued > before + 1000).await;
    second.terminate().await;
    let report = case.audited_until("all is told", |_| true).await;

    let seen = queued(&case).await;
    assert_eq!(seen.len() as u64, report.samples.queued);
    let mut ticks: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (host, _, _, at) in seen.keys() {
        assert_eq!(at % 100, 0, "not on the grid");
        ticks.entry(host.clone()).or_default().push(*at);
    }
    assert_eq!(ticks.keys().collect::<Vec<_>>(), ["sim-0001", "sim-0002", "sim-0003"]);
    for (shard, (host, mut at)) in (0..).zip(ticks) {
        at.sort_unstable();
        at.dedup();
        let progress = progress(&case, "sim", shard).await;
        let (start, last) = (progress.range.start as i64, at[at.len() - 1]);
        assert_eq!(progress.offset as i64, last + 1);
        // What was due and is not there is what was counted as missed: nothing else is lost.
        let due = last.div_euclid(100) - (start + 99).div_euclid(100) + 1;
        assert_eq!(at.len() as i64 + progress.missed as i64, due, "{host}: {progress:?}");
        assert!(progress.missed > 0, "the lease of who was killed had to end first");
    }
}

#[tokio::test]
async fn one_that_is_changed_paused_and_withdrawn_follows_at_once() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/changed").await;
    let apply = |body: &str, flags: &[&str]| {
        let file = case.write("sources.yaml", format!("sources: [{{name: sim, {body}}}]"));
        source(&case, &[&["apply", "-f", file.to_str().unwrap()], flags].concat())
    };
    let small = "simulate: {hosts: 1, gpus: 1, interval: 100ms}";
    assert_eq!(apply(small, &["--dry-run"]), (true, "sim would be created\n".to_owned()));
    assert_eq!(source(&case, &["list"]).1.lines().count(), 1, "nothing was written");
    assert_eq!(apply(small, &[]), (true, "sim created\n".to_owned()));
    assert_eq!(apply(small, &[]), (true, "sim unchanged\n".to_owned()));
    let streamer = case.start(&FLAGS);
    case.audited_until("it is measured", |r| r.samples.queued >= 24 && r.lanes == 1).await;

    let large = "simulate: {hosts: 3, gpus: 2, interval: 200ms}";
    assert_eq!(apply(large, &["--dry-run"]), (true, "sim would be changed\n".to_owned()));
    assert_eq!(apply(large, &[]), (true, "sim changed\n".to_owned()));
    let all = case.audited_until("it grew", |r| r.lanes == 3).await.samples.queued;
    case.audited_until("all are measured", |r| r.samples.queued > all + 200).await;
    let hosts =
        |seen: Seen| seen.into_keys().map(|key| key.0).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(hosts(queued(&case).await).len(), 3);

    assert_eq!(source(&case, &["pause", "sim"]), (true, "sim paused\n".to_owned()));
    assert!(source(&case, &["list"]).1.contains("paused"));
    streamer.wait_for_log("session").await;
    case.idle().await;
    let paused = case.audited_until("it stands", |_| true).await.samples.queued;
    assert_eq!(source(&case, &["resume", "sim"]), (true, "sim resumed\n".to_owned()));
    case.audited_until("it goes on", |r| r.samples.queued > paused + 50).await;
    assert_eq!(source(&case, &["withdraw", "sim"]), (true, "sim withdrawn\n".to_owned()));
    case.idle().await;
    streamer.terminate().await;
    queued(&case).await;

    let (good, said) = apply(small, &[]);
    assert!(!good && said.contains("is, or was, the name of another source"), "{said}");
    let (good, said) = source(&case, &["pause", "other"]);
    assert!(!good && said.contains("source other is not known"), "{said}");
}

#[tokio::test]
async fn one_that_ends_is_measured_to_its_last_tick() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/ends").await;
    let flags =
        ["--hosts", "1", "--gpus", "1", "--interval", "100ms", "--for", "1s", "--name", "s"];
    let streamer = case.start(&[&["simulate"][..], &flags].concat());
    let done = case.audited_until("it ends", |r| r.lanes == 1 && r.lanes_done == 1).await;
    streamer.terminate().await;
    let last = queued(&case).await.into_keys().map(|key| key.3).max().unwrap();
    let progress = progress(&case, "s", 0).await;
    assert!(progress.done && (progress.offset as i64) > last, "{progress:?}");
    assert!((progress.offset as i64 - last) <= 100, "{last}: {progress:?}");
    assert_eq!(done.samples.queued, progress.samples);
    assert!(Timestamp::now().as_millis() >= progress.offset as i64);
}

#[tokio::test]
async fn the_examples_of_the_documentation_are_sources() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/documented").await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let text = std::fs::read_to_string(format!("{folder}/docs/SOURCES.md")).unwrap();
    let examples = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    // Those of others' programs, which send to us, are not ours to read.
    let examples: Vec<&str> = examples.filter(|text| text.starts_with("sources:")).collect();
    assert_eq!(examples.len(), 6);
    for (nth, example) in examples.iter().enumerate() {
        let file = case.write(&format!("{nth}.yaml"), example);
        let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
        assert!(good && said.ends_with(" created\n"), "{said}");
        assert!(
            source(&case, &["apply", "-f", file.to_str().unwrap()]).1.ends_with(" unchanged\n")
        );
    }
    let demo = format!("{folder}/scripts/live.yaml");
    assert_eq!(source(&case, &["apply", "-f", &demo]), (true, "live created\n".to_owned()));
    let (_, list) = source(&case, &["list"]);
    let listed: Vec<Vec<&str>> =
        list.lines().skip(1).map(|line| line.split_whitespace().take(2).collect()).collect();
    let csv = ["export", "lab-pcs", "log", "long"].map(|name| [name, "csv"]);
    let simulated = ["lab", "live"].map(|name| [name, "simulate"]);
    let scraped = ["dcgm", "found"].map(|name| [name, "scrape"]);
    let mut expected = [&csv[..], &simulated, &scraped, &[["gpus-dgx-001", "nvml"]]].concat();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}
