//! The small HTTP side of every process: metrics, liveness, readiness.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;

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

/// Serves `router` until `stop`, then lets running requests finish. Returns the bound address
/// (for port 0) and the task.
///
/// # Errors
/// When the address cannot be bound: names it.
pub async fn serve(
    listen: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr().context("read the bound address")?;
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "stopped serving HTTP");
        }
    });
    Ok((address, task))
}
