//! One live point, and how points come out of what arrived. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use nexus_common::{
    block::Section,
    model::{ClusterId, Gpu, GpuId, HostName, HostSamples, Labels, MetricName, SeriesSamples},
};

use super::super::{
    points::{Bounds, Point, PointKey, Points},
    snapshot::{Host, Latest, Snapshot},
};

/// What a subscriber wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LiveFilter {
    /// Only this cluster.
    pub cluster: Option<String>,
    /// Only hosts of this name.
    pub host: Option<String>,
    /// Only the GPU of this id, or GPUs of this UUID (MIG instances share one).
    pub gpu: Option<String>,
    /// Only points with one of these metrics, and of those only these.
    pub metrics: Option<BTreeSet<MetricName>>,
}

impl LiveFilter {
    /// Whether anything of a host can be wanted.
    pub fn wants_host(&self, cluster: &ClusterId, host: &HostName) -> bool {
        self.cluster.as_deref().is_none_or(|c| c == cluster.as_str())
            && self.host.as_deref().is_none_or(|h| h == host.as_str())
    }

    /// Whether a GPU of a wanted host (none: the host itself) is wanted.
    pub fn wants_gpu(&self, gpu: Option<&Gpu>) -> bool {
        match (&self.gpu, gpu) {
            (None, _) => true,
            (Some(text), Some(gpu)) => gpu.id.as_str() == text || gpu.uuid == *text,
            (Some(_), None) => false,
        }
    }

    /// Whether a metric is wanted.
    pub fn wants_metric(&self, metric: &MetricName) -> bool {
        self.metrics.as_ref().is_none_or(|wanted| wanted.contains(metric))
    }

    fn wants(&self, point: &LivePoint) -> bool {
        self.wants_gpu(point.gpu.as_deref())
            && (self.metrics.is_none()
                || point.values.iter().any(|(metric, _, _)| self.wants_metric(metric)))
    }
}

/// Metric, labels, value.
type Values = Vec<(MetricName, Labels, f64)>;

/// All that a message told of one GPU (or of a host itself) at one instant.
#[derive(Debug)]
pub struct LivePoint {
    /// What it is, and when.
    pub key: PointKey,
    /// The GPU as that message described it; none for the host itself.
    pub gpu: Option<Arc<Gpu>>,
    /// The revision at which it became visible.
    pub revision: i64,
    /// Whether it is the latest that was known (the newest value of every metric, whatever its
    /// instant) rather than something new.
    pub snapshot: bool,
    /// Metric, labels, value.
    pub values: Values,
    /// One serialised form, made once for all who want it.
    text: OnceLock<Box<str>>,
}

impl LivePoint {
    /// A point that was just heard of.
    fn new(point: Point, gpu: Option<Arc<Gpu>>, revision: i64) -> Self {
        let Point { key, values } = point;
        Self { key, gpu, revision, snapshot: false, values, text: OnceLock::new() }
    }

    /// Its serialised form; the first who asks makes it, with the one function there is for that.
    pub fn text(&self, make: impl FnOnce(&Self) -> String) -> &str {
        self.text.get_or_init(|| make(self).into_boxed_str())
    }
}

/// The points of one host's part of a message, by time and GPU. What cannot be decoded is left
/// out: reading it for the view has logged it already.
pub(super) fn points_of(
    sections: &[Section],
    cluster: &ClusterId,
    revision: i64,
) -> Vec<Arc<LivePoint>> {
    let decoded: Vec<Arc<HostSamples>> =
        sections.iter().filter_map(|section| section.decode().ok()).map(Arc::new).collect();
    points_in(&decoded, cluster, revision)
}

/// The points of one host's part of a message that is decoded already.
pub(super) fn points_in(
    decoded: &[Arc<HostSamples>],
    cluster: &ClusterId,
    revision: i64,
) -> Vec<Arc<LivePoint>> {
    if let [only] = decoded {
        return points_of_one(only, cluster, revision);
    }
    let mut gpus: HashMap<GpuId, Arc<Gpu>> = HashMap::new();
    // A message is bounded, so all of it is taken.
    let mut points = Points::new(Bounds {
        start: i64::MIN,
        end: i64::MAX,
        after: None,
        newest: false,
        limit: usize::MAX,
    });
    for (rank, samples) in (0..).zip(decoded) {
        points.add(cluster, rank, samples);
        gpus.extend(samples.gpus.iter().map(|gpu| (gpu.id.clone(), Arc::new(gpu.clone()))));
    }
    let live = |point: Point| {
        let gpu = point.key.gpu.as_ref().and_then(|id| gpus.get(id)).cloned();
        Arc::new(LivePoint::new(point, gpu, revision))
    };
    points.finish().into_iter().map(live).collect()
}

/// When, and of which GPU: the order of points.
type Place<'a> = (i64, Option<&'a GpuId>);

/// The same for one section, as nearly every message has of a host: without a key a sample.
fn points_of_one(samples: &HostSamples, cluster: &ClusterId, revision: i64) -> Vec<Arc<LivePoint>> {
    let gpus: Vec<Arc<Gpu>> = samples.gpus.iter().cloned().map(Arc::new).collect();
    let mut series: Vec<&SeriesSamples> = samples.series.iter().collect();
    series.sort_by(|a, b| (&a.metric, &a.labels).cmp(&(&b.metric, &b.labels)));
    let mut points: BTreeMap<Place<'_>, (Option<u32>, Values)> = BTreeMap::new();
    for series in series {
        let gpu = match series.gpu.map(|index| gpus.get(index as usize)) {
            None => None,
            Some(Some(gpu)) => Some(&gpu.id),
            Some(None) => continue,
        };
        for (&at, &value) in series.timestamps.iter().zip(&series.values) {
            let (_, values) = points.entry((at, gpu)).or_insert((series.gpu, Vec::new()));
            match values.last_mut() {
                // Of two for one series and instant the one read last stays.
                Some((metric, labels, kept))
                    if *metric == series.metric && *labels == series.labels =>
                {
                    *kept = value;
                }
                _ => values.push((series.metric.clone(), series.labels.clone(), value)),
            }
        }
    }
    let live = |((at, id), (index, values)): (Place<'_>, (Option<u32>, Values))| {
        let (cluster, host) = (cluster.clone(), samples.host.clone());
        let key = PointKey { at, cluster, host, gpu: id.cloned() };
        let gpu = index.and_then(|index| gpus.get(index as usize)).cloned();
        Arc::new(LivePoint::new(Point { key, values }, gpu, revision))
    };
    points.into_iter().map(live).collect()
}

/// Those that a filter wants.
pub(super) fn wanted(points: &[Arc<LivePoint>], filter: &LiveFilter) -> Vec<Arc<LivePoint>> {
    points.iter().filter(|point| filter.wants(point)).cloned().collect()
}

/// Hosts of a snapshot on which a filter may want something.
pub(super) fn hosts(snapshot: &Snapshot, filter: &LiveFilter) -> Vec<(ClusterId, HostName)> {
    let mut hosts: BTreeSet<(ClusterId, HostName)> = match &filter.gpu {
        Some(text) => {
            let places = snapshot.gpus.get(text).into_iter().flatten();
            places.map(|p| (p.cluster.clone(), p.host.clone())).collect()
        }
        None => snapshot.hosts().map(|(c, h, _)| (c.clone(), h.clone())).collect(),
    };
    hosts.retain(|(cluster, host)| filter.wants_host(cluster, host));
    hosts.into_iter().collect()
}

/// The latest of a host and its GPUs, as far as it is wanted: one point each.
pub(super) fn latest(
    place: (&ClusterId, &HostName),
    host: &Host,
    filter: &LiveFilter,
    revision: i64,
) -> Vec<Arc<LivePoint>> {
    let one = |gpu: Option<&Gpu>, latest: &Latest| {
        let wanted = || latest.iter().filter(|(metric, ..)| filter.wants_metric(metric));
        let at = wanted().map(|(_, _, at, _)| at).max()?;
        let key = PointKey {
            at,
            cluster: place.0.clone(),
            host: place.1.clone(),
            gpu: gpu.map(|gpu| gpu.id.clone()),
        };
        let values =
            wanted().map(|(metric, labels, _, value)| (metric.clone(), labels.clone(), value));
        let point = Point { key, values: values.collect() };
        let gpu = gpu.cloned().map(Arc::new);
        Some(Arc::new(LivePoint { snapshot: true, ..LivePoint::new(point, gpu, revision) }))
    };
    let own = if filter.wants_gpu(None) { one(None, &host.own) } else { None };
    let gpus = host.gpus.values().filter(|state| filter.wants_gpu(Some(&state.about)));
    own.into_iter().chain(gpus.filter_map(|s| one(Some(&s.about), &s.latest))).collect()
}
