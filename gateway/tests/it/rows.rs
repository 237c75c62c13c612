//! Which rows an answer has: newest or oldest, both ends inclusive, page by page.

use nexus_common::{
    model::{Labels, Timestamp},
    testing::TestEtcd,
};
use serde_json::Value;

use crate::{
    pipeline::{Pipeline, T0, gpu, samples, uuid},
    serve::Gateway,
};

const METRICS: [&str; 2] = ["temperature", "power_draw"];

fn at(second: i64) -> String {
    Timestamp::from_millis(T0 + second * 1000).unwrap().to_string()
}

fn seconds(of: std::ops::Range<i64>) -> Vec<i64> {
    of.map(|s| T0 + s * 1000).collect()
}

/// Two GPUs over a hundred seconds: overlapping blocks, a merged block, and a queue, none of
/// them in the order of time.
pub(crate) async fn interleaved() -> (TestEtcd, Pipeline, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 2).await;
    let odd = |s: &i64| (s / 1000) % 2 == 1;
    let (first, second): (Vec<i64>, Vec<i64>) = seconds(0..40).into_iter().partition(odd);
    for times in [first, second, seconds(60..80), seconds(40..60)] {
        pipeline.enqueue(&lanes[0], &[samples("h1", 2, &METRICS, &times, value)]).await;
        pipeline.commit(&lanes[0], 1).await;
    }
    pipeline.merge("h1").await;
    for times in [seconds(90..100), seconds(80..90)] {
        pipeline.enqueue(&lanes[0], &[samples("h1", 2, &METRICS, &times, value)]).await;
        pipeline.commit(&lanes[0], 1).await;
        pipeline.enqueue(&lanes[1], &[samples("h2", 2, &METRICS, &times, value)]).await;
    }
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, pipeline, gateway)
}

pub(crate) fn value(gpu: usize, at: i64) -> f64 {
    gpu as f64 * 1000.0 + ((at - T0) / 1000) as f64
}

async fn rows(gateway: &Gateway, query: &str) -> Vec<Value> {
    let path = format!("/api/v1/gpus/{}/telemetry?{query}", uuid("h1", 1));
    let reply = gateway.ok(&path).await;
    let rows = reply["data"].as_array().unwrap().clone();
    assert_eq!(reply["count"], rows.len());
    for row in &rows {
        let at: Timestamp = row["timestamp"].as_str().unwrap().parse().unwrap();
        let expected = value(1, at.as_millis());
        assert_eq!((&row["temperature"], &row["power_draw"]), (&expected.into(), &expected.into()));
        assert!(row.get("gpu_utilization").is_none(), "never measured, so absent");
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_start_the_newest_rows_come_and_with_one_the_oldest() {
    let (_etcd, _pipeline, gateway) = interleaved().await;
    let check = async |query: &str, first: i64, last: i64| {
        let rows = rows(&gateway, query).await;
        let found: Vec<&str> = rows.iter().map(|r| r["timestamp"].as_str().unwrap()).collect();
        let expected: Vec<String> = (first..=last).map(at).collect();
        assert_eq!(found, expected, "{query}");
    };
    check("", 0, 99).await;
    check("limit=3", 97, 99).await;
    check("limit=25", 75, 99).await;
    check(&format!("end_time={}", at(41)), 0, 41).await;
    check(&format!("end_time={}&limit=5", at(41)), 37, 41).await;
    check(&format!("start_time={}&limit=5", at(41)), 41, 45).await;
    check(&format!("start_time={}&end_time={}", at(38), at(42)), 38, 42).await;
    check(&format!("start_time={0}&end_time={0}", at(50)), 50, 50).await;
    check(&format!("start_time={}", at(99)), 99, 99).await;
    let zone = "2025-07-18T22:42:39%2B02:00";
    check(&format!("start_time={zone}&limit=1"), 5, 5).await;
    let none = rows(&gateway, &format!("start_time={}", at(100))).await;
    assert!(none.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_row_once_in_both_directions() {
    let (_etcd, _pipeline, gateway) = interleaved().await;
    let all = gateway.ok("/api/v1/telemetry?limit=10000").await;
    let all = all["data"].as_array().unwrap().clone();
    assert_eq!(all.len(), 240);
    for (query, newest) in [("limit=7", true), ("limit=7&start_time=2000-01-01T00:00:00Z", false)] {
        let mut seen: Vec<Value> = Vec::new();
        let mut path = format!("/api/v1/telemetry?{query}");
        loop {
            let page = gateway.ok(&path).await;
            let rows = page["data"].as_array().unwrap().clone();
            seen = if newest { [rows, seen].concat() } else { [seen, rows].concat() };
            let Some(next) = page["next_cursor"].as_str() else { break };
            path = format!("/api/v1/telemetry?{query}&cursor={next}");
        }
        assert_eq!(seen, all, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_have_rows_too_and_labels_tell_series_apart() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    let mut host = samples("h1", 1, &["temperature"], &[T0], |_, _| 40.0);
    let one = host.series[0].clone();
    let labels =
        |pairs: &[(&'static str, &'static str)]| Labels::new(pairs.iter().copied()).unwrap();
    let mut add = |metric: &str, gpu: Option<u32>, pairs: &[(&'static str, &'static str)], v| {
        let (metric, labels) = (metric.parse().unwrap(), labels(pairs));
        let series = (gpu, metric, labels, vec![v]);
        let (gpu, metric, labels, values) = series;
        host.series.push(nexus_common::model::SeriesSamples {
            gpu,
            metric,
            labels,
            values,
            ..one.clone()
        });
    };
    add("node_load1", None, &[], 1.5);
    add("temperature", Some(0), &[("sensor", "b"), ("pod", "p")], 50.0);
    add("nvlink", Some(0), &[("link", "0"), ("pod", "p")], 1.0);
    add("nvlink", Some(0), &[("link", "1"), ("pod", "p")], 2.0);
    pipeline.enqueue(&lanes[0], &[host]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let rows = gateway.ok("/api/v1/telemetry").await;
    let (own, of_gpu) = (&rows["data"][0], &rows["data"][1]);
    assert_eq!(own["telemetry_id"], format!("h1_host_{}", T0 / 1000));
    assert!(own["gpu_id"].is_null() && own["uuid"].is_null());
    assert_eq!(own["custom_metrics"], serde_json::json!({"node_load1": 1.5}));
    assert_eq!(of_gpu["temperature"], 40.0);
    let custom = serde_json::json!({
        "nvlink": 1.0,
        "nvlink{link=\"1\",pod=\"p\"}": 2.0,
        "temperature{pod=\"p\",sensor=\"b\"}": 50.0,
    });
    assert_eq!(of_gpu["custom_metrics"], custom);
    assert_eq!(of_gpu["labels"], serde_json::json!({"pod": "p", "sensor": "b"}));
    assert_eq!(of_gpu["uuid"], gpu("h1", 0).uuid);
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    assert_eq!(latest["data"], rows["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fell_silent_is_stale() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    let sent = |host: &str, second: i64| {
        samples(host, 1, &["temperature"], &[T0 + second * 1000], |_, _| 1.0)
    };
    // The window is 300 s behind the newest sample of the cluster, both ends inclusive.
    let hosts = [sent("old", 0), sent("edge", 1), sent("new", 301)];
    pipeline.enqueue(&lanes[0], &hosts).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let stale = gateway.ok("/api/v1/gpus?status=stale").await;
    assert_eq!((&stale["count"], &stale["data"][0]["hostname"]), (&1.into(), &"old".into()));
    let cluster = gateway.ok("/api/v1/clusters/local-cluster").await;
    assert_eq!(cluster["metadata"]["active_hosts"], 2);
    let host = gateway.ok("/api/v1/clusters/local-cluster/hosts/old").await;
    assert_eq!(host["status"], "stale");
}
