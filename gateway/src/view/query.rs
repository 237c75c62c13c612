//! Telemetry out of one snapshot: which blocks and messages matter, in which order, until no
//! further one can.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use nexus_common::{
    block::{Block, Section},
    keyspace::BlockName,
    model::{ClusterId, Gpu, GpuId, HostName, HostSamples, MetricName},
};
use tokio::time::timeout;

use super::{
    BlockGone, View,
    points::{Bounds, Point, PointKey, Points},
    snapshot::Snapshot,
    windows::{Step, Windows},
};

/// Most blocks one query looks into. Small ones that are not merged yet take about a
/// millisecond each to fetch, so that this stays well within the time a request has.
pub(super) const BLOCKS_PER_QUERY_MAX: usize = 2000;
/// Blocks fetched ahead of the one that is decoded: hides the round trip, and wastes little
/// where the first is enough.
const FETCHES_AHEAD: usize = 8;
/// Queries at once; the others wait. Each may hold ten thousand points (a few MiB) and some blocks.
pub(super) const QUERIES_MAX: usize = 32;
/// How often a query begins again because blocks went under it.
const TRIES: usize = 3;
/// How long it waits for a newer snapshot then.
const NEWER_WITHIN: Duration = Duration::from_millis(500);

/// Which series of a host.
#[derive(Debug, Clone)]
pub enum Which {
    /// All, the host's own too.
    All,
    /// Those of these GPUs.
    Gpus(Arc<BTreeSet<GpuId>>),
}

impl Which {
    fn wants(&self, gpu: Option<&Gpu>) -> bool {
        match self {
            Which::All => true,
            Which::Gpus(ids) => gpu.is_some_and(|gpu| ids.contains(&gpu.id)),
        }
    }
}

/// One host to look at.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostName,
    /// Which of its series.
    pub which: Which,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Where to look.
    pub targets: Vec<Target>,
    /// First instant, inclusive, in milliseconds since the epoch.
    pub start: i64,
    /// Last instant, inclusive.
    pub end: i64,
    /// Only what comes behind this one, in the direction of reading.
    pub after: Option<PointKey>,
    /// The newest points instead of the oldest. The answer ascends in both cases.
    pub newest: bool,
    /// Most points.
    pub limit: usize,
    /// Only these metrics; all without.
    pub metrics: Option<Arc<BTreeSet<MetricName>>>,
    /// Puts points together by windows of time.
    pub step: Option<Step>,
}

/// The points and where they come from.
#[derive(Debug, Clone)]
pub struct Answer {
    /// In the order of time.
    pub points: Vec<Point>,
    /// Where to go on, if there is more.
    pub next: Option<PointKey>,
    /// All of it is of this snapshot.
    pub snapshot: Arc<Snapshot>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Too many blocks would have to be read for even one point.
    #[error("more than {BLOCKS_PER_QUERY_MAX} blocks would have to be read for the first row")]
    TooWide,
    /// Too many samples would have to be held for even one window.
    #[error("too many samples fall into one window of time")]
    TooMany,
    /// Blocks went under the query, again and again.
    #[error("the blocks that were needed went while they were read, {TRIES} times")]
    Moving,
    /// etcd does not answer.
    #[error("etcd does not answer: {0}")]
    Etcd(#[source] nexus_common::etcd::Error),
    /// A decoder failed in a way it must not.
    #[error("a block could not be decoded")]
    Decoder,
}

/// A block or some of the queue that may hold points.
struct Part {
    cluster: ClusterId,
    host: HostName,
    which: Which,
    start: i64,
    end: i64,
    /// Later reads have higher ranks: blocks in the order of their commits, then the queue.
    rank: u32,
    body: Body,
}

enum Body {
    Block(Arc<BlockName>),
    Section(Section),
}

impl View {
    /// Answers what `ask` asks of a snapshot, `snapshot` first. If blocks are gone that it names,
    /// a newer snapshot is asked the same.
    ///
    /// # Errors
    /// When it cannot be answered; see [`QueryError`].
    pub async fn points(
        &self,
        mut snapshot: Arc<Snapshot>,
        ask: impl Fn(&Snapshot) -> Query,
    ) -> Result<Answer, QueryError> {
        // Never closed, so there is always a turn.
        let _turn = self.0.queries.acquire().await;
        for _ in 0..TRIES {
            match self.points_of(&snapshot, ask(&snapshot)).await {
                Err(BlockError::Gone(BlockGone::Gone(name))) => {
                    tracing::debug!(block = %name, "a block went under a query");
                }
                Err(BlockError::Gone(BlockGone::Etcd(error))) => {
                    return Err(QueryError::Etcd(error));
                }
                Err(BlockError::Query(error)) => return Err(error),
                Ok((points, next)) => return Ok(Answer { points, next, snapshot }),
            }
            let old = snapshot.places_revision.max(snapshot.revision);
            let mut published = self.subscribe();
            let newer = |s: &Option<Arc<Snapshot>>| {
                s.as_ref().is_some_and(|s| s.places_revision.max(s.revision) > old)
            };
            // If none comes, the current one is asked again: it may have been the network.
            let _ = timeout(NEWER_WITHIN, published.wait_for(newer)).await;
            snapshot = self.snapshot().unwrap_or(snapshot);
        }
        Err(QueryError::Moving)
    }

    async fn points_of(
        &self,
        snapshot: &Arc<Snapshot>,
        query: Query,
    ) -> Result<(Vec<Point>, Option<PointKey>), BlockError> {
        let parts = parts(snapshot, &query);
        let (limit, newest) = (query.limit, query.newest);
        // One more than asked for tells whether there is more.
        let bounds = Bounds {
            start: query.start,
            end: query.end,
            after: query.after,
            newest,
            limit: limit + 1,
        };
        let mut found = match query.step {
            None => Found::Points(Points::new(bounds)),
            Some(step) => Found::Windows(Windows::new(bounds, step)),
        };
        let metrics = query.metrics;
        let fetch = |part: Part| async move {
            let sections = match &part.body {
                Body::Section(section) => Fetched::Sections(vec![section.clone()]),
                Body::Block(name) => Fetched::Block(self.block(name, snapshot).await?),
            };
            Ok::<_, BlockGone>((part, sections))
        };
        // Looked at before it is fetched and again before it is decoded.
        let mut fetched = stream::iter(parts).map(fetch).buffered(FETCHES_AHEAD);
        let (mut blocks, mut cut) = (0, false);
        while let Some(next) = fetched.next().await {
            let (part, sections) = next.map_err(BlockError::Gone)?;
            let place = (&part.cluster, &part.host);
            if !found.can_use(place, part.start, part.end) {
                break;
            }
            if found.is_too_wide() {
                (found, cut) = (found.cut(place, part.start, part.end), true);
                break;
            }
            blocks += usize::from(matches!(sections, Fetched::Block(_)));
            if blocks > BLOCKS_PER_QUERY_MAX {
                // What no further block can add to is an answer, if not all that was asked for.
                (found, cut) = (found.cut(place, part.start, part.end), true);
                break;
            }
            let metrics = metrics.clone();
            let decoded = tokio::task::spawn_blocking(move || {
                decode(&part, sections, metrics.as_deref(), |samples| {
                    found.add(&part.cluster, part.rank, samples);
                });
                found
            });
            found = decoded.await.map_err(|_| BlockError::Query(QueryError::Decoder))?;
        }
        let too_wide = if found.is_too_wide() || blocks <= BLOCKS_PER_QUERY_MAX {
            QueryError::TooMany
        } else {
            QueryError::TooWide
        };
        match found.finish() {
            points if points.is_empty() && cut => Err(BlockError::Query(too_wide)),
            points => Ok(page(points, limit, newest, cut)),
        }
    }
}

/// What was found so far: points as they are, or windows of them.
enum Found {
    Points(Points),
    Windows(Windows),
}

impl Found {
    fn add(&mut self, cluster: &ClusterId, rank: u32, samples: &HostSamples) {
        match self {
            Self::Points(points) => points.add(cluster, rank, samples),
            Self::Windows(windows) => windows.add(cluster, rank, samples),
        }
    }

    /// Whether a part between these instants, or one behind it, can still change the answer.
    fn can_use(&mut self, place: (&ClusterId, &HostName), first: i64, last: i64) -> bool {
        match self {
            Self::Points(points) => points.can_use(place, first, last),
            Self::Windows(windows) => {
                windows.settle(first, last);
                !windows.is_full()
            }
        }
    }

    /// Leaves out what that part, or one behind it, may still add to.
    fn cut(mut self, place: (&ClusterId, &HostName), first: i64, last: i64) -> Self {
        match &mut self {
            Self::Points(points) => points.settle(place, first, last),
            Self::Windows(windows) => windows.cut(),
        }
        self
    }

    fn is_too_wide(&self) -> bool {
        matches!(self, Self::Windows(windows) if windows.is_too_wide())
    }

    fn finish(self) -> Vec<Point> {
        match self {
            Self::Points(points) => points.finish(),
            Self::Windows(windows) => windows.finish(),
        }
    }
}

enum BlockError {
    Gone(BlockGone),
    Query(QueryError),
}

enum Fetched {
    Block(bytes::Bytes),
    Sections(Vec<Section>),
}

/// Cuts off the one too many and says where to go on, if there is one or if reading was `cut`.
fn page(
    mut points: Vec<Point>,
    limit: usize,
    newest: bool,
    cut: bool,
) -> (Vec<Point>, Option<PointKey>) {
    let more = points.len() > limit;
    match (more, newest) {
        (true, true) => drop(points.remove(0)),
        (true, false) => drop(points.pop()),
        (false, _) => {}
    }
    let last = if newest { points.first() } else { points.last() };
    let next = last.filter(|_| more || cut).map(|point| point.key.clone());
    (points, next)
}

/// All parts that reach into the query's span, the most promising first: by the best point each
/// could hold.
fn parts(snapshot: &Snapshot, query: &Query) -> Vec<Part> {
    let mut parts = Vec::new();
    for target in &query.targets {
        let Some((_, host)) = snapshot.host(target.cluster.as_str(), target.host.as_str()) else {
            continue;
        };
        let mut rank = 0;
        let mut add = |start: i64, end: i64, body: Body| {
            rank += 1;
            if start <= query.end && end >= query.start {
                let (cluster, host) = (target.cluster.clone(), target.host.clone());
                let which = target.which.clone();
                parts.push(Part { cluster, host, which, start, end, rank, body });
            }
        };
        let mut blocks: Vec<&Arc<BlockName>> = host.blocks.iter().collect();
        blocks.sort_by_key(|b| (&b.bucket, b.partition, b.commit, b.ordinal));
        for name in blocks {
            add(name.start.as_millis(), name.end.as_millis(), Body::Block(Arc::clone(name)));
        }
        for section in host.sections() {
            let (start, end) = (section.start().as_millis(), section.end().as_millis());
            add(start, end, Body::Section(section.clone()));
        }
    }
    // A window reaches on from where its point stands.
    let reach = query.step.map_or(0, |step| step.millis - 1);
    let after = query.after.as_ref().map(|key| key.at);
    if query.newest {
        parts.retain(|p| after.is_none_or(|at| p.start <= at.saturating_add(reach)));
        parts.sort_by(|a, b| {
            (b.end, &b.cluster, &b.host, b.rank).cmp(&(a.end, &a.cluster, &a.host, a.rank))
        });
    } else {
        parts.retain(|p| after.is_none_or(|at| p.end >= at));
        parts.sort_by(|a, b| {
            (a.start, &a.cluster, &a.host, a.rank).cmp(&(b.start, &b.cluster, &b.host, b.rank))
        });
    }
    parts
}

/// Decodes what is wanted of a part. What cannot be decoded is left out and told.
fn decode(
    part: &Part,
    fetched: Fetched,
    metrics: Option<&BTreeSet<MetricName>>,
    mut found: impl FnMut(&HostSamples),
) {
    let sections = match fetched {
        Fetched::Sections(sections) => sections,
        Fetched::Block(bytes) => match Block::decode(bytes) {
            Ok(block) => block.sections,
            Err(error) => {
                tracing::error!(host = %part.host, %error, "a stored block cannot be read");
                return;
            }
        },
    };
    let wanted = |gpu: Option<&Gpu>, metric: &MetricName| {
        part.which.wants(gpu) && metrics.is_none_or(|metrics| metrics.contains(metric))
    };
    for section in sections.iter().filter(|s| *s.host() == part.host) {
        match section.decode_matching(wanted) {
            Ok(samples) => found(&samples),
            Err(error) => tracing::error!(host = %part.host, %error, "a section cannot be read"),
        }
    }
}
