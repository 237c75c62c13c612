//! What a name stands for: packed files, all files that are like a pattern, standard input.

use std::{fs::File, io::Write, process::Stdio};

use nexus_common::{audit::AuditReport, testing::TestEtcd};

use crate::process::Case;

const HEADER: &str = "timestamp,hostname,uuid,temperature\n";

fn rows(host: &str, count: usize) -> String {
    let row = |n: usize| {
        format!("2025-07-18T{:02}:{:02}:{:02}Z,{host},GPU-1,{n}\n", n / 3600, n / 60 % 60, n % 60)
    };
    (0..count).map(row).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn done(report: &AuditReport) -> bool {
    report.lanes > 0 && report.lanes == report.lanes_done
}

#[tokio::test]
async fn every_file_that_is_like_a_pattern_is_a_source_packed_or_not() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/pattern").await;
    // Small enough to be one shard each.
    let text = |host| format!("{HEADER}{}", rows(host, 700));
    let pattern = case.write("in/plain.csv", text("a")).with_file_name("*.csv*");
    // Names lie: this one is not packed, and the others do not say how they are.
    case.write("in/not.csv.gz", text("b"));
    case.write("in/gzip.csv", gzip(&text("c")));
    case.write("in/zstd.csv", zstd::encode_all(text("d").as_bytes(), 1).unwrap());
    case.write("in/other.txt", "not meant");
    let pattern = pattern.to_str().unwrap();
    let flags = ["--csv-file", pattern, "--batch-size", "100", "--parallel-shards", "4"];
    // Nobody takes messages: every shard stops at its third one, and is gone on with from there.
    let streamer = case.start(&[&flags[..], &["--backlog-max", "2"]].concat());
    let begun = |r: &AuditReport| r.lanes == 4 && r.rows.accepted >= 4 * 200;
    let begun = case.audited_until("all are begun", begun).await;
    assert_eq!(begun.lanes_done, 0, "{begun:#?}");
    streamer.terminate().await;
    let streamer = case.start(&[&flags[..], &["--backlog-max", "1000"]].concat());
    let report = case.audited_until("all is read", done).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (2800, 2800));
    streamer.terminate().await;
    let sources = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/pattern/sources/"]);
    let names = ["plain-", "not.csv-", "gzip-", "zstd-"];
    let all = names.iter().all(|name| sources.contains(&format!("/pattern/sources/{name}")));
    assert!(all && sources.matches("/pattern/sources/").count() == 4, "{sources}");
}

#[tokio::test]
async fn a_packed_file_that_is_broken_off_is_refused_before_any_of_it_is_read() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/broken").await;
    let packed = gzip(&format!("{HEADER}{}", rows("a", 5000)));
    let path = case.write("broken.csv.gz", &packed[..packed.len() - 9]);
    let streamer = case.start(&["--csv-file", path.to_str().unwrap()]);
    streamer.wait_for_log("broken.csv.gz").await;
    assert!(!streamer.wait().await.success());
    assert_eq!(case.audited_until("it stands", |_| true).await.lanes, 0);
}

#[tokio::test]
async fn standard_input_is_kept_and_read_whoever_goes_on() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/stdin").await;
    let input = case.write("in.csv", format!("{HEADER}{}", rows("a", 1000)));
    std::fs::create_dir(case.path("spool")).unwrap();
    let spool = case.path("spool");
    let flags = ["--csv-file", "-", "--spool-dir", spool.to_str().unwrap(), "--batch-size", "100"];
    let from = || Stdio::from(File::open(&input).unwrap());
    let streamer = case.start_with(&[&flags[..], &["--backlog-max", "2"]].concat(), from());
    case.audited_until("it is begun", |r| r.rows.accepted >= 200).await;
    streamer.terminate().await;
    // One that is told nothing of it finds the file.
    let streamer = case.start(&["--backlog-max", "1000"]);
    let report = case.audited_until("all is read", done).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (1000, 1000));
    streamer.terminate().await;
    // The same once more is the same source.
    let streamer = case.start_with(&flags, from());
    streamer.wait_for_log("going on with a registered source").await;
    streamer.terminate().await;
    assert_eq!(std::fs::read_dir(spool).unwrap().count(), 1);
    assert_eq!(case.audited_until("it stands", done).await.rows.offered, 1000);
}
