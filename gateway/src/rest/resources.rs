//! What answers are made of: one struct a resource, for JSON and the document alike.

use std::collections::BTreeMap;

use nexus_common::model::{Gpu, Labels, MetricName, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::view::{Cluster, GpuState, Host, Point, Snapshot};

/// Names of a GPU's fields.
pub(super) const GPU_FIELDS: &[&str] = &[
    "id",
    "uuid",
    "hostname",
    "name",
    "device",
    "status",
    "gpu_id",
    "cluster_id",
    "driver_version",
    "mig_profile",
    "last_seen",
];
/// Names of a host's fields.
pub(super) const HOST_FIELDS: &[&str] = &[
    "host_id",
    "hostname",
    "cluster_id",
    "status",
    "gpu_count",
    "created_at",
    "last_seen",
    "samples_stored",
    "samples_queued",
];
/// Names of a cluster's fields.
pub(super) const CLUSTER_FIELDS: &[&str] = &[
    "cluster_id",
    "cluster_name",
    "region",
    "environment",
    "labels",
    "created_at",
    "updated_at",
    "metadata",
];
/// Names of a row's fields.
pub(super) const ROW_FIELDS: &[&str] = &[
    "telemetry_id",
    "timestamp",
    "gpu_id",
    "uuid",
    "device",
    "model_name",
    "hostname",
    "cluster_id",
    "gpu_utilization",
    "memory_utilization",
    "memory_used_mb",
    "memory_free_mb",
    "temperature",
    "power_draw",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "custom_metrics",
    "labels",
];

/// Whether something still sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its newest sample is within the active window of the newest sample of its cluster.
    Active,
    /// It is not, or there is none.
    Stale,
}

impl Status {
    /// Judges a newest sample by the newest of its cluster: replayed data is old as a whole.
    pub fn of(newest: Option<i64>, of_cluster: Option<i64>, window_ms: i64) -> Self {
        match (newest, of_cluster) {
            (Some(own), Some(of_all)) if own >= of_all.saturating_sub(window_ms) => Self::Active,
            _ => Self::Stale,
        }
    }
}

/// A GPU, or one instance of a MIG GPU.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GpuResource {
    /// Index on its host, as its telemetry wrote it
    #[schema(example = "0")]
    pub id: String,
    /// UUID of the physical GPU; null if its telemetry gave none
    #[schema(example = "GPU-00000000-1111-2222-3333-444444444444")]
    pub uuid: Option<String>,
    /// The host it is in
    #[schema(example = "dgx-001")]
    pub hostname: String,
    /// Model
    #[schema(example = "NVIDIA H100 80GB HBM3")]
    pub name: Option<String>,
    /// Device name
    #[schema(example = "nvidia0")]
    pub device: Option<String>,
    /// Whether it still sends
    pub status: Status,
    /// Identity: the UUID, with `:{instance}` behind it for a MIG instance; `{host}:{index}`
    /// without a UUID
    #[schema(example = "GPU-00000000-1111-2222-3333-444444444444")]
    pub gpu_id: String,
    /// Its cluster
    #[schema(example = "local-cluster")]
    pub cluster_id: String,
    /// Driver version
    #[schema(example = "535.129.03")]
    pub driver_version: Option<String>,
    /// MIG profile; null for a whole GPU
    #[schema(example = "1g.10gb")]
    pub mig_profile: Option<String>,
    /// Instant of its newest sample; null if it was silent for long
    #[schema(value_type = Option<String>, format = DateTime, example = "2025-07-18T20:42:37Z")]
    pub last_seen: Option<Timestamp>,
}

impl GpuResource {
    /// A GPU of a host: its cluster's id and newest instant, and the host's name.
    pub fn of(place: (&str, Option<i64>, &str), state: &GpuState, window_ms: i64) -> Self {
        let (cluster_id, of_cluster, host) = place;
        let newest = state.latest.newest();
        let Gpu { id, uuid, index, device, model, driver, mig_profile } = &state.about;
        Self {
            id: index.clone(),
            uuid: known(uuid),
            hostname: host.to_owned(),
            name: known(model),
            device: known(device),
            status: Status::of(newest, of_cluster, window_ms),
            gpu_id: id.to_string(),
            cluster_id: cluster_id.to_owned(),
            driver_version: known(driver),
            mig_profile: known(mig_profile),
            last_seen: newest.map(Timestamp::saturating_from_millis),
        }
    }
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// GPUs.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// GPUs that match, in this answer or behind it
    #[schema(example = 247)]
    pub count: usize,
    /// The GPUs, by cluster, host and index
    pub data: Vec<GpuResource>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One GPU.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuAnswer {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// The GPU
    pub data: GpuResource,
    /// The GPU once more
    #[serde(flatten)]
    pub gpu: GpuResource,
}

/// A host.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct HostResource {
    /// Its name
    #[schema(example = "dgx-001")]
    pub host_id: String,
    /// Its name
    #[schema(example = "dgx-001")]
    pub hostname: String,
    /// Its cluster
    #[schema(example = "local-cluster")]
    pub cluster_id: String,
    /// Whether it still sends
    pub status: Status,
    /// Its GPUs
    #[schema(example = 8)]
    pub gpu_count: usize,
    /// When it was first seen; null while only its first messages are known
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T14:00:00Z")]
    pub created_at: Option<Timestamp>,
    /// Instant of its newest sample
    #[schema(value_type = Option<String>, format = DateTime, example = "2025-07-18T20:42:37Z")]
    pub last_seen: Option<Timestamp>,
    /// Samples in blocks
    #[schema(example = 80)]
    pub samples_stored: u64,
    /// Samples in the queue
    #[schema(example = 0)]
    pub samples_queued: u64,
}

impl HostResource {
    /// A host of a cluster.
    pub fn of(cluster_id: &str, cluster: &Cluster, name: &str, host: &Host, window: i64) -> Self {
        Self {
            host_id: name.to_owned(),
            hostname: name.to_owned(),
            cluster_id: cluster_id.to_owned(),
            status: Status::of(host.newest, cluster.newest(), window),
            gpu_count: host.gpus.len(),
            created_at: host.created_at,
            last_seen: host.newest.map(Timestamp::saturating_from_millis),
            samples_stored: host.stored_samples(),
            samples_queued: host.queued_samples(),
        }
    }
}

/// Names of hosts.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostNames {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// How many
    #[schema(example = 31)]
    pub count: usize,
    /// The names, sorted
    #[schema(example = json!(["dgx-001", "dgx-002"]))]
    pub data: Vec<String>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Hosts of a cluster.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// How many
    #[schema(example = 31)]
    pub count: usize,
    /// The hosts, by name
    pub hosts: Vec<HostResource>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClusterResource {
    /// Its id
    #[schema(example = "local-cluster")]
    pub cluster_id: String,
    /// Its name: the id
    #[schema(example = "local-cluster")]
    pub cluster_name: String,
    /// Not known: null
    pub region: Option<String>,
    /// Not known: null
    pub environment: Option<String>,
    /// None are known
    pub labels: BTreeMap<String, String>,
    /// When it was first seen; null while only its first messages are known
    #[schema(value_type = Option<String>, format = DateTime, example = "2026-01-31T14:00:00Z")]
    pub created_at: Option<Timestamp>,
    /// Instant of its newest sample
    #[schema(value_type = Option<String>, format = DateTime, example = "2025-07-18T20:42:37Z")]
    pub updated_at: Option<Timestamp>,
    /// What is in it
    pub metadata: ClusterMetadata,
}

/// What is in a cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClusterMetadata {
    /// Hosts that were seen
    #[schema(example = 31)]
    pub total_hosts: usize,
    /// GPUs that were seen
    #[schema(example = 247)]
    pub total_gpus: usize,
    /// Hosts that still send
    #[schema(example = 31)]
    pub active_hosts: usize,
    /// GPUs that still send
    #[schema(example = 247)]
    pub active_gpus: usize,
    /// Instant of the newest sample
    #[schema(value_type = Option<String>, format = DateTime, example = "2025-07-18T20:42:37Z")]
    pub last_updated: Option<Timestamp>,
}

impl ClusterResource {
    /// A cluster.
    pub fn of(id: &str, cluster: &Cluster, window_ms: i64) -> Self {
        let newest = cluster.newest().map(Timestamp::saturating_from_millis);
        let edge = cluster.newest().map(|at| at.saturating_sub(window_ms));
        let active = |newest: Option<i64>| newest.is_some() && newest >= edge;
        let gpus = || cluster.hosts.values().flat_map(|h| h.gpus.values());
        Self {
            cluster_id: id.to_owned(),
            cluster_name: id.to_owned(),
            region: None,
            environment: None,
            labels: BTreeMap::new(),
            created_at: cluster.created_at,
            updated_at: newest,
            metadata: ClusterMetadata {
                total_hosts: cluster.hosts.len(),
                total_gpus: gpus().count(),
                active_hosts: cluster.hosts.values().filter(|h| active(h.newest)).count(),
                active_gpus: gpus().filter(|g| active(g.latest.newest())).count(),
                last_updated: newest,
            },
        }
    }
}

/// Clusters.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// How many
    #[schema(example = 1)]
    pub count: usize,
    /// The clusters, by id
    pub clusters: Vec<ClusterResource>,
    /// The clusters once more
    pub data: Vec<ClusterResource>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// All that was measured of one GPU (or of a host itself) at one instant.
///
/// A metric that was not measured then is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Row {
    /// `{host}_{index of the GPU}_{seconds since the epoch}`
    #[schema(example = "dgx-001_0_1752871354")]
    pub telemetry_id: String,
    /// The instant
    #[schema(value_type = String, format = DateTime, example = "2025-07-18T20:42:34Z")]
    pub timestamp: Timestamp,
    /// Index of the GPU on its host; null in a row of the host itself
    #[schema(example = "0")]
    pub gpu_id: Option<String>,
    /// UUID of the GPU
    #[schema(example = "GPU-00000000-1111-2222-3333-444444444444")]
    pub uuid: Option<String>,
    /// Device name
    #[schema(example = "nvidia0")]
    pub device: Option<String>,
    /// Model
    #[schema(example = "NVIDIA H100 80GB HBM3")]
    pub model_name: Option<String>,
    /// The host
    #[schema(example = "dgx-001")]
    pub hostname: String,
    /// Its cluster
    #[schema(example = "local-cluster")]
    pub cluster_id: String,
    /// Time during which a kernel ran, in percent
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 85.5)]
    pub gpu_utilization: Option<f64>,
    /// Time during which the copy engine was busy, in percent
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 40.0)]
    pub memory_utilization: Option<f64>,
    /// Frame buffer in use, in MiB
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 61234.0)]
    pub memory_used_mb: Option<f64>,
    /// Frame buffer free, in MiB
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 20325.0)]
    pub memory_free_mb: Option<f64>,
    /// GPU temperature, in degrees Celsius
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 62.0)]
    pub temperature: Option<f64>,
    /// Power drawn, in watts
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 320.1)]
    pub power_draw: Option<f64>,
    /// SM clock, in MHz
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1980.0)]
    pub sm_clock_mhz: Option<f64>,
    /// Memory clock, in MHz
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 2619.0)]
    pub memory_clock_mhz: Option<f64>,
    /// Every other metric by name; series that differ in labels alone as `name{label="value"}`
    #[schema(example = json!({"encoder_utilization": 0.0}))]
    pub custom_metrics: BTreeMap<String, f64>,
    /// Labels of its series beyond host and GPU, where they agree
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"pod": "train-7"}))]
    pub labels: BTreeMap<String, String>,
}

impl Row {
    /// A point as a row; who the GPU is comes from the snapshot.
    pub fn of(point: &Point, snapshot: &Snapshot) -> Self {
        let key = &point.key;
        let host = snapshot.host(key.cluster.as_str(), key.host.as_str());
        let gpu = key.gpu.as_ref().map(|id| {
            host.and_then(|(_, h)| h.gpus.get(id)).map_or_else(
                || (id.to_string(), None),
                |state| (state.about.index.clone(), Some(&state.about)),
            )
        });
        let values = point.values.iter().map(|(m, l, v)| (m, l, *v));
        Self::new((key.cluster.as_str(), key.host.as_str()), gpu, key.at, values)
    }

    /// A row of a host (without `gpu`: its index and what is known of it) at an instant.
    pub fn new<'a>(
        place: (&str, &str),
        gpu: Option<(String, Option<&Gpu>)>,
        at: i64,
        values: impl Iterator<Item = (&'a MetricName, &'a Labels, f64)>,
    ) -> Self {
        let (cluster, host) = place;
        let (index, about) = gpu.map_or((None, None), |(index, about)| (Some(index), about));
        let seconds = at.div_euclid(1000);
        let mut row = Self {
            telemetry_id: format!("{host}_{}_{seconds}", index.as_deref().unwrap_or("host")),
            timestamp: Timestamp::saturating_from_millis(at),
            gpu_id: index,
            uuid: about.and_then(|g| known(&g.uuid)),
            device: about.and_then(|g| known(&g.device)),
            model_name: about.and_then(|g| known(&g.model)),
            hostname: host.to_owned(),
            cluster_id: cluster.to_owned(),
            ..Self::default()
        };
        let mut differ = Vec::new();
        for (metric, labels, value) in values {
            row.put(metric, labels, value);
            for (name, text) in labels.iter() {
                let kept = row.labels.entry(name.to_owned()).or_insert_with(|| text.to_owned());
                if kept != text {
                    differ.push(name.to_owned());
                }
            }
        }
        differ.iter().for_each(|name| drop(row.labels.remove(name)));
        row
    }

    /// A well-known metric has a field; a second series of it, and all others, go by name.
    fn put(&mut self, metric: &MetricName, labels: &Labels, value: f64) {
        let field = match metric.as_str() {
            "gpu_utilization" => Some(&mut self.gpu_utilization),
            "memory_utilization" => Some(&mut self.memory_utilization),
            "memory_used_mb" => Some(&mut self.memory_used_mb),
            "memory_free_mb" => Some(&mut self.memory_free_mb),
            "temperature" => Some(&mut self.temperature),
            "power_draw" => Some(&mut self.power_draw),
            "sm_clock_mhz" => Some(&mut self.sm_clock_mhz),
            "memory_clock_mhz" => Some(&mut self.memory_clock_mhz),
            _ => None,
        };
        match field {
            Some(field) if field.is_none() => *field = Some(value),
            None if !self.custom_metrics.contains_key(metric.as_str()) => {
                self.custom_metrics.insert(metric.to_string(), value);
            }
            _ => {
                self.custom_metrics.insert(labelled(metric, labels), value);
            }
        }
    }
}

/// A series of a metric that has several: `name{label="value"}`.
pub(crate) fn labelled(metric: &MetricName, labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
    format!("{metric}{{{}}}", pairs.join(","))
}

/// Rows.
#[derive(Debug, Serialize, ToSchema)]
pub struct RowData {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// Rows in this answer
    #[schema(example = 4)]
    pub count: usize,
    /// The rows, by time
    pub data: Vec<Row>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Rows of one GPU of a host.
#[derive(Debug, Serialize, ToSchema)]
pub struct TelemetryList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// Rows in this answer
    #[schema(example = 4)]
    pub count: usize,
    /// The rows, by time
    pub telemetry: Vec<Row>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Rows of one GPU.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricsList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// Rows in this answer
    #[schema(example = 4)]
    pub count: usize,
    /// The rows, by time
    pub metrics: Vec<Row>,
    /// Where to go on, if there are more
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
