//! The same cast on the same wire, but the etcd behind it is a real one, and time is real, too.
//! Afterwards etcd's own history is judged, revision by revision.

use std::{collections::BTreeMap, time::Duration};

use etcd_client::{Client, WatchOptions, proto::PbEvent};
use nexus_common::testing::{Change, TestEtcd};
use tokio::runtime::Builder;

use crate::schedule::{self, Told};

/// Schedules, at the same time: each waits most of the time. Seeds whose accidents are many
/// and not so late that it takes minutes.
const SEEDS: [u64; 6] = [3, 7, 11, 12, 21, 23];

/// How long accidents happen at most.
const WILD: Duration = Duration::from_secs(12);

fn run(seed: u64) -> Told {
    let server = TestEtcd::start();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (chaos, ended) = schedule::play(seed, server.channel(), WILD, true).await;
        schedule::told(&chaos, ended, &history(&server).await)
    })
}

/// Every write there was, as a watch from the beginning tells it.
async fn history(server: &TestEtcd) -> Vec<Change> {
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    let end = client.put("/telemetry0", "", None).await.unwrap();
    let end = end.header().unwrap().revision();
    let all = WatchOptions::new().with_range("/telemetry1").with_start_revision(1).with_prev_key();
    let mut stream = client.watch("/telemetry/", Some(all)).await.unwrap();
    let mut revisions: BTreeMap<i64, Vec<PbEvent>> = BTreeMap::new();
    loop {
        let answer = stream.message().await.unwrap().expect("the stream goes on");
        for event in answer.0.events {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if revision == end {
                let change = |(revision, events)| Change { revision, events };
                return revisions.into_iter().map(change).collect();
            }
            revisions.entry(revision).or_default().push(event);
        }
    }
}

#[test]
fn over_the_same_wire_a_real_etcd_loses_and_doubles_nothing() {
    let told: Vec<Told> = std::thread::scope(|scope| {
        let playing: Vec<_> = SEEDS.iter().map(|seed| scope.spawn(|| run(*seed))).collect();
        playing.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (seed, told) in SEEDS.iter().zip(told) {
        let faults: u64 = told.faults.values().sum();
        match told.verdict {
            Ok(verdict) => {
                println!(
                    "schedule {seed}: {} requests, {faults} faults, {verdict:?}",
                    told.requests
                );
                assert!(faults > 0, "schedule {seed} has no accidents: take another");
            }
            Err(what) => panic!("schedule {seed}: {what}\nIts story:\n{}", told.story.join("\n")),
        }
    }
}
