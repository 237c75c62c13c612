//! Relay connections: pages of lists that may be long, with cursors that stay good.

use async_graphql::{
    Error, Result, SimpleObject,
    connection::{Connection, Edge},
};

use super::{
    limits::FIRST_DEFAULT,
    operation::{Operation, Points, Window, entries, refused},
    scalars::{Count, Time},
    telemetry::Telemetry,
    types::{Gpu, Host},
};
use crate::{
    rest::{GpuSearch, Part, Row, Status, find_gpus, gpu_cursor},
    view::{PointKey, Snapshot, Target},
    web::{ApiError, cursor_of, text_of_cursor},
};

const CURSOR: &str = "the cursor of an edge of an earlier answer";

/// How many there are.
#[derive(SimpleObject)]
pub(super) struct Total {
    /// Entries that match, on this page or another
    total_count: Count,
}

fn bad_cursor(name: &str, text: &str) -> Error {
    refused(ApiError::parameter(name, text, CURSOR))
}

/// A page of hosts, by cluster and name. Its cursors name a host: what comes and goes before or
/// behind it changes nothing.
pub(super) fn hosts(
    operation: &Operation,
    cluster: Option<&str>,
    first: Option<i32>,
    after: Option<String>,
) -> Result<Connection<String, Host, Total>> {
    let first = entries("first", first, FIRST_DEFAULT as usize)?;
    let after = match &after {
        None => None,
        Some(cursor) => {
            let text = text_of_cursor(cursor);
            let place = text.as_ref().and_then(|text| text.split_once('~'));
            let (cluster, host) = place.ok_or_else(|| bad_cursor("after", cursor))?;
            Some((cluster.to_owned(), host.to_owned()))
        }
    };
    let after = after.as_ref().map(|(cluster, host)| (cluster.as_str(), host.as_str()));
    let clusters = operation.snapshot.clusters.iter();
    let wanted = clusters.filter(|(id, _)| cluster.is_none_or(|wanted| id.as_str() == wanted));
    let all: Vec<_> = wanted
        .flat_map(|(id, cluster)| cluster.hosts.iter().map(move |(n, h)| (id, cluster, n, h)))
        .collect();
    let from = all.partition_point(|(id, _, name, _)| {
        after.is_some_and(|after| (id.as_str(), name.as_str()) <= after)
    });
    let page = all.get(from..).unwrap_or_default();
    let total = Total { total_count: all.len().into() };
    let mut answer = Connection::with_additional_fields(from > 0, page.len() > first, total);
    answer.edges.extend(page.iter().take(first).map(|(id, cluster, name, host)| {
        Edge::new(cursor_of(&format!("{id}~{name}")), Host::of(id, cluster, name, host, operation))
    }));
    Ok(answer)
}

/// A page of GPUs, by cluster, host and index.
pub(super) fn gpus(
    operation: &Operation,
    (cluster, host, status): (Option<String>, Option<String>, Option<Status>),
    first: Option<i32>,
    after: Option<String>,
) -> Result<Connection<String, Gpu, Total>> {
    let limit = entries("first", first, FIRST_DEFAULT as usize)?;
    let named = |cursor: String| match text_of_cursor(&cursor) {
        Some(text) if text.split('~').count() == 3 => Ok(text),
        _ => Err(bad_cursor("after", &cursor)),
    };
    let after = after.map(named).transpose()?;
    let behind = after.is_some();
    let part = Part { limit: Some(limit), cursor: after, fields: None };
    let search = GpuSearch { cluster, host, name: None, status, part };
    let found = find_gpus(&operation.snapshot, &search, operation.window_ms());
    let total = Total { total_count: found.count.into() };
    let more = found.next_cursor.is_some();
    let mut answer = Connection::with_additional_fields(behind, more, total);
    answer.edges.extend(found.data.into_iter().filter_map(|resource| {
        let cursor = cursor_of(&gpu_cursor(&resource));
        Some(Edge::new(cursor, Gpu::of(resource)?))
    }));
    Ok(answer)
}

/// Which page of points.
pub(super) struct PointPage {
    /// Most entries of the page, the oldest first; from 1 to 10000
    pub(super) first: Option<i32>,
    /// Cursor behind which the page begins
    pub(super) after: Option<String>,
    /// Most entries of the page, the newest of all; from 1 to 10000. 100 if neither is given
    pub(super) last: Option<i32>,
    /// Cursor before which the page ends
    pub(super) before: Option<String>,
    /// First instant, inclusive
    pub(super) start_time: Option<Time>,
    /// Last instant, inclusive
    pub(super) end_time: Option<Time>,
    /// Only these metrics
    pub(super) metrics: Option<Vec<String>>,
    /// Windows of time to put points together by
    pub(super) window: Option<Window>,
}

impl PointPage {
    /// The page: forwards with `first` and `after`, backwards otherwise.
    pub(super) async fn answer(
        &self,
        operation: &Operation,
        find: impl Fn(&Snapshot) -> Vec<Target>,
    ) -> Result<Connection<String, Telemetry>> {
        let forwards = self.first.is_some() || self.after.is_some();
        if forwards && (self.last.is_some() || self.before.is_some()) {
            let said = "last and before: not together with first and after";
            return Err(refused(ApiError::parameter("last", "given", said)));
        }
        let (name, count, cursor) = if forwards {
            ("first", self.first, ("after", &self.after))
        } else {
            ("last", self.last, ("before", &self.before))
        };
        let key = |text: &String| {
            let key = text_of_cursor(text).and_then(|text| PointKey::from_text(&text));
            key.ok_or_else(|| bad_cursor(cursor.0, text))
        };
        let points = Points {
            start: self.start_time,
            end: self.end_time,
            after: cursor.1.as_ref().map(key).transpose()?,
            newest: !forwards,
            limit: entries(name, count, FIRST_DEFAULT as usize)?,
            metrics: self.metrics.clone().unwrap_or_default(),
            window: self.window,
        };
        let answer = operation.points(find, &points).await?;
        let (more, behind) = (answer.next.is_some(), points.after.is_some());
        let (before, next) = if forwards { (behind, more) } else { (more, behind) };
        let mut connection = Connection::new(before, next);
        connection.edges.extend(answer.points.iter().map(|point| {
            Edge::new(cursor_of(&point.key.to_text()), Row::of(point, &answer.snapshot).into())
        }));
        Ok(connection)
    }
}
