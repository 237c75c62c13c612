//! What happens to blocks after they were stored: merging and retention; and when a slow flow
//! is stored.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nexus_common::{
    store::Reader,
    testing::{
        Fleet, eventually,
        truth::{
            Historian, assert_same_rows, assert_settles_to, audited, audited_until, is_settled,
            source_rows, stored_rows,
        },
    },
};

/// Blocks a host may have left in a closed bucket: what one merge makes, and one more that came
/// when it was over.
const BLOCKS_LEFT: usize = 2;

#[tokio::test]
async fn small_blocks_of_closed_buckets_become_few_with_the_same_samples() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("BUCKET_SECONDS", "3"),
        ("MERGE_EVERY_SECONDS", "1"),
        ("COMMIT_AGE_MS", "100"),
        ("BATCH_SIZE", "200"),
        ("BACKLOG_MAX", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 60);
    fleet.stream("streamer", &file, &[]);
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(60);
    let stored = audited_until(&etcd, "all is committed", within, is_settled).await;
    let reader = Reader::new(etcd.clone());
    let begun = Instant::now();
    // A bucket counts as closed 15 s after its end.
    eventually("few blocks are left", Duration::from_secs(50), async || {
        audited(&etcd).await;
        let (blocks, _) = reader.blocks(&reader.all_blocks(), None).await.unwrap();
        let mut counts: BTreeMap<_, usize> = BTreeMap::new();
        for block in blocks {
            *counts.entry((block.name.bucket, block.name.host)).or_default() += 1;
        }
        counts.values().all(|count| *count <= BLOCKS_LEFT)
    })
    .await;
    let merged = audited(&etcd).await;
    println!(
        "{} blocks of {} bytes became {} of {} within {:?}",
        stored.blocks,
        stored.block_bytes,
        merged.blocks,
        merged.block_bytes,
        begun.elapsed()
    );
    assert!(merged.blocks * 2 < stored.blocks, "{} of {}", merged.blocks, stored.blocks);
    assert_settles_to(&mut fleet, &file, within).await;
    historian.assert_sound();
}

#[tokio::test]
async fn retention_moves_the_floor_and_counts_what_it_retires() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("BUCKET_SECONDS", "1"),
        ("MERGE_EVERY_SECONDS", "1"),
        ("RETENTION_SECONDS", "4"),
        ("RETENTION_EVERY_SECONDS", "1"),
        ("COMMIT_AGE_MS", "100"),
        ("BATCH_SIZE", "200"),
        ("BACKLOG_MAX", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 100);
    fleet.stream("streamer", &file, &[]);
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(60);
    let rows = source_rows(&file);
    let mut floors = Vec::new();
    let report = audited_until(&etcd, "history ends twice, and all is committed", within, |r| {
        let floor =
            fleet.etcd.etcdctl(&["get", "--print-value-only", "/telemetry/retention/floor"]);
        floors.push(floor.trim().to_owned());
        is_settled(r) && r.samples.retired > 0
    })
    .await;
    assert!(floors.is_sorted(), "the floor went back: {floors:?}");
    floors.dedup();
    assert!(floors.len() > 2, "{floors:?}");
    assert_eq!(report.samples.committed, rows.len() as u64);
    assert!(report.samples.stored < report.samples.committed, "{report:#?}");
    println!("{} of {} samples retired", report.samples.retired, report.samples.committed);
    // What is left is as it was: merge it away from what there was, and count the rest.
    let left = stored_rows(&etcd, "blocks/").await;
    let mut kept = rows.clone();
    kept.retain(|row| left.binary_search(row).is_ok());
    assert_same_rows(&left, &kept);
    let newest = left.len() as u64;
    assert!(newest > 0, "retention never takes the newest bucket");
}

#[tokio::test]
async fn a_slow_flow_is_committed_by_age() {
    // A message every 50 ms, so that there is always a fresh one; never enough of them or of
    // their samples to be worth a commit by themselves.
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "1000"),
        ("COMMIT_SAMPLES", "100000000"),
        ("COMMIT_MESSAGES", "100000"),
        ("BACKLOG_MAX", "10000"),
    ]);
    let file = fleet.generate("telemetry.csv", 600);
    fleet.stream("streamer", &file, &["--replay-speed", "20"]);
    fleet.collect("collector", &[]);
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    audited_until(&etcd, "data flows", within, |r| r.samples.accepted > 0).await;
    let begun = Instant::now();
    let mut last = 0;
    for _ in 0..3 {
        let report = audited_until(&etcd, "one more commit", Duration::from_secs(5), |r| {
            r.samples.committed > last
        })
        .await;
        last = report.samples.committed;
        assert!(report.lanes_done < report.lanes, "the flow ended");
    }
    println!("three commits within {:?}", begun.elapsed());
}
