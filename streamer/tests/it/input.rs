//! Rows good and bad: every one is counted, as accepted or by the reason it was refused for.

use std::collections::BTreeMap;

use nexus_common::{model::Timestamp, testing::TestEtcd};

use crate::process::Case;

const HEADER: &str = "timestamp,hostname,uuid,temperature\n";

/// `count` good rows, a second apart, from second `from` on.
fn rows(from: i64, count: i64) -> String {
    let row = |second: i64| {
        let at = Timestamp::from_millis(1_750_000_000_000 + second * 1000).unwrap();
        format!("{at},dgx-001,GPU-1,{}\n", 40 + second % 20)
    };
    (from..from + count).map(row).collect()
}

/// What the progress should tell of a file.
struct Expected {
    accepted: u64,
    absent: u64,
    rejected: &'static [(&'static str, u64)],
}

#[tokio::test]
async fn every_row_is_accepted_or_rejected_for_a_reason() {
    let etcd = TestEtcd::start();
    let mut number = 0;
    let mut check = async |what: &str, content: Vec<u8>, expected: Expected| {
        number += 1;
        let case = Case::new(&etcd, &format!("/case-{number}")).await;
        let file = case.write("rows.csv", content);
        let streamer = case.start(&["--csv-file", file.to_str().unwrap()]);
        streamer.wait_for_log("source registered").await;
        let report = case.audited_until(what, |r| r.lanes == r.lanes_done).await;
        let rejected: BTreeMap<String, u64> =
            expected.rejected.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect();
        let rows = &report.rows;
        assert_eq!(rows.rejected_by_reason, rejected, "{what}");
        assert_eq!((rows.accepted, rows.absent), (expected.accepted, expected.absent), "{what}");
        assert_eq!(rows.offered, rows.accepted + rejected.values().sum::<u64>(), "{what}");
        assert_eq!(report.samples.queued, expected.accepted - expected.absent, "{what}");
        // The log tells the first five.
        for (reason, _) in expected.rejected.iter().take(5) {
            streamer.wait_for_log(&format!("reason={reason}")).await;
        }
        streamer.terminate().await;
    };
    let good = |accepted| Expected { accepted, absent: 0, rejected: &[] };
    let bad = |accepted, rejected| Expected { accepted, absent: 0, rejected };
    let text = |body: &str| format!("{HEADER}{body}").into_bytes();

    check("a header alone", text(""), good(0)).await;
    check("plain rows", text(&rows(0, 100)), good(100)).await;
    check("no line feed at the end", text(rows(0, 5).trim_end()), good(5)).await;
    let half = format!("{}2025-06-15T15:0", rows(0, 5));
    check("half a last line", text(&half), bad(5, &[("columns", 1)])).await;
    let bom = [b"\xef\xbb\xbf".to_vec(), text(&rows(0, 5))].concat();
    check("a byte order mark", bom, good(5)).await;
    let crlf = String::from_utf8(text(&rows(0, 5))).unwrap().replace('\n', "\r\n");
    check("CRLF", crlf.into_bytes(), good(5)).await;
    check("blank lines", text(&format!("\n{}\n\n{}\n", rows(0, 2), rows(2, 3))), good(5)).await;

    let mut not_utf8 = text(&rows(0, 2));
    not_utf8.extend(b"2025-06-15T15:06:50Z,dgx-\xff\xfe,GPU-1,40\n");
    not_utf8.extend(rows(2, 2).bytes());
    check("invalid UTF-8", not_utf8, bad(4, &[("utf8", 1)])).await;
    let blanks: String = ["", "NaN", "nan", "2147483632", "2147483635", "41"]
        .iter()
        .map(|value| format!("2025-06-15T15:06:50Z,dgx-001,GPU-1,{value}\n"))
        .collect();
    let expected = Expected { accepted: 6, absent: 5, rejected: &[] };
    check("NaN and DCGM's blanks", text(&blanks), expected).await;
    let wrong = "2025-06-15T15:06:50Z,dgx-001,GPU-1,hot\n\
                 2025-06-15T15:06:50Z,dgx-001,GPU-1,+Inf\n\
                 yesterday,dgx-001,GPU-1,40\n\
                 2025-06-15T15:06:50Z,,GPU-1,40\n\
                 2025-06-15T15:06:50Z,dgx-001,,40\n\
                 timestamp,hostname,uuid,temperature\n\
                 2025-06-15T15:06:50Z,dgx-001,GPU-1,40,40\n";
    let reasons = &[
        ("bad_value", 1),
        ("not_finite", 1),
        ("bad_timestamp", 1),
        ("bad_host", 1),
        ("bad_gpu", 1),
        ("header", 1),
        ("columns", 1),
    ];
    check("one of each kind", text(&format!("{wrong}{}", rows(0, 3))), bad(3, reasons)).await;
    let long = format!(
        "{}2025-06-15T15:06:50Z,{},GPU-1,40\n{}",
        rows(0, 50),
        "x".repeat(10 << 20),
        rows(50, 50)
    );
    check("a line of 10 MiB", text(&long), bad(100, &[("too_long", 1)])).await;
}

#[tokio::test]
async fn a_file_that_changed_since_it_was_registered_is_not_read() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/changed").await;
    let file = case.write("rows.csv", format!("{HEADER}{}", rows(0, 20_000)));
    let path = file.to_str().unwrap();
    // Nobody takes messages, so every lane stops at the second one.
    let flags = ["--batch-size", "100", "--backlog-max", "2"];
    let streamer = case.start(&[&["--csv-file", path], &flags[..]].concat());
    case.audited_until("some is queued", |r| r.rows.accepted > 0).await;
    streamer.terminate().await;
    let before = case.audited_until("it stands", |_| true).await;
    assert!(before.lanes_done < before.lanes);
    std::fs::write(&file, format!("{HEADER}{}", rows(7, 20_001))).unwrap();
    // It works on what was registered, and finds something else.
    let streamer = case.start(&flags);
    streamer.wait_for_log("it changed since it was registered").await;
    assert!(streamer.log().contains(path));
    let after = case.audited_until("it stands", |_| true).await;
    assert_eq!(after.rows, before.rows, "rows of the other file were taken");
    streamer.terminate().await;
    // Back in its place, it is read on.
    std::fs::write(&file, format!("{HEADER}{}", rows(0, 20_000))).unwrap();
    let streamer = case.start(&["--backlog-max", "1000"]);
    let report = case.audited_until("all is read", |r| r.lanes == r.lanes_done).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (20_000, 20_000));
    streamer.terminate().await;
}

#[tokio::test]
async fn two_copies_of_a_file_are_one_source() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/copies").await;
    let content = format!("{HEADER}{}", rows(0, 5000));
    let copies = ["a/rows.csv", "b/rows.csv"].map(|name| case.write(name, &content));
    let streamers = copies.map(|file| case.start(&["--csv-file", file.to_str().unwrap()]));
    let done = |r: &nexus_common::audit::AuditReport| r.lanes > 0 && r.lanes == r.lanes_done;
    let report = case.audited_until("all is read", done).await;
    assert_eq!(report.rows.accepted, 5000);
    for streamer in streamers {
        streamer.wait_for_log("going on with a registered source").await;
        streamer.terminate().await;
    }
    let sources = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/copies/sources/"]);
    assert_eq!(sources.matches("/copies/sources/").count(), 1, "{sources}");
    assert_eq!(case.audited_until("it stands", done).await.rows.offered, 5000);
}
