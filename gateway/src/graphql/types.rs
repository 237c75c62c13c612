//! Clusters, hosts and GPUs as a graph. Each is a view of the resource that REST
//! answers with: GraphQL differs in names, in how wide its integers are, and in what is nested.

use std::sync::Arc;

use async_graphql::{Context, ID, Object, Result, connection::Connection};
use nexus_common::model::{ClusterId, HostName};

use super::{
    operation::{Operation, Points, Window, entries},
    paging::{self, PointPage, Total},
    scalars::{Count, Time},
    telemetry::{Telemetry, latest},
};
use crate::{
    rest::{ClusterResource, GpuResource, HostResource, Row, Status, gpu_at, targets_of},
    view::{self, GpuPlace, Snapshot},
};

/// Whether something still sends, as REST writes it.
fn word(status: Status) -> &'static str {
    match status {
        Status::Active => "active",
        Status::Stale => "stale",
    }
}

/// A cluster.
pub(super) struct Cluster {
    id: ClusterId,
    cluster: Arc<view::Cluster>,
    resource: ClusterResource,
}

impl Cluster {
    pub(super) fn of(id: &ClusterId, cluster: &Arc<view::Cluster>, window_ms: i64) -> Self {
        let resource = ClusterResource::of(id.as_str(), cluster, window_ms);
        Self { id: id.clone(), cluster: Arc::clone(cluster), resource }
    }

    fn sum(&self, of: impl Fn(&view::Host) -> u64) -> Count {
        Count(self.cluster.hosts.values().map(|host| of(host)).sum())
    }
}

/// A cluster
#[Object]
impl Cluster {
    /// Its id
    async fn id(&self) -> ID {
        ID(self.id.to_string())
    }

    /// Its name: the id
    async fn name(&self) -> &str {
        &self.resource.cluster_name
    }

    /// When it was first seen; null while only its first messages are known
    async fn created_at(&self) -> Option<Time> {
        self.resource.created_at.map(Time)
    }

    /// Instant of its newest sample
    async fn updated_at(&self) -> Option<Time> {
        self.resource.updated_at.map(Time)
    }

    /// Hosts that were seen
    async fn total_hosts(&self) -> Count {
        self.resource.metadata.total_hosts.into()
    }

    /// Hosts that still send
    async fn active_hosts(&self) -> Count {
        self.resource.metadata.active_hosts.into()
    }

    /// GPUs that were seen
    async fn total_gpus(&self) -> Count {
        self.resource.metadata.total_gpus.into()
    }

    /// GPUs that still send
    async fn active_gpus(&self) -> Count {
        self.resource.metadata.active_gpus.into()
    }

    /// Samples in blocks
    async fn samples_stored(&self) -> Count {
        self.sum(view::Host::stored_samples)
    }

    /// Samples in the queue
    async fn samples_queued(&self) -> Count {
        self.sum(view::Host::queued_samples)
    }

    /// Bytes of its blocks
    async fn bytes_stored(&self) -> Count {
        self.sum(view::Host::stored_bytes)
    }

    /// Its hosts, by name
    async fn hosts(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Most hosts, from 1 to 10000; without it all")] limit: Option<i32>,
    ) -> Result<Vec<Host>> {
        let operation = ctx.data::<Operation>()?;
        let most = entries("limit", limit, usize::MAX)?;
        let host = |(name, host)| Host::of(&self.id, &self.cluster, name, host, operation);
        Ok(self.cluster.hosts.iter().take(most).map(host).collect())
    }

    /// Its hosts, page by page
    async fn hosts_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Most hosts of the page, from 1 to 10000; 100 if not given")]
        first: Option<i32>,
        #[graphql(desc = "Cursor of the last host of the page before")] after: Option<String>,
    ) -> Result<Connection<String, Host, Total>> {
        paging::hosts(ctx.data::<Operation>()?, Some(self.id.as_str()), first, after)
    }

    /// One of its hosts; null if it is not known
    async fn host(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Name of the host")] hostname: String,
    ) -> Result<Option<Host>> {
        let operation = ctx.data::<Operation>()?;
        let found = self.cluster.hosts.get_key_value(hostname.as_str());
        Ok(found.map(|(name, host)| Host::of(&self.id, &self.cluster, name, host, operation)))
    }
}

/// A host.
pub(super) struct Host {
    cluster: (ClusterId, Arc<view::Cluster>),
    name: HostName,
    host: Arc<view::Host>,
    resource: HostResource,
}

impl Host {
    pub(super) fn of(
        id: &ClusterId,
        cluster: &Arc<view::Cluster>,
        name: &HostName,
        host: &Arc<view::Host>,
        operation: &Operation,
    ) -> Self {
        let window_ms = operation.window_ms();
        let resource = HostResource::of(id.as_str(), cluster, name.as_str(), host, window_ms);
        let cluster = (id.clone(), Arc::clone(cluster));
        Self { cluster, name: name.clone(), host: Arc::clone(host), resource }
    }
}

/// A host
#[Object]
impl Host {
    /// Its name
    async fn id(&self) -> ID {
        ID(self.name.to_string())
    }

    /// Its name
    async fn hostname(&self) -> &str {
        self.name.as_str()
    }

    /// Its cluster
    async fn cluster_id(&self) -> &str {
        self.cluster.0.as_str()
    }

    /// `active` if its newest sample is near the newest of its cluster, else `stale`
    async fn status(&self) -> &str {
        word(self.resource.status)
    }

    /// Its GPUs, counted
    async fn gpu_count(&self) -> Count {
        self.resource.gpu_count.into()
    }

    /// When it was first seen; null while only its first messages are known
    async fn created_at(&self) -> Option<Time> {
        self.resource.created_at.map(Time)
    }

    /// Instant of its newest sample
    async fn last_seen(&self) -> Option<Time> {
        self.resource.last_seen.map(Time)
    }

    /// Samples in blocks
    async fn samples_stored(&self) -> Count {
        self.resource.samples_stored.into()
    }

    /// Samples in the queue
    async fn samples_queued(&self) -> Count {
        self.resource.samples_queued.into()
    }

    /// Its GPUs, by index
    async fn gpus(&self, ctx: &Context<'_>) -> Result<Vec<Gpu>> {
        let operation = ctx.data::<Operation>()?;
        let (id, cluster) = &self.cluster;
        let place = (id.as_str(), cluster.newest(), self.name.as_str());
        let of = |gpu: &Arc<view::GpuState>| GpuResource::of(place, gpu, operation.window_ms());
        let mut gpus: Vec<GpuResource> = self.host.gpus.values().map(of).collect();
        gpus.sort_by(|a, b| (a.id.len(), &a.id, &a.gpu_id).cmp(&(b.id.len(), &b.id, &b.gpu_id)));
        Ok(gpus.into_iter().filter_map(Gpu::of).collect())
    }

    /// The newest value of each metric of the host itself; null if there is none
    async fn latest(&self) -> Option<Telemetry> {
        let place = (self.cluster.0.as_str(), self.name.as_str());
        latest(place, None, &self.host.own)
    }
}

/// A GPU, or one instance of a MIG GPU.
pub(super) struct Gpu {
    place: GpuPlace,
    resource: GpuResource,
}

impl Gpu {
    /// None if its ids are none: what the view holds was checked when it came in.
    pub(super) fn of(resource: GpuResource) -> Option<Self> {
        let place = GpuPlace {
            cluster: resource.cluster_id.parse().ok()?,
            host: resource.hostname.parse().ok()?,
            gpu: resource.gpu_id.parse().ok()?,
        };
        Some(Self { place, resource })
    }

    pub(super) fn at(operation: &Operation, place: &GpuPlace) -> Option<Self> {
        let resource = gpu_at(&operation.snapshot, place, operation.window_ms())?;
        Some(Self { place: place.clone(), resource })
    }

    pub(super) fn last_seen_at(&self) -> Option<Time> {
        self.resource.last_seen.map(Time)
    }
}

/// A GPU, or one instance of a MIG GPU
#[Object]
impl Gpu {
    /// Index on its host, as its telemetry wrote it
    async fn id(&self) -> ID {
        ID(self.resource.id.clone())
    }

    /// UUID of the physical GPU; null if its telemetry gave none
    async fn uuid(&self) -> Option<&str> {
        self.resource.uuid.as_deref()
    }

    /// The host it is in
    async fn hostname(&self) -> &str {
        &self.resource.hostname
    }

    /// Model
    async fn name(&self) -> Option<&str> {
        self.resource.name.as_deref()
    }

    /// Device name
    async fn device(&self) -> Option<&str> {
        self.resource.device.as_deref()
    }

    /// `active` if its newest sample is near the newest of its cluster, else `stale`
    async fn status(&self) -> &str {
        word(self.resource.status)
    }

    /// Identity: the UUID, with `:{instance}` behind it for a MIG instance; `{host}:{index}`
    /// without a UUID
    async fn gpu_id(&self) -> &str {
        &self.resource.gpu_id
    }

    /// Its cluster
    async fn cluster_id(&self) -> &str {
        &self.resource.cluster_id
    }

    /// Driver version
    async fn driver_version(&self) -> Option<&str> {
        self.resource.driver_version.as_deref()
    }

    /// MIG profile; null for a whole GPU
    async fn mig_profile(&self) -> Option<&str> {
        self.resource.mig_profile.as_deref()
    }

    /// Instant of its newest sample; null if it was silent for long
    async fn last_seen(&self) -> Option<Time> {
        self.last_seen_at()
    }

    /// The host it is in
    async fn host(&self, ctx: &Context<'_>) -> Result<Option<Host>> {
        let operation = ctx.data::<Operation>()?;
        let found = operation.snapshot.clusters.get_key_value(&self.place.cluster);
        Ok(found.and_then(|(id, cluster)| {
            let (name, host) = cluster.hosts.get_key_value(&self.place.host)?;
            Some(Host::of(id, cluster, name, host, operation))
        }))
    }

    /// The newest value of each metric. `timestamp` is the newest of their instants
    async fn latest(&self, ctx: &Context<'_>) -> Result<Option<Telemetry>> {
        let snapshot = &ctx.data::<Operation>()?.snapshot;
        Ok(self.state(snapshot).and_then(|gpu| {
            let place = (self.place.cluster.as_str(), self.place.host.as_str());
            latest(place, Some(&gpu.about), &gpu.latest)
        }))
    }

    /// What was measured, by time, ascending. Without `startTime` the newest
    #[allow(clippy::too_many_arguments, reason = "GraphQL has them one by one")]
    async fn telemetry(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Most entries, from 1 to 10000; 100 if not given")] limit: Option<i32>,
        #[graphql(desc = "First instant, inclusive")] start_time: Option<Time>,
        #[graphql(desc = "Last instant, inclusive")] end_time: Option<Time>,
        #[graphql(desc = "Only these metrics, such as `gpu_utilization`; all if not given")]
        metrics: Option<Vec<String>>,
        #[graphql(desc = "Put points together by windows of time")] window: Option<Window>,
    ) -> Result<Vec<Telemetry>> {
        let operation = ctx.data::<Operation>()?;
        let points = Points::of(limit, start_time, end_time, (metrics, window))?;
        let answer = operation.points(|_| targets_of(vec![self.place.clone()]), &points).await?;
        Ok(answer.points.iter().map(|p| Row::of(p, &answer.snapshot).into()).collect())
    }

    /// What was measured, page by page
    #[allow(clippy::too_many_arguments, reason = "GraphQL has them one by one")]
    async fn telemetry_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Most entries of the page, the oldest first; from 1 to 10000")]
        first: Option<i32>,
        #[graphql(desc = "Cursor behind which the page begins")] after: Option<String>,
        #[graphql(desc = "Most entries of the page, the newest of all; 100 if neither is given")]
        last: Option<i32>,
        #[graphql(desc = "Cursor before which the page ends")] before: Option<String>,
        #[graphql(desc = "First instant, inclusive")] start_time: Option<Time>,
        #[graphql(desc = "Last instant, inclusive")] end_time: Option<Time>,
        #[graphql(desc = "Only these metrics, such as `gpu_utilization`; all if not given")]
        metrics: Option<Vec<String>>,
        #[graphql(desc = "Put points together by windows of time")] window: Option<Window>,
    ) -> Result<Connection<String, Telemetry>> {
        let page = PointPage { first, after, last, before, start_time, end_time, metrics, window };
        let find = |_: &Snapshot| targets_of(vec![self.place.clone()]);
        page.answer(ctx.data::<Operation>()?, find).await
    }
}

impl Gpu {
    fn state<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<view::GpuState>> {
        let (_, host) = snapshot.host(self.place.cluster.as_str(), self.place.host.as_str())?;
        host.gpus.get(&self.place.gpu)
    }
}
