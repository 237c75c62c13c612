//! Clusters and what is in them; hosts across all clusters.

use std::sync::Arc;

use axum::{Json, extract::State};
use utoipa::IntoParams;

use super::{
    gpus,
    listing::Listing,
    params::{
        At, Checked, FieldParams, Given, HostGpuSearch, NamePageParams, Nothing, PageParams,
        Parameters, Part, Segments, StatusParams,
    },
    resources::{
        CLUSTER_FIELDS, ClusterList, ClusterResource, GpuList, GpuResource, HOST_FIELDS, HostList,
        HostNames, HostResource, Status,
    },
};
use crate::{
    view::{Cluster, Host, Snapshot},
    web::{ApiError, App},
};

/// A part of the clusters.
pub(super) struct ClusterSearch(Part);

impl Parameters for ClusterSearch {
    const NAMES: &'static [&'static str] = &["limit", "cursor", "fields"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(given.part(1, CLUSTER_FIELDS)?))
    }
}

/// All clusters
#[utoipa::path(get, path = "/api/v1/clusters", operation_id = "listClusters", tag = "clusters",
    params(NamePageParams, FieldParams),
    responses((status = 200, description = "The clusters", body = ClusterList)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(ClusterSearch(part)): Checked<ClusterSearch>,
) -> Listing<ClusterList> {
    let all = snapshot.clusters.iter();
    let all: Vec<ClusterResource> =
        all.map(|(id, c)| ClusterResource::of(id.as_str(), c, app.active_window_ms)).collect();
    let count = all.len();
    let (clusters, next) = part.of(all, |c| c.cluster_id.clone());
    let (data, next_cursor) = (clusters.clone(), next.clone());
    let list = ClusterList { success: true, count, clusters, data, next_cursor };
    Listing { list, next, fields: part.fields }
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

/// Which hosts of a cluster.
pub(super) struct HostSearch {
    status: Option<Status>,
    part: Part,
}

impl Parameters for HostSearch {
    const NAMES: &'static [&'static str] = &["status", "limit", "cursor", "fields"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self { status: given.status()?, part: given.part(1, HOST_FIELDS)? })
    }
}

/// Hosts of a cluster
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/hosts", operation_id = "listClusterHosts",
    tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster"),
        StatusParams, NamePageParams, FieldParams),
    responses((status = 200, description = "Its hosts", body = HostList)))]
pub(super) async fn hosts(
    State(app): State<App>,
    At(snapshot): At,
    Segments(id): Segments<String>,
    Checked(search): Checked<HostSearch>,
) -> Result<Listing<HostList>, ApiError> {
    let cluster = cluster(&snapshot, &id)?;
    let window = app.active_window_ms;
    let host = |(name, host): (&nexus_common::model::HostName, &Arc<crate::view::Host>)| {
        HostResource::of(&id, cluster, name.as_str(), host, window)
    };
    let mut all: Vec<HostResource> = cluster.hosts.iter().map(host).collect();
    all.retain(|host| search.status.is_none_or(|status| status == host.status));
    let count = all.len();
    let (hosts, next) = search.part.of(all, |host| host.host_id.clone());
    let list = HostList { success: true, count, hosts, next_cursor: next.clone() };
    Ok(Listing { list, next, fields: search.part.fields })
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
        ("host_id" = String, Path, description = "The host", example = "dgx-001"),
        StatusParams, PageParams),
    responses((status = 200, description = "Its GPUs", body = GpuList)))]
pub(super) async fn host_gpus(
    State(app): State<App>,
    At(snapshot): At,
    Segments((id, name)): Segments<(String, String)>,
    Checked(search): Checked<HostGpuSearch>,
) -> Result<Listing<GpuList>, ApiError> {
    if !cluster(&snapshot, &id)?.hosts.contains_key(name.as_str()) {
        return Err(ApiError::not_found("host", &name));
    }
    Ok(gpus::listing(&snapshot, search.of(Some(id), name), app.active_window_ms))
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
    Ok(Json(GpuResource::of((&id, cluster.newest(), &name), state, app.active_window_ms)))
}

/// Which names of hosts.
pub(super) struct NameSearch {
    cluster: Option<String>,
    status: Option<Status>,
    part: Part,
}

impl Parameters for NameSearch {
    const NAMES: &'static [&'static str] = &["cluster", "status", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let (cluster, status) = (given.owned("cluster"), given.status()?);
        Ok(Self { cluster, status, part: given.part(1, &[])? })
    }
}

/// Of which cluster.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct ClusterParams {
    /// Only this cluster
    #[param(example = "local-cluster")]
    cluster: Option<String>,
}

/// Names of all hosts
#[utoipa::path(get, path = "/api/v1/hosts", operation_id = "listHosts", tag = "hosts",
    params(ClusterParams, StatusParams, NamePageParams),
    responses((status = 200, description = "The names", body = HostNames)))]
pub(super) async fn host_names(
    State(app): State<App>,
    At(snapshot): At,
    Checked(search): Checked<NameSearch>,
) -> Listing<HostNames> {
    let mut names: Vec<String> = Vec::new();
    for (id, cluster) in &snapshot.clusters {
        if search.cluster.as_ref().is_some_and(|wanted| wanted != id.as_str()) {
            continue;
        }
        let newest = cluster.newest();
        let status = |host: &Host| Status::of(host.newest, newest, app.active_window_ms);
        let wanted = |host: &Host| search.status.is_none_or(|wanted| wanted == status(host));
        let hosts = cluster.hosts.iter().filter(|(_, host)| wanted(host));
        names.extend(hosts.map(|(name, _)| name.to_string()));
    }
    names.sort_unstable();
    names.dedup();
    let count = names.len();
    let (data, next) = search.part.of(names, String::clone);
    let list = HostNames { success: true, count, data, next_cursor: next.clone() };
    Listing { list, next, fields: None }
}

pub(super) fn cluster<'a>(snapshot: &'a Snapshot, id: &str) -> Result<&'a Arc<Cluster>, ApiError> {
    snapshot.clusters.get(id).ok_or_else(|| ApiError::not_found("cluster", id))
}
