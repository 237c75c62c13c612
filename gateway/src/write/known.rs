//! What labels mean. Senders tell of the same series again and again, so their labels are read
//! once, then found by a hash of their bytes.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use nexus_common::{
    keyspace::live::Rules,
    model::{ClusterId, Gpu, GpuId, HostName, Labels, MetricName},
    sources::series::{Absent, Described, Pairs, Refused, describe, get, host_of_address},
};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::wire::{Sent, Series, WireError};

/// Labels that say whose series it is, the first there is: Prometheus' own, then what exporters and
/// collectors without it write.
const HOST_LABELS: [&str; 5] = ["instance", "Hostname", "hostname", "host", "host_name"];
const CLUSTER_LABEL: &str = "cluster";
pub(super) const NAME_LABEL: &str = "__name__";
/// Most series remembered: those of some thousand GPUs.
const REMEMBERED_MAX: usize = 1 << 18;
/// Most bytes of labels remembered, as they were sent: series whose labels never come again must
/// not fill the memory.
const LABEL_BYTES_MAX: usize = 64 << 20;
/// How long what fills it is kept at least: forgotten more often, it would be read anew all the
/// time by whom has more series.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// What the labels of a series mean, or why it is never stored.
pub(super) type Meaning = Result<Arc<Meant>, &'static str>;

/// Of what a series is.
#[derive(Debug)]
pub(super) struct Meant {
    /// The same for all that are of the same series.
    pub(super) series: u32,
    /// The same for all that are of the same host.
    pub(super) place: u32,
    pub(super) cluster: ClusterId,
    pub(super) host: HostName,
    /// A number that is the same for all that are of the same GPU, and what these labels tell of it.
    pub(super) gpu: Option<(u32, Arc<Gpu>)>,
    pub(super) metric: MetricName,
    pub(super) labels: Labels,
    pub(super) absent: Absent,
}

/// The series that a gateway was told of.
pub(crate) struct KnownSeries {
    own: ClusterId,
    /// So that nobody can know which labels have the same hash.
    seed: u64,
    table: RwLock<Table>,
}

impl KnownSeries {
    /// None yet. What names no cluster is of `own`.
    pub(crate) fn new(own: ClusterId) -> Self {
        let seed = RandomState::new().hash_one(0);
        Self { own, seed, table: RwLock::new(Table::new()) }
    }

    /// The cluster of what names none.
    pub(super) fn own(&self) -> &ClusterId {
        &self.own
    }

    /// What the labels of each series mean, in order. Numbers are those of one request: in another
    /// one the same may have others.
    pub(super) fn meanings(&self, sent: &Sent<'_>) -> Result<Vec<Meaning>, WireError> {
        let hash = |series: &Series<'_>| xxh3_128_with_seed(&series.label_bytes, self.seed);
        let hashes: Vec<u128> = sent.series.iter().map(hash).collect();
        if let Some(all) = self.table.read().unwrap_or_else(PoisonError::into_inner).find(&hashes) {
            return Ok(all);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.is_full() && table.begun.elapsed() >= KEPT_FOR {
            *table = Table::new();
        }
        if !table.is_full() {
            // One request more than is remembered, at most.
            return table.learn(&sent.series, &hashes, &self.own);
        }
        drop(table);
        Table::new().learn(&sent.series, &hashes, &self.own)
    }
}

struct Table {
    by_hash: HashMap<u128, Meaning>,
    label_bytes: usize,
    begun: Instant,
    numbers: HashMap<(u32, Option<u32>, MetricName, Labels), u32>,
    places: HashMap<(ClusterId, HostName), u32>,
    gpus: HashMap<(u32, GpuId), (u32, Arc<Gpu>)>,
    /// The same few names, once.
    metrics: HashSet<MetricName>,
}

impl Table {
    fn new() -> Self {
        Self {
            by_hash: HashMap::new(),
            label_bytes: 0,
            begun: Instant::now(),
            numbers: HashMap::new(),
            places: HashMap::new(),
            gpus: HashMap::new(),
            metrics: HashSet::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.by_hash.len() >= REMEMBERED_MAX || self.label_bytes >= LABEL_BYTES_MAX
    }

    fn find(&self, hashes: &[u128]) -> Option<Vec<Meaning>> {
        hashes.iter().map(|hash| self.by_hash.get(hash).cloned()).collect()
    }

    fn learn(
        &mut self,
        series: &[Series<'_>],
        hashes: &[u128],
        own: &ClusterId,
    ) -> Result<Vec<Meaning>, WireError> {
        let mut meanings = Vec::with_capacity(series.len());
        for (series, hash) in series.iter().zip(hashes) {
            let known = self.by_hash.get(hash).cloned();
            meanings.push(match known {
                Some(known) => known,
                None => {
                    let labels = series.labels()?;
                    let meaning = read(&labels, own).map(|(cluster, it)| self.number(cluster, it));
                    self.label_bytes += series.label_bytes.len();
                    self.by_hash.insert(*hash, meaning.clone());
                    meaning
                }
            });
        }
        Ok(meanings)
    }

    fn number(&mut self, cluster: ClusterId, described: Described) -> Arc<Meant> {
        let Described { host, gpu, metric, labels, absent } = described;
        let metric = match self.metrics.get(&metric) {
            Some(known) => known.clone(),
            None => {
                self.metrics.insert(metric.clone());
                metric
            }
        };
        let next = self.places.len() as u32;
        let place = *self.places.entry((cluster.clone(), host.clone())).or_insert(next);
        let gpu = gpu.map(|gpu| {
            let next = self.gpus.len() as u32;
            let known = self.gpus.entry((place, gpu.id.clone()));
            let (number, told) = known.or_insert_with(|| (next, Arc::new(gpu.clone())));
            if **told != gpu {
                *told = Arc::new(gpu); // as it was last described
            }
            (*number, Arc::clone(told))
        });
        let nth_gpu = gpu.as_ref().map(|(number, _)| *number);
        let next = self.numbers.len() as u32;
        let identity = (place, nth_gpu, metric.clone(), labels.clone());
        let series = *self.numbers.entry(identity).or_insert(next);
        Arc::new(Meant { series, place, cluster, host, gpu, metric, labels, absent })
    }
}

/// Reads labels: the cluster they name, and what they describe.
fn read(sent: &[(&str, &str)], own: &ClusterId) -> Result<(ClusterId, Described), &'static str> {
    let mut labels: Vec<_> = Vec::with_capacity(sent.len());
    let (mut name, mut cluster) = ("", None);
    for (label, value) in sent {
        match *label {
            NAME_LABEL => name = value,
            // One that cannot be a cluster's name tells series apart as any other label does.
            CLUSTER_LABEL if cluster.is_none() && ClusterId::new(value).is_ok() => {
                cluster = ClusterId::new(value).ok();
            }
            label if is_label_name(label) => labels.push((label, (*value).into())),
            _ => return Err("bad label"),
        }
    }
    if stands_twice(sent) {
        return Err("bad label");
    }
    let labels: &Pairs<'_> = &labels;
    let address = get(labels, &HOST_LABELS);
    if address.is_empty() {
        return Err("no host");
    }
    let host = HostName::new(host_of_address(address)).map_err(|_| "bad host")?;
    let described = describe(name, labels, &host, None, &Rules::default());
    let described = described.map_err(|refused| match refused {
        Refused::Rule | Refused::Bad => "bad series",
        Refused::TooMany => "too many series",
    })?;
    Ok((cluster.unwrap_or_else(|| own.clone()), described))
}

fn is_label_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().all(allowed) && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// Whether a name does; senders sort them, so this most often is one look.
fn stands_twice(labels: &[(&str, &str)]) -> bool {
    let mut seen = HashSet::new();
    !labels.is_sorted_by(|a, b| a.0 < b.0) && labels.iter().any(|(name, _)| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{
        super::wire::{
            self,
            sent::{WriteRequest, series},
        },
        *,
    };

    fn body(labels: &[&[(&str, &str)]]) -> Vec<u8> {
        let timeseries = labels.iter().map(|labels| series(labels, &[])).collect();
        WriteRequest { timeseries, metadata: vec![] }.encode_to_vec()
    }

    fn remembered(known: &KnownSeries) -> usize {
        known.table.read().unwrap().by_hash.len()
    }

    #[test]
    fn labels_of_the_same_series_mean_the_same_and_no_others_do() {
        let known = KnownSeries::new("c".parse().unwrap());
        let gpu = |name, uuid, driver, pod| {
            [
                ("DCGM_FI_DRIVER_VERSION", driver),
                ("UUID", uuid),
                ("__name__", name),
                ("instance", "h"),
                ("pod", pod),
            ]
        };
        let (temp, power) = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE");
        let labels = [
            gpu(temp, "GPU-a", "535", "p"),
            gpu(temp, "GPU-a", "550", "p"),
            gpu(temp, "GPU-a", "550", "q"),
            gpu(power, "GPU-a", "550", "p"),
            gpu(temp, "GPU-b", "550", "p"),
        ];
        let body = body(&labels.each_ref().map(|labels| &labels[..]));
        for _ in 0..2 {
            let meanings = known.meanings(&wire::read(&body).unwrap()).unwrap();
            let meanings: Vec<Arc<Meant>> = meanings.into_iter().map(Result::unwrap).collect();
            let numbers: Vec<u32> = meanings.iter().map(|meant| meant.series).collect();
            assert_eq!(numbers, [0, 0, 1, 2, 3]);
            let gpus = meanings.iter().map(|meant| meant.gpu.as_ref().unwrap());
            let gpus: Vec<_> = gpus.map(|(nth, gpu)| (*nth, gpu.driver.as_str())).collect();
            assert_eq!(gpus, [(0, "535"), (0, "550"), (0, "550"), (0, "550"), (1, "550")]);
            assert!(meanings.iter().all(|meant| meant.place == 0));
            assert_eq!(remembered(&known), 5);
        }
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_begins_anew_in_time() {
        let known = KnownSeries::new("c".parse().unwrap());
        let ask = |host: &str| {
            let body = body(&[&[("__name__", "up"), ("instance", host)]]);
            let meanings = known.meanings(&wire::read(&body).unwrap()).unwrap();
            assert_eq!(meanings[0].as_ref().unwrap().host.as_str(), host);
        };
        ask("a");
        known.table.write().unwrap().label_bytes = LABEL_BYTES_MAX;
        ask("b");
        ask("a");
        assert_eq!(remembered(&known), 1, "it is full, what is new is not remembered");
        known.table.write().unwrap().begun = Instant::now().checked_sub(KEPT_FOR).unwrap();
        ask("a");
        assert_eq!(remembered(&known), 1);
        ask("b");
        assert_eq!((remembered(&known), known.table.read().unwrap().numbers.len()), (1, 1));
        ask("a");
        assert_eq!(remembered(&known), 2);
    }
}
