//! What the gateway sends. Pure.

use nexus_common::model::{Gpu, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::{Topic, Wrong};
use crate::view::{Gap, GpuPlace, InventoryChange, LiveFilter, Snapshot};

/// GPUs in one frame: with the longest texts there are, as long as a frame may be.
pub(super) const GPUS_PER_FRAME: usize = 64;

fn now() -> Value {
    json!(Timestamp::now())
}

/// A subscription was begun.
pub(super) fn subscribed(id: &str, topic: Topic, filter: &LiveFilter, revision: i64) -> String {
    let mut filters = serde_json::Map::new();
    let texts = [("cluster", &filter.cluster), ("host", &filter.host), ("gpu_uuid", &filter.gpu)];
    for (name, text) in texts {
        if let Some(text) = text {
            filters.insert(name.to_owned(), json!(text));
        }
    }
    if let Some(metrics) = &filter.metrics {
        filters.insert("metrics".to_owned(), json!(metrics));
    }
    let topic = topic.as_str();
    json!({"type": "subscribed", "subscription": id, "topic": topic, "filters": filters,
        "revision": revision})
    .to_string()
}

/// Subscriptions were ended.
pub(super) fn unsubscribed(ids: &[String]) -> String {
    json!({"type": "unsubscribed", "subscriptions": ids}).to_string()
}

/// An answer to a ping.
pub(super) fn pong(id: Option<&str>, revision: i64) -> String {
    let mut pong = json!({"type": "pong", "timestamp": now(), "revision": revision});
    if let (Some(id), Some(fields)) = (id, pong.as_object_mut()) {
        fields.insert("id".to_owned(), json!(id));
    }
    pong.to_string()
}

/// A sign of life.
pub(super) fn heartbeat(revision: i64, staleness_ms: i64) -> String {
    json!({"type": "heartbeat", "timestamp": now(), "revision": revision,
        "staleness_ms": staleness_ms})
    .to_string()
}

/// A token was accepted.
pub(super) fn authenticated() -> String {
    json!({"type": "authenticated"}).to_string()
}

/// A frame was wrong.
pub(super) fn error(wrong: &Wrong) -> String {
    let mut frame = json!({"type": "error", "code": wrong.code, "error": wrong.detail});
    if let (Some(field), Some(fields)) = (&wrong.field, frame.as_object_mut()) {
        fields.insert("field".to_owned(), json!(field));
    }
    frame.to_string()
}

/// Something was skipped.
pub(super) fn gap(id: &str, topic: Topic, gap: &Gap) -> String {
    json!({"type": "gap", "subscription": id, "topic": topic.as_str(),
        "reason": gap.reason.as_str(), "from_revision": gap.from, "to_revision": gap.to,
        "skipped_updates": gap.updates})
    .to_string()
}

/// An update that is too long to be sent.
pub(super) fn too_long(id: &str, revision: i64, gpu: Option<&str>) -> String {
    json!({"type": "gap", "subscription": id, "topic": Topic::Telemetry.as_str(),
        "reason": "too-long", "from_revision": revision, "to_revision": revision,
        "skipped_updates": 1, "gpu_uuid": gpu})
    .to_string()
}

/// Changes of the inventory that a subscriber was too slow for.
pub(super) fn inventory_gap(id: &str, revision: i64, skipped: u64) -> String {
    json!({"type": "gap", "subscription": id, "topic": Topic::Inventory.as_str(),
        "reason": "slow", "from_revision": null, "to_revision": revision,
        "skipped_updates": skipped})
    .to_string()
}

/// A GPU as `/api/v1/gpus` shows it, without what changes all the time.
#[derive(Serialize)]
struct GpuEntry<'a> {
    id: &'a str,
    uuid: Option<&'a str>,
    hostname: &'a str,
    name: Option<&'a str>,
    device: Option<&'a str>,
    gpu_id: &'a str,
    cluster_id: &'a str,
    driver_version: Option<&'a str>,
    mig_profile: Option<&'a str>,
}

fn entry<'a>((place, gpu): &'a (GpuPlace, Gpu)) -> GpuEntry<'a> {
    fn known(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }
    GpuEntry {
        id: &gpu.index,
        uuid: known(&gpu.uuid),
        hostname: place.host.as_str(),
        name: known(&gpu.model),
        device: known(&gpu.device),
        gpu_id: gpu.id.as_str(),
        cluster_id: place.cluster.as_str(),
        driver_version: known(&gpu.driver),
        mig_profile: known(&gpu.mig_profile),
    }
}

/// What of a change matches, in as many frames as it takes.
pub(super) fn inventory(
    id: &str,
    change: &InventoryChange,
    filter: &LiveFilter,
    snapshot: bool,
) -> Vec<String> {
    let lists =
        [("added", &change.added), ("changed", &change.changed), ("removed", &change.removed)];
    let mut frames = Vec::new();
    for (name, list) in lists {
        let wanted: Vec<GpuEntry<'_>> = list
            .iter()
            .filter(|(place, _)| filter.wants_host(&place.cluster, &place.host))
            .filter(|(_, gpu)| filter.wants_gpu(Some(gpu)))
            .map(entry)
            .collect();
        for some in wanted.chunks(GPUS_PER_FRAME) {
            let mut frame = json!({"type": "inventory_update", "subscription": id,
                "timestamp": now(), "revision": change.revision, name: some});
            if let (true, Some(fields)) = (snapshot, frame.as_object_mut()) {
                fields.insert("snapshot".to_owned(), Value::Bool(true));
            }
            frames.push(frame.to_string());
        }
    }
    frames
}

/// What the pipeline holds, without the brace it begins with and who it is for: made once for
/// all who want it.
pub(super) fn pipeline(snapshot: &Snapshot, staleness_ms: i64) -> String {
    let lanes = snapshot.lanes.values();
    let (accepted, done) = lanes.fold((0, 0), |(samples, done), progress| {
        (samples + progress.samples, done + usize::from(progress.done))
    });
    let retired: u64 = snapshot.retired.values().map(|retired| retired.samples).sum();
    let gpus: usize = snapshot.hosts().map(|(_, _, host)| host.gpus.len()).sum();
    let frame = json!({"timestamp": now(), "revision": snapshot.revision,
    "staleness_ms": staleness_ms,
    "data": {
        "clusters": snapshot.clusters.len(), "hosts": snapshot.hosts().count(), "gpus": gpus,
        "samples": {"accepted": accepted, "queued": snapshot.queue.samples,
            "stored": snapshot.stored_samples(), "retired": retired,
            "unreadable": snapshot.queue.unreadable_samples},
        "queue": {"messages": snapshot.queue.messages, "bytes": snapshot.queue.bytes},
        "blocks": snapshot.block_count(),
        "shards": {"total": snapshot.lanes.len(), "done": done},
    }});
    frame.to_string().split_off(1)
}

/// The beginning of a frame of a subscription; the rest is shared.
pub(super) fn prefix(kind: &str, id: &str) -> String {
    format!("{{\"type\":{},\"subscription\":{},", json!(kind), json!(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::GapReason;

    #[test]
    fn frames_are_json_with_the_fields_that_users_know() {
        let check = |frame: String, expected: Value| {
            let mut found: Value = serde_json::from_str(&frame).unwrap();
            let fields = found.as_object_mut().unwrap();
            if let Some(at) = fields.remove("timestamp") {
                assert!(at.as_str().unwrap().parse::<Timestamp>().is_ok(), "{at}");
            }
            assert_eq!(found, expected);
        };
        let filter = LiveFilter { host: Some("a".to_owned()), ..LiveFilter::default() };
        check(
            subscribed("1", Topic::Telemetry, &filter, 7),
            json!({"type": "subscribed", "subscription": "1", "topic": "telemetry",
                "filters": {"host": "a"}, "revision": 7}),
        );
        check(
            unsubscribed(&["1".to_owned()]),
            json!({"type": "unsubscribed", "subscriptions": ["1"]}),
        );
        check(pong(Some("x"), 7), json!({"type": "pong", "id": "x", "revision": 7}));
        check(heartbeat(7, 12), json!({"type": "heartbeat", "revision": 7, "staleness_ms": 12}));
        let lost = Gap { reason: GapReason::Slow, from: 3, to: 9, updates: Some(5) };
        check(
            gap("1", Topic::Telemetry, &lost),
            json!({"type": "gap", "subscription": "1", "topic": "telemetry", "reason": "slow",
                "from_revision": 3, "to_revision": 9, "skipped_updates": 5}),
        );
        check(
            error(&Wrong { code: "bad-field", field: Some("from".to_owned()), detail: "d".into() }),
            json!({"type": "error", "code": "bad-field", "field": "from", "error": "d"}),
        );
        let text = prefix("pipeline_update", "a\"b") + &pipeline(&Snapshot::empty(7), 1);
        let frame: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&frame["subscription"], &frame["data"]["blocks"]), (&json!("a\"b"), &json!(0)));
    }

    #[test]
    fn a_long_inventory_comes_in_several_frames_of_what_matches() {
        let gpu = |n: usize| {
            let id = format!("GPU-{n}");
            let host = format!("h{}", n % 2).parse().unwrap();
            let place = GpuPlace { cluster: "c".parse().unwrap(), host, gpu: id.parse().unwrap() };
            let gpu = Gpu {
                id: id.parse().unwrap(),
                uuid: id,
                index: n.to_string(),
                device: String::new(),
                model: "H100".to_owned(),
                driver: String::new(),
                mig_profile: String::new(),
            };
            (place, gpu)
        };
        let added = (0..200).map(gpu).collect();
        let change = InventoryChange { revision: 5, added, ..InventoryChange::default() };
        let check = |host: Option<&str>, frames: usize, gpus: usize| {
            let filter = LiveFilter { host: host.map(str::to_owned), ..LiveFilter::default() };
            let found = inventory("1", &change, &filter, true);
            let values: Vec<Value> =
                found.iter().map(|frame| serde_json::from_str(frame).unwrap()).collect();
            let count = |v: &Value| v["added"].as_array().unwrap().len();
            assert_eq!((values.len(), values.iter().map(count).sum()), (frames, gpus));
            assert!(values.iter().all(|v| v["snapshot"] == true && v["revision"] == 5));
        };
        check(None, 4, 200);
        check(Some("h1"), 2, 100);
        check(Some("h2"), 0, 0);
    }
}
