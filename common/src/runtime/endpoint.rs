//! The small HTTP side of every process: metrics, liveness, readiness.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use super::metrics::{METRICS_CONTENT_TYPE, Metrics};

/// What readiness rests on.
#[derive(Debug, Default)]
pub struct Health {
    ready: std::sync::atomic::AtomicBool,
}

impl Health {
    /// Says whether the process can do its work now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether it can.
    pub fn is_ready(&self) -> bool {
        self.ready.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// `/metrics`, `/livez` (never depends on etcd) and `/readyz`.
pub fn health_routes(metrics: Arc<Metrics>, health: Arc<Health>) -> Router {
    let tell = move || {
        let text = metrics.encode();
        async move { ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text) }
    };
    let ready = move || {
        let ready = health.is_ready();
        async move {
            if ready {
                (StatusCode::OK, "ready\n").into_response()
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready: no session with etcd\n")
                    .into_response()
            }
        }
    };
    Router::new()
        .route("/metrics", get(tell))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
}
