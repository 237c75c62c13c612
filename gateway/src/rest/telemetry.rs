//! What was measured: rows of one GPU, rows of anything, the latest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use nexus_common::model::{ClusterId, GpuId, HostName};
use serde::Serialize;

use super::{
    gpus,
    params::{
        At, Checked, LatestSearch, PageParams, PlaceParams, Places, Search, Segments, Span,
        SpanParams,
    },
    resources::{MetricsList, Row, RowData, TelemetryList},
};
use crate::{
    view::{GpuPlace, Host, Latest, Query, Snapshot, Target, Which},
    web::{ApiError, App, REVISION},
};

/// Telemetry of one GPU
///
/// Rows by time, ascending. Without `start_time` the newest ones.
#[utoipa::path(get, path = "/api/v1/gpus/{uuid}/telemetry", operation_id = "getGpuTelemetry",
    tag = "gpus",
    params(("uuid" = String, Path, description = "UUID or id of the GPU",
        example = "GPU-00000000-1111-2222-3333-444444444444"), SpanParams),
    responses((status = 200, description = "Its rows", body = RowData)))]
pub(super) async fn of_gpu(
    State(app): State<App>,
    At(snapshot): At,
    Segments(uuid): Segments<String>,
    Checked(span): Checked<Span>,
) -> Result<Response, ApiError> {
    if snapshot.places_of(&uuid).is_empty() {
        return Err(ApiError::not_found("GPU", &uuid));
    }
    let find = |s: &Snapshot| targets_of(s.places_of(&uuid));
    answer(&app, snapshot, &span, find, row_data).await
}

/// Telemetry of one GPU of a host
///
/// Rows by time, ascending. Without `start_time` the newest ones.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts/{host_id}/gpus/{gpu_id}/telemetry",
    operation_id = "getClusterGpuTelemetry", tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        ("host_id" = String, Path, description = "The host", example = "dgx-001"),
        ("gpu_id" = String, Path, description = "Index, UUID or id of the GPU", example = "0"),
        SpanParams),
    responses((status = 200, description = "Its rows", body = TelemetryList)))]
pub(super) async fn of_host_gpu(
    State(app): State<App>,
    At(snapshot): At,
    Segments(path): Segments<(String, String, String)>,
    Checked(span): Checked<Span>,
) -> Result<Response, ApiError> {
    on_host(&snapshot, &path)?;
    let find = |s: &Snapshot| on_host(s, &path).unwrap_or_default();
    answer(&app, snapshot, &span, find, |telemetry, next_cursor| TelemetryList {
        success: true,
        count: telemetry.len(),
        telemetry,
        next_cursor,
    })
    .await
}

/// Metrics of one GPU of a host
///
/// The rows of its telemetry, under another name.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts/{host_id}/gpus/{gpu_id}/metrics",
    operation_id = "getClusterGpuMetrics", tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        ("host_id" = String, Path, description = "The host", example = "dgx-001"),
        ("gpu_id" = String, Path, description = "Index, UUID or id of the GPU", example = "0"),
        SpanParams),
    responses((status = 200, description = "Its rows", body = MetricsList)))]
pub(super) async fn metrics(
    State(app): State<App>,
    At(snapshot): At,
    Segments(path): Segments<(String, String, String)>,
    Checked(span): Checked<Span>,
) -> Result<Response, ApiError> {
    on_host(&snapshot, &path)?;
    let find = |s: &Snapshot| on_host(s, &path).unwrap_or_default();
    answer(&app, snapshot, &span, find, |metrics, next_cursor| MetricsList {
        success: true,
        count: metrics.len(),
        metrics,
        next_cursor,
    })
    .await
}

/// Telemetry of anything
///
/// Rows of all GPUs and hosts that match, by time, ascending. Without `start_time` the newest
/// ones.
#[utoipa::path(get, path = "/api/v1/telemetry", operation_id = "listTelemetry", tag = "telemetry",
    params(PlaceParams, SpanParams),
    responses((status = 200, description = "The rows", body = RowData)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(Search(places, span)): Checked<Search>,
) -> Result<Response, ApiError> {
    let find = |s: &Snapshot| matching(s, &places).into_iter().map(|(t, _)| t).collect();
    answer(&app, snapshot, &span, find, row_data).await
}

/// The latest of each GPU and host
///
/// One row each: the newest value of every metric. `timestamp` is the newest of their instants.
#[utoipa::path(get, path = "/api/v1/telemetry/latest", operation_id = "listLatestTelemetry",
    tag = "telemetry", params(PlaceParams, PageParams),
    responses((status = 200, description = "The rows, by cluster, host and GPU",
        body = RowData)))]
pub(super) async fn latest(
    At(snapshot): At,
    Checked(search): Checked<LatestSearch>,
) -> Json<RowData> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (target, host) in matching(&snapshot, &search.places) {
        for (cursor, row) in latest_rows(&target, host) {
            rows.insert(cursor, row);
        }
    }
    let mut rows: Vec<(String, Row)> = match &search.cursor {
        Some(after) => rows.into_iter().filter(|(cursor, _)| cursor > after).collect(),
        None => rows.into_iter().collect(),
    };
    let more = rows.len() > search.limit;
    rows.truncate(search.limit);
    let next = rows.last().filter(|_| more).map(|(cursor, _)| cursor.clone());
    Json(row_data(rows.into_iter().map(|(_, row)| row).collect(), next))
}

fn latest_rows(target: &Target, host: &Host) -> Vec<(String, Row)> {
    let place = (target.cluster.as_str(), target.host.as_str());
    let row = |gpu: Option<&nexus_common::model::Gpu>, latest: &Latest| {
        let at = latest.newest()?;
        let values = latest.iter().map(|(m, l, _, v)| (m, l, v));
        let id = gpu.map_or("", |g| g.id.as_str());
        let cursor = format!("{}~{}~{id}", place.0, place.1);
        Some((cursor, Row::new(place, gpu.map(|g| (g.index.clone(), Some(g))), at, values)))
    };
    let wanted = |id: &GpuId| match &target.which {
        Which::All => true,
        Which::Gpus(ids) => ids.contains(id),
    };
    let own = matches!(target.which, Which::All).then(|| row(None, &host.own)).flatten();
    let gpus = host.gpus.iter().filter(|(id, _)| wanted(id));
    own.into_iter().chain(gpus.filter_map(|(_, g)| row(Some(&g.about), &g.latest))).collect()
}

fn row_data(data: Vec<Row>, next_cursor: Option<String>) -> RowData {
    RowData { success: true, count: data.len(), data, next_cursor }
}

/// Asks the view and says which revision the answer is of: it may be newer than the request's.
async fn answer<T: Serialize>(
    app: &App,
    snapshot: Arc<Snapshot>,
    span: &Span,
    find: impl Fn(&Snapshot) -> Vec<Target>,
    list: impl FnOnce(Vec<Row>, Option<String>) -> T,
) -> Result<Response, ApiError> {
    let ask = |s: &Snapshot| Query {
        targets: find(s),
        start: span.start,
        end: span.end,
        after: span.after.clone(),
        newest: span.newest,
        limit: span.limit,
        metrics: None,
        step: None,
    };
    let answer = app.view.points(snapshot, ask).await?;
    let rows = answer.points.iter().map(|point| Row::of(point, &answer.snapshot)).collect();
    let next = answer.next.map(|key| key.to_text());
    let mut response = Json(list(rows, next)).into_response();
    response.headers_mut().insert(REVISION, answer.snapshot.revision.into());
    Ok(response)
}

/// GPUs by place, as targets: one for each host.
fn targets_of(places: Vec<GpuPlace>) -> Vec<Target> {
    let mut hosts: BTreeMap<(ClusterId, HostName), BTreeSet<GpuId>> = BTreeMap::new();
    for GpuPlace { cluster, host, gpu } in places {
        hosts.entry((cluster, host)).or_default().insert(gpu);
    }
    let target =
        |((cluster, host), gpus)| Target { cluster, host, which: Which::Gpus(Arc::new(gpus)) };
    hosts.into_iter().map(target).collect()
}

fn on_host(
    snapshot: &Snapshot,
    (cluster, name, gpu): &(String, String, String),
) -> Result<Vec<Target>, ApiError> {
    let (id, cluster) = snapshot
        .clusters
        .get_key_value(cluster.as_str())
        .ok_or_else(|| ApiError::not_found("cluster", cluster))?;
    let (name, host) = cluster
        .hosts
        .get_key_value(name.as_str())
        .ok_or_else(|| ApiError::not_found("host", name))?;
    let ids: BTreeSet<GpuId> = gpus::on_host(host, gpu).into_iter().collect();
    if ids.is_empty() {
        return Err(ApiError::not_found("GPU", gpu));
    }
    let which = Which::Gpus(Arc::new(ids));
    Ok(vec![Target { cluster: id.clone(), host: name.clone(), which }])
}

/// Hosts that match, and which of their series.
fn matching<'a>(snapshot: &'a Snapshot, places: &Places) -> Vec<(Target, &'a Host)> {
    let wanted = |given: &Option<String>, id: &str| given.as_deref().is_none_or(|g| g == id);
    let mut targets = Vec::new();
    // A GPU by UUID or id is looked up; only with a host may it be an index.
    let places_of_gpu = places.gpu.as_deref().map(|gpu| snapshot.places_of(gpu));
    for (cluster, name, host) in snapshot.hosts() {
        if !wanted(&places.cluster, cluster.as_str()) || !wanted(&places.host, name.as_str()) {
            continue;
        }
        let which = match (&places.gpu, &places_of_gpu) {
            (Some(gpu), Some(found)) => {
                let here = found.iter().filter(|p| p.cluster == *cluster && p.host == *name);
                let mut ids: BTreeSet<GpuId> = here.map(|p| p.gpu.clone()).collect();
                if ids.is_empty() && places.host.is_some() {
                    ids = gpus::on_host(host, gpu).into_iter().collect();
                }
                if ids.is_empty() {
                    continue;
                }
                Which::Gpus(Arc::new(ids))
            }
            _ => Which::All,
        };
        targets.push((Target { cluster: cluster.clone(), host: name.clone(), which }, &**host));
    }
    targets
}
