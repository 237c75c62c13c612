//! Blocks come by commits, become fewer by merges, and go by retention; the audit is clean at
//! every step.

use nexus_common::{
    block::{Block, merge},
    etcd::{Commit, Etcd, Outcome, Position},
    keyspace::{ClaimItem, CommitSummary, Key, Retired, from_json},
    model::{BucketId, HostSamples, Lane, Role, Timestamp},
    queue::{Consumer, Intake, Producer},
    runtime::Life,
    store::{NewBlock, Policy, Reader, Retention, StoredBlock, Swept, Writer},
    testing::TestEtcd,
};

use crate::given::{
    block, claimed, clean, cluster, consumer, counted, host, keys, lane, message, producer, samples,
};

/// A pipeline in one place: what it enqueues it commits.
struct Pipe {
    life: Life,
    lane: Lane,
    producer: Producer,
    consumer: Consumer,
    writer: Writer,
    second: i64,
}

impl Pipe {
    async fn open(server: &TestEtcd) -> Self {
        let life = server.life(Role::Collector, "one", 60).await;
        let lane = lane(0);
        let producer = producer(&life, &lane).await;
        let consumer = consumer(&life, &lane).await;
        let writer = Writer::open(&life).await.unwrap();
        Self { life, lane, producer, consumer, writer, second: 0 }
    }

    fn etcd(&self) -> &Etcd {
        &self.life.process.etcd
    }

    /// Enqueues ten samples of `host` and takes them, not yet committed.
    async fn ten(&mut self, host: &str) -> (Intake, Vec<NewBlock>) {
        let messages = [message(host, self.second, 10)];
        let next = counted(self.producer.progress(), &messages);
        self.producer.enqueue(&messages, next).await.unwrap();
        let from = self.consumer.next(&self.lane);
        let messages = self.consumer.receive(&self.lane, from, 64).await.unwrap();
        let made = block(vec![samples(host, self.second, 10)]);
        self.second += 10;
        (Intake { messages, dead: Vec::new() }, vec![made])
    }

    async fn commit(&mut self, intake: &Intake, blocks: &[NewBlock]) -> Outcome {
        self.writer.commit(&mut self.consumer, intake, blocks).await.unwrap()
    }

    /// Commits ten samples of `host` into `bucket`, which lies in the future: that is where a
    /// commit goes when history begins there.
    async fn commit_into(&mut self, server: &TestEtcd, host: &str, bucket: &str) {
        server.etcdctl(&["put", "/telemetry/retention/floor", bucket]);
        self.writer = Writer::open(&self.life).await.unwrap();
        let (intake, blocks) = self.ten(host).await;
        let outcome = self.commit(&intake, &blocks).await;
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    async fn blocks(&self) -> Vec<StoredBlock> {
        let reader = Reader::new(self.etcd().clone());
        reader.blocks(&reader.all_blocks(), None).await.unwrap().0
    }

    async fn decoded(&self, block: &StoredBlock) -> HostSamples {
        let bytes = Reader::new(self.etcd().clone()).block(&block.name, None).await.unwrap();
        let block = Block::decode(bytes.expect("the block is there")).unwrap();
        merge(block.sections.iter().map(|s| s.decode().unwrap()).collect()).unwrap()
    }
}

#[tokio::test]
async fn a_commit_moves_messages_into_blocks_whose_names_tell_what_they_hold() {
    let server = TestEtcd::start();
    let mut pipe = Pipe::open(&server).await;
    let (intake, blocks) = pipe.ten("a").await;
    let before = Timestamp::now();
    let outcome = pipe.commit(&intake, &blocks).await;
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");

    let stored = pipe.blocks().await;
    let [StoredBlock { name, .. }] = &stored[..] else { panic!("{stored:?}") };
    let buckets = [before, Timestamp::now()].map(|t| BucketId::holding(t, 3600));
    assert!(buckets.contains(&name.bucket), "{name}");
    assert_eq!((&name.cluster, &name.host), (&cluster(), &host("a")));
    assert_eq!((name.start.as_millis(), name.end.as_millis()), (0, 9000));
    assert_eq!((name.commit, name.ordinal, name.samples), (1, 0, 10));
    assert_eq!(
        (name.partition, name.bytes),
        (pipe.consumer.partition(), blocks[0].bytes.len() as u64)
    );
    assert_eq!(pipe.decoded(&stored[0]).await, samples("a", 0, 10));

    // The summary says the same to whoever watches.
    let key = pipe.etcd().keyspace().key(&Key::Commit(pipe.consumer.partition()));
    let entry = pipe.etcd().get(&key).await.unwrap().unwrap();
    let summary: CommitSummary = from_json(&entry.key, &entry.value).unwrap();
    assert_eq!(summary.added, [name.to_string()]);
    assert_eq!((summary.number, summary.lanes[0].from, summary.lanes[0].to), (1, 0, 1));
    assert_eq!(entry.mod_revision, stored[0].mod_revision);
    let report = clean(pipe.etcd()).await;
    assert_eq!((report.samples.stored, report.messages, report.blocks), (10, 0, 1));

    // The same intake again is stale: nothing is stored twice.
    let late = Consumer::open(&pipe.life, pipe.consumer.claim().clone(), name.partition);
    let mut late = late.await.unwrap();
    let (intake, blocks) = pipe.ten("a").await;
    assert!(matches!(pipe.commit(&intake, &blocks).await, Outcome::Committed { .. }));
    let outcome = pipe.writer.commit(&mut late, &intake, &blocks).await.unwrap();
    assert!(matches!(outcome, Outcome::Stale), "{outcome:?}");
    assert_eq!(clean(pipe.etcd()).await.samples.stored, 20);
}

#[tokio::test]
async fn a_merge_swaps_its_inputs_for_its_outputs_and_is_refused_when_an_input_is_gone() {
    let server = TestEtcd::start();
    let mut pipe = Pipe::open(&server).await;
    for _ in 0..3 {
        let (intake, blocks) = pipe.ten("a").await;
        assert!(matches!(pipe.commit(&intake, &blocks).await, Outcome::Committed { .. }));
    }
    let inputs = pipe.blocks().await;
    let bucket = inputs[0].name.bucket.clone();
    let together = |n: i64| vec![block((0..n).map(|i| samples("a", 10 * i, 10)).collect())];

    // Two of the three; whoever still wants all three is late.
    let Pipe { writer, consumer, .. } = &mut pipe;
    let merged = writer.merge(consumer, bucket.clone(), &inputs[..2], &together(2)).await.unwrap();
    assert!(matches!(merged, Outcome::Committed { .. }), "{merged:?}");
    let report = clean(pipe.etcd()).await;
    assert_eq!((report.blocks, report.samples.stored), (2, 30));
    let before = pipe.blocks().await;

    let Pipe { writer, consumer, .. } = &mut pipe;
    let late = writer.merge(consumer, bucket.clone(), &inputs, &together(3)).await.unwrap();
    assert!(matches!(late, Outcome::Stale), "{late:?}");
    assert_eq!(pipe.blocks().await, before);

    // With what is there it works, and no sample is lost or moved.
    let Pipe { writer, consumer, .. } = &mut pipe;
    let merged = writer.merge(consumer, bucket, &before, &together(3)).await.unwrap();
    assert!(matches!(merged, Outcome::Committed { .. }), "{merged:?}");
    let after = pipe.blocks().await;
    let [one] = &after[..] else { panic!("{after:?}") };
    assert_eq!((one.name.samples, one.name.commit), (30, 5));
    assert_eq!(pipe.decoded(one).await, samples("a", 0, 30));
    assert_eq!(clean(pipe.etcd()).await.samples.stored, 30);
}

#[tokio::test]
async fn a_commit_below_the_floor_goes_to_the_first_bucket_that_is_kept() {
    let server = TestEtcd::start();
    let mut pipe = Pipe::open(&server).await;
    let (intake, blocks) = pipe.ten("a").await;
    // History ends after the writer has read where it begins.
    server.etcdctl(&["put", "/telemetry/retention/floor", "20990101T000000Z"]);
    let first = pipe.commit(&intake, &blocks).await;
    assert!(matches!(first, Outcome::Stale), "{first:?}");
    assert!(pipe.blocks().await.is_empty());
    clean(pipe.etcd()).await;

    let again = pipe.commit(&intake, &blocks).await;
    assert!(matches!(again, Outcome::Committed { .. }), "{again:?}");
    assert_eq!(pipe.blocks().await[0].name.bucket.as_str(), "20990101T000000Z");
    clean(pipe.etcd()).await;
}

const HOURS: [&str; 4] =
    ["20990101T000000Z", "20990101T010000Z", "20990101T020000Z", "20990101T030000Z"];

/// Four buckets, the last two with two blocks; history begins before all of them.
async fn four_buckets(server: &TestEtcd) -> Pipe {
    let mut pipe = Pipe::open(server).await;
    for (bucket, hosts) in HOURS.iter().zip([&["a"][..], &["b"], &["a", "b"], &["a", "c"]]) {
        for host in hosts {
            pipe.commit_into(server, host, bucket).await;
        }
    }
    server.etcdctl(&["put", "/telemetry/retention/floor", BucketId::first().as_str()]);
    pipe
}

async fn sweep(
    life: &Life,
    policy: Policy,
    now: &str,
) -> (Option<Swept>, nexus_common::etcd::Claim) {
    let claim = claimed(life, ClaimItem::Janitor).await;
    let retention = Retention::new(life, claim.clone(), policy);
    (retention.sweep(now.parse().unwrap()).await.unwrap(), claim)
}

async fn retired(etcd: &Etcd, bucket: &str) -> Option<Retired> {
    let key = etcd.keyspace().key(&Key::Retired(bucket.parse().unwrap()));
    etcd.get(&key).await.unwrap().map(|e| from_json(&e.key, &e.value).unwrap())
}

#[tokio::test]
async fn a_sweep_deletes_exactly_what_lies_below_the_floor_and_counts_it() {
    let server = TestEtcd::start();
    let pipe = four_buckets(&server).await;
    let etcd = pipe.etcd();
    assert_eq!(clean(etcd).await.samples.stored, 60);

    // An hour is kept: the bucket of 03:00 and the one before it.
    let hour = Policy { age_seconds: 3600, bytes: 0 };
    let (swept, claim) = sweep(&pipe.life, hour, "2099-01-01T03:30:00Z").await;
    let floor = Some(HOURS[2].parse().unwrap());
    assert_eq!(swept, Some(Swept { floor, blocks: 2, samples: 20 }));
    let left: Vec<_> = pipe.blocks().await.iter().map(|b| b.name.bucket.to_string()).collect();
    assert_eq!(left, [HOURS[2], HOURS[2], HOURS[3], HOURS[3]]);
    for bucket in &HOURS[..2] {
        assert_eq!(retired(etcd, bucket).await, Some(Retired { samples: 10, blocks: 1 }));
    }
    let report = clean(etcd).await;
    assert_eq!((report.samples.stored, report.samples.retired), (40, 20));

    // Again: nothing is left to do, and nothing is counted twice.
    claim.release(etcd).await.unwrap();
    let (swept, claim) = sweep(&pipe.life, hour, "2099-01-01T03:30:00Z").await;
    assert_eq!(swept.map(|s| s.blocks), Some(0));
    assert_eq!(clean(etcd).await.samples.retired, 20);

    // Whoever lost the claim sweeps nothing.
    server.etcdctl(&["del", claim.key()]);
    let byte = Policy { age_seconds: 0, bytes: 1 };
    let retention = Retention::new(&pipe.life, claim, byte);
    assert_eq!(retention.sweep(Timestamp::now()).await.unwrap(), None);
    assert_eq!(clean(etcd).await.samples.stored, 40);
}

#[tokio::test]
async fn what_a_janitor_left_undone_the_next_one_finishes() {
    let server = TestEtcd::start();
    let mut pipe = four_buckets(&server).await;
    let etcd = pipe.etcd().clone();
    let etcd = &etcd;

    // It dies between moving the floor and deleting.
    let claim = claimed(&pipe.life, ClaimItem::Janitor).await;
    let key = etcd.keyspace().key(&Key::Floor);
    let entry = etcd.get(&key).await.unwrap();
    let position = Position::seen(key, entry.as_ref());
    let moved = Commit::new(&claim, &position, HOURS[3].as_bytes().to_vec()).run(etcd).await;
    assert!(matches!(moved, Ok(Outcome::Committed { .. })), "{moved:?}");
    assert_eq!(clean(etcd).await.samples.stored, 60);
    server.etcdctl(&["del", claim.key()]);

    // What lies below the floor is frozen: a merge would count for a bucket that is going.
    let frozen = pipe.blocks().await.swap_remove(0);
    let same = [block(vec![pipe.decoded(&frozen).await])];
    let Pipe { writer, consumer, .. } = &mut pipe;
    let bucket = frozen.name.bucket.clone();
    let merged = writer.merge(consumer, bucket, &[frozen], &same).await.unwrap();
    assert!(matches!(merged, Outcome::Stale), "{merged:?}");

    // The next keeps everything from the floor on, and still deletes what lies below.
    let all = Policy { age_seconds: 0, bytes: 0 };
    let (swept, claim) = sweep(&pipe.life, all, "2099-01-01T03:30:00Z").await;
    let floor = Some(HOURS[3].parse().unwrap());
    assert_eq!(swept, Some(Swept { floor, blocks: 4, samples: 40 }));
    assert_eq!(retired(etcd, HOURS[2]).await, Some(Retired { samples: 20, blocks: 2 }));
    let report = clean(etcd).await;
    assert_eq!((report.samples.stored, report.samples.retired), (20, 40));
    assert_eq!(keys(etcd, "blocks/").await.len(), 2);

    claim.release(etcd).await.unwrap();
}
