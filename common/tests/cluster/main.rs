//! Three members of etcd, of which one at a time dies, hangs or restarts, under a flow of
//! enqueues and commits.
//!
//! A binary of its own, and one test at a time: what is measured are pauses of seconds, which a
//! dozen other etcds on the same two cores would make into pauses of the machine.

// Shared with the other tests, of which not all is needed here.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../it/given.rs"]
mod given;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nexus_common::{
    block::Block,
    etcd::{Claim, Error, Etcd, Outcome},
    keyspace::ClaimItem,
    model::{Lane, Role},
    queue::{Consumer, Enqueued, Intake, Producer},
    runtime::Life,
    store::{Reader, Writer},
    testing::{TestCluster, eventually},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use given::{block, claimed, clean, counted, lane, message, registered};

/// Held by the test that runs.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The default one. etcd's election takes one to two seconds.
const TTL_SECONDS: i64 = 10;
/// Samples a message.
const SAMPLES: i64 = 10;
/// The most that a dead or silent member may hold up a flow: an election (two, if votes are
/// split), and finding out.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Finding out about a silent one takes longer. Below what it is silent for.
const SILENCE_MAX: Duration = Duration::from_secs(7);

/// One process, whose list of members begins with another than its neighbours': it fills a lane
/// and empties it, and never opens another session.
struct Flow {
    life: Life,
    claims: [Claim; 2],
    committed: Arc<Mutex<Vec<Instant>>>,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Flow {
    async fn start(cluster: &TestCluster, first: usize) -> Self {
        let name = format!("flow-{first}");
        let life = cluster.life(Role::Collector, &name, TTL_SECONDS, first).await;
        // Lanes of partitions of their own: two flows cannot own one partition.
        let number = life.config.partitions;
        let own = |l: &Lane| usize::from(l.partition(number).0) % cluster.size() == first;
        let lane = (0..).map(lane).find(own).unwrap();
        registered(&life.process.etcd, &lane).await;
        let shard = claimed(&life, ClaimItem::Shard(lane.clone())).await;
        let partition = claimed(&life, ClaimItem::Partition(lane.partition(number))).await;
        let (committed, stop) = (Arc::default(), CancellationToken::new());
        let tasks = [
            tokio::spawn(fill(life.clone(), shard.clone(), lane.clone(), stop.clone())),
            tokio::spawn(empty(
                life.clone(),
                partition.clone(),
                lane.clone(),
                Arc::clone(&committed),
                stop.clone(),
            )),
        ];
        Self { life, claims: [shard, partition], committed, stop, tasks }
    }

    fn commits_since(&self, since: Instant) -> Vec<Instant> {
        self.committed.lock().unwrap().iter().copied().filter(|at| *at > since).collect()
    }

    /// Waits until it has committed often since `since`, and returns its longest pause.
    async fn resumes(&self, since: Instant) -> Duration {
        eventually("the flow goes on", Duration::from_secs(20), || async {
            self.commits_since(since).len() > 20
        })
        .await;
        let commits = self.commits_since(since);
        let before = std::iter::once(since).chain(commits.iter().copied());
        before.zip(&commits).map(|(a, b)| *b - a).max().unwrap()
    }

    /// Stops it; everything was stored once, under the claims of the beginning.
    async fn ends(self, etcd: &Etcd) -> u64 {
        assert!(!self.life.session.lost().is_cancelled(), "the session was lost");
        for claim in &self.claims {
            let entry = etcd.get(claim.key()).await.unwrap().expect("the claim stands");
            assert_eq!(entry.create_revision, claim.create_revision(), "claimed again");
        }
        self.stop.cancel();
        for task in self.tasks {
            timeout(Duration::from_secs(30), task).await.expect("the flow ends").unwrap();
        }
        self.life.session.revoke().await;
        self.committed.lock().unwrap().len() as u64
    }
}

/// Enqueues until told to stop. Sample `n` is of second `n`.
async fn fill(life: Life, claim: Claim, lane: Lane, stop: CancellationToken) {
    let mut producer = open_producer(&life, &claim, &lane).await;
    while !stop.is_cancelled() {
        // What cannot be looked at now is as good as no room.
        if !producer.has_room(50).await.unwrap_or(false) {
            sleep(Duration::from_millis(5)).await;
            continue;
        }
        let start = i64::try_from(producer.progress().samples).unwrap();
        let messages = [message(&lane.to_string().replace('/', "-"), start, SAMPLES)];
        let next = counted(producer.progress(), &messages);
        match producer.enqueue(&messages, next).await {
            Ok(Enqueued::Committed | Enqueued::Moved) => {}
            Ok(Enqueued::Fenced) => panic!("{lane} is somebody else's"),
            Err(error) => producer = reopened(error, open_producer(&life, &claim, &lane)).await,
        }
    }
}

/// Takes and stores until told to stop and nothing is left.
async fn empty(
    life: Life,
    claim: Claim,
    lane: Lane,
    committed: Arc<Mutex<Vec<Instant>>>,
    stop: CancellationToken,
) {
    let (mut consumer, mut writer) = open_consumer(&life, &claim, &lane).await;
    let mut idle = 0;
    while !(stop.is_cancelled() && idle > 50) {
        let round = async {
            let messages = consumer.receive(&lane, consumer.next(&lane), 64).await?;
            if messages.is_empty() {
                return Ok(None);
            }
            let sections = |m: &nexus_common::queue::Received| {
                let block = Block::decode(m.bytes.clone()).unwrap();
                block.sections.iter().map(|s| s.decode().unwrap()).collect::<Vec<_>>()
            };
            let blocks = [block(messages.iter().flat_map(sections).collect())];
            let intake = Intake { messages, dead: Vec::new() };
            writer.commit(&mut consumer, &intake, &blocks).await.map(Some)
        };
        match round.await {
            Ok(Some(Outcome::Committed { .. })) => {
                idle = 0;
                committed.lock().unwrap().push(Instant::now());
            }
            Ok(Some(Outcome::Stale)) => consumer.read_again().await.unwrap(),
            Ok(Some(Outcome::Fenced)) => panic!("the partition of {lane} is somebody else's"),
            Ok(None) => {
                idle += 1;
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => {
                (consumer, writer) = reopened(error, open_consumer(&life, &claim, &lane)).await;
            }
        }
    }
}

async fn reopened<T>(error: Error, open: impl Future<Output = T>) -> T {
    assert!(!matches!(error, Error::SessionLost { .. }), "{error}");
    println!("opened again: {error}");
    open.await
}

async fn open_producer(life: &Life, claim: &Claim, lane: &Lane) -> Producer {
    loop {
        if let Ok(Some(producer)) = Producer::open(life, claim.clone(), lane.clone()).await {
            return producer;
        }
    }
}

async fn open_consumer(life: &Life, claim: &Claim, lane: &Lane) -> (Consumer, Writer) {
    let partition = lane.partition(life.config.partitions);
    loop {
        let consumer = Consumer::open(life, claim.clone(), partition).await;
        if let (Ok(consumer), Ok(writer)) = (consumer, Writer::open(life).await) {
            return (consumer, writer);
        }
    }
}

async fn flows(cluster: &TestCluster) -> Vec<Flow> {
    let mut flows = Vec::new();
    for first in 0..cluster.size() {
        flows.push(Flow::start(cluster, first).await);
    }
    for flow in &flows {
        flow.resumes(Instant::now()).await;
    }
    flows
}

/// The longest pause of every flow since `since`, all of which go on.
async fn pauses(flows: &[Flow], since: Instant) -> Vec<Duration> {
    let mut pauses = Vec::new();
    for flow in flows {
        pauses.push(flow.resumes(since).await);
    }
    pauses
}

fn tell(what: &str, mut pauses: Vec<Duration>, bound: Duration) {
    pauses.sort();
    let (half, max) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{what}: {} pauses, half within {half:?}, all within {max:?}", pauses.len());
    assert!(max < bound, "{pauses:?}");
}

/// Every sample stored once: as many as were accepted, and each of another second.
async fn assert_exact(cluster: &TestCluster, flows: Vec<Flow>) {
    let etcd = cluster.connect().await;
    let mut commits = 0;
    for flow in flows {
        commits += flow.ends(&etcd).await;
    }
    let report = clean(&etcd).await;
    assert_eq!((report.samples.queued, report.samples.stored), (0, report.samples.accepted));
    let reader = Reader::new(etcd.clone());
    let mut seconds = Vec::new();
    for bucket in reader.buckets(10).await.unwrap() {
        let (blocks, _) = reader.blocks(&reader.bucket_blocks(&bucket), None).await.unwrap();
        for stored in blocks {
            let key = nexus_common::keyspace::Key::Block(stored.name.clone());
            let entry = etcd.get(&etcd.keyspace().key(&key)).await.unwrap().unwrap();
            for section in Block::decode(entry.value).unwrap().sections {
                let host = section.decode().unwrap();
                let times = host.series.iter().flat_map(|s| s.timestamps.iter());
                seconds.extend(times.map(|at| (host.host.clone(), *at)));
            }
        }
    }
    let samples = seconds.len();
    seconds.sort();
    seconds.dedup();
    assert_eq!((seconds.len(), samples as u64), (samples, report.samples.stored));
    println!("{commits} commits, {samples} samples, each stored once");
}

#[tokio::test]
async fn leaders_are_killed_and_the_flow_goes_on_within_seconds_under_the_same_claims() {
    let _alone = ALONE.lock().await;
    let mut cluster = TestCluster::start();
    let flows = flows(&cluster).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        let leader = cluster.leader();
        let killed = Instant::now();
        cluster.kill(leader);
        all.extend(pauses(&flows, killed).await);
        cluster.restart(leader);
    }
    tell("after a leader's kill -9", all, PAUSE_MAX);
    assert_exact(&cluster, flows).await;
}

#[tokio::test]
async fn a_leader_that_hangs_for_eight_seconds_is_left_for_the_others() {
    let _alone = ALONE.lock().await;
    let cluster = TestCluster::start();
    let flows = flows(&cluster).await;
    let leader = cluster.leader();
    let stopped = Instant::now();
    cluster.stop(leader);
    let while_stopped = pauses(&flows, stopped).await;
    sleep(Duration::from_secs(8).saturating_sub(stopped.elapsed())).await; // what is tested
    cluster.resume(leader);
    let resumed = Instant::now();
    tell("after a leader's SIGSTOP", while_stopped, SILENCE_MAX);
    tell("after its SIGCONT", pauses(&flows, resumed).await, PAUSE_MAX);
    assert_exact(&cluster, flows).await;
}

#[tokio::test]
async fn members_restart_one_after_the_other_and_one_is_then_gone_for_good() {
    let _alone = ALONE.lock().await;
    let mut cluster = TestCluster::start();
    let flows = flows(&cluster).await;
    let mut all = Vec::new();
    for member in 0..cluster.size() {
        let began = Instant::now();
        cluster.terminate(member);
        all.extend(pauses(&flows, began).await);
        cluster.restart(member);
    }
    tell("in a rolling restart", all, PAUSE_MAX);
    let gone = cluster.leader();
    let began = Instant::now();
    cluster.kill(gone);
    tell("after a member is gone", pauses(&flows, began).await, PAUSE_MAX);
    // Nothing of what follows asks the one that is gone.
    let later = Instant::now();
    let steady = pauses(&flows, later).await;
    assert!(steady.iter().max().unwrap() < &Duration::from_secs(1), "{steady:?}");
    assert_exact(&cluster, flows).await;
}
