//! What all answers have in common: the router, problems, headers, metrics, the document.

mod admit;
mod answers;
mod credit;
mod cursor;
mod observe;
mod openapi;
mod origins;
mod pages;
mod problem;
mod streams;

use std::{ops::Deref, sync::Arc};

use axum::{Router, extract::DefaultBodyLimit, middleware::from_fn_with_state};
use nexus_common::{
    model::ClusterId,
    runtime::{Health, Metrics},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::{CompressionLevel, catch_panic::CatchPanicLayer, compression::CompressionLayer};
use utoipa_axum::router::OpenApiRouter;

pub use admit::bearer;
pub use answers::{Answers, Basis, NextPage};
pub(crate) use credit::{Credit, is_stuck};
pub use cursor::{cursor_of, text_of_cursor};
pub use observe::{HttpMeters, REQUEST_ID, REQUEST_SECONDS_MAX, REVISION, STALENESS};
use openapi::Group;
pub use openapi::document;
pub use origins::{Origin, Origins};
pub use problem::{ApiError, PROBLEM_CONTENT_TYPE, Problem};
pub use streams::{Protocol, Stream, StreamArgs, Streams, write_update};

use crate::{auth::Auth, graphql, rest, view::View, websocket, write::Writes};

/// What handlers need. Each layer takes a clone for each request, so all of it is behind one count.
#[derive(Clone)]
pub struct App(Arc<AppParts>);

impl Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}

impl From<AppParts> for App {
    fn from(parts: AppParts) -> Self {
        Self(Arc::new(parts))
    }
}

/// What an [`App`] holds.
pub struct AppParts {
    /// Where answers come from.
    pub view: View,
    /// The process' metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the process has a session.
    pub health: Arc<Health>,
    /// Who may ask.
    pub auth: Auth,
    /// Pages of which other origins may ask.
    pub origins: Arc<Origins>,
    /// Requests, counted.
    pub http: HttpMeters,
    /// Answers that are still right.
    pub answers: Arc<Answers>,
    /// Turns for exports: an answer that is written for long.
    pub exports: Arc<Semaphore>,
    /// Turns for requests: as many as may be answered at once.
    pub turns: Arc<Semaphore>,
    /// The cluster this gateway is set to.
    pub cluster_id: ClusterId,
    /// How far behind the newest sample of its cluster a GPU is still active, in milliseconds.
    pub active_window_ms: i64,
    /// Running processes, read on demand.
    pub instances: Arc<rest::Instances>,
    /// Whether `/graphql` is served.
    pub graphql: bool,
    /// Live streams, bounded.
    pub streams: Arc<Streams>,
    /// Where files that are sent come to lie.
    pub uploads: rest::Uploads,
    /// Where samples that are sent go to.
    pub writes: Writes,
    /// Cancelled when the process drains.
    pub stop: CancellationToken,
}

/// Requests that are answered at once; more are told to come again. Each may hold an answer of
/// some MiB.
pub const REQUESTS_MAX: usize = 512;
/// Exports that are written at once. Each reads blocks as fast as its client takes rows.
pub const EXPORTS_MAX: usize = 8;
/// Largest body of a request. Queries of people are a few KiB.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// Every route.
pub fn router(app: App) -> Router {
    let (routes, document) = documented(&app).split_for_parts();
    let document = if app.graphql { openapi::with_graphql(document) } else { document };
    let document = openapi::finish(document);
    let cors = app.origins.layer();
    let graph = if app.graphql { graphql::routes(&app) } else { Router::new() };
    let routes = routes
        .merge(pages::routes(&document))
        .merge(graph)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(app.clone(), observe::observe))
        // The fastest level: JSON shrinks tenfold with it, and the processor is shared.
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest));
    let routes = match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    routes.with_state(app)
}

/// Every documented route, by who is let in. A route that lets in by itself (a WebSocket) is
/// among the open ones.
fn groups() -> [(Group, OpenApiRouter<App>); 3] {
    let mut groups = [
        (Group::Open, rest::open_routes().merge(websocket::routes())),
        (Group::Guarded, rest::routes()),
        (Group::Kept, rest::routes_of_snapshots()),
    ];
    for (group, routes) in &mut groups {
        openapi::describe(*group, routes.get_openapi_mut());
    }
    groups
}

/// The routes behind the layers of their group.
fn documented(app: &App) -> OpenApiRouter<App> {
    let admit = || from_fn_with_state(app.clone(), admit::admit);
    let remember = || from_fn_with_state(app.clone(), answers::remember);
    let head = OpenApiRouter::with_openapi(openapi::head());
    groups().into_iter().fold(head, |all, (group, routes)| {
        all.merge(match group {
            Group::Open => routes,
            Group::Guarded => routes.route_layer(admit()),
            Group::Kept => routes.route_layer(remember()).route_layer(admit()),
        })
    })
}
