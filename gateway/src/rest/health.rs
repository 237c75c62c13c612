//! Whether the gateway is well, and whether what it serves is.

use std::{fmt::Write as _, sync::atomic::Ordering::Relaxed, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use nexus_common::{audit, etcd::Error, model::Timestamp, runtime::METRICS_CONTENT_TYPE};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::params::{Checked, Given, Nothing, Parameters};
use crate::web::{ApiError, App, REVISION};

/// A view that heard nothing for longer is still served, but others should be asked first.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(10);

/// Well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Healthy {
    /// Always `healthy`
    #[schema(example = "healthy")]
    status: &'static str,
    /// The cluster this gateway is set to
    #[schema(example = "local-cluster")]
    cluster_id: String,
    /// Now
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:00Z")]
    timestamp: Timestamp,
}

/// Not well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Unhealthy {
    /// Always `unhealthy`
    #[schema(example = "unhealthy")]
    status: &'static str,
    /// Why
    #[schema(example = "nothing was heard from etcd for 12.3 s")]
    error: String,
}

/// What is asked for readiness, one by one: name, state, reason.
struct Checks(Vec<(&'static str, Result<String, String>)>);

impl Checks {
    fn of(app: &App) -> Self {
        let staleness = app.view.staleness();
        let loaded = match app.view.snapshot() {
            Some(snapshot) => Ok(format!("revision {}", snapshot.revision)),
            None => Err("the view is not loaded yet: etcd has not answered so far".to_owned()),
        };
        let heard = match staleness {
            Some(age) if age <= STALE_AFTER => Ok(format!("{:.1} s ago", age.as_secs_f64())),
            Some(age) => Err(format!("nothing was heard from etcd for {:.1} s", age.as_secs_f64())),
            None => Err("nothing was heard from etcd yet".to_owned()),
        };
        let draining = if app.stop.is_cancelled() {
            Err("the process is about to end".to_owned())
        } else {
            Ok("no".to_owned())
        };
        Self(vec![("view", loaded), ("etcd", heard), ("draining", draining)])
    }

    fn first_failure(&self) -> Option<&str> {
        self.0.iter().find_map(|(_, state)| state.as_ref().err().map(String::as_str))
    }
}

/// Whether the gateway is well
#[utoipa::path(get, path = "/health", operation_id = "getHealth", tag = "health",
    responses((status = 200, description = "It is", body = Healthy),
        (status = 503, description = "It is not, and why", body = Unhealthy)))]
pub(super) async fn health(State(app): State<App>, Checked(Nothing): Checked<Nothing>) -> Response {
    match Checks::of(&app).first_failure() {
        None => {
            let (cluster_id, timestamp) = (app.cluster_id.to_string(), Timestamp::now());
            Json(Healthy { status: "healthy", cluster_id, timestamp }).into_response()
        }
        Some(error) => {
            let body = Unhealthy { status: "unhealthy", error: error.to_owned() };
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

/// Whether the process lives
///
/// Never depends on etcd: an outage there is no reason to restart the gateway.
#[utoipa::path(get, path = "/livez", operation_id = "getLiveness", tag = "health",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain",
        example = "alive\n")))]
pub(super) async fn livez(Checked(_verbose): Checked<Verbose>) -> &'static str {
    "alive\n"
}

/// How much is told.
pub(super) struct Verbose(bool);

impl Parameters for Verbose {
    const NAMES: &'static [&'static str] = &["verbose"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        match given.text("verbose") {
            None | Some("false") => Ok(Self(false)),
            Some("" | "true") => Ok(Self(true)),
            Some(other) => Err(ApiError::parameter("verbose", other, "true or false")),
        }
    }
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
struct VerboseParams {
    /// Tell each check on a line of its own
    #[param(example = true)]
    verbose: Option<bool>,
}

/// Whether requests should come here
///
/// The view is loaded, etcd was heard within 10 s, and the process is not about to end.
#[utoipa::path(get, path = "/readyz", operation_id = "getReadiness", tag = "health",
    params(VerboseParams),
    responses((status = 200, description = "They should", body = String,
            content_type = "text/plain", example = "ready\n"),
        (status = 503, description = "They should not, and why", body = String,
            content_type = "text/plain", example = "not ready: the process is about to end\n")))]
pub(super) async fn readyz(
    State(app): State<App>,
    Checked(Verbose(verbose)): Checked<Verbose>,
) -> Response {
    let checks = Checks::of(&app);
    let failure = checks.first_failure();
    let mut text = String::new();
    if verbose {
        for (name, state) in &checks.0 {
            let (sign, said) = match state {
                Ok(said) => ("+", said),
                Err(said) => ("-", said),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{sign}] {name}: {said}");
        }
        // Told, not asked for: without a session others do not see this gateway, no more.
        let session = if app.health.is_ready() { "open" } else { "none" };
        let _ = writeln!(text, "[i] session: {session}");
    }
    let status = match failure {
        None => {
            text.push_str("ready\n");
            StatusCode::OK
        }
        Some(why) => {
            let _ = writeln!(text, "not ready: {why}");
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    (status, text).into_response()
}

/// The gateway's own metrics
#[utoipa::path(get, path = "/metrics", operation_id = "getMetrics", tag = "health",
    responses((status = 200, description = "OpenMetrics text", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8")))]
pub(super) async fn metrics(
    State(app): State<App>,
    Checked(Nothing): Checked<Nothing>,
) -> impl IntoResponse {
    // Brings the gauges up to date.
    app.view.meters();
    let staleness = app.view.staleness().map_or(0, |s| s.as_millis() as u64);
    app.metrics.figures.lag_ms.store(staleness, Relaxed);
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], app.metrics.encode())
}

/// Nothing lost, nothing twice?
///
/// Reads every key there is at one revision and checks the conservation law: samples accepted =
/// queued + committed, committed = stored + retired + dead. Costly: not for polling.
#[utoipa::path(get, path = "/audit", operation_id = "getAudit", tag = "health",
    responses((status = 200, description = "What was found; `clean` says whether all holds",
        body = Audit)))]
pub(super) async fn audit(
    State(app): State<App>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Response, ApiError> {
    let etcd = app.view.etcd();
    let mut report = audit::audit(etcd).await;
    if matches!(report, Err(Error::Compacted { .. })) {
        report = audit::audit(etcd).await;
    }
    let report = report.map_err(|error| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "etcd", format!("{error}; try again"))
    })?;
    let revision = report.revision;
    let mut response = Json(report).into_response();
    response.headers_mut().insert(REVISION, revision.into());
    Ok(response)
}

/// What the audit found: the shape of [`audit::AuditReport`], for the document.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used; a test compares it with the report")]
pub(super) struct Audit {
    /// Whether every invariant holds
    clean: bool,
    /// The revision at which all of this was read
    revision: i64,
    /// Rows, as the streamers counted them
    rows: AuditRows,
    /// Samples by where they are
    samples: AuditSamples,
    /// Lanes with progress
    lanes: u64,
    /// Of those, read to the end
    lanes_done: u64,
    /// Messages in the queue
    messages: u64,
    /// Blocks in the store
    blocks: u64,
    /// Bytes of blocks in the store
    block_bytes: u64,
    /// Samples that are missing or too many; 0 when the law holds
    delta: u64,
    /// How many violations there are
    violation_count: u64,
    /// The first hundred of them
    violations: Vec<String>,
}

/// Rows, as the streamers counted them.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct AuditRows {
    /// Rows read from sources
    offered: u64,
    /// Rows taken
    accepted: u64,
    /// Rows taken that held no measurement; part of `accepted`
    absent: u64,
    /// Rows refused
    rejected: u64,
    /// Rows refused, by reason
    rejected_by_reason: std::collections::BTreeMap<String, u64>,
}

/// Samples by where they are.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct AuditSamples {
    /// Enqueued since the beginning
    accepted: u64,
    /// Of those, still in the queue
    queued: u64,
    /// Of those, taken out of the queue
    committed: u64,
    /// Of those, in blocks
    stored: u64,
    /// Of those, deleted by retention
    retired: u64,
    /// Of those, set aside as undecodable
    dead: u64,
}
