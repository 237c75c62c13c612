//! What is wrong is said as a problem that names it.

use std::time::Duration;

use nexus_common::testing::{TestEtcd, eventually};

use crate::{
    pipeline::{Pipeline, export, uuid},
    serve::{Gateway, Reply},
};

fn is_problem(reply: &Reply, status: u16, path: &str) {
    assert_eq!(reply.status, status, "{path}: {}", reply.text);
    assert_eq!(reply.headers["content-type"], "application/problem+json", "{path}");
    let problem = reply.json();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["success"], false);
    assert_eq!(problem["error"], problem["detail"]);
    assert_eq!(problem["request_id"], reply.headers["x-request-id"]);
    assert_eq!(problem["instance"], path.split('?').next().unwrap());
    for field in ["type", "title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|t| !t.is_empty()), "{field} of {path}");
    }
    assert!(reply.headers.contains_key("x-nexus-revision"));
    assert!(reply.headers.contains_key("x-nexus-staleness-ms"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_that_names_what_is_wrong() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let of_gpu = format!("/api/v1/gpus/{}/telemetry", uuid("dgx-001", 0));

    for (query, parameter) in [
        ("start_time=yesterday", "start_time"),
        ("end_time=2025-07-18", "end_time"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=-1", "limit"),
        ("cursor=nonsense", "cursor"),
        ("from=1", "from"),
        ("start_time=2025-07-18T20:42:35Z&end_time=2025-07-18T20:42:34Z", "end_time"),
    ] {
        for path in [format!("{of_gpu}?{query}"), format!("/api/v1/telemetry?{query}")] {
            let reply = gateway.get(&path).await;
            is_problem(&reply, 400, &path);
            assert_eq!(reply.json()["parameter"], parameter, "{path}");
            assert!(reply.json()["allowed"].is_string());
        }
    }
    for path in [
        "/api/v1/gpus?status=broken",
        "/api/v1/gpus?colour=red",
        "/api/v1/hosts?cursor=x&cursor=y",
        "/api/v1/clusters?colour=red",
        "/health?x=1",
        "/readyz?verbose=perhaps",
        "/api/v1/gpus?limit=%ff",
    ] {
        is_problem(&gateway.get(path).await, 400, path);
    }
    let cluster = "/api/v1/clusters/local-cluster";
    for path in [
        "/nothing".to_owned(),
        "/api/v1/nothing".to_owned(),
        "/swagger/nothing.js".to_owned(),
        "/api/v1/gpus/GPU-unknown".to_owned(),
        "/api/v1/gpus/GPU-unknown/telemetry".to_owned(),
        "/api/v1/gpus/a%2Fb%00".to_owned(),
        "/api/v1/hosts/unknown/gpus".to_owned(),
        "/api/v1/clusters/unknown".to_owned(),
        "/api/v1/clusters/unknown/stats".to_owned(),
        "/api/v1/clusters/unknown/hosts".to_owned(),
        format!("{cluster}/hosts/unknown"),
        format!("{cluster}/hosts/unknown/gpus"),
        format!("{cluster}/hosts/dgx-001/gpus/7"),
        format!("{cluster}/hosts/dgx-001/gpus/7/metrics"),
        format!("{cluster}/hosts/dgx-001/gpus/7/telemetry"),
    ] {
        is_problem(&gateway.get(&path).await, 404, &path);
    }
    let path = "/api/v1/gpus";
    for method in ["POST", "PUT", "DELETE"] {
        let reply = gateway.send(method, path, &[], None).await;
        is_problem(&reply, 405, path);
        assert_eq!(reply.headers["allow"], "GET,HEAD");
    }
    let with_body = gateway.send("GET", path, &[], Some("{}")).await;
    is_problem(&with_body, 413, path);
    for path in ["/api/v1/csv/upload", "/api/v1/write"] {
        is_problem(&gateway.send("GET", path, &[], Some("{}")).await, 405, path);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_given_back_and_a_bad_one_is_replaced() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let given = gateway.send("GET", "/livez", &[("x-request-id", "mine-1")], None).await;
    assert_eq!(given.headers["x-request-id"], "mine-1");
    let bad = gateway.send("GET", "/livez", &[("x-request-id", "a b{}")], None).await;
    assert_ne!(bad.headers["x-request-id"], "a b{}");
    let other = gateway.get("/livez").await;
    assert_ne!(bad.headers["x-request-id"], other.headers["x-request-id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_view_is_loaded_everything_says_so_and_a_drain_ends_readiness() {
    let mut etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    etcd.kill();
    let gateway = Gateway::start_unloaded(&etcd, "gateway-1").await;
    for path in ["/api/v1/gpus", "/api/v1/telemetry", "/api/v1/clusters/x/stats"] {
        let reply = gateway.get(path).await;
        is_problem(&reply, 503, path);
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(reply.headers["x-nexus-staleness-ms"], "-1");
    }
    let health = gateway.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &"unhealthy".into()));
    assert_eq!(gateway.get("/livez").await.status, 200);
    assert_eq!(gateway.get("/readyz").await.status, 503);
    etcd.restart();
    let ready = || async { gateway.get("/readyz").await.status == 200 };
    eventually("ready once etcd is there", Duration::from_secs(15), ready).await;
    assert_eq!(gateway.ok("/api/v1/gpus").await["count"], 0);
}
