//! The outermost layer: gives each request an id and a snapshot, bounds it, writes problems and
//! headers, counts.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
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
    App, BODY_BYTES_MAX,
    problem::{ApiError, PROBLEM_CONTENT_TYPE},
};
use crate::rest::{UPLOAD_PATH, UPLOAD_SECONDS_MAX, WRITE_PATH};

/// The revision an answer is of.
pub const REVISION: HeaderName = HeaderName::from_static("x-nexus-revision");
/// The view's age, in milliseconds.
pub const STALENESS: HeaderName = HeaderName::from_static("x-nexus-staleness-ms");
/// The request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a page may load: our own files, and the styles and pictures that stand in it.
const PAGE_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/// Asked by whoever decides whether the process is restarted.
const ALWAYS_ANSWERED: [&str; 3] = ["/livez", "/readyz", "/health"];
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
    // Whether the process lives must be told however busy it is.
    let turn = app.turns.try_acquire();
    let (seconds_max, body_max) = bounds(&path);
    let mut response = if let Some(refused) = body_refused(&request, body_max) {
        refused.into_response()
    } else if turn.is_err() && !ALWAYS_ANSWERED.contains(&path.as_str()) {
        let detail = "too many requests at once; try again";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_response()
    } else {
        let limit = Duration::from_secs(seconds_max);
        let answered = tokio::time::timeout(limit, next.run(request)).await;
        answered.unwrap_or_else(|_| too_slow(seconds_max))
    };
    write_problem(&mut response, &path, &id);
    protect(&mut response);
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

/// Where files and samples are sent to, and nothing else is done.
const SENT_TO: [&str; 2] = [UPLOAD_PATH, WRITE_PATH];

/// How long a request may take, and how large its body may be.
fn bounds(path: &str) -> (u64, u64) {
    if path == UPLOAD_PATH {
        // It bounds its body itself, and hears the sender out before it refuses.
        (UPLOAD_SECONDS_MAX, u64::MAX)
    } else if path == WRITE_PATH {
        (REQUEST_SECONDS_MAX, u64::MAX)
    } else {
        (REQUEST_SECONDS_MAX, BODY_BYTES_MAX as u64)
    }
}

fn too_slow(seconds_max: u64) -> Response {
    let detail = format!("not answered within {seconds_max} s; ask for less");
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail).into_response()
}

/// Turns a panic into a problem; what it said is logged by the panic hook.
pub(super) fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal().into_response()
}

/// A body where none belongs, or one that says it is too large. One that does not say is cut
/// off where it is read.
fn body_refused(request: &Request, bytes_max: u64) -> Option<ApiError> {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
    let detail = match *request.method() {
        // Here nothing can be got, body or not: the router says so.
        Method::GET | Method::HEAD if SENT_TO.contains(&request.uri().path()) => None,
        Method::GET | Method::HEAD => {
            let chunked = headers.contains_key(header::TRANSFER_ENCODING);
            let none = !chunked && length.is_none_or(|length: u64| length == 0);
            (!none).then(|| "requests to this address must not have a body".to_owned())
        }
        _ => {
            let too_large = length.is_some_and(|length| length > bytes_max);
            too_large.then(|| format!("a body has at most {bytes_max} bytes"))
        }
    };
    detail.map(|detail| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", detail))
}

/// What keeps browsers from making more of an answer than it is.
fn protect(response: &mut Response) {
    let headers = response.headers_mut();
    let kind = headers.get(header::CONTENT_TYPE);
    let page = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let mut add = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    add(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    if page {
        add(header::CONTENT_SECURITY_POLICY, PAGE_POLICY);
        add(header::X_FRAME_OPTIONS, "DENY");
        add(header::REFERRER_POLICY, "no-referrer");
    }
}

/// The caller's id if it looks like one, else one of ours, unique in this process.
fn request_id(request: &Request) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // The system is asked once: it is a call.
    static PROCESS: LazyLock<u32> = LazyLock::new(std::process::id);
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match given.and_then(|id| InstanceId::new(id).ok()) {
        Some(id) => id.to_string(),
        None => format!("{:x}-{}", *PROCESS, NEXT.fetch_add(1, Relaxed)),
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
            let detail = "this method is not allowed here; the allow header says which are";
            ApiError::new(status, "method-not-allowed", detail)
        }
        None if status == StatusCode::PAYLOAD_TOO_LARGE => {
            let detail = format!("a body has at most {BODY_BYTES_MAX} bytes");
            ApiError::new(status, "body", detail)
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
