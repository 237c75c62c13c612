//! Less than everything: some metrics, some fields, windows of time, other texts, what is known
//! already.

use std::collections::BTreeMap;

use nexus_common::{model::Role, testing::TestEtcd};
use serde_json::{Value, json};

use crate::{
    pipeline::{Pipeline, T0, export, uuid},
    rows::{interleaved, value},
    serve::Gateway,
};

fn rows(reply: &Value) -> &Vec<Value> {
    reply["data"].as_array().unwrap()
}

/// What ten-second windows of the second GPU come to, worked out another way.
fn expected(agg: &str) -> BTreeMap<i64, f64> {
    let mut windows: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for at in (0..100).map(|s| T0 + s * 1000) {
        windows.entry(at / 10_000 * 10_000).or_default().push(value(1, at));
    }
    let one = |values: Vec<f64>| match agg {
        "min" => values[0],
        "max" | "last" | "p95" => values[values.len() - 1],
        _ => values.iter().sum::<f64>() / values.len() as f64,
    };
    windows.into_iter().map(|(at, values)| (at, one(values))).collect()
}

fn found(rows: &[Value]) -> Vec<(i64, f64)> {
    let at = |row: &Value| {
        let at: nexus_common::model::Timestamp =
            row["timestamp"].as_str().unwrap().parse().unwrap();
        at.as_millis()
    };
    rows.iter().map(|row| (at(row), row["temperature"].as_f64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_hold_what_was_measured_in_them_page_by_page_in_both_directions() {
    let (_etcd, _pipeline, gateway) = interleaved().await;
    let path = format!("/api/v1/gpus/{}/telemetry?step=10s&metrics=temperature", uuid("h1", 1));
    for agg in ["avg", "min", "max", "last", "p95"] {
        let expected: Vec<_> = expected(agg).into_iter().collect();
        let all = gateway.ok(&format!("{path}&agg={agg}")).await;
        assert_eq!(found(rows(&all)), expected, "{agg}");
        assert!(rows(&all).iter().all(|row| row.get("power_draw").is_none()));
        for start in ["", "&start_time=2020-01-01T00:00:00Z"] {
            let mut pages: Vec<Vec<(i64, f64)>> = Vec::new();
            let mut next = format!("{path}&agg={agg}&limit=3{start}");
            loop {
                let reply = gateway.get(&next).await;
                pages.push(found(rows(&reply.json())));
                let Some(link) = reply.headers.get("link") else { break };
                next = link.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
            }
            assert_eq!(pages.len(), expected.len().div_ceil(3), "{agg} {start}");
            if start.is_empty() {
                pages.reverse();
            }
            assert_eq!(pages.concat(), expected, "{agg} {start}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_fields_are_what_was_asked_for() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2), export("dgx-002", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let path = format!("/api/v1/gpus/{}/telemetry", uuid("dgx-001", 0));
    let all = gateway.ok(&path).await;
    let some = gateway.ok(&format!("{path}?metrics=DCGM_FI_DEV_GPU_TEMP,gpu_utilization")).await;
    assert!(rows(&some).len() < rows(&all).len(), "rows without them are left out");
    for row in rows(&some) {
        assert!(row.get("temperature").is_some() || row.get("gpu_utilization").is_some());
        assert!(row.get("power_draw").is_none());
    }
    assert_eq!(gateway.ok(&format!("{path}?metrics=nothing")).await["count"], 0);
    let few = gateway.ok(&format!("{path}?fields=timestamp,uuid&limit=1")).await;
    let keys: Vec<_> = rows(&few)[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["timestamp", "uuid"]);
    let latest = gateway.ok("/api/v1/telemetry/latest?metrics=gpu_utilization").await;
    assert_eq!(latest["count"], 4);
    assert!(rows(&latest).iter().all(|row| row["gpu_utilization"].is_number()));
    assert!(rows(&latest).iter().all(|row| row["custom_metrics"] == json!({})));

    let gpus = gateway.get("/api/v1/gpus?fields=uuid,status&limit=3").await;
    assert_eq!(rows(&gpus.json())[0], json!({"uuid": uuid("dgx-001", 0), "status": "active"}));
    let link = &gpus.headers["link"];
    assert!(link.starts_with("</api/v1/gpus?fields=uuid,status&limit=3&cursor="), "{link}");
    assert!(link.ends_with(">; rel=\"next\""), "{link}");
    let cluster = "/api/v1/clusters/local-cluster";
    let hosts = gateway.get(&format!("{cluster}/hosts?limit=1&fields=host_id")).await;
    assert_eq!(hosts.json()["hosts"], json!([{"host_id": "dgx-001"}]));
    assert_eq!(hosts.json()["count"], 2);
    let path =
        format!("{cluster}/hosts?limit=1&cursor={}", hosts.json()["next_cursor"].as_str().unwrap());
    assert_eq!(gateway.ok(&path).await["hosts"][0]["host_id"], "dgx-002");
    assert_eq!(gateway.ok("/api/v1/hosts?status=stale").await["count"], 0);
    assert_eq!(gateway.ok("/api/v1/gpus?name=nothing").await["count"], 0);
    assert_eq!(gateway.ok("/api/v1/clusters?limit=1").await["count"], 1);
    assert_eq!(gateway.ok("/api/v1/hosts/dgx-001/gpus?limit=1").await["count"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_hold_every_row_as_lines_and_as_csv() {
    let (_etcd, _pipeline, gateway) = interleaved().await;
    let json = gateway.ok("/api/v1/telemetry?limit=10000").await;
    let get = async |query: &str, accept: &str| {
        let path = format!("/api/v1/telemetry{query}");
        gateway.send("GET", &path, &[("accept", accept)], None).await
    };
    let lines = get("", "application/x-ndjson").await;
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    let read: Vec<Value> = lines.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(&read, rows(&json));
    // Its end comes, packed as well.
    let packed = [("accept", "application/x-ndjson"), ("accept-encoding", "gzip")];
    let packed = gateway.send("GET", "/api/v1/telemetry", &packed, None).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");

    let csv = get("", "text/csv").await;
    assert!(csv.headers["content-type"].starts_with("text/csv"));
    let mut reader = csv::Reader::from_reader(csv.text.as_bytes());
    let read: Vec<BTreeMap<String, String>> =
        reader.deserialize().collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), rows(&json).len());
    for (csv, json) in read.iter().zip(rows(&json)) {
        assert_eq!(csv["timestamp"], json["timestamp"]);
        assert_eq!(csv["temperature"].parse::<f64>().unwrap(), json["temperature"]);
        assert_eq!(csv["gpu_utilization"], "", "never measured, so empty");
    }
    let some =
        get("?fields=timestamp,uuid&metrics=temperature,own_metric&limit=2", "text/csv").await;
    assert_eq!(some.text.lines().count(), 3);
    assert!(some.text.starts_with("timestamp,uuid,own_metric\n"), "{}", some.text);
    let newest = get("?limit=2&fields=timestamp", "application/x-ndjson").await;
    let last: Vec<Value> = rows(&json)[rows(&json).len() - 2..].to_vec();
    let last: Vec<String> =
        last.iter().map(|row| format!("{{\"timestamp\":{}}}", row["timestamp"])).collect();
    assert_eq!(newest.text.lines().collect::<Vec<_>>(), last);
    let refused = get("?limit=5000", "text/csv").await;
    assert_eq!((refused.status, &refused.json()["parameter"]), (400, &json!("limit")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_not_sent_again() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let of_gpu = format!("/api/v1/gpus/{}/telemetry", uuid("dgx-001", 0));
    for path in ["/api/v1/gpus", &of_gpu] {
        let first = gateway.get(path).await;
        let tag = first.headers["etag"].clone();
        let known =
            async |tag: &str| gateway.send("GET", path, &[("if-none-match", tag)], None).await;
        let again = known(&tag).await;
        assert_eq!((again.status, again.text.as_str()), (304, ""), "{path}");
        assert_eq!(again.headers["etag"], tag);
        assert!(again.headers.contains_key("x-nexus-revision"));
        assert_eq!(known("W/\"0.0j\"").await.text, first.text);
        let as_csv = [("accept", "text/csv"), ("if-none-match", tag.as_str())];
        let csv = gateway.send("GET", path, &as_csv, None);
        assert_eq!(csv.await.status, if path == of_gpu { 200 } else { 304 });
    }
    let before = (gateway.get("/api/v1/gpus").await, gateway.get(&of_gpu).await);
    pipeline.enqueue(&lanes[0], &[export("dgx-002", 2)]).await;
    gateway.caught_up(40).await;
    let after = (gateway.get("/api/v1/gpus").await, gateway.get(&of_gpu).await);
    assert_eq!(after.0.json()["count"], 4);
    assert_ne!(before.0.headers["etag"], after.0.headers["etag"]);
    assert_ne!(before.1.headers["x-nexus-revision"], after.1.headers["x-nexus-revision"]);
    assert_eq!(before.1.text, after.1.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_whether_they_are_kept_or_not_and_compressed_where_wanted() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 8)]).await;
    let keeping = Gateway::start(&etcd, "gateway-1").await;
    let process = etcd.process(Role::Gateway, "gateway-2", 10).await;
    let forgetting =
        Gateway::with(process, |args| args.answer_cache_bytes = 0).await.loaded().await;
    for round in 1..4 {
        for path in ["/api/v1/gpus", "/api/v1/telemetry?limit=7", "/api/v1/telemetry/latest"] {
            let (one, other) = (keeping.get(path).await, forgetting.get(path).await);
            assert_eq!(one.text, other.text, "{path}");
            assert_eq!(one.headers["etag"], other.headers["etag"], "{path}");
        }
        let host = format!("dgx-10{round}");
        pipeline.enqueue(&lanes[0], &[export(&host, 8)]).await;
        for gateway in [&keeping, &forgetting] {
            gateway.caught_up(80 * (round + 1)).await;
        }
    }
    let plain = keeping.get("/api/v1/gpus").await;
    assert!(plain.headers["vary"].contains("accept"));
    let packed = keeping.send("GET", "/api/v1/gpus", &[("accept-encoding", "gzip")], None).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    assert!(packed.text.len() < plain.text.len() / 4);
}
