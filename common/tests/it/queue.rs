//! A lane from end to end: enqueue under the shard's claim, take under the partition's.

use bytes::Bytes;
use nexus_common::{
    audit::audit,
    etcd::{Claim, Error, Etcd, Outcome, Position},
    keyspace::{ClaimItem, CommitSummary, Cursor, DeadLetter, Key, Progress, Receipt, from_json},
    model::{Lane, Role, ShardId, SourceId},
    queue::{Consumer, Enqueued, Intake, Message, Producer, receipts},
    sources::{SourceDesk, SourceError},
    testing::TestEtcd,
};

use crate::given::{claimed, clean, consumer, counted, keys, lane, message, producer, registered};

/// Takes `intake` without storing it: what a commit does to the queue, and no more.
async fn take(etcd: &Etcd, consumer: &mut Consumer, intake: &Intake) -> Outcome {
    let (commit, taken) = consumer.begin(intake, CommitSummary::default());
    let outcome = commit.run(etcd).await.unwrap();
    consumer.settle(taken, &outcome);
    outcome
}

async fn enqueue(producer: &mut Producer, messages: &[Message]) -> Enqueued {
    let next = counted(producer.progress(), messages);
    producer.enqueue(messages, next).await.unwrap()
}

async fn stored_progress(etcd: &Etcd, lane: &Lane) -> Progress {
    let entry = etcd.get(&etcd.keyspace().key(&Key::Shard(lane.clone()))).await.unwrap().unwrap();
    from_json(&entry.key, &entry.value).unwrap()
}

#[tokio::test]
async fn what_is_enqueued_is_received_once_in_order_and_the_backlog_tells_how_much() {
    let server = TestEtcd::start();
    let life = server.life(Role::Streamer, "one", 60).await;
    let etcd = &life.process.etcd;
    let lane = lane(0);
    let mut producer = producer(&life, &lane).await;
    let mut consumer = consumer(&life, &lane).await;

    let first = [message("a", 0, 10), message("b", 0, 20)];
    assert_eq!(enqueue(&mut producer, &first).await, Enqueued::Committed);
    assert_eq!(enqueue(&mut producer, &[message("a", 10, 30)]).await, Enqueued::Committed);
    assert_eq!((producer.progress().next, producer.backlog()), (3, 3));
    assert_eq!(producer.progress(), &stored_progress(etcd, &lane).await);
    let report = clean(etcd).await;
    assert_eq!((report.samples.accepted, report.samples.queued), (60, 60));

    // Two of three, then the last: another consumer goes on from the cursor.
    let messages = consumer.receive(&lane, 0, 2).await.unwrap();
    let told: Vec<_> = messages.iter().map(|m| (m.seq, m.samples, &m.bytes)).collect();
    assert_eq!(told, [(0, 10, &first[0].bytes), (1, 20, &first[1].bytes)]);
    let intake = Intake { messages, dead: Vec::new() };
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Committed { .. }));
    assert_eq!((consumer.next(&lane), consumer.samples(&lane)), (2, 30));
    // What the producer does not know yet it looks for before it says that there is no room.
    assert_eq!(producer.backlog(), 3);
    assert!(producer.has_room(3).await.unwrap());
    assert_eq!(producer.backlog(), 1);
    assert!(!producer.has_room(1).await.unwrap());

    let claim = consumer.claim().clone();
    let mut again = Consumer::open(&life, claim, consumer.partition()).await.unwrap();
    assert_eq!((again.next(&lane), again.samples(&lane), again.next_number()), (2, 30, 2));
    let messages = again.receive(&lane, 2, 64).await.unwrap();
    let intake = Intake { messages, dead: Vec::new() };
    assert!(matches!(take(etcd, &mut again, &intake).await, Outcome::Committed { .. }));
    assert_eq!(keys(etcd, "queue/").await, Vec::<String>::new());

    // The first consumer has not seen that: its cursor is stale, and nothing is taken twice.
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Stale));
    consumer.read_again().await.unwrap();
    assert_eq!((consumer.next(&lane), consumer.next_number()), (3, 3));
    // Nor is it when somebody wrote the cursor alone.
    let messages = [message("a", 40, 1)];
    assert_eq!(enqueue(&mut producer, &messages).await, Enqueued::Committed);
    let messages = consumer.receive(&lane, 3, 64).await.unwrap();
    let intake = Intake { messages, dead: Vec::new() };
    let key = etcd.keyspace().key(&Key::Cursor(consumer.partition(), lane.clone()));
    let cursor = etcd.get(&key).await.unwrap().unwrap();
    etcd.describe(&[(key, cursor.value.to_vec())]).await.unwrap();
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Stale));
    consumer.read_again().await.unwrap();
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Committed { .. }));
    // An enqueue reads the cursor on its way.
    assert_eq!(enqueue(&mut producer, &[message("a", 41, 1)]).await, Enqueued::Committed);
    assert_eq!(producer.backlog(), 1);
}

#[tokio::test]
async fn a_replay_by_the_rightful_owner_finds_the_progress_moved_and_adds_nothing() {
    let server = TestEtcd::start();
    let life = server.life(Role::Streamer, "one", 60).await;
    let lane = lane(0);
    registered(&life.process.etcd, &lane).await;
    // Two tasks of one process that both believe in the same claim.
    let claim = claimed(&life, ClaimItem::Shard(lane.clone())).await;
    let mut twin = Producer::open(&life, claim.clone(), lane.clone()).await.unwrap().unwrap();
    let mut producer = Producer::open(&life, claim, lane.clone()).await.unwrap().unwrap();
    let rows = [message("a", 0, 10)];
    assert_eq!(enqueue(&mut twin, &rows).await, Enqueued::Committed);
    assert_eq!(enqueue(&mut producer, &rows).await, Enqueued::Moved);
    assert_eq!(producer.progress(), twin.progress());
    assert_eq!(clean(&life.process.etcd).await.samples.queued, 10);

    assert_eq!(enqueue(&mut producer, &[message("a", 10, 5)]).await, Enqueued::Committed);
    assert_eq!(enqueue(&mut twin, &[message("a", 10, 5)]).await, Enqueued::Moved);
    assert_eq!(clean(&life.process.etcd).await.samples.queued, 15);
}

#[tokio::test]
async fn whoever_lost_the_claim_enqueues_and_takes_nothing() {
    let server = TestEtcd::start();
    let one = server.life(Role::Streamer, "one", 60).await;
    let two = server.life(Role::Streamer, "two", 60).await;
    let etcd = &one.process.etcd;
    let lane = lane(0);
    let mut old = producer(&one, &lane).await;
    let mut old_consumer = consumer(&one, &lane).await;
    assert_eq!(enqueue(&mut old, &[message("a", 0, 10)]).await, Enqueued::Committed);

    server.etcdctl(&["del", "--prefix", "/telemetry/claims/"]);
    let claim = claimed(&two, ClaimItem::Shard(lane.clone())).await;
    let mut new = Producer::open(&two, claim, lane.clone()).await.unwrap().unwrap();
    let mut new_consumer = consumer(&two, &lane).await;
    assert_eq!(enqueue(&mut old, &[message("a", 10, 10)]).await, Enqueued::Fenced);
    assert_eq!(clean(etcd).await.samples.queued, 10);

    // The old owner holds a message in its hands; so does the new one, who may take it.
    let messages = old_consumer.receive(&lane, 0, 64).await.unwrap();
    let intake = Intake { messages, dead: Vec::new() };
    assert!(matches!(take(etcd, &mut old_consumer, &intake).await, Outcome::Fenced));
    assert_eq!(clean(etcd).await.messages, 1);
    assert!(matches!(take(etcd, &mut new_consumer, &intake).await, Outcome::Committed { .. }));
    assert_eq!(enqueue(&mut new, &[message("a", 10, 10)]).await, Enqueued::Committed);
    assert_eq!(new.progress().next, 2);
}

#[tokio::test]
async fn a_withdrawn_shard_fences_its_producer() {
    let server = TestEtcd::start();
    let life = server.life(Role::Streamer, "one", 60).await;
    let lane = lane(0);
    let mut producer = producer(&life, &lane).await;
    server.etcdctl(&["del", "--prefix", "/telemetry/shards/"]);
    assert_eq!(enqueue(&mut producer, &[message("a", 0, 10)]).await, Enqueued::Fenced);
    assert!(keys(&life.process.etcd, "queue/").await.is_empty());
}

#[tokio::test]
async fn a_hole_in_a_lane_is_not_jumped_over_and_the_audit_tells() {
    let server = TestEtcd::start();
    let life = server.life(Role::Streamer, "one", 60).await;
    let etcd = &life.process.etcd;
    let lane = lane(0);
    let mut producer = producer(&life, &lane).await;
    let mut consumer = consumer(&life, &lane).await;
    let messages: Vec<_> = (0..4).map(|n| message("a", 10 * n, 10)).collect();
    assert_eq!(enqueue(&mut producer, &messages).await, Enqueued::Committed);
    let second = keys(etcd, "queue/").await.remove(1);
    server.etcdctl(&["del", &second]);

    let report = audit(etcd).await.unwrap();
    assert_eq!((report.clean, report.delta), (false, 10));
    assert!(report.violations.iter().any(|v| v.contains("lane demo/000000")));

    let received = consumer.receive(&lane, 0, 64).await.unwrap();
    assert_eq!(received.iter().map(|m| m.seq).collect::<Vec<_>>(), [0]);
    let intake = Intake { messages: received, dead: Vec::new() };
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Committed { .. }));
    assert_eq!(consumer.receive(&lane, 1, 64).await.unwrap().len(), 0);
    assert_eq!(keys(etcd, "queue/").await.len(), 2);
}

#[tokio::test]
async fn a_message_nobody_can_decode_is_set_aside_with_its_reason_and_counted() {
    let server = TestEtcd::start();
    let life = server.life(Role::Streamer, "one", 60).await;
    let etcd = &life.process.etcd;
    let lane = lane(0);
    let mut producer = producer(&life, &lane).await;
    let mut consumer = consumer(&life, &lane).await;
    let poison = Message { bytes: Bytes::from_static(b"not\na block"), samples: 7 };
    assert_eq!(enqueue(&mut producer, &[poison]).await, Enqueued::Committed);

    let messages = consumer.receive(&lane, 0, 64).await.unwrap();
    let intake = Intake { messages, dead: vec![(0, "not a block".to_owned())] };
    assert!(matches!(take(etcd, &mut consumer, &intake).await, Outcome::Committed { .. }));

    let report = clean(etcd).await;
    assert_eq!((report.samples.dead, report.samples.committed, report.messages), (7, 7, 0));
    let key = etcd.keyspace().key(&Key::Dead(lane.clone(), 0));
    let entry = etcd.get(&key).await.unwrap().expect("the message was set aside");
    let line = entry.value.iter().position(|b| *b == b'\n').unwrap();
    let letter: DeadLetter = from_json(&entry.key, &entry.value[..line]).unwrap();
    assert_eq!((letter.reason.as_str(), letter.samples), ("not a block", 7));
    assert_eq!(&entry.value[line + 1..], b"not\na block");
    let cursor = etcd.keyspace().key(&Key::Cursor(consumer.partition(), lane));
    let entry = etcd.get(&cursor).await.unwrap().unwrap();
    let cursor: Cursor = from_json(&entry.key, &entry.value).unwrap();
    assert_eq!((cursor.next, cursor.samples, cursor.dead), (1, 7, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_enqueued_once_in_whichever_lane_and_only_while_its_source_stands() {
    let etcd = TestEtcd::start();
    let life = etcd.life(Role::Gateway, "gateway-1", 10).await;
    let handle = &life.process.etcd;
    let desk = SourceDesk::new(handle.clone());
    let id: SourceId = "pushed".parse().unwrap();
    let written = desk.open_push(&id).await.unwrap();
    assert_eq!(desk.open_push(&id).await.unwrap(), written, "whoever is second finds it");
    let key = handle.keyspace().key(&Key::Source(id.clone()));
    let source = Position { key, mod_revision: written.revision };
    let lease = handle.grant(600).await.unwrap();
    let mut producers = Vec::new();
    for shard in [0, 1] {
        let lane = Lane { source: id.clone(), shard: ShardId(shard) };
        let item = ClaimItem::Shard(lane.clone());
        let claim = Claim::take(handle, &life.session, item).await.unwrap().unwrap();
        producers.push(Producer::open(&life, claim, lane).await.unwrap().unwrap());
    }
    let messages = [Message { bytes: Bytes::from_static(b"block"), samples: 3 }];
    let mut enqueue = async |nth: usize, hashes: &[u128], lease: i64| {
        let requests: Vec<_> = hashes.iter().map(|h| (*h, Receipt { samples: 3 })).collect();
        let producer = &mut producers[nth];
        let mut progress = producer.progress().clone();
        progress.samples += 3;
        producer.enqueue_once(&messages, progress, &source, &requests, lease).await
    };
    assert_eq!(enqueue(0, &[1, 2], lease).await.unwrap(), Enqueued::Committed);
    assert_eq!(enqueue(0, &[1], lease).await.unwrap(), Enqueued::Moved);
    assert_eq!(enqueue(1, &[3, 2], lease).await.unwrap(), Enqueued::Moved, "none or all");
    assert_eq!(receipts(handle, &id, &[1, 2, 3]).await.unwrap(), [true, true, false]);
    // A lease that is gone: nothing is enqueued whose receipt would not stand.
    assert!(matches!(enqueue(1, &[3], 4711).await, Err(Error::SessionLost { .. })));
    assert_eq!(enqueue(1, &[3], lease).await.unwrap(), Enqueued::Committed);
    desk.set_paused(&id, true).await.unwrap();
    assert_eq!(enqueue(1, &[4], lease).await.unwrap(), Enqueued::Moved, "paused");
    let report = audit(handle).await.unwrap();
    assert_eq!((report.samples.accepted, report.messages), (6, 2));
    desk.withdraw(&id).await.unwrap();
    assert!(matches!(desk.open_push(&id).await, Err(SourceError::Field { field: "id", .. })));
}
