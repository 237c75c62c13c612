//! Prometheus remote write 1.0.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use futures_util::StreamExt;
use utoipa::ToSchema;

use super::{
    params::{Checked, Nothing},
    upload::hear_out,
};
use crate::{
    auth::{Grant, Refused, Scope},
    web::{ApiError, App, Problem},
    write::{Refusal, Tally, ToldError, WriteError, limits::PACKED_BYTES_MAX},
};

/// Where samples are sent to.
pub(crate) const WRITE_PATH: &str = "/api/v1/write";
/// Largest body.
pub(super) const WRITE_BYTES_MAX: usize = PACKED_BYTES_MAX;
/// The protocol's version, as senders tell it.
const VERSION: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");
/// Seconds after which to send again what was refused for now: a collector commits within one.
const AGAIN_AFTER: u64 = 1;

/// A WriteRequest
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary, content_media_type = "application/x-protobuf")]
#[allow(dead_code, reason = "the document; the body is read as it lies")]
pub(super) struct WriteBody(Vec<u8>);

/// Takes samples of Prometheus remote write 1.0
///
/// The body is a `prometheus.WriteRequest` packed with snappy's block format. The answer 204 says
/// that every sample is durable; the same request sent again, to whichever gateway, is stored once.
/// `instance` says the host, a label `cluster` the cluster; series of GPUs are told by DCGM's
/// labels. Stale markers and blanks are absent values; native histograms, exemplars and metadata
/// are not kept. Needs the scope `write`.
#[utoipa::path(post, path = "/api/v1/write", operation_id = "remoteWrite", tag = "telemetry",
    params(("content-encoding" = String, Header, description = "What the body is packed with: `snappy`", example = "snappy", pattern = "^snappy$")),
    request_body(content = WriteBody, content_type = "application/x-protobuf", description = "Packed with snappy (`Content-Encoding: snappy`)"),
    responses((status = 204, description = "Every sample is durable, or was so before"),
        (status = 400, description = "The body cannot be read, then nothing of it is stored; or some samples never can be stored, then all others are durable. The problem says which", content_type = "application/problem+json", body = Problem),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "The source was withdrawn", content_type = "application/problem+json", body = Problem),
        (status = 413, description = "The body, or what it unpacks to, is more than is taken at once, or more than fits in one transaction", content_type = "application/problem+json", body = Problem),
        (status = 415, description = "Not remote write 1.0: another content type, another encoding, or another version", content_type = "application/problem+json", body = Problem),
        (status = 429, description = "Collectors or etcd are behind; send it again, see `Retry-After`", content_type = "application/problem+json", body = Problem),
        (status = 501, description = "This gateway takes no samples", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn write(
    State(app): State<App>,
    grant: Grant,
    Checked(Nothing): Checked<Nothing>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    if let Err(error) = may(&app, &grant, request.headers()) {
        // Senders that are cut off while they send do not read why, and try again for ever.
        let mut rest = request.into_body().into_data_stream();
        hear_out(async { while let Some(Ok(_)) = rest.next().await {} }).await;
        return Err(error);
    }
    let turn = app.writes.turn().await?;
    let body = Bytes::from_request(request, &app).await.map_err(|error| {
        // Longer than it may be, or broken off.
        ApiError::new(error.status(), "body", error.body_text())
    })?;
    let tally = app.writes.store(body, turn).await?;
    tell_histograms(&tally);
    match tally.refused() {
        0 => Ok(StatusCode::NO_CONTENT),
        _ => Err(partial(&tally)),
    }
}

/// Whether a request may be read at all.
fn may(app: &App, grant: &Grant, headers: &HeaderMap) -> Result<(), ApiError> {
    if !grant.allows(Scope::Write) {
        return Err(Refused::Beyond.into());
    }
    if !app.writes.are_taken() {
        let detail = "this gateway takes no samples: start it with --write-source SOURCE";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "writes-off", detail));
    }
    check_headers(headers)?;
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > WRITE_BYTES_MAX) {
        let detail = format!("a body has at most {WRITE_BYTES_MAX} bytes; send less at once");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", detail));
    }
    Ok(())
}

/// Whether it is what we speak. Senders of anything newer fall back to this when they are told.
fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let unsupported = |detail: String| {
        Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail))
    };
    let content = text(&header::CONTENT_TYPE);
    let (kind, parameters) = content.split_once(';').unwrap_or((content, ""));
    if !kind.trim().eq_ignore_ascii_case("application/x-protobuf") {
        return unsupported(format!(
            "content type {kind:?} is not application/x-protobuf: remote write 1.0 is taken"
        ));
    }
    let proto = parameters.split(';').find_map(|one| one.trim().strip_prefix("proto="));
    if let Some(other) = proto.filter(|proto| *proto != "prometheus.WriteRequest") {
        return unsupported(format!(
            "message {other:?} is not prometheus.WriteRequest: remote write 1.0 is taken"
        ));
    }
    let encoding = text(&header::CONTENT_ENCODING);
    if !encoding.trim().eq_ignore_ascii_case("snappy") {
        return unsupported(format!("content encoding {encoding:?} is not snappy"));
    }
    let version = text(&VERSION);
    if !version.is_empty() && !version.starts_with("0.1.") && !version.starts_with("1.") {
        return unsupported(format!("remote write version {version:?} is not 0.1.0"));
    }
    Ok(())
}

/// What remote write 1.0 asks for when some samples never can be stored: nobody sends them again.
fn partial(tally: &Tally) -> ApiError {
    let reasons: Vec<String> =
        tally.refused.iter().map(|(reason, samples)| format!("{samples} {reason}")).collect();
    let detail = format!(
        "{} samples can never be stored ({}), the other {} are stored; the first: {}",
        tally.refused(),
        reasons.join(", "),
        tally.samples,
        tally.first_refused.as_deref().unwrap_or_default(),
    );
    ApiError::new(StatusCode::BAD_REQUEST, "bad-samples", detail)
}

/// Once: whoever sends them does so all the time.
fn tell_histograms(tally: &Tally) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if tally.histograms > 0 && !TOLD.swap(true, Relaxed) {
        tracing::warn!(
            "native histograms are sent to this gateway; they are not kept, only counted"
        );
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(refusal) => refusal.into(),
            WriteError::Told(error) => error.into(),
        }
    }
}

impl From<ToldError> for ApiError {
    fn from(error: ToldError) -> Self {
        use crate::write::WireError;
        let detail = error.to_string();
        match error {
            ToldError::TooLarge { .. } | ToldError::Wire(WireError::TooMany { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
            }
            ToldError::Wire(WireError::Snappy(_)) => {
                Self::new(StatusCode::BAD_REQUEST, "bad-snappy", detail)
            }
            ToldError::Wire(WireError::Protobuf { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "bad-protobuf", detail)
            }
            ToldError::Encode(_) => Self::new(StatusCode::BAD_REQUEST, "bad-samples", detail),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::Backlog { .. } | Refusal::Full | Refusal::Busy => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Refusal::Withdrawn { .. } => StatusCode::CONFLICT,
            Refusal::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Paused { .. }
            | Refusal::NoShard { .. }
            | Refusal::Etcd
            | Refusal::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        let retry_after = later.contains(&status).then_some(AGAIN_AFTER);
        Self { retry_after, ..Self::new(status, refusal.word(), refusal.to_string()) }
    }
}
