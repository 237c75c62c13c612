//! The outermost layer: gives each request an id and a snapshot, bounds it, writes problems and
//! headers, counts.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use nexus_common::{model::InstanceId, runtime::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};

use super::{
    App,
    problem::{ApiError, PROBLEM_CONTENT_TYPE},
};

/// The revision an answer is of.
pub const REVISION: HeaderName = HeaderName::from_static("x-nexus-revision");
/// The view's age, in milliseconds.
pub const STALENESS: HeaderName = HeaderName::from_static("x-nexus-staleness-ms");
/// The request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest a request may take: beyond it a person has given up and a program tries again.
pub const REQUEST_SECONDS_MAX: u64 = 10;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

/// Requests, counted.
#[derive(Debug, Clone)]
pub struct HttpMeters {
    requests: Family<RequestLabel, Counter>,
    seconds: Family<RouteLabel, Histogram>,
}

impl HttpMeters {
    /// Registers them with a process' metrics.
    pub fn register(metrics: &Metrics) -> Self {
        let meters = Self {
            requests: Family::default(),
            // 1 ms to 16 s: from a cached answer to beyond the longest allowed.
            seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
        };
        metrics.with_registry(|r| {
            let (requests, seconds) = (meters.requests.clone(), meters.seconds.clone());
            r.register("http_requests", "Requests by route and status", requests);
            r.register("http_request_seconds", "Time until a request was answered", seconds);
        });
        meters
    }

    fn count(&self, route: &str, status: StatusCode, seconds: f64) {
        let (route, status) = (route.to_owned(), status.as_u16());
        self.requests.get_or_create(&RequestLabel { route: route.clone(), status }).inc();
        self.seconds.get_or_create(&RouteLabel { route }).observe(seconds);
    }
}

/// Handles one request from outside to inside and back.
pub(super) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let path = request.uri().path().to_owned();
    // Only routes that exist become labels: paths are chosen by whoever asks.
    let route = request.extensions().get::<MatchedPath>().map(|r| r.as_str().to_owned());
    let snapshot = app.view.snapshot();
    let revision = snapshot.as_ref().map_or(0, |s| s.revision);
    request.extensions_mut().insert(snapshot);
    let mut response = if has_body(&request) {
        let detail = "requests to this address must not have a body";
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", detail).into_response()
    } else {
        let limit = Duration::from_secs(REQUEST_SECONDS_MAX);
        let answered = tokio::time::timeout(limit, next.run(request)).await;
        answered.unwrap_or_else(|_| too_slow())
    };
    write_problem(&mut response, &path, &id);
    let headers = response.headers_mut();
    headers.entry(REVISION).or_insert(revision.into());
    let staleness = app.view.staleness().map_or(-1, |s| s.as_millis() as i64);
    headers.insert(STALENESS, staleness.into());
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    let seconds = started.elapsed().as_secs_f64();
    tracing::debug!(
        path,
        request_id = id,
        status = response.status().as_u16(),
        seconds,
        "answered"
    );
    app.http.count(route.as_deref().unwrap_or("none"), response.status(), seconds);
    response
}

fn too_slow() -> Response {
    let detail = format!("not answered within {REQUEST_SECONDS_MAX} s; ask for less");
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail).into_response()
}

/// Turns a panic into a problem; what it said is logged by the panic hook.
pub(super) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    let detail = "the gateway failed at this request; the log says more";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail).into_response()
}

/// Other methods are refused as such; a route that takes a body will say how much.
fn has_body(request: &Request) -> bool {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return false;
    }
    let headers = request.headers();
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// The caller's id if it looks like one, else one of ours, unique in this process.
fn request_id(request: &Request) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match given.and_then(|id| InstanceId::new(id).ok()) {
        Some(id) => id.to_string(),
        None => format!("{:x}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)),
    }
}

/// Writes the body of a problem, also of those that the router raised.
fn write_problem(response: &mut Response, path: &str, id: &str) {
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if status == StatusCode::NOT_FOUND => {
            ApiError::new(status, "not-found", format!("there is nothing at {path}"))
        }
        None if status == StatusCode::METHOD_NOT_ALLOWED => {
            let detail = "only GET and HEAD are allowed here";
            ApiError::new(status, "method-not-allowed", detail)
        }
        None => return,
    };
    *response.body_mut() = Json(error.problem(path, id)).into_response().into_body();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
    headers.remove(header::CONTENT_LENGTH);
    if let Some(seconds) = error.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
}
