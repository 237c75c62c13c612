//! What all fields of one operation are resolved from.

use std::sync::Arc;

use async_graphql::{Error, ErrorExtensions as _};
use tokio::sync::Semaphore;

use super::scalars::Time;
use crate::{
    auth::{Grant, Scope},
    rest::LIMIT_MAX,
    view::{Answer, PointKey, Query, Snapshot, Target},
    web::{ApiError, App},
};

/// Telemetry lookups that one operation makes at a time: enough to fetch while another decodes,
/// few enough that the next one finds its neighbours' blocks in the cache, and that others get
/// their turn.
const LOOKUPS_MAX: usize = 2;

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
}

impl Points {
    /// As REST has it: the oldest from `start` on, without it the newest.
    pub(super) fn of(
        limit: Option<i32>,
        start: Option<Time>,
        end: Option<Time>,
    ) -> Result<Self, Error> {
        let limit = entries("limit", limit, super::limits::POINTS_DEFAULT as usize)?;
        Ok(Self { start, end, after: None, newest: start.is_none(), limit })
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
        let ask = |snapshot: &Snapshot| Query {
            targets: find(snapshot),
            start: start.map_or(i64::MIN, |t| t.as_millis()),
            end: end.map_or(i64::MAX, |t| t.as_millis()),
            after: points.after.clone(),
            newest: points.newest,
            limit: points.limit,
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
