//! GPUs across all clusters.

use axum::{Json, extract::State};
use nexus_common::model::GpuId;

use super::{
    params::{At, Checked, GpuParams, GpuSearch, Nothing, PageParams, Segments},
    resources::{GpuAnswer, GpuList, GpuResource, Status},
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
) -> Json<GpuList> {
    Json(find(&snapshot, &search, app.active_window_ms))
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
    params(("hostname" = String, Path, description = "Name of the host", example = "dgx-001")),
    responses((status = 200, description = "The host's GPUs", body = GpuList)))]
pub(super) async fn of_host(
    State(app): State<App>,
    At(snapshot): At,
    Segments(hostname): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<GpuList>, ApiError> {
    if !snapshot.hosts().any(|(_, name, _)| name.as_str() == hostname) {
        return Err(ApiError::not_found("host", &hostname));
    }
    let search = GpuSearch {
        cluster: None,
        host: Some(hostname),
        active: None,
        limit: usize::MAX,
        cursor: None,
    };
    Ok(Json(find(&snapshot, &search, app.active_window_ms)))
}

/// GPUs that match, in the order of cluster, host and index.
pub(crate) fn find(snapshot: &Snapshot, search: &GpuSearch, window_ms: i64) -> GpuList {
    let wanted = |given: &Option<String>, id: &str| given.as_deref().is_none_or(|g| g == id);
    let mut gpus: Vec<GpuResource> = Vec::new();
    for (cluster_id, cluster) in &snapshot.clusters {
        if !wanted(&search.cluster, cluster_id.as_str()) {
            continue;
        }
        for (name, host) in &cluster.hosts {
            if !wanted(&search.host, name.as_str()) {
                continue;
            }
            let place = (cluster_id.as_str(), &**cluster, name.as_str());
            let mut of_host: Vec<GpuResource> =
                host.gpus.values().map(|gpu| GpuResource::of(place, gpu, window_ms)).collect();
            // Shorter indices first: that sorts numbers, and needs them not to be numbers.
            of_host.sort_by(|a, b| {
                (a.id.len(), &a.id, &a.gpu_id).cmp(&(b.id.len(), &b.id, &b.gpu_id))
            });
            gpus.extend(of_host);
        }
    }
    gpus.retain(|g| search.active.is_none_or(|active| active == (g.status == Status::Active)));
    let count = gpus.len();
    let from = match &search.cursor {
        // A GPU that is gone meanwhile: nothing behind it is known, the list is over.
        Some(text) => gpus.iter().position(|g| cursor(g) == *text).map_or(count, |at| at + 1),
        None => 0,
    };
    let mut data: Vec<GpuResource> = gpus.drain(from..).collect();
    let more = data.len() > search.limit;
    data.truncate(search.limit);
    let next_cursor = data.last().filter(|_| more).map(cursor);
    GpuList { success: true, count, data, next_cursor }
}

/// Where a GPU stands in a list: good for as long as the GPU is there.
pub(crate) fn cursor(gpu: &GpuResource) -> String {
    format!("{}~{}~{}", gpu.cluster_id, gpu.hostname, gpu.gpu_id)
}

/// The GPU at a place.
pub(crate) fn resource(
    snapshot: &Snapshot,
    place: &GpuPlace,
    window_ms: i64,
) -> Option<GpuResource> {
    let cluster = snapshot.clusters.get(&place.cluster)?;
    let gpu = cluster.hosts.get(&place.host)?.gpus.get(&place.gpu)?;
    let place = (place.cluster.as_str(), &**cluster, place.host.as_str());
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
