//! Live streams over a WebSocket at /ws: JSON frames, many subscriptions a connection.
//!
//! A page of another origin is refused before the upgrade. A token, where there are any, comes in
//! the `Authorization` header, as a subprotocol, or in the first frame; never in the address,
//! which ends in logs. Nothing a client does or leaves undone holds up another: what it sends is
//! bounded in size and pace, and one that takes nothing is cut off.

mod client;
mod connection;
mod pace;
mod server;
mod topics;

use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub use client::{MESSAGE_BYTES_MAX, METRICS_MAX, SUBSCRIPTIONS_MAX};
pub use connection::{CLOSE_SILENT, CLOSE_UNAUTHORIZED, SILENT_MAX, WRITE_WITHIN};
pub use pace::{BURST_MAX, FRAMES_PER_SECOND};

use crate::{
    auth::Scope,
    web::{ApiError, App, Problem, Protocol, bearer},
};

/// The subprotocol that is spoken; named only by who sends its token beside it.
pub const SUBPROTOCOL: &str = "nexus";
/// What a token that comes as a subprotocol begins with.
pub const TOKEN_PREFIX: &str = "bearer.";
/// Bytes read from a connection at once: requests are small and rare.
const READ_BUFFER: usize = 4 * 1024;
/// Bytes that are collected before they are written.
const WRITE_BUFFER: usize = 16 * 1024;
/// Most bytes that wait to be written: an update of the largest size and what stands before it.
const WRITE_BUFFER_MAX: usize = 256 * 1024;

/// The route.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(upgrade))
}

/// Live updates
///
/// A WebSocket of JSON frames: `{"type":"subscribe","topic":"telemetry"}` begins. docs/API_SPECIFICATION.md
/// lists the frames and the close codes.
#[utoipa::path(get, path = "/ws", operation_id = "openWebSocket", tag = "telemetry",
    responses((status = 101, description = "The connection speaks WebSocket from here on"),
        (status = 401, description = "A token that is not known", content_type = "application/problem+json", body = Problem),
        (status = 403, description = "A page of another origin", content_type = "application/problem+json", body = Problem),
        (status = 404, description = "WebSockets are switched off", content_type = "application/problem+json", body = Problem),
        (status = 426, description = "No request to speak WebSocket", content_type = "application/problem+json", body = Problem),
        (status = 429, description = "Too many requests with this token; see `Retry-After`", content_type = "application/problem+json", body = Problem),
        (status = 503, description = "There are as many live streams as may be; try again", content_type = "application/problem+json", body = Problem)))]
async fn upgrade(
    State(app): State<App>,
    headers: HeaderMap,
    asked: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    if !app.streams.websocket {
        let detail = "WebSockets are switched off: ENABLE_WEBSOCKET is false";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not-found", detail));
    }
    let asked = asked.map_err(|error| {
        let detail = format!("this address speaks WebSocket: {}", error.body_text());
        ApiError::new(StatusCode::UPGRADE_REQUIRED, "upgrade-required", detail)
    })?;
    if !app.origins.allow(&headers) {
        let detail = "pages of this origin may not open a WebSocket here; \
                      ENABLE_CORS and CORS_ALLOWED_ORIGINS say which may";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "origin", detail));
    }
    let grant = match token(&headers) {
        None if app.auth.is_open() => Some(app.auth.admit(None, Scope::Read)?),
        None => None,
        Some(token) => Some(app.auth.admit(Some(token), Scope::Read)?),
    };
    let stream = app.streams.open(Protocol::WebSocket)?;
    let answered = asked
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER_MAX)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(move |socket| connection::serve(socket, app, grant, stream));
    Ok(answered)
}

/// The token of a request to upgrade.
fn token(headers: &HeaderMap) -> Option<&str> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut names =
        offered.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',').map(str::trim));
    bearer(headers).or_else(|| names.find_map(|name| name.strip_prefix(TOKEN_PREFIX)))
}
