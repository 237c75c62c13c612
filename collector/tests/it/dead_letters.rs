//! Messages that cannot be read.

use std::time::Duration;

use nexus_common::testing::{
    Fleet,
    truth::{assert_same_rows, audited_until, is_settled, rows_of, source_rows, stored_rows},
};

use nexus_common::{etcd::RangeRead, keyspace::Key};

#[tokio::test]
async fn a_corrupt_message_is_set_aside_once_and_the_rest_moves_on() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("BATCH_SIZE", "500"),
        ("BACKLOG_MAX", "1000"),
        ("COMMIT_AGE_MS", "100"),
    ]);
    let file = fleet.generate("telemetry.csv", 20);
    fleet.stream("streamer", &file, &[]);
    let etcd = fleet.etcd.connect().await;
    let within = Duration::from_secs(20);
    audited_until(&etcd, "all is queued", within, |r| r.lanes > 0 && r.lanes == r.lanes_done).await;
    // One is not a block, one is nothing at all; neither is the first of its lane.
    let queue = etcd.range(&etcd.keyspace().prefix("queue/"), RangeRead::default()).await.unwrap();
    let mut expected = source_rows(&file);
    let mut lost = 0;
    let second = |key: &[u8]| matches!(etcd.keyspace().parse(key), Ok(Key::Message(_, _, 1, _)));
    let messages: Vec<_> = queue.entries.into_iter().filter(|e| second(&e.key)).collect();
    assert!(messages.len() >= 2, "{} lanes", messages.len());
    for (message, garbage) in messages.into_iter().zip(["no block at all", ""]) {
        let key = String::from_utf8(message.key).unwrap();
        fleet.etcd.etcdctl(&["put", &key, garbage]);
        for row in rows_of(message.value) {
            expected.remove(expected.binary_search(&row).unwrap());
            lost += 1;
        }
    }
    fleet.collect("collector", &[]);
    let report = audited_until(&etcd, "all is committed", within, is_settled).await;
    assert_eq!((report.samples.dead, report.samples.stored), (lost, expected.len() as u64));
    assert_eq!(fleet.log("collector").matches("dead letter").count(), 2);
    assert_same_rows(&stored_rows(&etcd, "blocks/").await, &expected);
    let dead = fleet.etcd.etcdctl(&["get", "--prefix", "/telemetry/dead/"]);
    assert!(dead.contains("\nno block at all\n"), "the bytes are kept: {dead}");
    assert_eq!(dead.matches("\"reason\":").count(), 2, "{dead}");
    // Another collector finds nothing to do again.
    let revisions = |text: String| text.lines().count();
    let before = revisions(fleet.etcd.etcdctl(&["get", "--prefix", "/telemetry/dead/"]));
    fleet.kill("collector");
    fleet.collect("collector", &[]);
    fleet.wait_for_log("collector", "session opened", within).await;
    let again = audited_until(&etcd, "all is committed", within, is_settled).await;
    assert_eq!(again.samples, report.samples);
    assert_eq!(before, revisions(fleet.etcd.etcdctl(&["get", "--prefix", "/telemetry/dead/"])));
}
