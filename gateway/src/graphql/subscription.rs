//! What can be followed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_graphql::{
    Context, Enum, ID, MergedObject, Result, SimpleObject, Subscription as Follow,
};
use futures_util::{Stream, stream};
use tokio::time::interval;

use super::{
    operation::{metric_names, refused},
    pipeline::Pipeline,
    scalars::Count,
    telemetry::Telemetry,
};
use crate::{
    rest::Row,
    view::{self, LiveEvent, LiveFilter, LivePoint, Since, Subscription as LiveSubscription},
    web::{ApiError, App},
};

/// Longest time between two pictures of the pipeline, in seconds.
const INTERVAL_SECONDS_MAX: u32 = 3600;

/// Everything that can be followed.
pub struct Subscription;

/// Why something was skipped
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "view::GapReason")]
enum GapReason {
    /// The subscriber was slower than what came
    Slow,
    /// The revision to go on from is older than what is kept for that
    Window,
    /// The gateway lost its watch and read everything anew
    Reload,
}

/// What was skipped. The newest value of everything that matches follows it
#[derive(Debug, Clone, PartialEq, SimpleObject)]
struct Gap {
    /// Why
    reason: GapReason,
    /// First revision of which something was skipped
    from_revision: Count,
    /// Last one; what follows is newer
    to_revision: Count,
    /// Skipped updates (what one message told of one host); null if that is not known
    skipped_updates: Option<Count>,
}

impl From<view::Gap> for Gap {
    fn from(gap: view::Gap) -> Self {
        let revision = |revision: i64| Count(u64::try_from(revision).unwrap_or(0));
        Self {
            reason: gap.reason.into(),
            from_revision: revision(gap.from),
            to_revision: revision(gap.to),
            skipped_updates: gap.updates.map(Count),
        }
    }
}

/// What an update has beyond what was measured.
#[derive(SimpleObject)]
struct Delivery {
    /// The revision at which it became visible
    revision: Count,
    /// Whether it is the newest value of each metric that was known, whatever its instant, rather
    /// than something new
    snapshot: bool,
    /// What was skipped before this update; null where nothing was
    gap: Option<Gap>,
}

/// What was measured of one GPU (or of a host itself) at one instant, as it came
#[derive(MergedObject)]
struct TelemetryUpdate(Telemetry, Delivery);

/// The points of a subscription, one by one. What waits for a slow reader is bounded by the view,
/// which goes on from the latest values when too much does.
struct Follower {
    live: LiveSubscription,
    waiting: VecDeque<Arc<LivePoint>>,
    /// To be told with the next point.
    gap: Option<view::Gap>,
}

impl Follower {
    async fn next(&mut self) -> (Arc<LivePoint>, Option<view::Gap>) {
        loop {
            if let Some(point) = self.waiting.pop_front() {
                return (point, self.gap.take());
            }
            match self.live.next().await {
                LiveEvent::Points(points) => self.waiting = points.into(),
                LiveEvent::Gap(gap) => self.gap = Some(together(self.gap.take(), gap)),
            }
        }
    }
}

/// One gap of two, nothing having been told in between.
fn together(before: Option<view::Gap>, gap: view::Gap) -> view::Gap {
    let Some(before) = before else { return gap };
    let updates = before.updates.zip(gap.updates).map(|(a, b)| a + b);
    view::Gap { from: before.from.min(gap.from), updates, ..gap }
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

fn update(point: &LivePoint, gap: Option<view::Gap>, filter: &LiveFilter) -> TelemetryUpdate {
    let delivery = Delivery {
        revision: Count(u64::try_from(point.revision).unwrap_or(0)),
        snapshot: point.snapshot,
        gap: gap.map(Gap::from),
    };
    TelemetryUpdate(row(point, filter).into(), delivery)
}

/// Everything that can be followed, over graphql-transport-ws at `/graphql/ws`
#[Follow]
impl Subscription {
    /// New points of GPUs (and of hosts themselves) as they come, each once. Who reads too slowly
    /// misses some, is told so by `gap`, and goes on with the newest value of each metric
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
    ) -> Result<impl Stream<Item = TelemetryUpdate> + use<>> {
        let filter = LiveFilter {
            cluster: cluster.map(|id| id.to_string()),
            host,
            gpu: gpu_uuid.map(|id| id.to_string()),
            metrics: metric_names(&metrics.unwrap_or_default())?,
        };
        let since = if from_latest { Since::Latest } else { Since::Now };
        let live = ctx.data::<App>()?.view.live(filter.clone(), since);
        let live = live.ok_or_else(|| refused(ApiError::loading()))?;
        let follower = Follower { live, waiting: VecDeque::new(), gap: None };
        Ok(stream::unfold((follower, filter), |(mut follower, filter)| async move {
            let (point, gap) = follower.next().await;
            Some((update(&point, gap, &filter), (follower, filter)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_with_nothing_told_in_between_are_one() {
        let gap = |reason, from, to, updates| view::Gap { reason, from, to, updates };
        let check = |before: Option<view::Gap>, after: view::Gap, expected: view::Gap| {
            assert_eq!(together(before, after), expected);
        };
        use view::GapReason::{Reload, Slow};
        let first = gap(Slow, 3, 9, Some(4));
        check(None, first.clone(), first.clone());
        check(Some(first.clone()), gap(Slow, 10, 12, Some(2)), gap(Slow, 3, 12, Some(6)));
        check(Some(first), gap(Reload, 10, 20, None), gap(Reload, 3, 20, None));
    }
}
