//! What a streamer refuses to begin with: it ends at once and says why.

use nexus_common::testing::{TestEtcd, free_port};

use crate::process::Case;

#[tokio::test]
async fn a_file_that_cannot_be_a_source_ends_the_process_and_is_named() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/refusal").await;
    std::fs::create_dir(case.path("directory.csv")).unwrap();
    case.write("empty.csv", "");
    case.write("other.csv", "colour,size\nred,1\n");
    case.write("no-metric.csv", "timestamp,hostname,uuid,fan\n");
    case.write("no-time.csv", "timestamp,hostname,uuid,temperature\nnever,h,u,1\n");
    let check = async |name: &str, flags: &[&str], expected: &[&str]| {
        let path = case.path(name);
        let path = path.to_str().unwrap();
        let mut all = vec!["--csv-file", path];
        all.extend(flags);
        let streamer = case.start(&all);
        let log = streamer.log.clone();
        let status = streamer.wait().await;
        let said = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(status.code(), Some(1), "{name}: {said}");
        for expected in expected.iter().chain([&path]) {
            assert!(said.contains(expected), "{name}: {expected:?} is not in {said}");
        }
    };
    check("missing.csv", &[], &["no such file", "give the path of a CSV file"]).await;
    check("directory.csv", &[], &["not a regular file"]).await;
    check("empty.csv", &[], &["the file is empty", "first line must name the columns"]).await;
    check("other.csv", &[], &["saw the columns [colour, size]", "known are the long layout"]).await;
    check("no-metric.csv", &[], &["it lacks metric_name (long) or a metric column (wide)"]).await;
    check("no-time.csv", &["--loop"], &["no row has a time to replay by"]).await;
    // Nothing of it is left behind.
    let left = etcd.etcdctl(&["get", "--prefix", "--keys-only", "/refusal/"]);
    assert!(!left.contains("/sources/") && !left.contains("/shards/"), "{left}");
}

#[tokio::test]
async fn a_bad_flag_exits_64_and_names_what_is_allowed() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/flags").await;
    let check = async |flags: &[&str], expected: &[&str]| {
        let streamer = case.start(flags);
        let log = streamer.log.clone();
        let status = streamer.wait().await;
        let said = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(status.code(), Some(64), "{flags:?}: {said}");
        for expected in expected {
            assert!(said.contains(expected), "{flags:?}: {expected:?} is not in {said}");
        }
    };
    check(&["--batch-size", "0"], &["--batch-size", "1..=262144"]).await;
    check(&["--batch-size", "many"], &["--batch-size", "'many'"]).await;
    check(&["--replay-speed", "0"], &["--replay-speed", "from 0.001 to 100000"]).await;
    check(&["--replay-speed", "fast"], &["--replay-speed", "must be a number"]).await;
    check(&["--lease-ttl-seconds", "1"], &["--lease-ttl-seconds", "3..=300"]).await;
    check(&["--log-format", "xml"], &["--log-format", "text, json"]).await;
    check(&["--root", "no slash"], &["--root", "must look like /telemetry"]).await;
    check(&["--instance-id", "a/b"], &["--instance-id", "[A-Za-z0-9._:-]"]).await;
    check(&["--etcd-endpoints", "ftp://x:1"], &["--etcd-endpoints", "must begin with http://"])
        .await;
    check(&["--metrics-listen", "here"], &["--metrics-listen", "'here'"]).await;
    check(&["--loop=perhaps"], &["--loop", "true, false"]).await;
    check(&["--log-level", "loud=very"], &["--log-level", "\"error\", \"warn\", \"info\""]).await;
    check(&["--colour"], &["--colour"]).await;
}

#[tokio::test]
async fn an_address_in_use_ends_the_process_and_is_named() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/address").await;
    let address = format!("127.0.0.1:{}", free_port());
    let _taken = std::net::TcpListener::bind(&address).unwrap();
    let streamer = case.start(&["--metrics-listen", &address]);
    streamer.wait_for_log(&format!("cannot listen on {address}")).await;
    assert_eq!(streamer.wait().await.code(), Some(1));
}
