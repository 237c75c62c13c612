//! One schedule: a seed, and everything that follows from it. Time stands still unless everybody
//! waits, there is one thread, and every accident is drawn from the seed, so the same seed is
//! the same story.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use nexus_common::{
    etcd::Etcd,
    keyspace::{Config, FileRange, Floor, Key, Progress, to_json},
    model::{BucketId, Lane, ShardId, SourceId, Timestamp},
    testing::{
        Change, MemoryEtcd, Wire, WireChannel,
        chaos::{Chaos, Fault, Odds},
        clock, connect,
    },
};
use tokio::{runtime::Builder, time::timeout};

use crate::{
    judge::{self, Verdict},
    workers::{self, Part, Worker},
};

/// Partitions of the keyspace.
pub(crate) const PARTITIONS: u16 = 2;
/// Length of a bucket: short, so that history ends while the schedule runs.
const BUCKET_SECONDS: u32 = 1;
/// Lanes, and samples in each.
const LANES: u32 = 2;
const SAMPLES: u64 = 40;
/// How long accidents happen at most where time costs nothing.
const WILD: Duration = Duration::from_secs(60);
/// How long it may take to finish once they have stopped: a lease to expire, a commit to be
/// settled, and the work itself.
const CALM: Duration = Duration::from_secs(120);
/// When it all begins.
const BEGINNING: &str = "2026-01-01T00:00:00Z";

/// What became of a schedule.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) requests: u64,
    pub(crate) faults: BTreeMap<Fault, u64>,
    pub(crate) verdict: Result<Verdict, String>,
    /// Empty unless it was asked for.
    pub(crate) story: Vec<String>,
}

/// What everybody in a schedule shares.
pub(crate) struct Stage {
    /// To etcd, with nothing in between.
    channel: WireChannel,
    pub(crate) chaos: Chaos,
}

impl Stage {
    /// A handle to etcd over the wire of `who`.
    pub(crate) async fn connect(&self, who: &str) -> (Etcd, Wire) {
        reach(self.chaos.around(who, self.channel.clone())).await
    }
}

async fn reach(channel: WireChannel) -> (Etcd, Wire) {
    let wire = Wire::to(channel);
    (connect(wire.endpoint().to_owned(), Duration::from_secs(3)).await, wire)
}

pub(crate) fn lanes() -> Vec<Lane> {
    let source = SourceId::new("demo").unwrap();
    (0..LANES).map(|shard| Lane { source: source.clone(), shard: ShardId(shard) }).collect()
}

/// Runs the schedule of a seed on an etcd in memory.
pub(crate) fn run(seed: u64, record: bool) -> Told {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        clock::tie(BEGINNING.parse().unwrap());
        let etcd = MemoryEtcd::start();
        let (chaos, ended) = play(seed, etcd.channel(), WILD, record).await;
        clock::untie();
        told(&chaos, ended, &etcd.history())
    })
}

/// What to say of a schedule that played, and made this history.
pub(crate) fn told(chaos: &Chaos, ended: Result<(), String>, history: &[Change]) -> Told {
    let verdict = judge::judge(history, SAMPLES, ended.is_ok());
    Told {
        requests: chaos.requests(),
        faults: chaos.faults(),
        verdict: verdict.and_then(|verdict| ended.map(|()| verdict)),
        story: chaos.story(),
    }
}

/// Plays the schedule of a seed on the etcd behind `channel`, which must be empty, with accidents
/// for at most the time of `wild`.
pub(crate) async fn play(
    seed: u64,
    channel: WireChannel,
    wild: Duration,
    record: bool,
) -> (Chaos, Result<(), String>) {
    let mut rng = Rng::with_seed(seed);
    let odds = Odds {
        writes: [0, 100, 300, 500][rng.usize(..4)],
        reads: [0, 50, 200][rng.usize(..3)],
        late_ms_max: [50, 1000, 25_000][rng.usize(..3)],
        stale_revisions_max: [3, 40][rng.usize(..2)],
    };
    let (etcd, _wire) = reach(channel.clone()).await;
    prepare(&etcd).await;
    let stage = Stage { channel, chaos: Chaos::new(rng.u64(..), odds) };
    if record {
        stage.chaos.record();
        stage.chaos.note("schedule", &format!("{odds:?}"));
    }
    let mut cast = Vec::new();
    for part in [Part::Streamer, Part::Collector, Part::Janitor] {
        for number in 0..rng.u32(1..=2) {
            cast.push(Worker::new(&stage, part, number, rng.fork()).work());
        }
    }
    let everybody = futures_util::future::join_all(cast);
    let finished = async {
        let _ = timeout(wild, workers::finished(&etcd)).await;
        stage.chaos.calm_down();
        stage.chaos.note("schedule", "calm from now on");
        timeout(CALM, workers::finished(&etcd)).await
    };
    let ended = tokio::select! {
        biased;
        _ = everybody => Ok(()), // they never end by themselves
        done = finished => {
            done.map_err(|_| format!("not finished {CALM:?} after the last accident"))
        }
    };
    (stage.chaos.clone(), ended)
}

/// What stands in etcd before anybody begins.
async fn prepare(etcd: &Etcd) {
    let (keyspace, now) = (etcd.keyspace(), Timestamp::now());
    let config = Config {
        version: 1,
        partitions: PARTITIONS,
        bucket_seconds: BUCKET_SECONDS,
        created_at: now,
    };
    let mut entries = vec![
        (keyspace.key(&Key::Config), to_json(&config)),
        (keyspace.key(&Key::Floor), Floor(BucketId::first()).0.as_str().as_bytes().to_vec()),
    ];
    for lane in lanes() {
        let progress = Progress::untouched(FileRange { start: 0, end: SAMPLES }, now);
        entries.push((keyspace.key(&Key::Shard(lane)), to_json(&progress)));
    }
    assert!(etcd.create(&entries).await.unwrap());
}
