//! CSV files on web servers: fetched, gone on with where they broke off, and read as what was
//! registered by whoever fetches the same bytes.

use std::{
    fs::File,
    io::Write,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use nexus_common::{
    audit::AuditReport,
    testing::{TestEtcd, eventually},
};

use crate::{
    faulty::Faulty,
    live::source,
    process::{Case, Streamer},
};

const ROWS: u64 = 700;

fn rows(from: u64) -> String {
    let row = |n: u64| {
        let value = from + n;
        format!("2025-07-18T20:{:02}:{:02}Z,dgx-001,GPU-1,{value}\n", n / 60, n % 60)
    };
    "timestamp,hostname,uuid,temperature\n".to_owned() + &(0..ROWS).map(row).collect::<String>()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn done(report: &AuditReport) -> bool {
    report.lanes > 0 && report.lanes == report.lanes_done
}

/// A server of one file, and the parts it was asked for.
struct Web {
    url: String,
    file: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _server: Faulty,
}

impl Web {
    /// Breaks off in the middle of the first answer.
    fn start(file: Vec<u8>) -> Self {
        let file = Arc::new(Mutex::new(file));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (told, noted) = (Arc::clone(&file), Arc::clone(&asked));
        let server = Faulty::raw(move |head| {
            assert!(head.starts_with("GET /rack%207/export.csv?key=7 HTTP/1.1\r\n"), "{head}");
            let range = head.lines().find_map(|line| {
                line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
            });
            let mut asked = noted.lock().unwrap();
            asked.push(range.clone().unwrap_or_default());
            let file = told.lock().unwrap();
            let tag = format!("\"{}\"", file.len());
            let from = range.and_then(|range| range.trim_end_matches('-').parse().ok());
            let from = from.filter(|_| head.contains(&format!("f-range: {tag}\r\n"))).unwrap_or(0);
            let (status, length, last) = match from {
                0 => ("200 OK", file.len(), file.len() - 1),
                _ => ("206 Partial Content", file.len() - from, file.len() - 1),
            };
            let mut answer = format!(
                "HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {length}\r\n\
                 Content-Range: bytes {from}-{last}/{}\r\n\r\n",
                file.len()
            )
            .into_bytes();
            let to = if asked.len() == 1 { file.len() / 2 } else { file.len() };
            answer.extend(&file[from..to]);
            answer
        });
        let url = format!("http://{}/rack%207/export.csv?key=7", server.address);
        Self { url, file, asked, _server: server }
    }
}

/// A streamer with a folder of its own for what it fetches.
fn start(case: &Case, folder: &str, flags: &[&str]) -> Streamer {
    std::fs::create_dir_all(case.path(folder)).unwrap();
    let folder = case.path(folder).display().to_string();
    case.start(&[&["--spool-dir", &folder, "--batch-size", "100"], flags].concat())
}

fn files(case: &Case, folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(case.path(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_file_that_breaks_off_is_gone_on_with_and_read_by_whoever_fetches_the_same_bytes() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/fetched").await;
    let packed = gzip(&rows(0));
    let web = Web::start(packed.clone());
    let flags = ["--csv-file", &web.url, "--backlog-max", "2"];
    let streamer = start(&case, "one", &flags);
    case.audited_until("it is begun", |r| r.rows.accepted >= 200).await;
    streamer.wait_for_log("a file broke off, going on with it").await;
    assert_eq!(*web.asked.lock().unwrap(), [String::new(), format!("{}-", packed.len() / 2)]);
    streamer.terminate().await;
    let listed = source(&case, &["list"]).1;
    assert!(listed.contains(&web.url) && listed.contains("export-"), "{listed}");
    // One that was not told of it, and has no copy.
    let other = start(&case, "other", &["--backlog-max", "1000"]);
    let report = case.audited_until("all is read", done).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (ROWS, ROWS));
    assert_eq!(web.asked.lock().unwrap().len(), 3);
    // The same bytes are the same source.
    let again = start(&case, "one", &flags);
    again.wait_for_log("going on with a registered source").await;
    again.terminate().await;
    other.terminate().await;
    assert_eq!(files(&case, "one"), files(&case, "other"));
    assert_eq!(files(&case, "one").len(), 1);
}

#[tokio::test]
async fn other_bytes_are_refused_by_name_and_a_copy_is_read_on() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/refetched").await;
    let web = Web::start(rows(0).into_bytes());
    let wanted = format!("sources: [{{name: export, csv: {{path: \"{}\"}}}}]", web.url);
    let file = case.write("s.yaml", wanted);
    let (good, said) = source(&case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
    let first = start(&case, "one", &["--backlog-max", "2"]);
    case.audited_until("it is begun", |r| r.rows.accepted >= 200).await;
    first.terminate().await;
    *web.file.lock().unwrap() = rows(1000).into_bytes();
    let other = start(&case, "other", &[]);
    other.wait_for_log("it changed since it was registered").await;
    let log = other.log();
    let line = log.lines().find(|line| line.contains("it changed since")).unwrap();
    assert!(line.contains(&web.url), "{line}");
    other.terminate().await;
    assert!(files(&case, "other").is_empty(), "nobody asked for those bytes");
    let first = start(&case, "one", &["--backlog-max", "1000"]);
    let report = case.audited_until("all is read", done).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (ROWS, ROWS));
    first.terminate().await;
}

#[tokio::test]
async fn what_was_kept_goes_once_it_was_read_and_is_old() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/cleared").await;
    let spool = case.path("spool").display().to_string();
    let [read, unread] = [0, 1000].map(|from| Web::start(rows(from).into_bytes()));
    let streamer = start(&case, "spool", &["--csv-file", &read.url]);
    case.audited_until("all is read", done).await;
    streamer.terminate().await;
    let input = File::open(case.write("in.csv", rows(2000))).unwrap();
    let flags = ["--csv-file", "-", "--spool-dir", &spool, "--batch-size", "100"];
    let streamer = case.start_with(&flags, Stdio::from(input));
    case.audited_until("both are read", |r| r.lanes == 2 && done(r)).await;
    streamer.terminate().await;
    let streamer = start(&case, "spool", &["--csv-file", &unread.url, "--backlog-max", "2"]);
    case.audited_until("the third is begun", |r| r.rows.accepted >= 2 * ROWS + 200).await;
    streamer.terminate().await;
    // Of somebody else's sources, and half fetched.
    case.write("spool/fetched-0000000000000007-7-7.csv", "");
    case.write("spool/.fetched-0000000000000007-7.part", "");
    let names = files(&case, "spool");
    let spooled = names.iter().find(|name| name.starts_with("stdin-")).unwrap();
    assert_eq!(names.len(), 5, "{names:?}");
    let age = |name: &String| {
        let file = File::options().write(true).open(case.path("spool").join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    };
    names.iter().filter(|name| *name != spooled).for_each(age);
    let left = async |expected: &[&str]| {
        let streamer = start(&case, "spool", &["--backlog-max", "2"]);
        let gone = async || {
            let left = files(&case, "spool");
            let is = |part: &&str| left.iter().any(|name| name.contains(*part));
            left.len() == expected.len() && expected.iter().all(is)
        };
        eventually("what was read is gone", Duration::from_secs(20), gone).await;
        streamer.terminate().await;
    };
    let ours = format!("-{}-", rows(1000).len());
    left(&["fetched-0000000000000007-7-7", &ours, spooled]).await;
    age(spooled);
    left(&["fetched-0000000000000007-7-7", &ours]).await;
    // What is left is read on, and the law still holds.
    let streamer = start(&case, "spool", &["--backlog-max", "1000"]);
    let report = case.audited_until("all is read", |r| r.lanes == 3 && done(r)).await;
    assert_eq!((report.rows.offered, report.rows.accepted), (3 * ROWS, 3 * ROWS));
    streamer.terminate().await;
    assert_eq!((read.asked.lock().unwrap().len(), unread.asked.lock().unwrap().len()), (2, 2));
}

#[tokio::test]
async fn what_cannot_be_fetched_is_told_with_its_url_and_leaves_nothing() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/unfetched").await;
    let server = Faulty::start();
    let refused = async |path: &str, flags: &[&str], expected: &[&str]| {
        let url = format!("http://{}/{path}", server.address);
        let before = case.path("streamer.log");
        let _ = std::fs::remove_file(before);
        let streamer = start(&case, "spool", &[&["--csv-file", &url], flags].concat());
        let log = streamer.log.clone();
        assert!(!streamer.wait().await.success());
        let said = std::fs::read_to_string(log).unwrap();
        assert!(said.contains(&url), "{said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
    };
    refused("broken", &[], &["it answered 500"]).await;
    refused("who", &[], &["it answered 401"]).await;
    refused(
        "large",
        &["--fetch-bytes-max", "8000"],
        &["more than 8000 bytes", "--fetch-bytes-max"],
    )
    .await;
    refused("good", &[], &["unknown header"]).await;
    refused("good", &["--follow"], &["--follow needs a file"]).await;
    assert!(files(&case, "spool").is_empty());
    let none = format!("http://{}/good", server.address);
    let none = case.start(&["--csv-file", &none, "--spool-dir", "/nowhere"]);
    let log = none.log.clone();
    assert!(!none.wait().await.success());
    assert!(std::fs::read_to_string(log).unwrap().contains("--spool-dir"));
}
