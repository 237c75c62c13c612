//! REST: routes and the JSON they answer with, all from one snapshot of the view.

mod clusters;
mod export;
mod gpus;
mod health;
mod listing;
mod params;
mod resources;
mod source;
mod sources;
mod span;
mod stats;
mod stream;
mod telemetry;
mod upload;
mod write;

use axum::extract::DefaultBodyLimit;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use gpus::{cursor as gpu_cursor, find as find_gpus, resource as gpu_at};
pub(crate) use params::{GpuSearch, LIMIT_MAX, Part};
pub(crate) use resources::labelled;
pub use resources::{
    ClusterList, ClusterMetadata, ClusterResource, GpuAnswer, GpuList, GpuResource, HostList,
    HostNames, HostResource, MetricsList, Row, RowData, Status, TelemetryList,
};
pub use source::SourceResource;
pub use sources::SourceList;
pub(crate) use sources::seen;
pub use stats::{
    ClusterStats, InstanceResource, Instances, RateStats, RowStats, SampleStats, ShardStats,
    SpanStats,
};

pub(crate) use span::Places;
pub(crate) use telemetry::{matching, targets_of};
pub(crate) use upload::{UPLOAD_PATH, UPLOAD_SECONDS_MAX};
pub use upload::{UploadArgs, Uploads};
pub(crate) use write::WRITE_PATH;

use crate::web::App;

/// Routes that anybody may ask: what a load balancer or a supervisor needs.
pub(crate) fn open_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
}

/// Routes that need a token, once there are any, and whose answers change by themselves.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::metrics))
        .routes(routes!(health::audit))
        .routes(routes!(stats::stats))
        .routes(routes!(stream::stream))
        .routes(routes!(sources::list, sources::register))
        .routes(routes!(sources::one, sources::apply, sources::change, sources::withdraw))
        .merge(upload_route())
        .merge(write_route())
}

/// The one route whose body is large: it reads it piece by piece, and bounds it itself.
fn upload_route() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(upload::upload)).layer(DefaultBodyLimit::disable())
}

/// Its body is larger than others'.
fn write_route() -> OpenApiRouter<App> {
    let limit = DefaultBodyLimit::max(write::WRITE_BYTES_MAX);
    OpenApiRouter::new().routes(routes!(write::write)).layer(limit)
}

/// Routes that need a token, once there are any, and whose answers follow from the view's
/// snapshot and the request alone: they may be kept as long as that is the newest.
pub(crate) fn routes_of_snapshots() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(gpus::list))
        .routes(routes!(gpus::one))
        .routes(routes!(telemetry::of_gpu))
        .routes(routes!(clusters::host_names))
        .routes(routes!(gpus::of_host))
        .routes(routes!(clusters::list))
        .routes(routes!(clusters::one))
        .routes(routes!(clusters::hosts))
        .routes(routes!(clusters::host))
        .routes(routes!(clusters::host_gpus))
        .routes(routes!(clusters::host_gpu))
        .routes(routes!(telemetry::metrics))
        .routes(routes!(telemetry::of_host_gpu))
        .routes(routes!(telemetry::list))
        .routes(routes!(telemetry::latest))
}

/// Names that `fields` may be made of at a path.
pub(crate) fn fields_of(path: &str) -> &'static [&'static str] {
    match path.rsplit('/').next() {
        Some("telemetry" | "metrics" | "latest") => resources::ROW_FIELDS,
        Some("hosts") => resources::HOST_FIELDS,
        Some("clusters") => resources::CLUSTER_FIELDS,
        _ => resources::GPU_FIELDS,
    }
}
