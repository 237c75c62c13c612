//! What was measured: rows of one GPU, rows of anything, the latest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use nexus_common::model::{ClusterId, GpuId, HostName, MetricName};
use serde::Serialize;

use super::{
    export, gpus,
    listing::{Format, Listing},
    params::{At, Checked, PageParams, Segments, Wanted},
    resources::{MetricsList, Row, RowData, TelemetryList},
    span::{LatestSearch, MetricParams, PlaceParams, Places, Search, Span, SpanParams},
};
use crate::{
    view::{GpuPlace, Host, Latest, Query, Snapshot, Target, Which},
    web::{ApiError, App, Basis, REVISION, cursor_of},
};

/// Telemetry of one GPU
///
/// Rows by time, ascending. Without `start_time` the newest ones. With `Accept: text/csv` or
/// `application/x-ndjson` all rows, written as they are read.
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
    Wanted(format): Wanted,
) -> Result<Response, ApiError> {
    if snapshot.places_of(&uuid).is_empty() {
        return Err(ApiError::not_found("GPU", &uuid));
    }
    let basis = Basis::hosts(&snapshot, &targets_of(snapshot.places_of(&uuid)));
    let find = move |s: &Snapshot| targets_of(s.places_of(&uuid));
    let answered = answer(app, snapshot, span, format, find, row_data).await?;
    Ok((Extension(basis), answered).into_response())
}

/// Telemetry of one GPU of a host
///
/// Rows by time, ascending. Without `start_time` the newest ones. With `Accept: text/csv` or
/// `application/x-ndjson` all rows, written as they are read.
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
    Wanted(format): Wanted,
) -> Result<Response, ApiError> {
    let list = |telemetry: Vec<Row>, next_cursor| TelemetryList {
        success: true,
        count: telemetry.len(),
        telemetry,
        next_cursor,
    };
    of_place(app, snapshot, path, span, format, list).await
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
    Wanted(format): Wanted,
) -> Result<Response, ApiError> {
    let list = |metrics: Vec<Row>, next_cursor| MetricsList {
        success: true,
        count: metrics.len(),
        metrics,
        next_cursor,
    };
    of_place(app, snapshot, path, span, format, list).await
}

/// Rows of one GPU of a host, as `list` shapes them.
async fn of_place<T: Serialize>(
    app: App,
    snapshot: Arc<Snapshot>,
    path: (String, String, String),
    span: Span,
    format: Format,
    list: impl FnOnce(Vec<Row>, Option<String>) -> T,
) -> Result<Response, ApiError> {
    let basis = Basis::hosts(&snapshot, &on_host(&snapshot, &path)?);
    let find = move |s: &Snapshot| on_host(s, &path).unwrap_or_default();
    let answered = answer(app, snapshot, span, format, find, list).await?;
    Ok((Extension(basis), answered).into_response())
}

/// Telemetry of anything
///
/// Rows of all GPUs and hosts that match, by time, ascending. Without `start_time` the newest
/// ones. With `Accept: text/csv` or `application/x-ndjson` all rows, written as they are read.
#[utoipa::path(get, path = "/api/v1/telemetry", operation_id = "listTelemetry", tag = "telemetry",
    params(PlaceParams, SpanParams),
    responses((status = 200, description = "The rows", body = RowData)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(Search(places, span)): Checked<Search>,
    Wanted(format): Wanted,
) -> Result<Response, ApiError> {
    let find = move |s: &Snapshot| matching(s, &places).into_iter().map(|(t, _)| t).collect();
    answer(app, snapshot, span, format, find, row_data).await
}

/// The latest of each GPU and host
///
/// One row each: the newest value of every metric. `timestamp` is the newest of their instants.
#[utoipa::path(get, path = "/api/v1/telemetry/latest", operation_id = "listLatestTelemetry",
    tag = "telemetry", params(PlaceParams, MetricParams, PageParams),
    responses((status = 200, description = "The rows, by cluster, host and GPU",
        body = RowData)))]
pub(super) async fn latest(
    At(snapshot): At,
    Checked(search): Checked<LatestSearch>,
) -> Listing<RowData> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for (target, host) in matching(&snapshot, &search.places) {
        rows.extend(latest_rows(&target, host, search.metrics.as_deref()));
    }
    let all: Vec<(String, Row)> = rows.into_iter().collect();
    let (rows, next) = search.part.of(all, |(cursor, _)| cursor.clone());
    let list = row_data(rows.into_iter().map(|(_, row)| row).collect(), next.clone());
    Listing { list, next, fields: search.part.fields }
}

fn latest_rows(
    target: &Target,
    host: &Host,
    metrics: Option<&BTreeSet<MetricName>>,
) -> Vec<(String, Row)> {
    let place = (target.cluster.as_str(), target.host.as_str());
    let row = |gpu: Option<&nexus_common::model::Gpu>, latest: &Latest| {
        let wanted = || latest.iter().filter(|(m, ..)| metrics.is_none_or(|all| all.contains(*m)));
        let at = wanted().map(|(_, _, at, _)| at).max()?;
        let values = wanted().map(|(m, l, _, v)| (m, l, v));
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
    app: App,
    snapshot: Arc<Snapshot>,
    span: Span,
    format: Format,
    find: impl Fn(&Snapshot) -> Vec<Target> + Send + Sync + 'static,
    list: impl FnOnce(Vec<Row>, Option<String>) -> T,
) -> Result<Response, ApiError> {
    if format != Format::Json {
        return export::answer(app, snapshot, span, format, find).await;
    }
    let answer = app.view.points(snapshot, |s| query(&span, find(s), span.rows())).await?;
    let rows = answer.points.iter().map(|point| Row::of(point, &answer.snapshot)).collect();
    let next = answer.next.map(|key| cursor_of(&key.to_text()));
    let list = list(rows, next.clone());
    let mut response = Listing { list, next, fields: span.fields }.into_response();
    response.headers_mut().insert(REVISION, answer.snapshot.revision.into());
    Ok(response)
}

/// At most `limit` rows of what a span is about.
pub(super) fn query(span: &Span, targets: Vec<Target>, limit: usize) -> Query {
    Query {
        targets,
        start: span.start,
        end: span.end,
        after: span.after.clone(),
        newest: span.newest,
        limit,
        metrics: span.metrics.clone(),
        step: span.step,
    }
}

/// GPUs by place, as targets: one for each host.
pub(crate) fn targets_of(places: Vec<GpuPlace>) -> Vec<Target> {
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
pub(crate) fn matching<'a>(snapshot: &'a Snapshot, places: &Places) -> Vec<(Target, &'a Host)> {
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
