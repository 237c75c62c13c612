//! Exporters that are asked over HTTP, by streamers that come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nexus_common::testing::TestEtcd;
use tokio::time::sleep;

use crate::{
    exporter::Exporter,
    live::{queued, source},
    process::Case,
};

const FLAGS: [&str; 2] = ["--backlog-max", "100000"];

#[tokio::test]
async fn each_answer_is_enqueued_at_most_once_whoever_is_killed() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/scraped").await;
    let exporters: Vec<_> = (0..6).map(|n| Exporter::start(&format!("dgx-{n}"), None)).collect();
    let targets: Vec<String> =
        exporters.iter().map(|e| format!("{{url: \"http://{}/metrics\"}}", e.address)).collect();
    let scrape = format!("{{interval: 100ms, shards: 3, targets: [{}]}}", targets.join(", "));
    let file = case.write("s.yaml", format!("sources: [{{name: dcgm, scrape: {scrape}}}]"));
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let first = case.start(&FLAGS);
    case.audited_until("they answer", |r| r.samples.queued > 200).await;
    let second = case.start(&FLAGS);
    second.wait_for_log("session").await;
    first.kill();
    let before = case.audited_until("it stands", |_| true).await.samples.queued;
    case.audited_until("somebody takes over", |r| r.samples.queued > before + 600).await;
    second.terminate().await;
    let report = case.audited_until("all is told", |_| true).await;

    // Reading them finds none twice at one time; here: no answer at two times.
    let seen = queued(&case).await;
    assert_eq!(seen.len() as u64, report.samples.queued);
    let mut counts: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for ((host, gpu, metric, _), value) in &seen {
        if metric == "total_energy_mj[]" {
            assert_eq!(*gpu, format!("GPU-{host}"));
            assert!(
                counts.entry(host.clone()).or_default().insert(*value as u64),
                "{host} {value}"
            );
            let before = last.insert(host.clone(), *value as u64).unwrap_or(0);
            assert!(*value as u64 > before, "{host}: answers are in order");
        }
    }
    assert_eq!(counts.len(), 6);
    for exporter in &exporters {
        assert!(exporter.answers() > 20);
    }
    assert!(seen.keys().any(|key| key.0 == "127.0.0.1" && key.2.starts_with("up[")));
    assert!(seen.keys().any(|key| key.2.starts_with("exporter_build[")));
}

#[tokio::test]
async fn an_etcd_that_takes_its_time_keeps_nobody_from_being_asked() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/slow").await;
    let exporter = Exporter::start("dgx-1", None);
    let target = format!("{{url: \"http://{}/metrics\"}}", exporter.address);
    let scrape = format!("{{interval: 500ms, shards: 1, targets: [{target}]}}");
    let file = case.write("s.yaml", format!("sources: [{{name: slow, scrape: {scrape}}}]"));
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let patient = ["--backlog-max", "100000", "--lease-ttl-seconds", "20"];
    let streamer = case.start(&patient);
    case.audited_until("it answers", |r| r.samples.queued > 20).await;
    etcd.stop();
    let before = exporter.answers();
    sleep(Duration::from_secs(3)).await;
    let asked = exporter.answers();
    etcd.resume();
    assert!(asked - before >= 3, "{} of 6", asked - before);
    let queued_by_now = case.audited_until("it goes on", |_| true).await.samples.queued;
    case.audited_until("it goes on", |r| r.samples.queued > queued_by_now + 50).await;
    let log = streamer.log();
    streamer.terminate().await;
    let told: BTreeSet<u64> = queued(&case)
        .await
        .into_iter()
        .filter(|((_, _, metric, _), _)| metric == "total_energy_mj[]")
        .map(|(_, value)| value as u64)
        .collect();
    let missing: Vec<u64> = (1..=asked).filter(|count| !told.contains(count)).collect();
    assert!(missing.is_empty(), "answered and not told: {missing:?}\n{log}");
}

#[tokio::test]
async fn files_name_targets_that_come_and_go_and_one_that_refuses_is_down() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/files").await;
    let open = Exporter::start("open", None);
    let closed = Exporter::start("closed", Some("secret"));
    let token = case.write("token", "wrong\n");
    let list = case.write("targets.json", format!("[{{\"targets\": [\"{}\"]}}]", closed.address));
    let body = format!(
        "{{interval: 200ms, files: [{}], bearer: {{token_file: {}}}, drop: [exporter_*]}}",
        list.display(),
        token.display()
    );
    let file = case.write("s.yaml", format!("sources: [{{name: dcgm, scrape: {body}}}]"));
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let secrets = token.parent().unwrap().to_str().unwrap();
    let streamer = case.start(&[FLAGS.as_slice(), &["--scrape-secrets-dir", secrets]].concat());
    streamer.wait_for_log("a target does not answer").await;
    assert!(streamer.log().contains("401"), "{}", streamer.log());
    case.audited_until("it is down", |r| r.samples.queued >= 6).await;
    let up = |seen: BTreeMap<(String, String, String, i64), f64>| -> BTreeSet<u64> {
        seen.iter().filter(|(key, _)| key.2.starts_with("up[")).map(|(_, v)| *v as u64).collect()
    };
    assert_eq!(up(queued(&case).await), [0].into());
    let (good, listed) = source(&case, &["list"]);
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
    assert!(good && row[..4] == ["dcgm", "scrape", "running", "0/8"], "{listed}");
    assert!(row[4].parse::<u64>().unwrap() >= 6, "{listed}");
    let error = listed.lines().nth(2).unwrap();
    assert!(error.contains(&closed.address.to_string()) && error.contains("401"), "{listed}");
    // The secret is read each time.
    case.write("token", "secret\n");
    let since = std::time::Instant::now();
    while up(queued(&case).await).len() < 2 {
        assert!(since.elapsed() < crate::process::SOON, "{}", streamer.log());
    }
    let both = format!("[{{\"targets\": [\"{}\", \"{}\"]}}]", closed.address, open.address);
    case.write("targets.json", both);
    while open.answers() == 0 {
        assert!(since.elapsed() < crate::process::SOON, "{}", streamer.log());
        tokio::task::yield_now().await;
    }
    streamer.terminate().await;
    assert!(!queued(&case).await.keys().any(|key| key.2.starts_with("exporter_")));
}
