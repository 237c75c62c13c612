//! What all live streams have in common: how many there may be, what they count, and how a point
//! is written.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::{ArgAction, Args};
use nexus_common::{model::Timestamp, runtime::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::{
    rest::labelled,
    view::{LiveFilter, LivePoint},
};

/// Longest update that is sent: what a connection may have to buffer.
pub(super) const UPDATE_BYTES_MAX: usize = 128 * 1024;

/// Flags of live streams.
#[derive(Debug, Clone, Args)]
pub struct StreamArgs {
    /// Serve WebSockets at /ws
    #[arg(long, env = "ENABLE_WEBSOCKET", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_websocket: bool,
    /// Live streams at once: WebSockets at /ws and server-sent events
    #[arg(long, env = "STREAMS_MAX", default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub streams_max: u32,
}

/// How a stream reaches its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A WebSocket at /ws.
    WebSocket,
    /// Server-sent events.
    Events,
    /// Sockets of GraphQL at /graphql/ws.
    GraphQl,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Events => "events",
            Self::GraphQl => "graphql",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    protocol: &'static str,
    reason: &'static str,
}

/// Live streams, counted and bounded.
#[derive(Debug)]
pub struct Streams {
    /// Whether /ws is served.
    pub websocket: bool,
    /// What the pipeline holds, as it is told to all who want it.
    pub pipeline: Shared,
    max: u32,
    places: Arc<Semaphore>,
    open: Family<ProtocolLabel, Gauge>,
    sent: Family<ProtocolLabel, Counter>,
    ended: Family<EndLabel, Counter>,
}

impl Streams {
    /// As the flags say; counted in `metrics`.
    pub fn new(args: &StreamArgs, metrics: &Metrics) -> Self {
        let streams = Self {
            websocket: args.enable_websocket,
            pipeline: Shared::default(),
            max: args.streams_max,
            places: Arc::new(Semaphore::new(args.streams_max as usize)),
            open: Family::default(),
            sent: Family::default(),
            ended: Family::default(),
        };
        metrics.with_registry(|r| {
            let r = r.sub_registry_with_prefix("streams");
            r.register("open", "Live streams, by protocol", streams.open.clone());
            r.register("sent", "Frames and events sent, by protocol", streams.sent.clone());
            r.register("ended", "Live streams that ended, by reason", streams.ended.clone());
        });
        streams
    }

    /// A place for one more.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn open(self: &Arc<Self>, protocol: Protocol) -> Result<Stream, ApiError> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let detail = format!("there are {} live streams, as many as may be", self.max);
            let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
            return Err(ApiError::new(status, "too-many-streams", detail));
        };
        let label = ProtocolLabel { protocol: protocol.as_str() };
        self.open.get_or_create(&label).inc();
        let sent = self.sent.get_or_create_owned(&label);
        Ok(Stream { streams: Arc::clone(self), protocol, sent, end: "gone", _place: place })
    }
}

/// The place of one stream; free again when it is dropped.
#[derive(Debug)]
pub struct Stream {
    streams: Arc<Streams>,
    protocol: Protocol,
    sent: Counter,
    end: &'static str,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    /// Counts frames that were sent.
    pub fn sent(&self, frames: u64) {
        self.sent.inc_by(frames);
    }

    /// Why it is about to end; without this the client went.
    pub fn ends(&mut self, reason: &'static str) {
        self.end = reason;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let protocol = self.protocol.as_str();
        self.streams.open.get_or_create(&ProtocolLabel { protocol }).dec();
        self.streams.ended.get_or_create(&EndLabel { protocol, reason: self.end }).inc();
    }
}

#[derive(Serialize)]
struct Update<'a> {
    timestamp: Timestamp,
    cluster_id: &'a str,
    hostname: &'a str,
    gpu_uuid: Option<&'a str>,
    gpu_id: Option<&'a str>,
    /// Identity, where it is not the UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<&'a str>,
    revision: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    snapshot: bool,
    data: Values<'a>,
}

/// Values by name; a second series of a metric goes by its labels.
struct Values<'a> {
    point: &'a LivePoint,
    filter: &'a LiveFilter,
}

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        // They are sorted.
        let mut before = None;
        let wanted = self.point.values.iter().filter(|(m, _, _)| self.filter.wants_metric(m));
        for (metric, labels, value) in wanted {
            if before.replace(metric) != Some(metric) {
                map.serialize_entry(metric.as_str(), value)?;
            } else {
                map.serialize_entry(&labelled(metric, labels), value)?;
            }
        }
        map.end()
    }
}

/// A point as JSON, as far as `filter` wants it, without the brace it begins with: what stands in
/// front differs from stream to stream, and this is made once for all who want all metrics.
/// None if it is longer than 128 KiB.
pub fn write_update<R>(
    point: &LivePoint,
    filter: &LiveFilter,
    with: impl FnOnce(&str) -> R,
) -> Option<R> {
    let text = |point: &LivePoint, filter: &LiveFilter| {
        let gpu = point.gpu.as_deref();
        let known = |text: &'_ str| !text.is_empty();
        let update = Update {
            timestamp: Timestamp::saturating_from_millis(point.key.at),
            cluster_id: point.key.cluster.as_str(),
            hostname: point.key.host.as_str(),
            gpu_uuid: gpu.map(|gpu| gpu.uuid.as_str()).filter(|uuid| known(uuid)),
            gpu_id: gpu.map(|gpu| gpu.index.as_str()),
            gpu: gpu.filter(|g| g.id.as_str() != g.uuid).map(|gpu| gpu.id.as_str()),
            revision: point.revision,
            snapshot: point.snapshot,
            data: Values { point, filter },
        };
        // Numbers and text always serialise.
        serde_json::to_string(&update).unwrap_or_default()
    };
    let short = |text: &str| text.len() <= UPDATE_BYTES_MAX;
    if filter.metrics.is_none() {
        let all = point.text(|point| text(point, &LiveFilter::default()));
        return short(all).then(|| with(all.get(1..).unwrap_or_default()));
    }
    let own = text(point, filter);
    short(&own).then(|| with(own.get(1..).unwrap_or_default()))
}

/// A text that is written anew at most twice a second, however many want it.
#[derive(Debug, Default)]
pub struct Shared(Mutex<Option<(Instant, Arc<str>)>>);

impl Shared {
    /// The text of now; written by `write` if the last one is too old.
    pub fn get(&self, write: impl FnOnce() -> String) -> Arc<str> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = kept.as_ref().filter(|(at, _)| at.elapsed() < Duration::from_millis(500));
        if let Some((_, text)) = fresh {
            return Arc::clone(text);
        }
        let text: Arc<str> = write().into();
        *kept = Some((Instant::now(), Arc::clone(&text)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_text_is_written_once_for_all() {
        let text = Shared::default();
        assert_eq!(&*text.get(|| "a".to_owned()), "a");
        assert_eq!(&*text.get(|| "b".to_owned()), "a");
    }
}
