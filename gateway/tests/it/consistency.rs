//! Never a sample fewer or more than at the revision that is served.

use std::{sync::Arc, time::Duration};

use nexus_common::{
    etcd::{Etcd, RangeRead},
    keyspace::{Key, Progress, from_json},
    model::Lane,
    store::Reader,
    testing::{TestEtcd, eventually},
};
use nexus_gateway::view::{Query, Snapshot, Target, View, Which};

use crate::{
    pipeline::{Pipeline, T0, export, samples, uuid},
    serve::Gateway,
};

/// All points there are.
fn everything(snapshot: &Snapshot) -> Query {
    let target = |(cluster, host, _): (&_, &_, &_)| Target {
        cluster: Clone::clone(cluster),
        host: Clone::clone(host),
        which: Which::All,
    };
    Query {
        targets: snapshot.hosts().map(target).collect(),
        start: i64::MIN,
        end: i64::MAX,
        after: None,
        newest: true,
        limit: 10_000,
        metrics: None,
        step: None,
    }
}

/// Samples that an answer from `snapshot` holds, and the snapshot it was answered from.
async fn answered(view: &View, snapshot: &Arc<Snapshot>) -> (u64, Arc<Snapshot>) {
    let answer = view.points(Arc::clone(snapshot), everything).await.unwrap();
    let samples = answer.points.iter().map(|p| p.values.len() as u64).sum();
    (samples, answer.snapshot)
}

/// What etcd holds at `revision`: in blocks and in the queue by their keys, and by progress.
async fn truth(etcd: &Etcd, revision: i64) -> (u64, u64) {
    let reader = Reader::new(etcd.clone());
    let blocks = reader.blocks(&reader.all_blocks(), Some(revision)).await.unwrap().0;
    let mut held: u64 = blocks.iter().map(|b| b.name.samples).sum();
    let keys = RangeRead { revision: Some(revision), keys_only: true, ..RangeRead::default() };
    let queue = etcd.range(&etcd.keyspace().prefix("queue/"), keys).await.unwrap();
    for entry in queue.entries {
        let Ok(Key::Message(_, _, _, samples)) = etcd.keyspace().parse(&entry.key) else {
            panic!("{entry:?}")
        };
        held += samples;
    }
    let values = RangeRead { revision: Some(revision), ..RangeRead::default() };
    let shards = etcd.range(&etcd.keyspace().prefix("shards/"), values).await.unwrap();
    let progress = |e: &nexus_common::etcd::Entry| -> u64 {
        from_json::<Progress>(&e.key, &e.value).unwrap().samples
    };
    (held, shards.entries.iter().map(progress).sum())
}

/// Enqueues, commits and merges, each lane at its own pace.
async fn churn(mut pipeline: Pipeline, lanes: Vec<Lane>, rounds: i64) -> Pipeline {
    for round in 0..rounds {
        for (n, lane) in lanes.iter().enumerate() {
            let times: Vec<i64> = (0..5).map(|i| T0 + (round * 5 + i) * 1000).collect();
            let host = format!("h{n}");
            let part = samples(&host, 2, &["temperature"], &times, |_, _| 1.0);
            pipeline.enqueue(lane, &[part]).await;
            if (round + n as i64) % 3 == 0 {
                pipeline.commit(lane, 2).await;
            }
            if round % 10 == 9 {
                pipeline.merge(&host).await;
            }
        }
    }
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_snapshot_holds_exactly_the_samples_of_its_revision() {
    let etcd = TestEtcd::start();
    let pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 3).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let reads = etcd.connect().await;
    let rounds = 60;
    let all = 3 * rounds as u64 * 10;
    let churning = tokio::spawn(churn(pipeline, lanes, rounds));
    let mut published = gateway.view().subscribe();
    let (mut checked, mut in_between) = (0, 0);
    loop {
        let snapshot = published.borrow_and_update().clone().unwrap();
        let (held, by_progress) = truth(&reads, snapshot.revision).await;
        assert_eq!(held, by_progress, "what etcd itself holds at {}", snapshot.revision);
        let counted = snapshot.queue.samples + snapshot.stored_samples();
        assert_eq!(counted, held, "index at revision {}", snapshot.revision);
        let (samples, from) = answered(gateway.view(), &snapshot).await;
        assert_eq!(from.revision, snapshot.revision, "nothing was compacted");
        assert_eq!(samples, held, "answer at revision {}", snapshot.revision);
        checked += 1;
        in_between += u64::from(held > 0 && held < all);
        if held == all {
            break;
        }
        let change = tokio::time::timeout(Duration::from_secs(20), published.changed());
        change.await.expect("another snapshot").unwrap();
    }
    churning.await.unwrap();
    assert!(checked > 5 && in_between > 3, "{checked} checked, {in_between} in between");
    let reloads = gateway.view().meters().reloads.get();
    assert_eq!(reloads, 0, "the watches alone carried it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_merged_is_still_read_and_one_that_is_compacted_asks_a_newer_snapshot() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    for second in 0..4 {
        let times = [T0 + second * 1000];
        let part = samples("h0", 2, &["temperature"], &times, |_, _| 1.0);
        pipeline.enqueue(&lanes[0], &[part]).await;
        pipeline.commit(&lanes[0], 1).await;
    }
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let before = gateway.view().snapshot().unwrap();
    assert_eq!(before.block_count(), 4);
    pipeline.merge("h0").await;
    let merged = || async { gateway.view().snapshot().unwrap().block_count() == 1 };
    eventually("the merge is seen", Duration::from_secs(5), merged).await;
    // A second gateway has none of these blocks in its cache.
    let other = Gateway::start(&etcd, "gateway-2").await;
    let (samples, from) = answered(other.view(), &before).await;
    assert_eq!((samples, from.block_count()), (8, 4));

    let third = Gateway::start(&etcd, "gateway-3").await;
    let newest = pipeline.etcd.revision().await.unwrap();
    etcd.etcdctl(&["compact", &newest.to_string()]);
    let (samples, from) = answered(third.view(), &before).await;
    assert_eq!((samples, from.block_count()), (8, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_ends_is_gone_from_every_answer() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    pipeline.enqueue(&lanes[0], &[export("h0", 2)]).await;
    pipeline.commit(&lanes[0], 1).await;
    pipeline.enqueue(&lanes[0], &[export("h1", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    assert_eq!(gateway.ok("/api/v1/telemetry").await["count"], 16);
    // The janitor moves the floor first and deletes later.
    let floor = pipeline.etcd.keyspace().key(&Key::Floor);
    etcd.etcdctl(&["put", &floor, "29990101T000000Z"]);
    let gone = || async { gateway.ok("/api/v1/telemetry").await["count"] == 8 };
    eventually("the committed host is gone", Duration::from_secs(5), gone).await;
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    assert_eq!((&latest["count"], &latest["data"][0]["hostname"]), (&2.into(), &"h1".into()));
    let rows = gateway.ok(&format!("/api/v1/gpus/{}/telemetry", uuid("h0", 0))).await;
    assert_eq!(rows["count"], 0, "the GPU is known, its rows are gone");
    let stats = gateway.ok("/api/v1/clusters/local-cluster/stats").await;
    assert_eq!((&stats["blocks"], &stats["samples"]["stored"]), (&0.into(), &0.into()));
}
