//! Each route and its JSON, over the export users have.

use std::time::Duration;

use nexus_common::testing::{TestEtcd, eventually};
use serde_json::{Value, json};

use crate::{
    pipeline::{Pipeline, T0, export, uuid},
    serve::Gateway,
};

/// 31 hosts with 247 GPUs; half of it committed, half still in the queue.
async fn exported() -> (TestEtcd, Pipeline, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 2).await;
    for host in 1..=31 {
        let name = format!("dgx-{host:03}");
        let samples = export(&name, if host == 31 { 7 } else { 8 });
        pipeline.enqueue(&lanes[host % 2], &[samples]).await;
    }
    assert_eq!(pipeline.commit(&lanes[0], 100).await, 15);
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, pipeline, gateway)
}

fn array<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_serves_the_export_exactly() {
    let (_etcd, mut pipeline, gateway) = exported().await;
    inventory(&gateway).await;
    telemetry(&gateway).await;
    latest(&gateway).await;
    figures(&gateway).await;
    health(&gateway).await;
    // Committing the rest changes where samples lie, and not one answer.
    let before = gateway.ok("/api/v1/telemetry?limit=10000").await;
    let lanes = pipeline.source("other", 1).await;
    drop(lanes);
    let lane = nexus_common::model::Lane {
        source: "export".parse().unwrap(),
        shard: nexus_common::model::ShardId(1),
    };
    assert_eq!(pipeline.commit(&lane, 100).await, 16);
    let moved = || async { gateway.view().snapshot().unwrap().queue.messages == 0 };
    eventually("the queue is empty", Duration::from_secs(5), moved).await;
    assert_eq!(gateway.ok("/api/v1/telemetry?limit=10000").await, before);
    telemetry(&gateway).await;
}

async fn inventory(gateway: &Gateway) {
    let gpus = gateway.ok("/api/v1/gpus").await;
    assert_eq!((&gpus["success"], &gpus["count"]), (&json!(true), &json!(247)));
    assert_eq!(array(&gpus, "data").len(), 247);
    let first = &gpus["data"][0];
    let expected = json!({
        "id": "0", "uuid": uuid("dgx-001", 0), "hostname": "dgx-001",
        "name": "NVIDIA H100 80GB HBM3", "device": "nvidia0", "status": "active",
        "gpu_id": uuid("dgx-001", 0), "cluster_id": "local-cluster",
        "driver_version": "535.129.03", "mig_profile": null,
        "last_seen": "2025-07-18T20:42:37Z",
    });
    assert_eq!(*first, expected);

    let one = gateway.ok(&format!("/api/v1/gpus/{}", uuid("dgx-001", 0))).await;
    assert_eq!(
        (&one["success"], &one["data"], &one["uuid"]),
        (&json!(true), first, &first["uuid"])
    );

    let active = gateway.ok("/api/v1/gpus?host=dgx-031&status=active&cluster=local-cluster").await;
    assert_eq!(active["count"], 7);
    assert_eq!(gateway.ok("/api/v1/gpus?status=stale").await["count"], 0);

    let mut seen = Vec::new();
    let mut path = "/api/v1/gpus?limit=100".to_owned();
    loop {
        let page = gateway.ok(&path).await;
        assert_eq!(page["count"], 247);
        seen.extend(array(&page, "data").clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/gpus?limit=100&cursor={next}");
    }
    assert_eq!(Value::from(seen), gpus["data"]);

    let hosts = gateway.ok("/api/v1/hosts").await;
    assert_eq!((&hosts["count"], &hosts["data"][30]), (&json!(31), &json!("dgx-031")));
    assert_eq!(gateway.ok("/api/v1/hosts/dgx-031/gpus").await["count"], 7);

    let clusters = gateway.ok("/api/v1/clusters").await;
    assert_eq!(clusters["clusters"], clusters["data"]);
    let cluster = gateway.ok("/api/v1/clusters/local-cluster").await;
    assert_eq!(clusters["data"], json!([cluster]));
    let metadata = json!({
        "total_hosts": 31, "total_gpus": 247, "active_hosts": 31, "active_gpus": 247,
        "last_updated": "2025-07-18T20:42:37Z",
    });
    assert_eq!(cluster["metadata"], metadata);

    let base = "/api/v1/clusters/local-cluster/hosts";
    let hosts = gateway.ok(base).await;
    assert_eq!((&hosts["count"], array(&hosts, "hosts").len()), (&json!(31), 31));
    let host = gateway.ok(&format!("{base}/dgx-002")).await;
    assert_eq!(host, hosts["hosts"][1]);
    assert_eq!((&host["status"], &host["gpu_count"]), (&json!("active"), &json!(8)));
    assert_eq!(gateway.ok(&format!("{base}/dgx-002/gpus")).await["count"], 8);
    let by_index = gateway.ok(&format!("{base}/dgx-002/gpus/3")).await;
    let by_uuid = gateway.ok(&format!("{base}/dgx-002/gpus/{}", uuid("dgx-002", 3))).await;
    assert_eq!((&by_index, &by_index["device"]), (&by_uuid, &json!("nvidia3")));
}

async fn telemetry(gateway: &Gateway) {
    // One GPU of a committed host and one of a queued host.
    for host in ["dgx-002", "dgx-001"] {
        let rows = gateway.ok(&format!("/api/v1/gpus/{}/telemetry", uuid(host, 3))).await;
        assert_eq!(rows["count"], 4);
        let first = json!({
            "telemetry_id": format!("{host}_3_{}", T0 / 1000),
            "timestamp": "2025-07-18T20:42:34Z", "gpu_id": "3", "uuid": uuid(host, 3),
            "device": "nvidia3", "model_name": "NVIDIA H100 80GB HBM3", "hostname": host,
            "cluster_id": "local-cluster", "gpu_utilization": 3.0, "memory_utilization": 3.0,
            "power_draw": 3.0, "custom_metrics": {},
        });
        assert_eq!(rows["data"][0], first);
        assert_eq!(rows["data"][2]["custom_metrics"], json!({"decoder_utilization": 3.0}));
        let base = format!("/api/v1/clusters/local-cluster/hosts/{host}/gpus/3");
        assert_eq!(gateway.ok(&format!("{base}/telemetry")).await["telemetry"], rows["data"]);
        assert_eq!(gateway.ok(&format!("{base}/metrics")).await["metrics"], rows["data"]);
    }
    let all = gateway.ok("/api/v1/telemetry?limit=10000").await;
    assert_eq!((&all["count"], array(&all, "data").len()), (&json!(988), 988));
    let samples: usize = array(&all, "data").iter().map(samples_of).sum();
    assert_eq!(samples, 2470);
    let of_host = gateway.ok("/api/v1/telemetry?host_id=dgx-031&cluster_id=local-cluster").await;
    assert_eq!(of_host["count"], 28);
    let of_gpu = gateway.ok("/api/v1/telemetry?host_id=dgx-031&gpu_id=6").await;
    assert_eq!(of_gpu["count"], 4);
    assert_eq!(gateway.ok("/api/v1/telemetry?gpu_id=nobody").await["count"], 0);
    assert_eq!(gateway.ok("/api/v1/telemetry").await["count"], 100);
}

fn samples_of(row: &Value) -> usize {
    let fields = [
        "gpu_utilization",
        "memory_utilization",
        "memory_used_mb",
        "memory_free_mb",
        "temperature",
        "power_draw",
        "sm_clock_mhz",
        "memory_clock_mhz",
    ];
    let known = fields.iter().filter(|f| row[**f].is_number()).count();
    known + row["custom_metrics"].as_object().unwrap().len()
}

async fn latest(gateway: &Gateway) {
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    assert_eq!(latest["count"], 247);
    for row in array(&latest, "data") {
        assert_eq!(samples_of(row), 10, "{row}");
        assert_eq!(row["timestamp"], "2025-07-18T20:42:37Z");
    }
    let page = gateway.ok("/api/v1/telemetry/latest?host_id=dgx-002&limit=5").await;
    let next = page["next_cursor"].as_str().unwrap();
    let path = format!("/api/v1/telemetry/latest?host_id=dgx-002&limit=5&cursor={next}");
    let rest = gateway.ok(&path).await;
    assert_eq!((&page["count"], &rest["count"]), (&json!(5), &json!(3)));
    assert!(rest["next_cursor"].is_null());
}

async fn figures(gateway: &Gateway) {
    let stats = gateway.ok("/api/v1/clusters/local-cluster/stats").await;
    assert_eq!((&stats["hosts"], &stats["gpus"]), (&json!(31), &json!(247)));
    let samples = &stats["samples"];
    assert_eq!((&samples["accepted"], &samples["stored"]), (&json!(2470), &json!(1200)));
    assert_eq!((&samples["queued"], &samples["rejected"]), (&json!(1270), &json!(0)));
    assert_eq!((&stats["blocks"], &stats["shards"]["total"]), (&json!(15), &json!(2)));
    let span = json!({"first": "2025-07-18T20:42:34Z", "last": "2025-07-18T20:42:37Z"});
    assert_eq!(stats["span"], span);
    assert!(stats["bytes"].as_u64().unwrap() > 0);
    assert_eq!(stats["instances"], json!([]), "these tests write without registering");

    let audit = gateway.ok("/audit").await;
    assert_eq!((&audit["clean"], &audit["delta"]), (&json!(true), &json!(0)));
    assert_eq!(audit["samples"]["accepted"], 2470);
}

async fn health(gateway: &Gateway) {
    let health = gateway.ok("/health").await;
    assert_eq!(
        (&health["status"], &health["cluster_id"]),
        (&json!("healthy"), &json!("local-cluster"))
    );
    let text = |path: &'static str| async move { gateway.get(path).await.text };
    assert_eq!(text("/livez").await, "alive\n");
    assert_eq!(text("/readyz").await, "ready\n");
    let verbose = text("/readyz?verbose").await;
    assert!(verbose.contains("[+] view: revision") && verbose.ends_with("ready\n"), "{verbose}");
    let metrics = text("/metrics").await;
    for name in [
        "nexus_view_revision ",
        "nexus_view_index_blocks 15",
        "nexus_view_queued_messages 16",
        "nexus_view_cache_bytes ",
        "nexus_http_requests_total{route=\"/api/v1/gpus\",status=\"200\"}",
        "nexus_http_request_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_give_the_same_answer_at_the_same_revision() {
    let (etcd, mut pipeline, first) = exported().await;
    let lanes = pipeline.source("more", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-032", 8)]).await;
    // One has seen the changes come, the other has loaded what they came to.
    let second = Gateway::start(&etcd, "gateway-2").await;
    first.caught_up(2550).await;
    for path in ["/api/v1/telemetry?limit=10000", "/api/v1/gpus", "/api/v1/telemetry/latest"] {
        let (a, b) = (first.get(path).await, second.get(path).await);
        assert_eq!(a.text, b.text, "{path}");
    }
    let count = first.ok("/api/v1/gpus").await["count"].clone();
    assert_eq!(count, 255);
}
