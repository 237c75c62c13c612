//! What can be followed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_graphql::{Context, ID, Result, Subscription as Follow};
use futures_util::{Stream, stream};
use tokio::time::interval;

use super::{
    operation::{metric_names, refused},
    pipeline::Pipeline,
    telemetry::Telemetry,
};
use crate::{
    rest::Row,
    view::{LiveEvent, LiveFilter, LivePoint, Since, Subscription as LiveSubscription},
    web::{ApiError, App},
};

/// Longest time between two pictures of the pipeline, in seconds.
const INTERVAL_SECONDS_MAX: u32 = 3600;

/// Everything that can be followed.
pub struct Subscription;

/// The points of a subscription, one by one. What waits for a slow reader is bounded by the view,
/// which goes on from the latest values when too much does.
struct Follower {
    live: LiveSubscription,
    waiting: VecDeque<Arc<LivePoint>>,
}

impl Follower {
    async fn next(&mut self) -> Arc<LivePoint> {
        loop {
            if let Some(point) = self.waiting.pop_front() {
                return point;
            }
            match self.live.next().await {
                LiveEvent::Points(points) => self.waiting = points.into(),
                LiveEvent::Gap(gap) => tracing::debug!(?gap, "a GraphQL subscriber missed some"),
            }
        }
    }
}

/// Of a point, what a subscriber wants.
fn row(point: &LivePoint, filter: &LiveFilter) -> Row {
    let place = (point.key.cluster.as_str(), point.key.host.as_str());
    let gpu = point.gpu.as_deref().map(|gpu| (gpu.index.clone(), Some(gpu)));
    let values = point.values.iter().filter(|(metric, ..)| filter.wants_metric(metric));
    Row::new(
        place,
        gpu,
        point.key.at,
        values.map(|(metric, labels, value)| (metric, labels, *value)),
    )
}

/// Everything that can be followed, over graphql-transport-ws at `/graphql/ws`
#[Follow]
impl Subscription {
    /// New points of GPUs (and of hosts themselves) as they come, each once. Who reads too slowly
    /// misses some and goes on with the newest value of each metric
    async fn telemetry_updates(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only this cluster")] cluster: Option<ID>,
        #[graphql(desc = "Only hosts of this name")] host: Option<String>,
        #[graphql(desc = "Only this GPU: its UUID or id")] gpu_uuid: Option<ID>,
        #[graphql(desc = "Only these metrics, such as `gpu_utilization`; all if not given")]
        metrics: Option<Vec<String>>,
        #[graphql(desc = "Begin with the newest values that are known", default = true)]
        from_latest: bool,
    ) -> Result<impl Stream<Item = Telemetry> + use<>> {
        let filter = LiveFilter {
            cluster: cluster.map(|id| id.to_string()),
            host,
            gpu: gpu_uuid.map(|id| id.to_string()),
            metrics: metric_names(&metrics.unwrap_or_default())?,
        };
        let since = if from_latest { Since::Latest } else { Since::Now };
        let live = ctx.data::<App>()?.view.live(filter.clone(), since);
        let live = live.ok_or_else(|| refused(ApiError::loading()))?;
        let follower = Follower { live, waiting: VecDeque::new() };
        Ok(stream::unfold((follower, filter), |(mut follower, filter)| async move {
            let point = follower.next().await;
            Some((row(&point, &filter).into(), (follower, filter)))
        }))
    }

    /// Figures of the whole pipeline, again and again
    async fn pipeline_updates(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Seconds between two, from 1 to 3600", default = 1)] interval_seconds: u32,
    ) -> Result<impl Stream<Item = Pipeline> + use<>> {
        if !(1..=INTERVAL_SECONDS_MAX).contains(&interval_seconds) {
            let allowed = format!("a number from 1 to {INTERVAL_SECONDS_MAX}");
            let found = interval_seconds.to_string();
            return Err(refused(ApiError::parameter("intervalSeconds", &found, &allowed)));
        }
        let ticks = interval(Duration::from_secs(interval_seconds.into()));
        let begun = (ctx.data::<App>()?.clone(), ticks);
        Ok(stream::unfold(begun, |(app, mut ticks)| async move {
            loop {
                ticks.tick().await;
                // Before the view is loaded there are none.
                if let Some(snapshot) = app.view.snapshot() {
                    return Some((Pipeline::of(&app, &snapshot), (app, ticks)));
                }
            }
        }))
    }
}
