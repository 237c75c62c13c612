//! GPUs across all clusters.

use axum::{Json, extract::State};
use nexus_common::model::GpuId;

use super::{
    listing::Listing,
    params::{
        At, Checked, GpuParams, GpuSearch, HostGpuSearch, Nothing, PageParams, Segments,
        StatusParams,
    },
    resources::{GpuAnswer, GpuList, GpuResource},
};
use crate::{
    view::{GpuPlace, Snapshot},
    web::{ApiError, App},
};

/// All GPUs
///
/// Every GPU that was seen, by cluster, host and index.
#[utoipa::path(get, path = "/api/v1/gpus", operation_id = "listGpus", tag = "gpus",
    params(GpuParams, PageParams),
    responses((status = 200, description = "The GPUs that match", body = GpuList)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(search): Checked<GpuSearch>,
) -> Listing<GpuList> {
    listing(&snapshot, search, app.active_window_ms)
}

/// One GPU
#[utoipa::path(get, path = "/api/v1/gpus/{uuid}", operation_id = "getGpu", tag = "gpus",
    params(("uuid" = String, Path, description = "UUID or id of the GPU",
        example = "GPU-00000000-1111-2222-3333-444444444444")),
    responses((status = 200, description = "The GPU", body = GpuAnswer)))]
pub(super) async fn one(
    State(app): State<App>,
    At(snapshot): At,
    Segments(uuid): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<GpuAnswer>, ApiError> {
    let places = snapshot.places_of(&uuid);
    let gpus = places.iter().filter_map(|p| resource(&snapshot, p, app.active_window_ms));
    // A GPU that moved is where it was seen last.
    let gpu = gpus.max_by_key(|gpu| gpu.last_seen);
    let gpu = gpu.ok_or_else(|| ApiError::not_found("GPU", &uuid))?;
    Ok(Json(GpuAnswer { success: true, data: gpu.clone(), gpu }))
}

/// GPUs of hosts of one name
#[utoipa::path(get, path = "/api/v1/hosts/{hostname}/gpus", operation_id = "listHostGpus",
    tag = "hosts",
    params(("hostname" = String, Path, description = "Name of the host", example = "dgx-001"),
        StatusParams, PageParams),
    responses((status = 200, description = "The host's GPUs", body = GpuList)))]
pub(super) async fn of_host(
    State(app): State<App>,
    At(snapshot): At,
    Segments(hostname): Segments<String>,
    Checked(search): Checked<HostGpuSearch>,
) -> Result<Listing<GpuList>, ApiError> {
    if !snapshot.hosts().any(|(_, name, _)| name.as_str() == hostname) {
        return Err(ApiError::not_found("host", &hostname));
    }
    Ok(listing(&snapshot, search.of(None, hostname), app.active_window_ms))
}

/// GPUs that match, in the order of cluster, host and index.
pub(crate) fn find(snapshot: &Snapshot, search: &GpuSearch, window_ms: i64) -> GpuList {
    let wanted = |given: &Option<String>, id: &str| given.as_deref().is_none_or(|g| g == id);
    let mut gpus: Vec<GpuResource> = Vec::new();
    for (cluster_id, cluster) in &snapshot.clusters {
        if !wanted(&search.cluster, cluster_id.as_str()) {
            continue;
        }
        let newest = cluster.newest();
        for (name, host) in &cluster.hosts {
            if !wanted(&search.host, name.as_str()) {
                continue;
            }
            let place = (cluster_id.as_str(), newest, name.as_str());
            let mut of_host: Vec<GpuResource> =
                host.gpus.values().map(|gpu| GpuResource::of(place, gpu, window_ms)).collect();
            // Shorter indices first: that sorts numbers, and needs them not to be numbers.
            of_host.sort_by(|a, b| {
                (a.id.len(), &a.id, &a.gpu_id).cmp(&(b.id.len(), &b.id, &b.gpu_id))
            });
            gpus.extend(of_host);
        }
    }
    gpus.retain(|g| search.status.is_none_or(|status| status == g.status));
    gpus.retain(|g| search.name.is_none() || search.name == g.name);
    let count = gpus.len();
    let (data, next_cursor) = search.part.of(gpus, cursor);
    GpuList { success: true, count, data, next_cursor }
}

/// Where a GPU stands in a list: good for as long as the GPU is there.
pub(crate) fn cursor(gpu: &GpuResource) -> String {
    format!("{}~{}~{}", gpu.cluster_id, gpu.hostname, gpu.gpu_id)
}

/// The GPUs that match, as an answer.
pub(super) fn listing(snapshot: &Snapshot, search: GpuSearch, window_ms: i64) -> Listing<GpuList> {
    let list = find(snapshot, &search, window_ms);
    Listing { next: list.next_cursor.clone(), list, fields: search.part.fields }
}

/// The GPU at a place.
pub(crate) fn resource(
    snapshot: &Snapshot,
    place: &GpuPlace,
    window_ms: i64,
) -> Option<GpuResource> {
    let cluster = snapshot.clusters.get(&place.cluster)?;
    let gpu = cluster.hosts.get(&place.host)?.gpus.get(&place.gpu)?;
    let place = (place.cluster.as_str(), cluster.newest(), place.host.as_str());
    Some(GpuResource::of(place, gpu, window_ms))
}

/// GPUs of a host that go by `text`: id, index, or UUID (which MIG instances share).
pub(super) fn on_host(host: &crate::view::Host, text: &str) -> Vec<GpuId> {
    let gpus = || host.gpus.values().map(|gpu| &gpu.about);
    match gpus().find(|g| g.id.as_str() == text) {
        Some(gpu) => vec![gpu.id.clone()],
        None => {
            let named = gpus().filter(|g| g.index == text || g.uuid == text);
            named.map(|g| g.id.clone()).collect()
        }
    }
}
