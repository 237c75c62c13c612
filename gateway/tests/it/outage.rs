//! etcd goes and comes back, with or without its history.

use std::time::Duration;

use nexus_common::{
    etcd::{Etcd, EtcdConfig},
    testing::{Proxy, TestEtcd, eventually},
};

use crate::{
    pipeline::{Pipeline, T0, export, samples},
    serve::Gateway,
};

async fn count(gateway: &Gateway) -> serde_json::Value {
    gateway.ok("/api/v1/telemetry?limit=10000").await["count"].clone()
}

/// A gateway whose way to etcd can be held up and cut.
pub(crate) async fn wired(etcd: &TestEtcd) -> (Proxy, Gateway) {
    let wire = Proxy::start(&etcd.endpoint());
    let config =
        EtcdConfig { endpoints: vec![wire.endpoint()], ..etcd.connect().await.config().clone() };
    let way = Etcd::connect(config).await.unwrap();
    let gateway = Gateway::through(etcd, way, "gateway-1").await;
    (wire, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_committed_before_it_could_be_fetched_is_fetched_where_it_was() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    let (wire, gateway) = wired(&etcd).await;
    wire.hold_answers();
    for n in 0..10 {
        let times = [T0 + n * 1000];
        let part = samples("h0", 1, &["temperature"], &times, |_, _| n as f64);
        pipeline.enqueue(&lanes[0], &[part]).await;
        pipeline.commit(&lanes[0], 1).await;
    }
    wire.pass();
    gateway.caught_up(10).await;
    assert_eq!(count(&gateway).await, 10);
    assert_eq!(gateway.view().meters().reloads.get(), 0, "nothing was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_lost_its_history_to_compaction_loads_again() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    let message = |n: i64| samples("h0", 1, &["temperature"], &[T0 + n * 1000], |_, _| n as f64);
    for n in 0..4 {
        pipeline.enqueue(&lanes[0], &[message(n)]).await;
    }
    let (wire, gateway) = wired(&etcd).await;
    assert_eq!(count(&gateway).await, 4);
    wire.hold_requests();
    wire.hold_answers();
    pipeline.commit(&lanes[0], 3).await;
    pipeline.merge("h0").await;
    pipeline.enqueue(&lanes[0], &[message(4)]).await;
    pipeline.commit(&lanes[0], 1).await;
    pipeline.enqueue(&lanes[0], &[message(5)]).await;
    let newest = pipeline.etcd.revision().await.unwrap();
    etcd.etcdctl(&["compact", &newest.to_string()]);
    assert_eq!(count(&gateway).await, 4, "what it knows, it serves");
    wire.cut();
    let reloaded = || async { count(&gateway).await == 6 };
    eventually("everything is there again", Duration::from_secs(15), reloaded).await;
    assert!(gateway.view().meters().reloads.get() >= 1);
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    assert_eq!(latest["data"][0]["temperature"], 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_served_through_and_told() {
    let mut etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    pipeline.enqueue(&lanes[0], &[export("h0", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    etcd.kill();
    let stale = || async {
        let reply = gateway.get("/api/v1/telemetry").await;
        assert_eq!((reply.status, &reply.json()["count"]), (200, &8.into()));
        reply.headers["x-nexus-staleness-ms"].parse::<u64>().unwrap() > 10_000
    };
    eventually("the answers say that they are old", Duration::from_secs(20), stale).await;
    let ready = gateway.get("/readyz?verbose").await;
    assert!(ready.status == 503 && ready.text.contains("[-] etcd: nothing was heard"), "{ready:?}");
    assert_eq!(gateway.get("/health").await.status, 503);
    assert_eq!(gateway.get("/livez").await.status, 200);
    let stats = gateway.ok("/api/v1/clusters/local-cluster/stats").await;
    assert!(stats["instances"].is_null() && stats["samples"]["accepted"] == 20);
    etcd.restart();
    pipeline.enqueue(&lanes[0], &[export("h1", 2)]).await;
    gateway.caught_up(40).await;
    assert_eq!(count(&gateway).await, 16);
    let ready = || async { gateway.get("/readyz").await.status == 200 };
    eventually("ready again", Duration::from_secs(10), ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_process_ends_with_zero_after_it_served() {
    let etcd = TestEtcd::start();
    let port = nexus_common::testing::free_port();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nexus-gateway"))
        .env("ETCD_ENDPOINTS", etcd.endpoint())
        .env("PORT", port.to_string())
        .env("GATEWAY_ID", "gateway-1")
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ask = move |path: &str| {
        let url = format!("http://127.0.0.1:{port}{path}");
        async move {
            let call = move || ureq::get(url).call().ok()?.body_mut().read_to_string().ok();
            tokio::task::spawn_blocking(call).await.unwrap()
        }
    };
    let ready = || async { ask("/readyz").await.is_some() };
    eventually("the process is ready", Duration::from_secs(15), ready).await;
    let registered = etcd.etcdctl(&["get", "--prefix", "/telemetry/instances/gateway/"]);
    assert!(registered.contains(&format!("127.0.0.1:{port}")), "{registered}");
    let kill = std::process::Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(etcd.etcdctl(&["get", "--prefix", "/telemetry/instances/"]), "");
}
