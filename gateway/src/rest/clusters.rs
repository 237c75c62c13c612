//! Clusters and what is in them; hosts across all clusters.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{
    gpus,
    params::{At, Checked, Given, GpuSearch, LIMIT_MAX, Nothing, PageParams, Parameters, Segments},
    resources::{
        ClusterList, ClusterResource, GpuList, GpuResource, HostList, HostNames, HostResource,
    },
};
use crate::{
    view::{Cluster, Snapshot},
    web::{ApiError, App},
};

/// All clusters
#[utoipa::path(get, path = "/api/v1/clusters", operation_id = "listClusters", tag = "clusters",
    responses((status = 200, description = "The clusters", body = ClusterList)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(Nothing): Checked<Nothing>,
) -> Json<ClusterList> {
    let clusters: Vec<ClusterResource> = snapshot
        .clusters
        .iter()
        .map(|(id, cluster)| ClusterResource::of(id.as_str(), cluster, app.active_window_ms))
        .collect();
    let data = clusters.clone();
    Json(ClusterList { success: true, count: clusters.len(), clusters, data })
}

/// One cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}", operation_id = "getCluster",
    tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster")),
    responses((status = 200, description = "The cluster", body = ClusterResource)))]
pub(super) async fn one(
    State(app): State<App>,
    At(snapshot): At,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<ClusterResource>, ApiError> {
    let cluster = cluster(&snapshot, &id)?;
    Ok(Json(ClusterResource::of(&id, cluster, app.active_window_ms)))
}

/// Hosts of a cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts", operation_id = "listClusterHosts",
    tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster")),
    responses((status = 200, description = "Its hosts", body = HostList)))]
pub(super) async fn hosts(
    State(app): State<App>,
    At(snapshot): At,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<HostList>, ApiError> {
    let cluster = cluster(&snapshot, &id)?;
    let window = app.active_window_ms;
    let host = |(name, host): (&nexus_common::model::HostName, &Arc<crate::view::Host>)| {
        HostResource::of(&id, cluster, name.as_str(), host, window)
    };
    let hosts: Vec<HostResource> = cluster.hosts.iter().map(host).collect();
    Ok(Json(HostList { success: true, count: hosts.len(), hosts }))
}

/// One host of a cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts/{host_id}",
    operation_id = "getClusterHost", tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        ("host_id" = String, Path, description = "The host", example = "dgx-001")),
    responses((status = 200, description = "The host", body = HostResource)))]
pub(super) async fn host(
    State(app): State<App>,
    At(snapshot): At,
    Segments((id, name)): Segments<(String, String)>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<HostResource>, ApiError> {
    let cluster = cluster(&snapshot, &id)?;
    let host = cluster.hosts.get(name.as_str());
    let host = host.ok_or_else(|| ApiError::not_found("host", &name))?;
    Ok(Json(HostResource::of(&id, cluster, &name, host, app.active_window_ms)))
}

/// GPUs of a host of a cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts/{host_id}/gpus",
    operation_id = "listClusterHostGpus", tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        ("host_id" = String, Path, description = "The host", example = "dgx-001")),
    responses((status = 200, description = "Its GPUs", body = GpuList)))]
pub(super) async fn host_gpus(
    State(app): State<App>,
    At(snapshot): At,
    Segments((id, name)): Segments<(String, String)>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<GpuList>, ApiError> {
    if !cluster(&snapshot, &id)?.hosts.contains_key(name.as_str()) {
        return Err(ApiError::not_found("host", &name));
    }
    let search = GpuSearch {
        cluster: Some(id),
        host: Some(name),
        active: None,
        limit: usize::MAX,
        cursor: None,
    };
    Ok(Json(gpus::find(&snapshot, &search, app.active_window_ms)))
}

/// One GPU of a host of a cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts/{host_id}/gpus/{gpu_id}",
    operation_id = "getClusterGpu", tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        ("host_id" = String, Path, description = "The host", example = "dgx-001"),
        ("gpu_id" = String, Path, description = "Index, UUID or id of the GPU", example = "0")),
    responses((status = 200, description = "The GPU", body = GpuResource)))]
pub(super) async fn host_gpu(
    State(app): State<App>,
    At(snapshot): At,
    Segments((id, name, gpu)): Segments<(String, String, String)>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<GpuResource>, ApiError> {
    let cluster = cluster(&snapshot, &id)?;
    let host = cluster.hosts.get(name.as_str());
    let host = host.ok_or_else(|| ApiError::not_found("host", &name))?;
    let found = gpus::on_host(host, &gpu).into_iter().next();
    let state = found.and_then(|id| host.gpus.get(&id));
    let state = state.ok_or_else(|| ApiError::not_found("GPU", &gpu))?;
    Ok(Json(GpuResource::of((&id, cluster, &name), state, app.active_window_ms)))
}

/// A part of a list of names.
pub(super) struct NameSearch {
    limit: usize,
    cursor: Option<String>,
}

impl Parameters for NameSearch {
    const NAMES: &'static [&'static str] = &["limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self { limit: given.limit()?.unwrap_or(LIMIT_MAX), cursor: given.owned("cursor") })
    }
}

/// Names of all hosts
#[utoipa::path(get, path = "/api/v1/hosts", operation_id = "listHosts", tag = "hosts",
    params(PageParams),
    responses((status = 200, description = "The names", body = HostNames)))]
pub(super) async fn host_names(
    At(snapshot): At,
    Checked(search): Checked<NameSearch>,
) -> Json<HostNames> {
    let mut names: Vec<String> = snapshot.hosts().map(|(_, n, _)| n.to_string()).collect();
    names.sort_unstable();
    names.dedup();
    let count = names.len();
    names.retain(|name| search.cursor.as_ref().is_none_or(|after| name > after));
    let more = names.len() > search.limit;
    names.truncate(search.limit);
    let next_cursor = names.last().filter(|_| more).cloned();
    Json(HostNames { success: true, count, data: names, next_cursor })
}

pub(super) fn cluster<'a>(snapshot: &'a Snapshot, id: &str) -> Result<&'a Arc<Cluster>, ApiError> {
    snapshot.clusters.get(id).ok_or_else(|| ApiError::not_found("cluster", id))
}
