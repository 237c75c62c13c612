//! Where every query begins.

use async_graphql::{Context, Enum, ID, Object, Result, connection::Connection};
use nexus_common::audit;

use super::{
    operation::{Operation, Points, Window, entries, refused},
    paging::{self, PointPage, Total},
    pipeline::{Audit, Pipeline, Source},
    scalars::Time,
    telemetry::Telemetry,
    types::{Cluster, Gpu, Host},
};
use crate::{
    rest::{GpuSearch, Part, Places, Row, Status, find_gpus, matching},
    view::Snapshot,
    web::ApiError,
};

/// Whether a GPU still sends
#[derive(Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(rename_items = "lowercase", remote = "Status")]
pub(super) enum GpuStatus {
    /// Its newest sample is near the newest of its cluster
    Active,
    /// It is not, or there is none
    Stale,
}

/// Everything that can be asked. All fields of one operation are answered from one revision
pub struct Query;

/// Everything that can be asked. All fields of one operation are answered from one revision,
/// which stands in the answer's extensions
#[Object]
impl Query {
    /// All clusters
    async fn clusters(&self, ctx: &Context<'_>) -> Result<Vec<Cluster>> {
        let operation = ctx.data::<Operation>()?;
        let window_ms = operation.window_ms();
        let clusters = operation.snapshot.clusters.iter();
        Ok(clusters.map(|(id, cluster)| Cluster::of(id, cluster, window_ms)).collect())
    }

    /// One cluster; null if it is not known
    async fn cluster(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Cluster>> {
        let operation = ctx.data::<Operation>()?;
        let found = operation.snapshot.clusters.get_key_value(id.as_str());
        Ok(found.map(|(id, cluster)| Cluster::of(id, cluster, operation.window_ms())))
    }

    /// Hosts of all clusters, or of one
    async fn hosts(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only hosts of this cluster")] cluster_id: Option<ID>,
        #[graphql(desc = "Most hosts, from 1 to 10000; without it all")] limit: Option<i32>,
    ) -> Result<Vec<Host>> {
        let operation = ctx.data::<Operation>()?;
        let most = entries("limit", limit, usize::MAX)?;
        let clusters = operation.snapshot.clusters.iter();
        let wanted = |id: &str| cluster_id.as_ref().is_none_or(|wanted| wanted.as_str() == id);
        let hosts = clusters.filter(|(id, _)| wanted(id.as_str())).flat_map(|(id, cluster)| {
            let host = move |(name, host)| Host::of(id, cluster, name, host, operation);
            cluster.hosts.iter().map(host)
        });
        Ok(hosts.take(most).collect())
    }

    /// Hosts of all clusters, or of one, page by page
    async fn hosts_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only hosts of this cluster")] cluster_id: Option<ID>,
        #[graphql(desc = "Most hosts of the page, from 1 to 10000; 100 if not given")]
        first: Option<i32>,
        #[graphql(desc = "Cursor of the last host of the page before")] after: Option<String>,
    ) -> Result<Connection<String, Host, Total>> {
        let cluster = cluster_id.as_ref().map(|id| id.as_str());
        paging::hosts(ctx.data::<Operation>()?, cluster, first, after)
    }

    /// GPUs of all clusters, by cluster, host and index
    async fn gpus(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only this cluster")] cluster: Option<ID>,
        #[graphql(desc = "Only hosts of this name")] host: Option<String>,
        #[graphql(desc = "Only GPUs that still send, or only those that do not")] status: Option<
            GpuStatus,
        >,
        #[graphql(desc = "Most GPUs, from 1 to 10000; without it all")] limit: Option<i32>,
    ) -> Result<Vec<Gpu>> {
        let operation = ctx.data::<Operation>()?;
        let search = GpuSearch {
            cluster: cluster.map(|id| id.to_string()),
            host,
            name: None,
            status: status.map(Status::from),
            part: Part { limit: Some(entries("limit", limit, usize::MAX)?), ..Part::default() },
        };
        let found = find_gpus(&operation.snapshot, &search, operation.window_ms());
        Ok(found.data.into_iter().filter_map(Gpu::of).collect())
    }

    /// GPUs of all clusters, page by page
    async fn gpus_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only this cluster")] cluster: Option<ID>,
        #[graphql(desc = "Only hosts of this name")] host: Option<String>,
        #[graphql(desc = "Only GPUs that still send, or only those that do not")] status: Option<
            GpuStatus,
        >,
        #[graphql(desc = "Most GPUs of the page, from 1 to 10000; 100 if not given")] first: Option<
            i32,
        >,
        #[graphql(desc = "Cursor of the last GPU of the page before")] after: Option<String>,
    ) -> Result<Connection<String, Gpu, Total>> {
        let cluster = cluster.map(|id| id.to_string());
        let wanted = (cluster, host, status.map(Status::from));
        paging::gpus(ctx.data::<Operation>()?, wanted, first, after)
    }

    /// One GPU, by UUID or id, where it was seen last; null if it is not known
    async fn gpu(&self, ctx: &Context<'_>, uuid: ID) -> Result<Option<Gpu>> {
        let operation = ctx.data::<Operation>()?;
        let places = operation.snapshot.places_of(uuid.as_str());
        let gpus = places.iter().filter_map(|place| Gpu::at(operation, place));
        Ok(gpus.max_by_key(Gpu::last_seen_at))
    }

    /// What was measured anywhere, by time, ascending. Without `startTime` the newest
    #[allow(clippy::too_many_arguments, reason = "GraphQL has them one by one")]
    async fn telemetry(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only this cluster")] cluster_id: Option<ID>,
        #[graphql(desc = "Only hosts of this name")] host_id: Option<ID>,
        #[graphql(desc = "Only this GPU: its UUID, its id, or with `hostId` its index there")]
        gpu_id: Option<ID>,
        #[graphql(desc = "Most entries, from 1 to 10000; 100 if not given")] limit: Option<i32>,
        #[graphql(desc = "First instant, inclusive")] start_time: Option<Time>,
        #[graphql(desc = "Last instant, inclusive")] end_time: Option<Time>,
        #[graphql(desc = "Only these metrics, such as `gpu_utilization`; all if not given")]
        metrics: Option<Vec<String>>,
        #[graphql(desc = "Put points together by windows of time")] window: Option<Window>,
    ) -> Result<Vec<Telemetry>> {
        let operation = ctx.data::<Operation>()?;
        let places = places(cluster_id, host_id, gpu_id);
        let points = Points::of(limit, start_time, end_time, (metrics, window))?;
        let find = |s: &Snapshot| matching(s, &places).into_iter().map(|(t, _)| t).collect();
        let answer = operation.points(find, &points).await?;
        Ok(answer.points.iter().map(|p| Row::of(p, &answer.snapshot).into()).collect())
    }

    /// What was measured anywhere, page by page
    #[allow(clippy::too_many_arguments, reason = "GraphQL has them one by one")]
    async fn telemetry_connection(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only this cluster")] cluster_id: Option<ID>,
        #[graphql(desc = "Only hosts of this name")] host_id: Option<ID>,
        #[graphql(desc = "Only this GPU: its UUID, its id, or with `hostId` its index there")]
        gpu_id: Option<ID>,
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
        let places = places(cluster_id, host_id, gpu_id);
        let page = PointPage { first, after, last, before, start_time, end_time, metrics, window };
        let find = |s: &Snapshot| matching(s, &places).into_iter().map(|(t, _)| t).collect();
        page.answer(ctx.data::<Operation>()?, find).await
    }

    /// Declared sources, by id
    async fn sources(&self, ctx: &Context<'_>) -> Result<Vec<Source>> {
        let snapshot = &ctx.data::<Operation>()?.snapshot;
        Ok(snapshot.sources.iter().map(|(id, source)| Source::of(id, source, snapshot)).collect())
    }

    /// One source; null if it is not known
    async fn source(&self, ctx: &Context<'_>, id: ID) -> Result<Option<Source>> {
        let snapshot = &ctx.data::<Operation>()?.snapshot;
        let found = snapshot.sources.iter().find(|(known, _)| known.as_str() == id.as_str());
        Ok(found.map(|(id, source)| Source::of(id, source, snapshot)))
    }

    /// Figures of the whole pipeline
    async fn pipeline(&self, ctx: &Context<'_>) -> Result<Pipeline> {
        let operation = ctx.data::<Operation>()?;
        Ok(Pipeline::of(&operation.app, &operation.snapshot))
    }

    /// Nothing lost, nothing twice? Reads every key there is, at the newest revision: costly, not
    /// for polling
    async fn audit(&self, ctx: &Context<'_>) -> Result<Audit> {
        let etcd = ctx.data::<Operation>()?.app.view.etcd();
        let report = audit::audit(etcd).await.map_err(|error| {
            let status = axum::http::StatusCode::SERVICE_UNAVAILABLE;
            refused(ApiError::new(status, "etcd", format!("{error}; try again")))
        })?;
        Ok(Audit::from(report))
    }
}

fn places(cluster: Option<ID>, host: Option<ID>, gpu: Option<ID>) -> Places {
    let text = |id: Option<ID>| id.map(|id| id.to_string());
    Places { cluster: text(cluster), host: text(host), gpu: text(gpu) }
}
