//! What a request tells: its series by cluster and host, as sections of messages. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use nexus_common::{
    block::{EncodeError, Section},
    model::{ClusterId, Gpu, HostName, HostSamples, SeriesSamples, Timestamp},
    queue::{Message, fits, pack, sections_of_good},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::{
    known::{KnownSeries, Meant, NAME_LABEL},
    wire::{self, Series, WireError},
};

/// How much is told of the first series that is refused, in characters: enough to find it.
const TOLD_CHARS: usize = 200;

/// Counts of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Samples that are stored.
    pub(crate) samples: u64,
    /// Samples that meant "not measured".
    pub(crate) absent: u64,
    /// Samples that stood in it before.
    pub(crate) repeated: u64,
    /// Native histograms, which are not kept.
    pub(crate) histograms: u64,
    /// Samples that can never be stored, by reason.
    pub(crate) refused: BTreeMap<&'static str, u64>,
    /// Of these, the first: why, and of which series.
    pub(crate) first_refused: Option<String>,
}

impl Tally {
    /// Samples that can never be stored.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Adds what another request counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.absent += other.absent;
        if other.first_refused.is_some() {
            self.first_refused.clone_from(&other.first_refused);
        }
        for (reason, samples) in &other.refused {
            *self.refused.entry(reason).or_default() += samples;
        }
    }

    fn refuse(&mut self, reason: &'static str, samples: usize, of: impl FnOnce() -> String) {
        if samples == 0 {
            return;
        }
        *self.refused.entry(reason).or_default() += samples as u64;
        self.first_refused.get_or_insert_with(|| {
            let told = format!("{reason}: {}", of());
            told.chars().take(TOLD_CHARS).collect()
        });
    }
}

/// A request, ready to be enqueued.
#[derive(Debug)]
pub(crate) struct Told {
    /// The same for the same samples, whoever sends them to whichever gateway of a cluster.
    pub(crate) hash: u128,
    /// By cluster.
    pub(crate) sections: BTreeMap<ClusterId, Vec<Section>>,
    /// Counts.
    pub(crate) tally: Tally,
}

/// Why a request as a whole cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ToldError {
    /// Its bytes are not as they must be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is stored in one transaction or not at all.
    #[error("{samples} samples need more than one transaction of etcd; send fewer in one request")]
    TooLarge {
        /// How many there are.
        samples: u64,
    },
    /// What it tells cannot be encoded.
    #[error("encode samples")]
    Encode(#[from] EncodeError),
}

/// Reads a body as it was sent.
///
/// # Errors
/// When it cannot be read, or is more than one transaction can take.
pub(crate) fn told(packed: &[u8], known: &KnownSeries) -> Result<Told, ToldError> {
    let body = wire::unpack(packed)?;
    // The same body is of other samples where another cluster is meant.
    let hash = xxh3_128_with_seed(&body, xxh3_64(known.own().as_str().as_bytes()));
    let sent = wire::read(&body)?;
    let mut gathered = Gathered::default();
    for (series, meaning) in sent.series.iter().zip(known.meanings(&sent)?) {
        let samples = sent.samples(series);
        gathered.tally.histograms += series.histograms as u64;
        match meaning {
            Ok(meant) => gathered.add(&meant, samples, series),
            Err(reason) => gathered.tally.refuse(reason, samples.len(), || show(series)),
        }
    }
    let (clusters, mut tally) = gathered.finish();
    let mut sections = BTreeMap::new();
    for (cluster, hosts) in clusters {
        let (good, refused) = sections_of_good(hosts);
        tally.refuse("not encodable", refused as usize, || "the log says more".to_owned());
        if !good.is_empty() {
            sections.insert(cluster, good);
        }
    }
    tally.samples = sections.values().flatten().map(Section::samples).sum();
    if !fits(&packed_messages(&sections)?) {
        return Err(ToldError::TooLarge { samples: tally.samples });
    }
    Ok(Told { hash, sections, tally })
}

/// The messages of these sections.
///
/// # Errors
/// When one is larger than a message may be.
pub(crate) fn packed_messages<'a>(
    sections: impl IntoIterator<Item = (&'a ClusterId, &'a Vec<Section>)>,
) -> Result<Vec<Message>, EncodeError> {
    let mut by_cluster: BTreeMap<&ClusterId, Vec<Section>> = BTreeMap::new();
    for (cluster, sections) in sections {
        by_cluster.entry(cluster).or_default().extend(sections.iter().cloned());
    }
    let mut messages = Vec::new();
    for (cluster, sections) in by_cluster {
        messages.extend(pack(cluster, sections)?);
    }
    Ok(messages)
}

/// The samples of a request, by host.
#[derive(Default)]
struct Gathered {
    hosts: Vec<Building>,
    /// Where the host of a number stands.
    places: HashMap<u32, usize>,
    /// Where the series of a number stands, and in which host.
    series: HashMap<u32, (usize, usize)>,
    tally: Tally,
}

/// One host of a request.
struct Building {
    cluster: ClusterId,
    host: HostName,
    /// By number, in the order they were met.
    gpus: Vec<(u32, Arc<Gpu>)>,
    series: Vec<SeriesSamples>,
}

impl Gathered {
    fn add(&mut self, meant: &Meant, samples: &[(i64, f64)], told: &Series<'_>) {
        let (host, nth) = match self.series.get(&meant.series) {
            Some(place) => *place,
            None => self.series(meant),
        };
        let Some(building) = self.hosts.get_mut(host) else { return };
        building.describe(meant);
        let Some(into) = building.series.get_mut(nth) else { return };
        for (at, value) in samples {
            if Timestamp::from_millis(*at).is_err() {
                self.tally.refuse("bad time", 1, || format!("{at} ms of {}", show(told)));
            } else if meant.absent.is(*value) {
                self.tally.absent += 1;
            } else {
                into.timestamps.push(*at);
                into.values.push(*value);
            }
        }
    }

    /// A place for a series that was not met before.
    fn series(&mut self, meant: &Meant) -> (usize, usize) {
        let host = *self.places.entry(meant.place).or_insert_with(|| {
            let (cluster, host) = (meant.cluster.clone(), meant.host.clone());
            self.hosts.push(Building { cluster, host, gpus: Vec::new(), series: Vec::new() });
            self.hosts.len() - 1
        });
        let Some(building) = self.hosts.get_mut(host) else { return (host, 0) };
        let gpu = building.describe(meant);
        building.series.push(SeriesSamples {
            gpu,
            metric: meant.metric.clone(),
            labels: meant.labels.clone(),
            timestamps: Vec::new(),
            values: Vec::new(),
        });
        let place = (host, building.series.len() - 1);
        self.series.insert(meant.series, place);
        place
    }

    /// By cluster, the hosts of which something is told.
    fn finish(mut self) -> (BTreeMap<ClusterId, Vec<HostSamples>>, Tally) {
        let mut clusters: BTreeMap<ClusterId, Vec<HostSamples>> = BTreeMap::new();
        for mut building in self.hosts {
            for series in &mut building.series {
                let (repeated, twice) = put_in_order(series);
                self.tally.repeated += repeated;
                let of = || series.metric.to_string();
                self.tally.refuse("another value for the same time", twice, of);
            }
            if let Some((cluster, host)) = building.finish() {
                clusters.entry(cluster).or_default().push(host);
            }
        }
        (clusters, self.tally)
    }
}

impl Building {
    /// Makes the GPU of a series stand there as these labels describe it; says where.
    fn describe(&mut self, meant: &Meant) -> Option<u32> {
        let (number, gpu) = meant.gpu.as_ref()?;
        let nth = self.gpus.iter().position(|(known, _)| known == number);
        match nth.and_then(|nth| self.gpus.get_mut(nth)) {
            Some((_, known)) if Arc::ptr_eq(known, gpu) => {}
            Some((_, known)) => *known = Arc::clone(gpu), // as it was last described
            None => self.gpus.push((*number, Arc::clone(gpu))),
        }
        Some(nth.unwrap_or(self.gpus.len() - 1) as u32)
    }

    /// With the series that have samples, and their GPUs; none if there are none.
    fn finish(self) -> Option<(ClusterId, HostSamples)> {
        let Self { cluster, host, gpus: met, mut series } = self;
        series.retain(|series| !series.values.is_empty());
        let mut gpus: Vec<Gpu> = Vec::with_capacity(met.len());
        let mut places: Vec<Option<u32>> = vec![None; met.len()];
        for gpu in series.iter_mut().filter_map(|series| series.gpu.as_mut()) {
            let nth = *gpu as usize;
            let (Some(place), Some((_, known))) = (places.get_mut(nth), met.get(nth)) else {
                continue;
            };
            *gpu = *place.get_or_insert_with(|| {
                gpus.push(Gpu::clone(known));
                gpus.len() as u32 - 1
            });
        }
        (!series.is_empty()).then_some((cluster, HostSamples { host, gpus, series }))
    }
}

/// Sorts samples by time where they are not, and leaves one for each instant: the first. How many
/// went because they were the same, and how many although they were not.
fn put_in_order(series: &mut SeriesSamples) -> (u64, usize) {
    if series.timestamps.is_sorted_by(|a, b| a < b) {
        return (0, 0);
    }
    let times = std::mem::take(&mut series.timestamps);
    let mut all: Vec<(i64, f64)> =
        times.into_iter().zip(std::mem::take(&mut series.values)).collect();
    all.sort_by_key(|(at, _)| *at);
    let (mut repeated, mut twice) = (0, 0);
    for (at, value) in all {
        match series.timestamps.last().zip(series.values.last()) {
            Some((last, same)) if *last == at && same.to_bits() == value.to_bits() => repeated += 1,
            Some((last, _)) if *last == at => twice += 1,
            _ => {
                series.timestamps.push(at);
                series.values.push(value);
            }
        }
    }
    (repeated, twice)
}

/// A series as people write it.
fn show(series: &Series<'_>) -> String {
    let labels = series.labels().unwrap_or_default();
    let name = labels.iter().find(|(name, _)| *name == NAME_LABEL).map_or("", |l| l.1);
    let others = labels.iter().filter(|(name, _)| *name != NAME_LABEL).take(8);
    let others: Vec<String> = others.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", others.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::{
        wire::sent::{TimeSeries, packed, series},
        *,
    };

    const T: i64 = 1_752_871_354_000;
    const STALE: u64 = 0x7ff0_0000_0000_0002;

    fn known(cluster: &str) -> KnownSeries {
        KnownSeries::new(cluster.parse().unwrap())
    }

    fn read(sent: &[TimeSeries]) -> Told {
        told(&packed(sent), &known("c")).unwrap()
    }

    /// What is stored, a line a sample: `cluster host gpu metric {labels} time value`.
    fn lines(told: &Told) -> Vec<String> {
        let mut lines = Vec::new();
        for (cluster, sections) in &told.sections {
            for host in sections.iter().map(|section| section.decode().unwrap()) {
                for one in &host.series {
                    let gpu = one.gpu.map_or("-", |nth| host.gpus[nth as usize].id.as_str());
                    let labels: Vec<String> =
                        one.labels.iter().map(|(n, v)| format!("{n}={v}")).collect();
                    let of = format!(
                        "{cluster} {} {gpu} {} {{{}}}",
                        host.host,
                        one.metric,
                        labels.join(",")
                    );
                    let samples = one.timestamps.iter().zip(&one.values);
                    lines.extend(samples.map(|(at, value)| format!("{of} {} {value}", at - T)));
                }
            }
        }
        lines.sort();
        lines
    }

    #[test]
    fn labels_say_of_what_a_series_is() {
        let check = |labels: &[(&str, &str)], expected: &str| {
            assert_eq!(lines(&read(&[series(labels, &[(T, 1.5)])])), [expected], "{labels:?}");
        };
        let node = [("__name__", "node_load1"), ("instance", "dgx-1:9100"), ("job", "node")];
        check(&node, "c dgx-1 - node_load1 {instance=dgx-1:9100,job=node} 0 1.5");
        let gpu = [
            ("DCGM_FI_DRIVER_VERSION", "535"),
            ("Hostname", "dgx-7"),
            ("UUID", "GPU-a"),
            ("__name__", "DCGM_FI_DEV_GPU_TEMP"),
            ("cluster", "west"),
            ("gpu", "0"),
            ("instance", "10.0.0.1:9400"),
            ("job", "dcgm"),
            ("modelName", "H100"),
            ("pod", "train-0"),
        ];
        check(&gpu, "west dgx-7 GPU-a temperature {pod=train-0} 0 1.5");
        let old = [("__name__", "dcgm_gpu_temp"), ("gpu", "1"), ("host", "n1")];
        check(&old, "c n1 n1:1 temperature {host=n1} 0 1.5");
        let odd = [("__name__", "up"), ("cluster", "a/b"), ("instance", "[::1]:9100")];
        check(&odd, "c ::1 - up {cluster=a/b,instance=[::1]:9100} 0 1.5");
    }

    #[test]
    fn what_can_never_be_stored_is_counted_and_the_rest_is_stored() {
        let up = |host: &str, samples: &[(i64, f64)]| {
            series(&[("__name__", "up"), ("instance", host)], samples)
        };
        let check = |sent: TimeSeries, reason: &'static str, told_of: &str| {
            let told = read(&[sent, up("good", &[(T, 1.0)])]);
            assert_eq!(told.tally.refused, [(reason, 1)].into(), "{told_of}");
            assert_eq!(told.tally.samples, 1);
            assert_eq!(lines(&told), ["c good - up {instance=good} 0 1"]);
            let first = told.tally.first_refused.unwrap();
            assert!(first.starts_with(reason) && first.contains(told_of), "{first}");
        };
        let one = [(T, 1.0)];
        check(series(&[("__name__", "up")], &one), "no host", "up{}");
        check(up("a/b", &one), "bad host", "instance=\"a/b\"");
        check(series(&[("__name__", "9d"), ("instance", "h")], &one), "bad series", "9d{");
        check(series(&[("instance", "h")], &one), "bad series", "{instance=");
        let label =
            |name, value| series(&[("__name__", "up"), ("instance", "h"), (name, value)], &one);
        check(label("a-b", "x"), "bad label", "a-b=");
        check(label("instance", "x"), "bad label", "instance=");
        check(label("long", &"x".repeat(300)), "bad series", "up{");
        check(up("h", &[(i64::MAX, 1.0)]), "bad time", "9223372036854775807 ms of up{");
        check(up("h", &[(i64::MIN, 1.0)]), "bad time", "ms of up{");
    }

    #[test]
    fn stale_markers_and_blanks_are_absent_and_histograms_are_counted() {
        let up = [("__name__", "up"), ("instance", "h")];
        let xid = [("__name__", "DCGM_FI_DEV_XID_ERRORS"), ("gpu", "0"), ("instance", "h")];
        let stale = f64::from_bits(STALE);
        let mut sent = series(&up, &[(T, stale), (T + 1, f64::NAN), (T + 2, f64::INFINITY)]);
        sent.histograms = vec![Vec::new(); 2];
        let told = read(&[sent, series(&xid, &[(T, 9.223_372_036_854_775e18)])]);
        assert!(told.sections.is_empty());
        let Tally { samples, absent, histograms, .. } = told.tally;
        assert_eq!((samples, absent, histograms, told.tally.refused.len()), (0, 4, 2, 0));
    }

    #[test]
    fn an_instant_of_a_series_is_there_once() {
        let up = [("__name__", "up"), ("instance", "h")];
        let told = read(&[
            series(&up, &[(T + 2, 1.0), (T, 0.5), (T, 0.5)]),
            series(&up, &[(T + 1, 1.0), (T, 0.7)]),
        ]);
        let expected = [(0, 0.5), (1, 1.0), (2, 1.0)]
            .map(|(at, value)| format!("c h - up {{instance=h}} {at} {value}"));
        assert_eq!(lines(&told), expected);
        let Tally { samples, repeated, refused, .. } = told.tally;
        assert_eq!((samples, repeated), (3, 1));
        assert_eq!(refused, [("another value for the same time", 1)].into());
    }

    fn any_series() -> impl Strategy<Value = TimeSeries> {
        let instance = prop_oneof![Just(""), Just("a:1"), Just("a:2"), Just("b/c"), Just("b")];
        let uuid = prop_oneof![Just(""), Just("GPU-1"), Just("GPU-2")];
        let driver = prop_oneof![Just("535"), Just("550")];
        let cluster = prop_oneof![Just(""), Just("west"), Just("a/b")];
        let name = prop_oneof![Just("up"), Just("DCGM_FI_DEV_GPU_TEMP"), Just("9d")];
        let samples = proptest::collection::vec((0..4i64, 0..3u8), 0..4);
        (name, instance, uuid, driver, cluster, samples).prop_map(
            |(name, instance, uuid, driver, cluster, samples)| {
                let labels = [
                    ("DCGM_FI_DRIVER_VERSION", driver),
                    ("UUID", uuid),
                    ("__name__", name),
                    ("cluster", cluster),
                    ("instance", instance),
                ];
                let samples: Vec<_> =
                    samples.iter().map(|(at, value)| (T + at, f64::from(*value))).collect();
                series(&labels, &samples)
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_remembered_of_requests_before_changes_nothing(
            requests in proptest::collection::vec(proptest::collection::vec(any_series(), 0..6), 1..5),
        ) {
            let remembers = known("c");
            for sent in requests {
                let (it, fresh) = (told(&packed(&sent), &remembers).unwrap(), read(&sent));
                prop_assert_eq!(it.hash, fresh.hash);
                prop_assert_eq!(&it.tally, &fresh.tally);
                prop_assert_eq!(it.sections, fresh.sections);
            }
        }
    }

    #[test]
    fn labels_may_stand_behind_samples() {
        let sent = series(&[("__name__", "up"), ("instance", "h")], &[(T, 1.0)]).encode_to_vec();
        let (first, rest) = sent.split_at(2 + usize::from(sent[1]));
        let (second, sample) = rest.split_at(2 + usize::from(rest[1]));
        for order in [[first, second, sample], [first, sample, second], [sample, second, first]] {
            let one = order.concat();
            let body = [&[0x0a, one.len() as u8], &*one].concat();
            let body = snap::raw::Encoder::new().compress_vec(&body).unwrap();
            let told = told(&body, &known("c")).unwrap();
            assert_eq!(lines(&told), ["c h - up {instance=h} 0 1"], "{order:?}");
        }
    }

    #[test]
    fn the_hash_is_of_samples_and_cluster() {
        let up = |value| packed(&[series(&[("__name__", "up"), ("instance", "h")], &[(T, value)])]);
        let hash = |body: &[u8], cluster: &str| told(body, &known(cluster)).unwrap().hash;
        assert_eq!(hash(&up(1.0), "c"), hash(&up(1.0), "c"));
        assert_ne!(hash(&up(1.0), "c"), hash(&up(2.0), "c"));
        assert_ne!(hash(&up(1.0), "c"), hash(&up(1.0), "d"));
    }

    #[test]
    fn what_no_transaction_holds_is_refused_as_a_whole() {
        // Labels that nothing can compress, each 1.5 KiB a series.
        let mut state = 1u64;
        let mut noise = || -> String {
            let next = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b'!' + ((state >> 40) % 90) as u8)
            };
            (0..250).map(next).collect()
        };
        let sent: Vec<TimeSeries> = (0..1500)
            .map(|_| {
                let [a, b, c, d] = std::array::from_fn(|_| noise());
                let labels = [
                    ("__name__", "x"),
                    ("a", &*a),
                    ("b", &b),
                    ("c", &c),
                    ("d", &d),
                    ("instance", "h"),
                ];
                series(&labels, &[(T, 1.0)])
            })
            .collect();
        let error = told(&packed(&sent), &known("c")).unwrap_err();
        assert_eq!(error, ToldError::TooLarge { samples: 1500 });
        assert!(told(&packed(&sent[..900]), &known("c")).is_ok());
    }
}
