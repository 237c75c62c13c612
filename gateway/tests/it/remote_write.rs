//! Samples that are sent: stored once, whatever happens in between, and refused by name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nexus_common::{
    audit::{AuditReport, audit},
    etcd::Etcd,
    keyspace::SourceKind,
    model::{Role, SourceId},
    runtime::Life,
    sources::SourceDesk,
    testing::{Proxy, TestEtcd, eventually, life_on},
};
use nexus_gateway::auth::TokenHash;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    pipeline::{Pipeline, T0},
    sent::{TimeSeries, packed, series},
    serve::{Gateway, Reply},
};

const URL: &str = "/api/v1/write";
const KIND: (&str, &str) = ("content-type", "application/x-protobuf");
const PACKED: (&str, &str) = ("content-encoding", "snappy");
const HEADERS: [(&str, &str); 3] = [KIND, PACKED, ("x-prometheus-remote-write-version", "0.1.0")];

/// A gateway with a session.
struct Writing {
    gateway: Arc<Gateway>,
    life: Life,
    serving: JoinHandle<()>,
}

impl Writing {
    async fn start(etcd: &TestEtcd, name: &str) -> Self {
        Self::on(etcd.life(Role::Gateway, name, 10).await, 256).await
    }

    async fn on(life: Life, backlog_max: u64) -> Self {
        let change = |args: &mut nexus_gateway::server::GatewayArgs| {
            args.writes.write_backlog_max = backlog_max;
        };
        let gateway = Arc::new(Gateway::with(life.process.clone(), change).await.loaded().await);
        let serving = tokio::spawn({
            let (desk, life) = (Arc::clone(&gateway.serving.writes), life.clone());
            async move { desk.serve(&life).await }
        });
        Self { gateway, life, serving }
    }

    async fn send(&self, sent: &[TimeSeries]) -> Reply {
        self.gateway.send_bytes("POST", URL, &HEADERS, packed(sent)).await
    }
}

fn source() -> SourceId {
    "remote-write".parse().unwrap()
}

async fn more_is_stored(etcd: &Etcd) {
    let some = audit(etcd).await.unwrap().samples.accepted;
    let more = || async { audit(etcd).await.unwrap().samples.accepted > some };
    eventually("more is stored", Duration::from_secs(10), more).await;
}

/// Samples of `up` of a host, one each millisecond from `from` on.
fn up(host: &str, from: i64, count: i64) -> TimeSeries {
    let samples: Vec<(i64, f64)> = (from..from + count).map(|ms| (T0 + ms, ms as f64)).collect();
    series(&[("__name__", "up"), ("instance", host), ("job", "node")], &samples)
}

async fn clean(etcd: &Etcd) -> AuditReport {
    let report = audit(etcd).await.unwrap();
    assert!(report.clean, "{:?}", report.violations);
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_to_whichever_gateway_is_stored_once() {
    let etcd = TestEtcd::start();
    let pipeline = Pipeline::new(&etcd).await;
    let first = Writing::start(&etcd, "gateway-1").await;
    let second = Writing::start(&etcd, "gateway-2").await;
    let sent = [up("dgx-1:9100", 0, 3), up("dgx-2:9100", 0, 2)];
    for (gateway, status) in [(&first, 204), (&first, 204), (&second, 204)] {
        let reply = gateway.send(&sent).await;
        assert_eq!((reply.status, reply.text.as_str()), (status, ""));
    }
    let all: Vec<_> = (0..20)
        .map(|n| {
            let gateway = Arc::clone(if n % 2 == 0 { &first.gateway } else { &second.gateway });
            let body = packed(&[up("dgx-3:9100", n / 4, 1)]);
            tokio::spawn(
                async move { gateway.send_bytes("POST", URL, &HEADERS, body).await.status },
            )
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), 204);
    }
    let report = clean(&pipeline.etcd).await;
    assert_eq!((report.samples.accepted, report.rows.accepted), (10, 10));
    first.gateway.caught_up(10).await;
    let rows =
        first.gateway.ok("/api/v1/telemetry?host_id=dgx-1&start_time=2025-07-18T00:00:00Z").await;
    assert_eq!(rows["count"], 3, "{rows}");
    let listed = first.gateway.ok("/api/v1/sources/remote-write").await;
    assert_eq!((&listed["state"], &listed["samples"]), (&json!("running"), &json!(10)));
    let written = SourceDesk::new(pipeline.etcd.clone()).get(&source()).await.unwrap();
    assert_eq!(written.source.kind, SourceKind::Push);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_without_anybody_hearing_of_it_is_not_stored_again() {
    let etcd = TestEtcd::start();
    let pipeline = Pipeline::new(&etcd).await;
    let proxy = Proxy::start(&etcd.endpoint());
    let way = etcd.connect_through(&proxy, Duration::from_millis(500)).await;
    let through = Writing::on(life_on(way, Role::Gateway, "gateway-1", 10).await, 256).await;
    let other = Writing::start(&etcd, "gateway-2").await;
    assert_eq!(through.send(&[up("h", 0, 1)]).await.status, 204);
    let sent = [up("h", 1, 5)];
    proxy.hold_answers();
    let gateway = Arc::clone(&through.gateway);
    let body = packed(&sent);
    let unheard =
        tokio::spawn(async move { gateway.send_bytes("POST", URL, &HEADERS, body).await.status });
    let applied = || async { audit(&pipeline.etcd).await.unwrap().samples.accepted == 6 };
    eventually("it is applied", Duration::from_secs(10), applied).await;
    // As a sender does that has several addresses.
    assert_eq!(other.send(&sent).await.status, 204);
    proxy.cut();
    proxy.pass();
    assert_eq!(unheard.await.unwrap(), 204);
    assert_eq!(through.send(&sent).await.status, 204);
    assert_eq!(through.send(&[up("h", 6, 1)]).await.status, 204);
    assert_eq!(clean(&pipeline.etcd).await.samples.accepted, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_or_a_session_that_is_lost_loses_nothing_and_doubles_nothing() {
    let etcd = TestEtcd::start();
    let pipeline = Pipeline::new(&etcd).await;
    let mut writing = Writing::start(&etcd, "gateway-1").await;
    let enough = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (gateway, enough) = (Arc::clone(&writing.gateway), Arc::clone(&enough));
            tokio::spawn(async move {
                let mut sent = 0;
                while !enough.load(Relaxed) {
                    let body = packed(&[up(&format!("h{sender}"), sent, 1)]);
                    let reply = gateway.send_bytes("POST", URL, &HEADERS, body).await;
                    assert_eq!(reply.status, 204, "{reply:?}");
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    for _ in 0..5 {
        more_is_stored(&pipeline.etcd).await;
        etcd.etcdctl(&["del", "--prefix", "/telemetry/claims/shards/"]);
    }
    more_is_stored(&pipeline.etcd).await;
    writing.life.session.revoke().await;
    writing.serving.await.unwrap();
    // The process goes on with another session, as `run` does.
    let life = etcd.life(Role::Gateway, "gateway-1", 10).await;
    let desk = Arc::clone(&writing.gateway.serving.writes);
    writing.serving = tokio::spawn(async move { desk.serve(&life).await });
    more_is_stored(&pipeline.etcd).await;
    enough.store(true, Relaxed);
    let mut sent = 0;
    for sender in senders {
        sent += sender.await.unwrap();
    }
    assert_eq!(clean(&pipeline.etcd).await.samples.accepted, sent as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_waits_for_a_collector_but_not_for_ever_nor_for_what_nobody_wants() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let life = etcd.life(Role::Gateway, "gateway-1", 10).await;
    let writing = Writing::on(life, 2).await;
    let refused = async |at: i64, status: u16, code: &str| {
        let reply = writing.send(&[up("h", at, 1)]).await;
        assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{reply:?}");
        let later = reply.headers.get("retry-after").map(String::as_str);
        assert_eq!(later, (status != 409).then_some("1"), "{reply:?}");
    };
    assert_eq!(writing.send(&[up("h", 0, 1)]).await.status, 204);
    assert_eq!(writing.send(&[up("h", 1, 1)]).await.status, 204);
    let asked = Instant::now();
    refused(2, 429, "backlog").await;
    assert!(asked.elapsed() >= Duration::from_secs(5), "it was refused at once");
    writing.gateway.caught_up(2).await;
    let snapshot = writing.gateway.view().snapshot().unwrap();
    let (lane, _) = snapshot.lanes.iter().find(|(_, progress)| progress.next > 0).unwrap();
    // Whoever waits is answered once there is room.
    let third = [up("h", 2, 1)];
    let (waits, _) = tokio::join!(writing.send(&third), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        pipeline.commit(lane, 2).await
    });
    assert_eq!(waits.status, 204);
    let metrics = writing.gateway.get("/metrics").await.text;
    let waited = metrics.lines().find_map(|l| l.strip_prefix("nexus_backpressure_seconds_total "));
    assert!(waited.unwrap().parse::<f64>().unwrap() >= 4.0, "{waited:?} of some 5.5 s");

    let desk = SourceDesk::new(pipeline.etcd.clone());
    desk.set_paused(&source(), true).await.unwrap();
    refused(3, 503, "paused").await;
    desk.set_paused(&source(), false).await.unwrap();
    assert_eq!(writing.send(&[up("h", 3, 1)]).await.status, 204);
    pipeline.commit(lane, 2).await;
    desk.withdraw(&source()).await.unwrap();
    refused(4, 409, "withdrawn").await;
    assert_eq!(clean(&pipeline.etcd).await.samples.accepted, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_remote_write_is_refused_by_name_and_good_samples_are_kept() {
    let etcd = TestEtcd::start();
    let pipeline = Pipeline::new(&etcd).await;
    let writing = Writing::start(&etcd, "gateway-1").await;
    let check = async |headers: &[(&str, &str)], body: Vec<u8>, status: u16, code: &str| {
        let reply = writing.gateway.send_bytes("POST", URL, headers, body).await;
        assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{reply:?}");
    };
    let good = || packed(&[up("h", 0, 1)]);
    let v2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
    check(&[PACKED, ("content-type", v2)], good(), 415, "content-type").await;
    check(&[PACKED, ("content-type", "text/plain")], good(), 415, "content-type").await;
    check(&[KIND, ("content-encoding", "zstd")], good(), 415, "content-type").await;
    check(&[KIND], good(), 415, "content-type").await;
    let version = ("x-prometheus-remote-write-version", "2.0.0");
    check(&[KIND, PACKED, version], good(), 415, "content-type").await;
    check(&HEADERS, b"no snappy".to_vec(), 400, "bad-snappy").await;
    let packed_bytes = |bytes: &[u8]| snap::raw::Encoder::new().compress_vec(bytes).unwrap();
    check(&HEADERS, packed_bytes(b"\x0a\x05"), 400, "bad-protobuf").await;
    check(&HEADERS, packed_bytes(&vec![0; 17 << 20]), 413, "too-large").await;
    check(&HEADERS, vec![0; (4 << 20) + 1], 413, "body").await;
    assert_eq!(audit(&pipeline.etcd).await.unwrap().samples.accepted, 0);

    let bad = series(&[("__name__", "up")], &[(T0, 1.0)]);
    let late = series(&[("__name__", "up"), ("instance", "h")], &[(i64::MAX, 1.0)]);
    for _ in 0..2 {
        let reply = writing.send(&[bad.clone(), up("h", 0, 2), late.clone()]).await;
        assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("bad-samples")));
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        let told = "2 samples can never be stored (1 bad time, 1 no host), the other 2 are stored";
        assert!(detail.starts_with(told) && detail.contains("no host: up{}"), "{detail}");
    }
    let report = clean(&pipeline.etcd).await;
    let rows = &report.rows;
    assert_eq!((report.samples.accepted, rows.accepted, rows.rejected), (2, 2, 2));
    let metrics = writing.gateway.get("/metrics").await.text;
    for line in [
        "nexus_write_requests_total{outcome=\"partial\"} 2",
        "nexus_write_requests_total{outcome=\"bad\"} 3",
        "nexus_write_samples_total{result=\"stored\"} 2",
        "nexus_write_samples_total{result=\"stored-before\"} 2",
        "nexus_write_samples_total{result=\"no host\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_taken_from_who_may_write_and_only_where_they_are_wanted() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let tokens = tempfile::NamedTempFile::new().unwrap();
    let line =
        |name: &str, scope: &str, token: &str| format!("{name} {scope} {}\n", TokenHash::of(token));
    std::fs::write(tokens.path(), line("r", "read", "R") + &line("w", "write", "W")).unwrap();
    let file = tokens.path().to_owned();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| {
        args.auth_tokens_file = Some(file);
        args.writes.write_source = "".parse().unwrap();
    });
    let gateway = gateway.await.loaded().await;
    let ask = async |token: Option<&str>| {
        let token = token.map(|token| ("authorization", token));
        let headers: Vec<_> = token.into_iter().chain(HEADERS).collect();
        gateway.send_bytes("POST", URL, &headers, packed(&[up("h", 0, 1)])).await
    };
    assert_eq!(ask(None).await.status, 401);
    assert_eq!(ask(Some("Bearer R")).await.status, 403);
    let off = ask(Some("Bearer W")).await;
    assert_eq!((off.status, &off.json()["code"]), (501, &json!("writes-off")));
}
