//! Real numbers of a cluster, and who is working.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use axum::{Json, extract::State};
use nexus_common::{
    etcd::{Error, Etcd, RangeRead},
    keyspace::{Instance, InstanceState, Key, from_json},
    model::{Role, Timestamp},
};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use super::{
    clusters,
    params::{At, Checked, Nothing, Segments},
    resources::ClusterResource,
};
use crate::{
    view::{Host, Snapshot},
    web::{ApiError, App},
};

/// How long a listing of instances serves: they renew their figures every 2 s.
const INSTANCES_FOR: Duration = Duration::from_secs(1);

/// A running process.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct InstanceResource {
    /// streamer, collector or gateway
    #[schema(value_type = String, example = "streamer")]
    pub role: Role,
    /// Its name
    #[schema(example = "streamer-1")]
    pub instance: String,
    /// Operating system process id
    #[schema(example = 4711)]
    pub pid: u32,
    /// Where it serves (API for a gateway, metrics for the others)
    #[schema(example = "127.0.0.1:8080")]
    pub address: String,
    /// active or draining
    #[schema(example = "active")]
    pub state: &'static str,
    /// Claims it holds
    #[schema(example = 4)]
    pub claims: u64,
    /// Rows read a second
    #[schema(example = 1000.0)]
    pub rows_per_second: f64,
    /// Samples moved a second
    #[schema(example = 1000.0)]
    pub samples_per_second: f64,
    /// Messages it knows to be waiting
    #[schema(example = 0)]
    pub backlog: u64,
    /// Age of the oldest of them, or of a gateway's view, in milliseconds
    #[schema(example = 12)]
    pub lag_ms: u64,
    /// Version of the program
    #[schema(example = "0.1.0")]
    pub version: String,
    /// When it started
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:00Z")]
    pub started_at: Timestamp,
}

impl From<Instance> for InstanceResource {
    fn from(i: Instance) -> Self {
        Self {
            role: i.role,
            instance: i.instance.to_string(),
            pid: i.pid,
            address: i.address,
            state: match i.state {
                InstanceState::Active => "active",
                InstanceState::Draining => "draining",
            },
            claims: i.claims,
            rows_per_second: i.rows_per_second,
            samples_per_second: i.samples_per_second,
            backlog: i.backlog,
            lag_ms: i.lag_ms,
            version: i.version,
            started_at: i.started_at,
        }
    }
}

/// Running processes, read from etcd when asked and kept for a second.
#[derive(Debug, Default)]
pub struct Instances {
    known: Mutex<Option<(Instant, Vec<InstanceResource>)>>,
}

impl Instances {
    /// By role and name.
    async fn list(&self, etcd: &Etcd) -> Result<Vec<InstanceResource>, Error> {
        let mut known = self.known.lock().await;
        if let Some((_, list)) = known.as_ref().filter(|(at, _)| at.elapsed() < INSTANCES_FOR) {
            return Ok(list.clone());
        }
        let range = etcd.keyspace().prefix("instances/");
        let mut list: Vec<InstanceResource> = Vec::new();
        for entry in etcd.range(&range, RangeRead::default()).await?.entries {
            if let Ok(Key::Instance(..)) = etcd.keyspace().parse(&entry.key) {
                let instance: Result<Instance, _> = from_json(&entry.key, &entry.value);
                list.extend(instance.ok().map(InstanceResource::from));
            }
        }
        *known = Some((Instant::now(), list.clone()));
        Ok(list)
    }
}

/// Figures of a cluster.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClusterStats {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// The cluster
    #[schema(example = "local-cluster")]
    pub cluster_id: String,
    /// The revision all but `instances` and `rates` are of
    #[schema(example = 4711)]
    pub revision: i64,
    /// Hosts that were seen
    #[schema(example = 31)]
    pub hosts: usize,
    /// Hosts that still send
    #[schema(example = 31)]
    pub active_hosts: usize,
    /// GPUs that were seen
    #[schema(example = 247)]
    pub gpus: usize,
    /// GPUs that still send
    #[schema(example = 247)]
    pub active_gpus: usize,
    /// Samples
    pub samples: SampleStats,
    /// Rows, as the streamers counted them
    pub rows: RowStats,
    /// Shards of the sources
    pub shards: ShardStats,
    /// Blocks in the store
    #[schema(example = 31)]
    pub blocks: usize,
    /// Their bytes
    #[schema(example = 7350)]
    pub bytes: u64,
    /// Bytes a stored sample takes; null without any
    #[schema(example = 2.97)]
    pub bytes_per_sample: Option<f64>,
    /// First and last instant that is served; null without any
    pub span: Option<SpanStats>,
    /// What the running processes move
    pub rates: RateStats,
    /// The running processes; null if etcd does not answer
    pub instances: Option<Vec<InstanceResource>>,
}

/// Samples.
#[derive(Debug, Serialize, ToSchema)]
pub struct SampleStats {
    /// Enqueued since the beginning, of all clusters of this keyspace
    #[schema(example = 2470)]
    pub accepted: u64,
    /// Of this cluster, in the queue
    #[schema(example = 0)]
    pub queued: u64,
    /// Of this cluster, in blocks
    #[schema(example = 2470)]
    pub stored: u64,
    /// Deleted by retention, of all clusters of this keyspace
    #[schema(example = 0)]
    pub retired: u64,
    /// In the queue and not decodable, of all clusters of this keyspace
    #[schema(example = 0)]
    pub unreadable: u64,
    /// Rows refused, of all clusters of this keyspace
    #[schema(example = 0)]
    pub rejected: u64,
}

/// Rows, as the streamers counted them, of all clusters of this keyspace.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct RowStats {
    /// Rows read from sources
    #[schema(example = 2470)]
    pub offered: u64,
    /// Rows taken
    #[schema(example = 2470)]
    pub accepted: u64,
    /// Rows taken that held no measurement; part of `accepted`
    #[schema(example = 0)]
    pub absent: u64,
    /// Rows refused
    #[schema(example = 0)]
    pub rejected: u64,
    /// Rows refused, by reason
    #[schema(example = json!({"bad-time": 0}))]
    pub rejected_by_reason: BTreeMap<String, u64>,
}

/// Shards of the sources, of all clusters of this keyspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShardStats {
    /// Declared sources
    #[schema(example = 1)]
    pub sources: usize,
    /// Their shards
    #[schema(example = 8)]
    pub total: usize,
    /// Of those, read to the end
    #[schema(example = 8)]
    pub done: usize,
    /// Messages in the queue
    #[schema(example = 0)]
    pub queued_messages: u64,
    /// Their bytes
    #[schema(example = 0)]
    pub queued_bytes: u64,
}

/// First and last instant.
#[derive(Debug, Serialize, ToSchema)]
pub struct SpanStats {
    /// First
    #[schema(value_type = String, format = DateTime, example = "2025-07-18T20:42:34Z")]
    pub first: Timestamp,
    /// Last
    #[schema(value_type = String, format = DateTime, example = "2025-07-18T20:42:37Z")]
    pub last: Timestamp,
}

/// What the running processes move, added up.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct RateStats {
    /// Rows read a second, by streamers
    #[schema(example = 1000.0)]
    pub rows_per_second: f64,
    /// Samples enqueued a second, by streamers
    #[schema(example = 1000.0)]
    pub samples_in_per_second: f64,
    /// Samples committed a second, by collectors
    #[schema(example = 1000.0)]
    pub samples_out_per_second: f64,
}

/// Figures of a cluster
///
/// Everything is counted from keys, nothing is estimated. What streamers count is counted for
/// the whole keyspace, whichever cluster it belongs to.
#[utoipa::path(get, path = "/api/v1/clusters/{cluster_id}/stats", operation_id = "getClusterStats",
    tag = "clusters",
    params(("cluster_id" = String, Path, description = "The cluster", example = "local-cluster")),
    responses((status = 200, description = "The figures", body = ClusterStats)))]
pub(super) async fn stats(
    State(app): State<App>,
    At(snapshot): At,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<ClusterStats>, ApiError> {
    let cluster = clusters::cluster(&snapshot, &id)?;
    // During an outage the rest is still worth telling.
    let listed =
        tokio::time::timeout(Duration::from_secs(2), app.instances.list(app.view.etcd())).await;
    let instances = listed.ok().and_then(Result::ok);
    let resource = ClusterResource::of(&id, cluster, app.active_window_ms);
    let sum = |of: fn(&Host) -> u64| cluster.hosts.values().map(|h| of(h)).sum::<u64>();
    let (stored, bytes) = (sum(Host::stored_samples), sum(Host::stored_bytes));
    let spans = cluster.hosts.values().filter_map(|h| h.span());
    let span = spans.reduce(|(s, e), (start, end)| (s.min(start), e.max(end)));
    let rows = rows(&snapshot);
    Ok(Json(ClusterStats {
        success: true,
        cluster_id: id.clone(),
        revision: snapshot.revision,
        hosts: resource.metadata.total_hosts,
        active_hosts: resource.metadata.active_hosts,
        gpus: resource.metadata.total_gpus,
        active_gpus: resource.metadata.active_gpus,
        samples: SampleStats {
            accepted: snapshot.lanes.values().map(|p| p.samples).sum(),
            queued: sum(Host::queued_samples),
            stored,
            retired: snapshot.retired.values().map(|r| r.samples).sum(),
            unreadable: snapshot.queue.unreadable_samples,
            rejected: rows.rejected,
        },
        rows,
        shards: ShardStats {
            sources: snapshot.sources.len(),
            total: snapshot.lanes.len(),
            done: snapshot.lanes.values().filter(|p| p.done).count(),
            queued_messages: snapshot.queue.messages,
            queued_bytes: snapshot.queue.bytes,
        },
        blocks: cluster.hosts.values().map(|h| h.blocks.len()).sum(),
        bytes,
        bytes_per_sample: (stored > 0).then(|| bytes as f64 / stored as f64),
        span: span.map(|(first, last)| SpanStats {
            first: Timestamp::saturating_from_millis(first),
            last: Timestamp::saturating_from_millis(last),
        }),
        rates: rates(instances.as_deref().unwrap_or_default()),
        instances,
    }))
}

fn rows(snapshot: &Snapshot) -> RowStats {
    let mut rows = RowStats::default();
    for progress in snapshot.lanes.values() {
        rows.accepted += progress.rows_accepted;
        rows.absent += progress.rows_absent;
        rows.rejected += progress.rejected();
        for (reason, count) in &progress.rows_rejected {
            *rows.rejected_by_reason.entry(reason.clone()).or_default() += count;
        }
    }
    rows.offered = rows.accepted + rows.rejected;
    rows
}

fn rates(instances: &[InstanceResource]) -> RateStats {
    let mut rates = RateStats::default();
    for instance in instances {
        match instance.role {
            Role::Streamer => {
                rates.rows_per_second += instance.rows_per_second;
                rates.samples_in_per_second += instance.samples_per_second;
            }
            Role::Collector => rates.samples_out_per_second += instance.samples_per_second,
            Role::Gateway => {}
        }
    }
    rates
}
