//! Live updates as server-sent events, for who cannot do WebSocket.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    time::Duration,
};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde_json::json;
use utoipa::IntoParams;

use super::params::{Checked, Given, Parameters};
use crate::{
    auth::{Grant, Scope},
    view::{Gap, LiveEvent, LiveFilter, Since, Subscription},
    web::{ApiError, App, Protocol, Stream, write_update},
};

/// What a client that lost its connection goes on from.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// How often something is sent when there is nothing to tell: proxies cut what is silent.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Most metrics that can be asked for.
const METRICS_MAX: usize = 64;
const FROM: &str = "a revision or latest";

/// What to stream.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct StreamParams {
    /// Only this cluster
    #[param(example = "local-cluster")]
    cluster: Option<String>,
    /// Only hosts of this name
    #[param(example = "dgx-001")]
    host: Option<String>,
    /// Only the GPU of this UUID or id
    #[param(example = "GPU-00000000-1111-2222-3333-444444444444")]
    gpu_uuid: Option<String>,
    /// Only these metrics, separated by commas; at most 64
    #[param(example = "gpu_utilization,temperature,power_draw")]
    metrics: Option<String>,
    /// A revision: begin with what came after it. `latest`: begin with the latest of each GPU.
    /// Without it: with what comes next
    #[param(example = "latest")]
    from: Option<String>,
}

/// What to stream, read.
pub(super) struct Wanted {
    filter: LiveFilter,
    since: Since,
}

impl Parameters for Wanted {
    const NAMES: &'static [&'static str] = &["cluster", "host", "gpu_uuid", "metrics", "from"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let metrics = given.text("metrics").map(|text| {
            let names: Option<BTreeSet<_>> =
                text.split(',').map(|name| name.parse().ok()).collect();
            names.filter(|names| names.len() <= METRICS_MAX).ok_or_else(|| {
                let allowed = format!("1 to {METRICS_MAX} metric names, separated by commas");
                ApiError::parameter("metrics", text, &allowed)
            })
        });
        let since = match given.text("from") {
            None => Since::Now,
            Some(text) => since(text).ok_or_else(|| ApiError::parameter("from", text, FROM))?,
        };
        let filter = LiveFilter {
            cluster: given.owned("cluster"),
            host: given.owned("host"),
            gpu: given.owned("gpu_uuid"),
            metrics: metrics.transpose()?,
        };
        Ok(Self { filter, since })
    }
}

fn since(text: &str) -> Option<Since> {
    if text == "latest" {
        return Some(Since::Latest);
    }
    text.parse().ok().filter(|revision| *revision >= 0).map(Since::After)
}

/// Live telemetry
///
/// Server-sent events. `telemetry_update`: what was measured of one GPU at one instant, as on
/// `/ws`. `gap`: what was skipped, and why; the latest of everything follows. The last event of
/// each revision has it as its id, so that a client that comes again with `Last-Event-ID` goes on
/// behind it.
#[utoipa::path(get, path = "/api/v1/telemetry/stream", operation_id = "streamTelemetry",
    tag = "telemetry",
    params(StreamParams, ("last-event-id" = Option<String>, Header,
        description = "The id of the last event that came; goes before `from`", example = "4711")),
    responses((status = 200, description = "Events for as long as the client stays",
        content_type = "text/event-stream", body = String,
        example = "event: telemetry_update\nid: 4711\ndata: {\"timestamp\":\"2025-07-18T20:42:34Z\",\"cluster_id\":\"local-cluster\",\"hostname\":\"dgx-001\",\"gpu_uuid\":\"GPU-00000000-1111-2222-3333-444444444444\",\"gpu_id\":\"0\",\"revision\":4711,\"data\":{\"temperature\":62.0}}\n\n")))]
pub(super) async fn stream(
    State(app): State<App>,
    grant: Grant,
    headers: HeaderMap,
    Checked(Wanted { filter, since: mut from }): Checked<Wanted>,
) -> Result<Response, ApiError> {
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        let text = String::from_utf8_lossy(last.as_bytes());
        let revision = text.parse().ok().filter(|revision| *revision >= 0);
        let revision =
            revision.ok_or_else(|| ApiError::parameter("last-event-id", &text, "a revision"))?;
        from = Since::After(revision);
    }
    let stream = app.streams.open(Protocol::Events)?;
    let subscription = app.view.live(filter, from).ok_or_else(ApiError::loading)?;
    let revision = subscription.revision();
    let events = Events { app, grant, stream, subscription, ready: VecDeque::new() };
    let events = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    let headers = response.headers_mut();
    headers.insert(crate::web::REVISION, revision.into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Some proxies collect what they pass on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// One client's events.
struct Events {
    app: App,
    grant: Grant,
    stream: Stream,
    subscription: Subscription,
    /// Written, but not taken yet: one revision at most.
    ready: VecDeque<Event>,
}

impl Events {
    /// The next event; none when the stream ends.
    async fn next(&mut self) -> Option<Event> {
        let stop = self.app.stop.clone();
        let mut tokens = self.app.auth.changes();
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.stream.sent(1);
                return Some(event);
            }
            tokio::select! {
                () = stop.cancelled() => {
                    self.stream.ends("stopping");
                    return None;
                }
                event = self.subscription.next() => self.write(event),
                Ok(()) = tokens.changed() => {
                    if !self.app.auth.still(&self.grant, Scope::Read) {
                        self.stream.ends("expired");
                        return None;
                    }
                }
            }
        }
    }

    fn write(&mut self, event: LiveEvent) {
        let filter = self.subscription.filter();
        let points = match event {
            LiveEvent::Gap(lost) => return self.ready.push_back(gap(&lost)),
            LiveEvent::Points(points) => points,
        };
        let last = points.len().saturating_sub(1);
        for (index, point) in points.iter().enumerate() {
            let written = write_update(point, filter, |rest| {
                let event = Event::default().event("telemetry_update");
                event.data(["{", rest].concat())
            });
            let gpu = point.gpu.as_ref().map(|gpu| gpu.uuid.as_str());
            let event = written.unwrap_or_else(|| too_long(point.revision, gpu));
            // Of a snapshot there may be more to come: who breaks off there begins again.
            let whole = index == last && !point.snapshot;
            let id = whole.then(|| point.revision.to_string());
            self.ready.push_back(match id {
                Some(id) => event.id(id),
                None => event,
            });
        }
    }
}

fn gap(lost: &Gap) -> Event {
    let data = json!({"reason": lost.reason.as_str(), "from_revision": lost.from,
        "to_revision": lost.to, "skipped_updates": lost.updates});
    Event::default().event("gap").data(data.to_string())
}

fn too_long(revision: i64, gpu: Option<&str>) -> Event {
    let data = json!({"reason": "too-long", "from_revision": revision, "to_revision": revision,
        "skipped_updates": 1, "gpu_uuid": gpu});
    Event::default().event("gap").data(data.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_where_it_is_told_to() {
        let check = |text: &str, expected: Option<Since>| assert_eq!(since(text), expected);
        check("latest", Some(Since::Latest));
        check("4711", Some(Since::After(4711)));
        check("0", Some(Since::After(0)));
        check("-1", None);
        check("now", None);
    }
}
