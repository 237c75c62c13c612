//! Faults planted by hand, and what the audit says.

use nexus_common::{
    audit::audit,
    etcd::Outcome,
    keyspace::{BlockName, Key},
    model::Role,
    queue::Intake,
    store::Writer,
    testing::TestEtcd,
};

use crate::given::{block, clean, consumer, counted, keys, lane, message, producer, samples};

#[tokio::test]
async fn a_lost_block_a_doubled_one_and_an_immortal_claim_are_found() {
    let server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 60).await;
    let etcd = &life.process.etcd;
    let lane = lane(0);
    let mut producer = producer(&life, &lane).await;
    let mut consumer = consumer(&life, &lane).await;
    let mut writer = Writer::open(&life).await.unwrap();
    let messages = [message("a", 0, 10), message("b", 0, 30)];
    let next = counted(producer.progress(), &messages);
    producer.enqueue(&messages, next).await.unwrap();
    let messages = consumer.receive(&lane, 0, 64).await.unwrap();
    let intake = Intake { messages, dead: Vec::new() };
    let blocks = [block(vec![samples("a", 0, 10)]), block(vec![samples("b", 0, 30)])];
    let outcome = writer.commit(&mut consumer, &intake, &blocks).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    let report = clean(etcd).await;
    assert_eq!((report.samples.accepted, report.samples.stored, report.delta), (40, 40, 0));

    let check = async |delta: u64, told: &str| {
        let report = audit(etcd).await.unwrap();
        assert_eq!((report.clean, report.delta, report.violation_count), (false, delta, 1));
        assert!(report.violations[0].contains(told), "{:?}", report.violations);
    };
    let [a, b] = &keys(etcd, "blocks/").await[..] else { panic!("one block a host") };

    let lost = etcd.get(b).await.unwrap().unwrap();
    server.etcdctl(&["del", b]);
    check(30, "conservation: accepted 40 = committed 40 + queued 0; committed = stored 10").await;
    etcd.describe(&[(b.clone(), lost.value.to_vec())]).await.unwrap();
    clean(etcd).await;

    let Ok(Key::Block(name)) = etcd.keyspace().parse(a.as_bytes()) else { panic!("{a}") };
    let twice = BlockName { commit: 2, ..name };
    let twice = etcd.keyspace().key(&Key::Block(twice));
    etcd.describe(&[(twice.clone(), vec![0])]).await.unwrap();
    check(10, "stored 50").await;
    server.etcdctl(&["del", &twice]);
    clean(etcd).await;

    // Two claims are held; the third was written by hand.
    let immortal = "/telemetry/claims/janitor";
    server.etcdctl(&["put", immortal, "{}"]);
    check(0, "/telemetry/claims/janitor has no lease").await;
    server.etcdctl(&["del", immortal]);

    server.etcdctl(&["put", "/telemetry/queue/what is this", ""]);
    check(0, "has no known shape").await;
}
