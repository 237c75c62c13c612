//! What clients send, checked by name: what is wrong is named, with what is allowed. Pure.

use std::collections::BTreeSet;

use nexus_common::model::MetricName;
use serde_json::{Map, Value};

use crate::view::{LiveFilter, Since};

/// Longest message, in bytes: a subscription to 64 metrics takes a tenth of it.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Most metrics of one subscription.
pub const METRICS_MAX: usize = 64;
/// Most subscriptions of one connection: a dashboard shows a few dozen things.
pub const SUBSCRIPTIONS_MAX: usize = 64;
/// Longest id or name a client may give, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// What can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// What is measured.
    Telemetry,
    /// GPUs that come, change and go.
    Inventory,
    /// What the pipeline moves.
    Pipeline,
}

impl Topic {
    /// As it is written.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Inventory => "inventory",
            Self::Pipeline => "pipeline",
        }
    }
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// Begin to send.
    Subscribe {
        /// What the client calls it; numbered if it gave nothing.
        id: Option<String>,
        /// What to send.
        topic: Topic,
        /// Of what.
        filter: LiveFilter,
        /// From where on.
        since: Since,
    },
    /// Stop sending: what matches all that is given.
    Unsubscribe {
        /// This subscription.
        id: Option<String>,
        /// Those of this topic.
        topic: Option<Topic>,
        /// Those with this filter.
        filter: Option<LiveFilter>,
    },
    /// Answer.
    Ping {
        /// To be in the answer.
        id: Option<String>,
    },
    /// This is who I am.
    Auth {
        /// Never logged.
        token: String,
    },
}

/// What is wrong with a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Which kind of wrong, as one word.
    pub(super) code: &'static str,
    /// The field, if it is one.
    pub(super) field: Option<String>,
    /// In words.
    pub(super) detail: String,
}

impl Wrong {
    /// About the frame, or the connection.
    pub(super) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, field: None, detail: detail.into() }
    }

    fn field(field: &str, found: &Value, allowed: &str) -> Self {
        let mut found: String = found.to_string().chars().take(64).collect();
        if found == "null" {
            "nothing".clone_into(&mut found);
        }
        let detail = format!("{field}: {found} is not {allowed}");
        Self { code: "bad-field", field: Some(field.to_owned()), detail }
    }
}

impl Request {
    /// Reads a text frame.
    ///
    /// # Errors
    /// What is wrong with it, by name.
    pub(super) fn read(text: &str) -> Result<Self, Wrong> {
        let frame: Value = serde_json::from_str(text)
            .map_err(|error| Wrong::new("bad-json", format!("this is not JSON: {error}")))?;
        let Value::Object(frame) = frame else {
            return Err(Wrong::new(
                "bad-json",
                "a frame is a JSON object such as {\"type\":\"ping\"}",
            ));
        };
        let kind = frame.get("type").unwrap_or(&Value::Null);
        let fields = match kind.as_str() {
            Some("subscribe") => &["type", "id", "topic", "filters", "from"][..],
            Some("unsubscribe") => &["type", "id", "topic", "filters"],
            Some("ping") => &["type", "id"],
            Some("auth") => &["type", "token"],
            _ => {
                let allowed = "one of subscribe, unsubscribe, ping, auth";
                return Err(Wrong { code: "unknown-type", ..Wrong::field("type", kind, allowed) });
            }
        };
        known(&frame, fields, "")?;
        let id = text_of(&frame, "id", "")?;
        match kind.as_str() {
            Some("subscribe") => {
                let topic = topic(&frame)?;
                let topic = topic.ok_or_else(|| Wrong::field("topic", &Value::Null, TOPICS))?;
                let filter = filter(&frame, topic)?.unwrap_or_default();
                Ok(Self::Subscribe { id, topic, filter, since: since(&frame, topic)? })
            }
            Some("unsubscribe") => {
                let topic = topic(&frame)?;
                let filter = filter(&frame, topic.unwrap_or(Topic::Telemetry))?;
                Ok(Self::Unsubscribe { id, topic, filter })
            }
            Some("auth") => {
                let token = text_of(&frame, "token", "")?;
                let token = token.ok_or_else(|| Wrong::field("token", &Value::Null, "a token"))?;
                Ok(Self::Auth { token })
            }
            _ => Ok(Self::Ping { id }),
        }
    }
}

const TOPICS: &str = "one of telemetry, inventory, pipeline";

fn known(object: &Map<String, Value>, fields: &[&str], within: &str) -> Result<(), Wrong> {
    let Some(name) = object.keys().find(|name| !fields.contains(&name.as_str())) else {
        return Ok(());
    };
    let name: String = name.chars().take(64).collect();
    let allowed = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
    let field = format!("{within}{name}");
    let detail = format!("{field}: there is no such field; allowed: {allowed}");
    Err(Wrong { code: "unknown-field", field: Some(field), detail })
}

fn text_of(object: &Map<String, Value>, name: &str, within: &str) -> Result<Option<String>, Wrong> {
    let wrong = |found: &Value| {
        let allowed = format!("text of 1 to {TEXT_BYTES_MAX} bytes");
        // A token that is too long is a token still.
        let found = if name == "token" { &Value::Null } else { found };
        Wrong::field(&format!("{within}{name}"), found, &allowed)
    };
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if (1..=TEXT_BYTES_MAX).contains(&text.len()) => {
            Ok(Some(text.clone()))
        }
        Some(Value::Number(number)) if name == "id" => Ok(Some(number.to_string())),
        Some(other) => Err(wrong(other)),
    }
}

fn topic(frame: &Map<String, Value>) -> Result<Option<Topic>, Wrong> {
    match frame.get("topic") {
        None | Some(Value::Null) => Ok(None),
        Some(found) => match found.as_str() {
            Some("telemetry") => Ok(Some(Topic::Telemetry)),
            Some("inventory") => Ok(Some(Topic::Inventory)),
            Some("pipeline") => Ok(Some(Topic::Pipeline)),
            _ => Err(Wrong { code: "unknown-topic", ..Wrong::field("topic", found, TOPICS) }),
        },
    }
}

fn filter(frame: &Map<String, Value>, topic: Topic) -> Result<Option<LiveFilter>, Wrong> {
    let filters = match frame.get("filters") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(filters)) => filters,
        Some(other) => return Err(Wrong::field("filters", other, "an object")),
    };
    let fields = match topic {
        Topic::Telemetry => &["cluster", "host", "gpu_uuid", "metrics"][..],
        Topic::Inventory => &["cluster", "host", "gpu_uuid"],
        Topic::Pipeline => &[],
    };
    known(filters, fields, "filters.")?;
    let text = |name: &str| text_of(filters, name, "filters.");
    let metrics = match filters.get("metrics") {
        None | Some(Value::Null) => None,
        Some(found) => Some(metrics(found)?),
    };
    let filter = LiveFilter {
        cluster: text("cluster")?,
        host: text("host")?,
        gpu: text("gpu_uuid")?,
        metrics,
    };
    Ok(Some(filter))
}

fn metrics(found: &Value) -> Result<BTreeSet<MetricName>, Wrong> {
    let field = "filters.metrics";
    let Value::Array(names) = found else {
        return Err(Wrong::field(field, found, "a list of metric names"));
    };
    if names.is_empty() || names.len() > METRICS_MAX {
        let detail = format!("{field}: {} names, allowed are 1 to {METRICS_MAX}", names.len());
        return Err(Wrong { code: "bad-field", field: Some(field.to_owned()), detail });
    }
    let name = |found: &Value| {
        let name = found.as_str().and_then(|name| name.parse().ok());
        name.ok_or_else(|| Wrong::field(field, found, "a metric name such as power_draw"))
    };
    names.iter().map(name).collect()
}

fn since(frame: &Map<String, Value>, topic: Topic) -> Result<Since, Wrong> {
    let revisions = topic == Topic::Telemetry;
    match frame.get("from") {
        None | Some(Value::Null) => Ok(Since::Now),
        Some(Value::String(text)) if text == "latest" => Ok(Since::Latest),
        Some(Value::Number(number)) if revisions => match number.as_i64() {
            Some(revision) if revision >= 0 => Ok(Since::After(revision)),
            _ => Err(Wrong::field("from", &Value::Number(number.clone()), FROM)),
        },
        Some(other) if revisions => Err(Wrong::field("from", other, FROM)),
        Some(other) => Err(Wrong::field("from", other, "\"latest\", all this topic knows")),
    }
}

const FROM: &str = "a revision or \"latest\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frames_users_know_are_read() {
        let check = |text: &str, expected: Request| {
            assert_eq!(Request::read(text), Ok(expected), "{text}");
        };
        let metrics = ["gpu_utilization", "temperature", "power_draw"];
        let filter = LiveFilter {
            gpu: Some("GPU-1".to_owned()),
            metrics: Some(metrics.iter().map(|m| m.parse().unwrap()).collect()),
            ..LiveFilter::default()
        };
        let subscribe = Request::Subscribe {
            id: None,
            topic: Topic::Telemetry,
            filter: filter.clone(),
            since: Since::Now,
        };
        let filters = r#""filters":{"gpu_uuid":"GPU-1","metrics":["gpu_utilization","temperature","power_draw"]}"#;
        check(&format!(r#"{{"type":"subscribe","topic":"telemetry",{filters}}}"#), subscribe);
        let unsubscribe =
            Request::Unsubscribe { id: None, topic: Some(Topic::Telemetry), filter: Some(filter) };
        check(&format!(r#"{{"type":"unsubscribe","topic":"telemetry",{filters}}}"#), unsubscribe);
        let of = |topic, since| Request::Subscribe {
            id: Some("7".to_owned()),
            topic,
            filter: LiveFilter::default(),
            since,
        };
        check(
            r#"{"type":"subscribe","id":7,"topic":"inventory","from":"latest"}"#,
            of(Topic::Inventory, Since::Latest),
        );
        check(
            r#"{"type":"subscribe","id":"7","topic":"telemetry","from":4711,"filters":null}"#,
            of(Topic::Telemetry, Since::After(4711)),
        );
        check(r#"{"type":"ping"}"#, Request::Ping { id: None });
        check(r#"{"type":"auth","token":"t"}"#, Request::Auth { token: "t".to_owned() });
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let check = |text: &str, code: &str, field: Option<&str>, words: &str| {
            let wrong = Request::read(text).unwrap_err();
            assert_eq!((wrong.code, wrong.field.as_deref()), (code, field), "{text}");
            assert!(wrong.detail.contains(words), "{}", wrong.detail);
        };
        check("nonsense", "bad-json", None, "not JSON");
        check(&"[".repeat(1000), "bad-json", None, "recursion limit");
        check("[]", "bad-json", None, "a JSON object");
        let types = "one of subscribe, unsubscribe, ping, auth";
        check("{}", "unknown-type", Some("type"), types);
        check(r#"{"type":"shout"}"#, "unknown-type", Some("type"), types);
        check(r#"{"type":"ping","a":1}"#, "unknown-field", Some("a"), "allowed: type, id");
        check(r#"{"type":"subscribe"}"#, "bad-field", Some("topic"), TOPICS);
        check(r#"{"type":"subscribe","topic":"x"}"#, "unknown-topic", Some("topic"), TOPICS);
        check(r#"{"type":"auth"}"#, "bad-field", Some("token"), "nothing is not a token");
        let telemetry =
            |rest: &str| format!(r#"{{"type":"subscribe","topic":"telemetry",{rest}}}"#);
        let from = Some("from");
        check(&telemetry(r#""from":-1"#), "bad-field", from, "-1 is not a revision or \"latest\"");
        check(&telemetry(r#""from":"now""#), "bad-field", from, "\"now\" is not a revision");
        check(&telemetry(r#""filters":[]"#), "bad-field", Some("filters"), "[] is not an object");
        let allowed = "allowed: cluster, host, gpu_uuid, metrics";
        let gpu = Some("filters.gpu");
        check(&telemetry(r#""filters":{"gpu":"a"}"#), "unknown-field", gpu, allowed);
        let metrics = Some("filters.metrics");
        check(
            &telemetry(r#""filters":{"metrics":["a b"]}"#),
            "bad-field",
            metrics,
            "a metric name",
        );
        check(&telemetry(r#""filters":{"metrics":[]}"#), "bad-field", metrics, "0 names");
        let many = format!(r#""filters":{{"metrics":[{}"a"]}}"#, r#""a","#.repeat(METRICS_MAX));
        check(&telemetry(&many), "bad-field", metrics, "65 names, allowed are 1 to 64");
        let pipeline = r#"{"type":"subscribe","topic":"pipeline","filters":{"host":"a"}}"#;
        check(pipeline, "unknown-field", Some("filters.host"), "allowed: none");
        let inventory = r#"{"type":"subscribe","topic":"inventory","from":5}"#;
        check(inventory, "bad-field", from, "5 is not \"latest\"");
        let long = format!(r#"{{"type":"auth","token":"{}"}}"#, "s".repeat(300));
        check(&long, "bad-field", Some("token"), "nothing is not text of 1 to 256 bytes");
    }
}
