//! Sources that were asked for over an API: cut, paused, resumed and withdrawn while they are read.

use nexus_common::{
    audit::AuditReport,
    keyspace::{Key, Source, SourceKind, from_json},
    model::SourceId,
    sources::{Applied, SourceDesk, SourceError, Wanted},
    testing::TestEtcd,
};

use crate::process::Case;

/// Rows of a file: enough for a thousand messages of one row.
const ROWS: u64 = 1000;

fn rows() -> String {
    let mut text = "timestamp,hostname,uuid,temperature\n".to_owned();
    for row in 0..ROWS {
        text += &format!("2025-07-18T20:42:34.{row:03}Z,dgx-001,GPU-0,{row}\n");
    }
    text
}

async fn stored(case: &Case, id: &SourceId) -> Option<Source> {
    let key = case.etcd.keyspace().key(&Key::Source(id.clone()));
    let entry = case.etcd.get(&key).await.unwrap()?;
    Some(from_json(&entry.key, &entry.value).unwrap())
}

async fn claims(case: &Case) -> usize {
    let range = case.etcd.keyspace().prefix("claims/shards/");
    case.etcd.range(&range, Default::default()).await.unwrap().entries.len()
}

#[tokio::test]
async fn a_source_is_read_from_when_it_is_asked_for_stops_when_paused_and_goes_on_where_it_was() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/wanted").await;
    let file = case.write("rows.csv", rows());
    let desk = SourceDesk::new(case.etcd.clone());
    let id: SourceId = "wanted".parse().unwrap();
    // A row a message, and a hundred rows a second: slow enough to be stopped in between.
    let flags = ["--batch-size", "1", "--backlog-max", "100000"];
    let streamer = case.start(&flags);
    streamer.wait_for_log("session").await;
    desk.register(&id, file.to_str().unwrap(), Some(200), false).await.unwrap();

    case.audited_until("it is read", |r| r.samples.accepted > 2).await;
    let source = stored(&case, &id).await.unwrap();
    let SourceKind::Csv { bytes, fingerprint, .. } = &source.kind else { panic!("{source:?}") };
    assert_eq!((*bytes, source.shards), (rows().len() as u64, 1));
    assert!(!fingerprint.is_empty());

    desk.set_paused(&id, true).await.unwrap();
    let given_back = || async { claims(&case).await == 0 };
    nexus_common::testing::eventually("the shard is given back", crate::process::SOON, given_back)
        .await;
    let paused: AuditReport = case.audited_until("it stands", |_| true).await;
    assert!(paused.samples.accepted < ROWS, "it was stopped before its end");
    // One that starts now finds it paused.
    streamer.terminate().await;
    let streamer = case.start(&flags);
    streamer.wait_for_log("session").await;
    desk.register(&"other".parse().unwrap(), file.to_str().unwrap(), None, false).await.unwrap();
    let after = case.audited_until("another source is read", |r| {
        r.samples.accepted == paused.samples.accepted + ROWS
    });
    after.await;
    assert_eq!(claims(&case).await, 0);

    desk.set_paused(&id, false).await.unwrap();
    let done = case.audited_until("both are read", |r| r.samples.accepted == 2 * ROWS).await;
    assert_eq!((done.rows.accepted, done.rows.rejected), (2 * ROWS, 0));
    streamer.terminate().await;
}

#[tokio::test]
async fn a_withdrawn_source_is_left_its_counts_stay_and_its_name_is_not_given_again() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/withdrawn").await;
    let file = case.write("rows.csv", rows());
    let desk = SourceDesk::new(case.etcd.clone());
    let id: SourceId = "wanted".parse().unwrap();
    let streamer = case.start(&["--batch-size", "1", "--backlog-max", "100000"]);
    desk.register(&id, file.to_str().unwrap(), Some(100), true).await.unwrap();
    case.audited_until("it is read", |r| r.samples.accepted > 2).await;
    desk.withdraw(&id).await.unwrap();
    let given_back = || async { claims(&case).await == 0 };
    nexus_common::testing::eventually("the shard is given back", crate::process::SOON, given_back)
        .await;
    let left = case.audited_until("it stands", |_| true).await;
    assert!(left.samples.accepted > 2 && left.lanes == 1, "{left:#?}");
    assert!(matches!(desk.withdraw(&id).await, Err(SourceError::Unknown(_))));
    let again = desk.register(&id, file.to_str().unwrap(), None, false).await;
    assert!(matches!(again, Err(SourceError::Field { field: "id", .. })), "{again:?}");
    streamer.terminate().await;
}

#[tokio::test]
async fn one_that_cannot_be_opened_waits_for_a_streamer_that_can() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/elsewhere").await;
    let desk = SourceDesk::new(case.etcd.clone());
    let (id, path) = ("wanted".parse().unwrap(), case.path("rows.csv"));
    let streamer = case.start(&[]);
    desk.register(&id, path.to_str().unwrap(), None, false).await.unwrap();
    streamer.wait_for_log("the source cannot be cut here").await;
    let source = stored(&case, &id).await.unwrap();
    assert!(matches!(source.kind, SourceKind::Declared { .. }), "{source:?}");
    streamer.terminate().await;
    case.write("rows.csv", rows());
    let streamer = case.start(&[]);
    case.audited_until("it is read", |r| r.samples.accepted == ROWS).await;
    streamer.terminate().await;
}

#[tokio::test]
async fn what_is_sent_to_gateways_is_neither_cut_nor_claimed() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/pushed").await;
    let file = case.write("rows.csv", rows());
    let desk = SourceDesk::new(case.etcd.clone());
    let streamer = case.start(&[]);
    streamer.wait_for_log("session").await;
    let pushed: SourceId = "pushed".parse().unwrap();
    let written = desk.open_push(&pushed).await.unwrap();
    // What was asked for later is read, so the other was seen.
    desk.register(&"other".parse().unwrap(), file.to_str().unwrap(), None, false).await.unwrap();
    case.audited_until("the file is read", |r| r.samples.accepted == ROWS).await;
    assert_eq!(stored(&case, &pushed).await, Some(written.source));
    assert_eq!(claims(&case).await, 0);
    streamer.terminate().await;
}

#[tokio::test]
async fn whoever_asks_for_the_same_in_the_same_moment_is_told_that_it_is_there() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/together").await;
    let wanted = || {
        let (path, mapping) = ("/rows.csv".to_owned(), None);
        let kind = SourceKind::Declared { path, speed_milli: None, looped: false, mapping };
        Wanted::new(kind).unwrap()
    };
    for round in 0..10 {
        let id: SourceId = format!("fleet-{round}").parse().unwrap();
        let asking = (0..8).map(|_| {
            let (desk, id, wanted) = (SourceDesk::new(case.etcd.clone()), id.clone(), wanted());
            tokio::spawn(async move { desk.apply(&id, &wanted).await.unwrap() })
        });
        let mut created = 0;
        for asked in asking.collect::<Vec<_>>() {
            match asked.await.unwrap() {
                Applied::Created => created += 1,
                applied => assert_eq!(applied, Applied::Unchanged),
            }
        }
        assert!(created >= 1, "of the same millisecond several wrote the same");
    }
}
