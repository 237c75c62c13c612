//! Errors as answers: RFC 9457, with the `success` and `error` that users know.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{auth::Refused, view::QueryError};

/// Content type of a problem.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// Why a request was not answered (RFC 9457).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({
    "type": "urn:nexus:problem:bad-parameter",
    "title": "Bad Request",
    "status": 400,
    "code": "bad-parameter",
    "detail": "start_time: \"yesterday\" is not an RFC 3339 time such as 2025-07-18T20:42:34Z",
    "instance": "/api/v1/telemetry",
    "success": false,
    "error": "start_time: \"yesterday\" is not an RFC 3339 time such as 2025-07-18T20:42:34Z",
    "request_id": "5f1c2-17",
    "parameter": "start_time",
    "allowed": "an RFC 3339 time such as 2025-07-18T20:42:34Z"
}))]
pub struct Problem {
    /// Which kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Which kind of problem: the last word of `type`. Stable, for programs.
    pub code: String,
    /// What is wrong with this request.
    pub detail: String,
    /// The path that was asked.
    pub instance: String,
    /// Always false.
    pub success: bool,
    /// The detail once more.
    pub error: String,
    /// The request's id, as in the `x-request-id` header.
    pub request_id: String,
    /// The parameter that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What that parameter may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
}

/// Why a request was not answered. Becomes a [`Problem`] where the request is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// Which kind of problem: the last word of its `type`.
    pub kind: &'static str,
    /// What is wrong.
    pub detail: String,
    /// The parameter that is wrong, and what it may be.
    pub parameter: Option<(String, String)>,
    /// Seconds after which to come again: a `Retry-After` header.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// Any problem.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        // What is not to be had now may be in a moment.
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { status, kind, detail: detail.into(), parameter: None, retry_after }
    }

    /// Something that is not known.
    pub fn not_found(what: &str, name: &str) -> Self {
        let name: String = name.chars().take(128).collect();
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("{what} {name:?} is not known"))
    }

    /// A parameter that is not as it must be.
    pub fn parameter(name: &str, found: &str, allowed: &str) -> Self {
        let found: String = found.chars().take(64).collect();
        let detail = format!("{name}: {found:?} is not {allowed}");
        let parameter = Some((name.to_owned(), allowed.to_owned()));
        Self { parameter, ..Self::new(StatusCode::BAD_REQUEST, "bad-parameter", detail) }
    }

    /// The view has not been loaded yet.
    pub fn loading() -> Self {
        let detail = "the view is not loaded yet: etcd has not answered so far";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", detail)
    }

    /// Something of ours failed; the log says what.
    pub fn internal() -> Self {
        let detail = "the gateway failed at this request; the log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// As a problem of one request.
    pub fn problem(&self, path: &str, request_id: &str) -> Problem {
        let (parameter, allowed) = self.parameter.clone().unzip();
        Problem {
            kind: format!("urn:nexus:problem:{}", self.kind),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.kind.to_owned(),
            detail: self.detail.clone(),
            instance: path.to_owned(),
            success: false,
            error: self.detail.clone(),
            request_id: request_id.to_owned(),
            parameter,
            allowed,
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthorized", refused.to_string())
            }
            Refused::Beyond => Self::new(StatusCode::FORBIDDEN, "forbidden", refused.to_string()),
            Refused::TooMany { after } => {
                let retry_after = Some(after.as_secs() + 1);
                let error =
                    Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused.to_string());
                Self { retry_after, ..error }
            }
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let (status, kind) = match &error {
            QueryError::TooWide | QueryError::TooMany => {
                (StatusCode::UNPROCESSABLE_ENTITY, "too-wide")
            }
            QueryError::Moving => (StatusCode::SERVICE_UNAVAILABLE, "moving"),
            QueryError::Etcd(_) => (StatusCode::SERVICE_UNAVAILABLE, "etcd"),
            QueryError::Decoder => (StatusCode::INTERNAL_SERVER_ERROR, "decoder"),
        };
        let advice = match &error {
            QueryError::TooMany => "; name fewer places or metrics, or a shorter step",
            QueryError::TooWide => "; narrow start_time and end_time, or name a host",
            QueryError::Moving | QueryError::Etcd(_) => "; try again",
            QueryError::Decoder => "",
        };
        Self::new(status, kind, format!("{error}{advice}"))
    }
}

impl IntoResponse for ApiError {
    /// The body is written by the outermost layer, which knows the request.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
