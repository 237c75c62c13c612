//! What all fields of one operation are resolved from.

use std::{collections::BTreeSet, sync::Arc};

use async_graphql::{Enum, Error, ErrorExtensions as _, InputObject};
use nexus_common::model::MetricName;
use tokio::sync::Semaphore;

use super::scalars::Time;
use crate::{
    auth::{Grant, Scope},
    rest::LIMIT_MAX,
    view::{Agg, Answer, PointKey, Query, Snapshot, Step, Target},
    web::{ApiError, App},
};

/// Telemetry lookups that one operation makes at a time: enough to fetch while another decodes,
/// few enough that the next one finds its neighbours' blocks in the cache, and that others get
/// their turn.
const LOOKUPS_MAX: usize = 2;

/// Longest window of time, in seconds: a year.
const WINDOW_SECONDS_MAX: f64 = 31_536_000.0;
/// Most metrics that may be named: more than any GPU has.
const METRICS_MAX: usize = 256;

/// One operation: everything it answers is of one snapshot.
pub(super) struct Operation {
    pub(super) app: App,
    pub(super) snapshot: Arc<Snapshot>,
    grant: Grant,
    lookups: Semaphore,
}

/// Which points.
#[derive(Debug, Clone)]
pub(super) struct Points {
    pub(super) start: Option<Time>,
    pub(super) end: Option<Time>,
    pub(super) after: Option<PointKey>,
    /// The newest instead of the oldest.
    pub(super) newest: bool,
    pub(super) limit: usize,
    /// Only these metrics; all if empty.
    pub(super) metrics: Vec<String>,
    /// Put together by windows of time.
    pub(super) window: Option<Window>,
}

/// What becomes of the values of one window of time
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[graphql(remote = "Agg")]
pub(super) enum Aggregate {
    /// Their mean
    Avg,
    /// The smallest
    Min,
    /// The largest
    Max,
    /// The smallest that at least 95 in 100 do not exceed
    P95,
    /// The one at the latest instant
    Last,
}

/// Windows of time that points are put together by. A point stands at the first instant of its
/// window
#[derive(Debug, Clone, Copy, InputObject)]
pub(super) struct Window {
    /// Length of a window in seconds, from 0.001 to 31536000 (a year); they begin at its multiples
    /// since 1970
    seconds: f64,
    /// What becomes of the values of one window
    #[graphql(default_with = "Aggregate::Avg")]
    aggregate: Aggregate,
}

impl Window {
    fn step(self) -> Result<Step, Error> {
        if !(0.001..=WINDOW_SECONDS_MAX).contains(&self.seconds) {
            let allowed = format!("a number from 0.001 to {WINDOW_SECONDS_MAX}");
            let found = self.seconds.to_string();
            return Err(refused(ApiError::parameter("seconds", &found, &allowed)));
        }
        let millis = (self.seconds * 1000.0).round() as i64;
        Ok(Step { millis, agg: self.aggregate.into() })
    }
}

/// Names of metrics as a set; all without.
pub(super) fn metric_names(names: &[String]) -> Result<Option<BTreeSet<MetricName>>, Error> {
    if names.len() > METRICS_MAX {
        let allowed = format!("a list of at most {METRICS_MAX} names");
        return Err(refused(ApiError::parameter("metrics", "longer", &allowed)));
    }
    let name = |text: &String| {
        let allowed = "the name of a metric such as gpu_utilization";
        text.parse().map_err(|_| refused(ApiError::parameter("metrics", text, allowed)))
    };
    let names: BTreeSet<MetricName> = names.iter().map(name).collect::<Result<_, _>>()?;
    Ok((!names.is_empty()).then_some(names))
}

impl Points {
    /// As REST has it: the oldest from `start` on, without it the newest.
    pub(super) fn of(
        limit: Option<i32>,
        start: Option<Time>,
        end: Option<Time>,
        (metrics, window): (Option<Vec<String>>, Option<Window>),
    ) -> Result<Self, Error> {
        let limit = entries("limit", limit, super::limits::POINTS_DEFAULT as usize)?;
        let (newest, metrics) = (start.is_none(), metrics.unwrap_or_default());
        Ok(Self { start, end, after: None, newest, limit, metrics, window })
    }
}

/// A number of entries that was asked for.
pub(super) fn entries(name: &str, given: Option<i32>, default: usize) -> Result<usize, Error> {
    match given {
        None => Ok(default),
        Some(given) => match usize::try_from(given) {
            Ok(count) if (1..=LIMIT_MAX).contains(&count) => Ok(count),
            _ => {
                let allowed = format!("a number from 1 to {LIMIT_MAX}");
                Err(refused(ApiError::parameter(name, &given.to_string(), &allowed)))
            }
        },
    }
}

/// A problem as a GraphQL error: its code and the argument that is wrong are extensions.
pub(super) fn refused(error: ApiError) -> Error {
    Error::new(error.detail).extend_with(|_, extensions| {
        extensions.set("code", error.kind);
        if let Some((parameter, allowed)) = error.parameter {
            extensions.set("parameter", parameter);
            extensions.set("allowed", allowed);
        }
    })
}

impl Operation {
    pub(super) fn new(app: App, snapshot: Arc<Snapshot>, grant: Grant) -> Self {
        Self { app, snapshot, grant, lookups: Semaphore::new(LOOKUPS_MAX) }
    }

    pub(super) fn window_ms(&self) -> i64 {
        self.app.active_window_ms
    }

    /// Refuses what the token's scopes do not reach.
    pub(super) fn allows(&self, scope: Scope) -> Result<(), Error> {
        let refusal = || refused(ApiError::from(crate::auth::Refused::Beyond));
        if self.grant.allows(scope) { Ok(()) } else { Err(refusal()) }
    }

    /// Points of some places. All lookups of an operation are of its own revision.
    pub(super) async fn points(
        &self,
        find: impl Fn(&Snapshot) -> Vec<Target>,
        points: &Points,
    ) -> Result<Answer, Error> {
        let (start, end) = (points.start.map(|t| t.0), points.end.map(|t| t.0));
        if let (Some(from), Some(to)) = (start, end)
            && from > to
        {
            let allowed = format!("at or after startTime, {from}");
            return Err(refused(ApiError::parameter("endTime", &to.to_string(), &allowed)));
        }
        let metrics = metric_names(&points.metrics)?.map(Arc::new);
        let step = points.window.map(Window::step).transpose()?;
        let ask = |snapshot: &Snapshot| Query {
            targets: find(snapshot),
            start: start.map_or(i64::MIN, |t| t.as_millis()),
            end: end.map_or(i64::MAX, |t| t.as_millis()),
            after: points.after.clone(),
            newest: points.newest,
            limit: points.limit,
            metrics: metrics.clone(),
            step,
        };
        // Never closed, so there is always a turn.
        let _turn = self.lookups.acquire().await;
        let answer = self.app.view.points(Arc::clone(&self.snapshot), ask).await;
        let answer = answer.map_err(|error| refused(ApiError::from(error)))?;
        if answer.snapshot.revision != self.snapshot.revision {
            return Err(refused(ApiError::from(crate::view::QueryError::Moving)));
        }
        Ok(answer)
    }
}
