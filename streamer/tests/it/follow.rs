//! A file that is followed: rotated, half written, and gone on with by somebody else.

use std::{fs::File, io::Write};

use nexus_common::{
    audit::AuditReport,
    keyspace::{Key, Progress, from_json},
    model::{Lane, ShardId},
    testing::TestEtcd,
};

use crate::process::Case;

const HEADER: &str = "timestamp,hostname,uuid,temperature\n";

fn rows(range: std::ops::Range<u64>) -> String {
    let row = |n| format!("2025-07-18T20:42:{:02}.{:03}Z,h,GPU-1,{n}\n", n / 1000, n % 1000);
    range.map(row).collect()
}

fn append(case: &Case, name: &str, text: &str) {
    let mut file = File::options().create(true).append(true).open(case.path(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn rename(case: &Case, from: &str, to: &str) {
    std::fs::rename(case.path(from), case.path(to)).unwrap();
}

async fn read(case: &Case, rows: u64) -> AuditReport {
    let report = case.audited_until("its rows are read", |r| r.rows.offered >= rows).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (rows, rows));
    report
}

#[tokio::test]
async fn no_row_is_lost_or_there_twice_whoever_goes_on_after_whatever_rotation() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/follow").await;
    let path = case.write("log.csv", format!("{HEADER}{}", rows(0..100)));
    let flags = ["--csv-file", path.to_str().unwrap(), "--follow", "--backlog-max", "10000"];
    let first = case.start(&flags);
    read(&case, 100).await;
    // Half a row, and the death of who read up to it.
    append(&case, "log.csv", "2025-07-18T20:42:0");
    first.kill();
    append(&case, "log.csv", &format!("0.100Z,h,GPU-1,100\n{}", rows(101..150)));
    rename(&case, "log.csv", "log.csv.1");
    append(&case, "log.csv", &format!("{HEADER}{}", rows(150..200)));
    append(&case, "log.csv.1", "2025-07-18T20:42:00.149Z,h,GPU-1,149");
    let second = case.start(&flags);
    // The row that was left without an end is one.
    read(&case, 201).await;
    // Rotated under who reads it.
    rename(&case, "log.csv.1", "log.csv.2");
    rename(&case, "log.csv", "log.csv.1");
    append(&case, "log.csv.1", &rows(200..220));
    append(&case, "log.csv", &format!("{HEADER}{}", rows(220..250)));
    read(&case, 251).await;
    // Emptied and written anew.
    std::fs::write(&path, format!("{HEADER}{}", rows(250..260))).unwrap();
    let report = read(&case, 261).await;
    assert_eq!((report.lanes, report.lanes_done), (1, 0), "it has no end");
    second.terminate().await;

    let sources = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/follow/sources/"]);
    let id = sources.trim().strip_prefix("/follow/sources/").unwrap();
    assert!(id.starts_with("log-") && id.ends_with(".follow"), "{id}");
    let lane = Lane { source: id.parse().unwrap(), shard: ShardId(0) };
    let key = case.etcd.keyspace().key(&Key::Shard(lane));
    let entry = case.etcd.get(&key).await.unwrap().unwrap();
    let progress: Progress = from_json(&entry.key, &entry.value).unwrap();
    let followed = progress.followed.unwrap();
    assert_eq!(followed.position, std::fs::metadata(&path).unwrap().len());
    assert!(progress.offset > followed.position, "it counts the bytes of all files");
}
