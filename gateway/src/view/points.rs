//! Points out of samples: all metrics of one GPU (or of a host itself) at one instant. Pure.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, btree_map::Entry},
};

use nexus_common::model::{ClusterId, GpuId, HostName, HostSamples, Labels, MetricName, Timestamp};

/// What a point is and where it stands in an answer: by time, then by place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PointKey {
    /// Milliseconds since the epoch.
    pub at: i64,
    /// Cluster of the host.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostName,
    /// The GPU; none for the host itself.
    pub gpu: Option<GpuId>,
}

impl PointKey {
    /// As part of a cursor.
    pub fn to_text(&self) -> String {
        let gpu = self.gpu.as_ref().map_or("", GpuId::as_str);
        // '~' cannot stand in an id.
        format!("{}~{}~{}~{gpu}", self.at, self.cluster, self.host)
    }

    /// From a cursor.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('~');
        let mut next = || parts.next();
        let (at, cluster, host, gpu) = (next()?, next()?, next()?, next()?);
        let at = Timestamp::from_millis(at.parse().ok()?).ok()?.as_millis();
        let gpu = if gpu.is_empty() { None } else { Some(gpu.parse().ok()?) };
        let key = Self { at, cluster: cluster.parse().ok()?, host: host.parse().ok()?, gpu };
        (key.to_text() == text).then_some(key)
    }
}

/// One value and the rank of where it was read: of two for one series and instant, the higher
/// rank stays.
type Ranked = (u32, f64);

/// All values of one point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is.
    pub key: PointKey,
    /// Metric, labels, value.
    pub values: Vec<(MetricName, Labels, f64)>,
}

/// Which points are wanted.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// First instant, inclusive.
    pub(super) start: i64,
    /// Last instant, inclusive.
    pub(super) end: i64,
    /// Only what comes behind this one, in the direction of reading.
    pub(super) after: Option<PointKey>,
    /// Read from the newest backwards instead of from the oldest on.
    pub(super) newest: bool,
    /// Most points.
    pub(super) limit: usize,
}

impl Bounds {
    /// Whether a point comes behind where an earlier answer ended.
    pub(super) fn is_behind_cursor(&self, key: &PointKey) -> bool {
        let behind = |after: &PointKey| if self.newest { key < after } else { key > after };
        self.after.as_ref().is_none_or(behind)
    }
}

/// The best points so far: never more than the limit.
#[derive(Debug)]
pub(super) struct Points {
    bounds: Bounds,
    points: BTreeMap<PointKey, BTreeMap<(MetricName, Labels), Ranked>>,
}

impl Points {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, points: BTreeMap::new() }
    }

    /// Takes samples of a host that were read as the `rank`-th.
    pub(super) fn add(&mut self, cluster: &ClusterId, rank: u32, samples: &HostSamples) {
        for series in &samples.series {
            let gpu = match series.gpu {
                None => None,
                Some(index) => match samples.gpus.get(index as usize) {
                    Some(gpu) => Some(&gpu.id),
                    None => continue,
                },
            };
            for (&at, &value) in series.timestamps.iter().zip(&series.values) {
                if !self.may_take(at) {
                    continue;
                }
                let host = samples.host.clone();
                let key = PointKey { at, cluster: cluster.clone(), host, gpu: gpu.cloned() };
                self.take(key, &series.metric, &series.labels, (rank, value));
            }
        }
    }

    /// Whether a part whose points lie between `first` and `last` instants of one host can still
    /// change the answer.
    pub(super) fn can_use(&self, place: (&ClusterId, &HostName), first: i64, last: i64) -> bool {
        let worst = self.worst().filter(|_| self.is_full());
        worst.is_none_or(|worst| !self.is_beyond(worst, place, first, last))
    }

    /// Leaves out what that part, or one behind it, may still add to.
    pub(super) fn settle(&mut self, place: (&ClusterId, &HostName), first: i64, last: i64) {
        let mut points = std::mem::take(&mut self.points);
        points.retain(|key, _| self.is_beyond(key, place, first, last));
        self.points = points;
    }

    /// Whether that part holds only points that come behind `key`, in the direction of reading.
    fn is_beyond(
        &self,
        key: &PointKey,
        place: (&ClusterId, &HostName),
        first: i64,
        last: i64,
    ) -> bool {
        let at = if self.bounds.newest { last } else { first };
        match (key.at, &key.cluster, &key.host).cmp(&(at, place.0, place.1)) {
            Ordering::Equal => false,
            Ordering::Less => !self.bounds.newest,
            Ordering::Greater => self.bounds.newest,
        }
    }

    /// The points, in the order of time.
    pub(super) fn finish(self) -> Vec<Point> {
        let point = |(key, values): (PointKey, BTreeMap<(MetricName, Labels), Ranked>)| Point {
            key,
            values: values.into_iter().map(|((m, l), (_, value))| (m, l, value)).collect(),
        };
        self.points.into_iter().map(point).collect()
    }

    fn may_take(&self, at: i64) -> bool {
        let Bounds { start, end, newest, .. } = self.bounds;
        if at < start || at > end {
            return false;
        }
        match self.worst().filter(|_| self.is_full()) {
            Some(worst) if newest => at >= worst.at,
            Some(worst) => at <= worst.at,
            None => true,
        }
    }

    fn take(&mut self, key: PointKey, metric: &MetricName, labels: &Labels, new: Ranked) {
        let newest = self.bounds.newest;
        let behind = |one: &PointKey, other: &PointKey| {
            if newest { one < other } else { one > other }
        };
        if !self.bounds.is_behind_cursor(&key) {
            return;
        }
        if self.is_full() && self.worst().is_some_and(|worst| behind(&key, worst)) {
            return;
        }
        let values = self.points.entry(key).or_default();
        match values.entry((metric.clone(), labels.clone())) {
            Entry::Vacant(free) => {
                free.insert(new);
            }
            Entry::Occupied(mut kept) if new.0 >= kept.get().0 => {
                kept.insert(new);
            }
            Entry::Occupied(_) => {}
        }
        if self.points.len() > self.bounds.limit {
            if newest {
                self.points.pop_first()
            } else {
                self.points.pop_last()
            };
        }
    }

    fn is_full(&self) -> bool {
        self.points.len() >= self.bounds.limit
    }

    /// The first to give way.
    fn worst(&self) -> Option<&PointKey> {
        let end = if self.bounds.newest {
            self.points.first_key_value()
        } else {
            self.points.last_key_value()
        };
        end.map(|(key, _)| key)
    }
}
