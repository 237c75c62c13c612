//! GraphQL: the graph of clusters, hosts, GPUs and telemetry at `/graphql`, subscriptions at
//! `/graphql/ws`, and a playground.
//!
//! An operation is answered from one snapshot of the view. [`limits`] decides what it may ask for
//! before it is validated; `http` and `socket` are the two ways in, as GraphQL over HTTP and
//! graphql-transport-ws have them.

mod document;
mod execute;
mod http;
pub mod limits;
mod mutation;
mod operation;
mod paging;
mod pipeline;
mod playground;
mod query;
mod scalars;
mod socket;
mod subscription;
mod telemetry;
mod types;

use async_graphql::Schema;
use axum::{
    Router,
    routing::{get, post},
};

pub use mutation::Mutation;
pub use query::Query;
pub use subscription::Subscription;

use crate::web::App;
pub(crate) use document::document;
use execute::Service;

/// The whole schema.
pub(crate) type Graph = Schema<Query, Mutation, Subscription>;

fn graph() -> Graph {
    // Depth and cost are weighed before; this bounds what the library itself recurses into.
    Schema::build(Query, Mutation, Subscription)
        .limit_recursive_depth(limits::DEPTH_MAX * 3)
        .disable_suggestions()
        .finish()
}

/// The schema in its own language: what `docs/schema.graphql` holds.
pub fn schema() -> String {
    let options = async_graphql::SDLExportOptions::new().sorted_fields().sorted_arguments();
    let text = graph().sdl_with_options(options);
    format!("{}\n", text.trim_end())
}

/// `/graphql`, `/graphql/ws` and what the playground is made of. They let in by themselves: the
/// page anybody, operations whoever may read.
pub(crate) fn routes(app: &App) -> Router<App> {
    let service = Service::new(app.clone(), graph());
    Router::new()
        .route("/graphql", get(http::get).merge(post(http::post)).fallback(http::other))
        .route("/graphql/ws", get(socket::upgrade))
        .route("/graphql/assets/{name}", get(playground::asset))
        .with_state(service)
}
