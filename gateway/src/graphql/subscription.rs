//! What can be followed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_graphql::{Context, ID, Result, Subscription as Follow};
use futures_util::{Stream, stream};
use tokio::{sync::watch, time::interval};

use super::{
    live::{Told, Wanted},
    operation::refused,
    pipeline::Pipeline,
    types::Telemetry,
};
use crate::{
    rest::Row,
    view::Snapshot,
    web::{ApiError, App},
};

/// Most metrics a subscription may name: more than any GPU has.
const METRICS_MAX: usize = 256;
/// Longest time between two pictures of the pipeline, in seconds.
const INTERVAL_SECONDS_MAX: u32 = 3600;

/// Everything that can be followed.
pub struct Subscription;

/// One follower of telemetry. It holds what it was told, not the snapshots that came from.
struct Follower {
    published: watch::Receiver<Option<Arc<Snapshot>>>,
    wanted: Wanted,
    told: Told,
    waiting: VecDeque<Row>,
}

impl Follower {
    async fn next(&mut self) -> Option<Row> {
        loop {
            if let Some(row) = self.waiting.pop_front() {
                return Some(row);
            }
            // Ends with the view.
            self.published.changed().await.ok()?;
            self.look();
        }
    }

    fn look(&mut self) {
        let now = self.published.borrow_and_update().clone();
        if let Some(now) = now {
            self.waiting = self.told.news(&now, &self.wanted).into();
        }
    }
}

/// Everything that can be followed, over graphql-transport-ws at `/graphql/ws`
#[Follow]
impl Subscription {
    /// New values of GPUs (and of hosts themselves) as they come, an instant each. A follower that
    /// reads slowly finds the newest values and misses those in between
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
        if metrics.as_ref().is_some_and(|names| names.len() > METRICS_MAX) {
            let allowed = format!("a list of at most {METRICS_MAX} names");
            return Err(refused(ApiError::parameter("metrics", "longer", &allowed)));
        }
        let wanted = Wanted {
            cluster: cluster.map(|id| id.to_string()),
            host,
            gpu: gpu_uuid.map(|id| id.to_string()),
            metrics: metrics.map(|names| names.into_iter().collect()),
        };
        let published = ctx.data::<App>()?.view.subscribe();
        let mut follower =
            Follower { published, wanted, told: Told::default(), waiting: VecDeque::new() };
        follower.look();
        if !from_latest {
            follower.waiting.clear();
        }
        Ok(stream::unfold(follower, |mut follower| async move {
            Some((follower.next().await?.into(), follower))
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
