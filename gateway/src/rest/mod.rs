//! REST: routes and the JSON they answer with, all from one snapshot of the view.

mod clusters;
mod gpus;
mod health;
mod params;
mod resources;
mod stats;
mod stream;
mod telemetry;

use utoipa_axum::{router::OpenApiRouter, routes};

pub(crate) use gpus::{cursor as gpu_cursor, find as find_gpus, resource as gpu_at};
pub(crate) use params::{GpuSearch, LIMIT_MAX, Places};
pub(crate) use resources::labelled;
pub use resources::{
    ClusterList, ClusterMetadata, ClusterResource, GpuAnswer, GpuList, GpuResource, HostList,
    HostNames, HostResource, MetricsList, Row, RowData, Status, TelemetryList,
};
pub use stats::{
    ClusterStats, InstanceResource, Instances, RateStats, RowStats, SampleStats, ShardStats,
    SpanStats,
};

pub(crate) use telemetry::{matching, targets_of};

use crate::web::App;

/// Routes that anybody may ask: what a load balancer or a supervisor needs.
pub(crate) fn open_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
}

/// Routes that need a token, once there are any.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::metrics))
        .routes(routes!(health::audit))
        .routes(routes!(gpus::list))
        .routes(routes!(gpus::one))
        .routes(routes!(telemetry::of_gpu))
        .routes(routes!(clusters::host_names))
        .routes(routes!(gpus::of_host))
        .routes(routes!(clusters::list))
        .routes(routes!(clusters::one))
        .routes(routes!(stats::stats))
        .routes(routes!(clusters::hosts))
        .routes(routes!(clusters::host))
        .routes(routes!(clusters::host_gpus))
        .routes(routes!(clusters::host_gpu))
        .routes(routes!(telemetry::metrics))
        .routes(routes!(telemetry::of_host_gpu))
        .routes(routes!(telemetry::list))
        .routes(routes!(stream::stream))
        .routes(routes!(telemetry::latest))
}
