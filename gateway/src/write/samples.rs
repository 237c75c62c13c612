//! What a request tells: its series by cluster and host, as sections of messages. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, btree_map::Entry},
};

use nexus_common::{
    block::{EncodeError, Section},
    keyspace::live::Rules,
    model::{ClusterId, Gpu, HostName, HostSamples, SeriesSamples, Timestamp},
    queue::{Message, fits, pack, sections_of_good},
    sources::series::{Book, Refused, describe, get, host_of_address},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::wire::{self, Series, WireError};

/// Labels that say whose series it is, the first there is: Prometheus' own, then what exporters and
/// collectors without it write.
const HOST_LABELS: [&str; 5] = ["instance", "Hostname", "hostname", "host", "host_name"];
const CLUSTER_LABEL: &str = "cluster";
const NAME_LABEL: &str = "__name__";
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

/// Reads a body as it was sent. What names no cluster is of `own`.
///
/// # Errors
/// When it cannot be read, or is more than one transaction can take.
pub(crate) fn told(packed: &[u8], own: &ClusterId) -> Result<Told, ToldError> {
    let body = wire::unpack(packed)?;
    // The same body is of other samples where another cluster is meant.
    let hash = xxh3_128_with_seed(&body, xxh3_64(own.as_str().as_bytes()));
    let mut gathered = Gathered { own, clusters: BTreeMap::new(), tally: Tally::default() };
    wire::read(&body, |series| gathered.add(series))?;
    let Gathered { clusters, mut tally, .. } = gathered;
    let mut sections = BTreeMap::new();
    for (cluster, part) in clusters {
        let (good, refused) = sections_of_good(part.finish(&mut tally));
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

struct Gathered<'a> {
    own: &'a ClusterId,
    clusters: BTreeMap<ClusterId, Part>,
    tally: Tally,
}

/// The series of one cluster, and the samples of each, in the book's order.
#[derive(Default)]
struct Part {
    book: Book,
    samples: Vec<SeriesSamples>,
}

impl Gathered<'_> {
    fn add(&mut self, series: &Series<'_>) {
        self.tally.histograms += series.histograms as u64;
        if let Err(reason) = self.take(series) {
            self.tally.refuse(reason, series.samples.len(), || show(series));
        }
    }

    fn take(&mut self, series: &Series<'_>) -> Result<(), &'static str> {
        let mut labels: Vec<(&str, Cow<'_, str>)> = Vec::with_capacity(series.labels.len());
        let (mut name, mut cluster) = ("", None);
        for (label, value) in &series.labels {
            match *label {
                NAME_LABEL => name = value,
                // One that cannot be a cluster's name tells series apart as any other label does.
                CLUSTER_LABEL if cluster.is_none() && ClusterId::new(value).is_ok() => {
                    cluster = ClusterId::new(value).ok();
                }
                label if is_label_name(label) => labels.push((label, Cow::Borrowed(value))),
                _ => return Err("bad label"),
            }
        }
        if stands_twice(&series.labels) {
            return Err("bad label");
        }
        let address = get(&labels, &HOST_LABELS);
        if address.is_empty() {
            return Err("no host");
        }
        let host = HostName::new(host_of_address(address)).map_err(|_| "bad host")?;
        let described = describe(name, &labels, &host, None, &Rules::default());
        let described = described.map_err(|refused| match refused {
            Refused::Rule | Refused::Bad => "bad series",
            Refused::TooMany => "too many series",
        })?;
        let cluster = cluster.unwrap_or_else(|| self.own.clone());
        let part = self.clusters.entry(cluster).or_default();
        let nth = part.book.take(described);
        let Some(known) = part.book.series.get(nth) else { return Ok(()) };
        if part.samples.len() <= nth {
            // A series that was not met before stands behind all others.
            part.samples.push(known.without_samples());
        }
        let Some(into) = part.samples.get_mut(nth) else { return Ok(()) };
        for (at, value) in &series.samples {
            if Timestamp::from_millis(*at).is_err() {
                self.tally.refuse("bad time", 1, || format!("{at} ms of {}", show(series)));
            } else if known.is_absent(*value) {
                self.tally.absent += 1;
            } else {
                into.timestamps.push(*at);
                into.values.push(*value);
            }
        }
        Ok(())
    }
}

impl Part {
    /// By host, with the GPUs that something is told of.
    fn finish(self, tally: &mut Tally) -> Vec<HostSamples> {
        let Self { book, samples } = self;
        let mut hosts: Vec<Building> = Vec::new();
        hosts.resize_with(book.hosts.len(), Building::default);
        for (known, mut series) in book.series.iter().zip(samples) {
            let metric = series.metric.clone();
            let (repeated, twice) = put_in_order(&mut series);
            tally.repeated += repeated;
            tally.refuse("another value for the same time", twice, || metric.to_string());
            let place = book.hosts.get(known.host);
            if let Some((building, place)) = hosts.get_mut(known.host).zip(place)
                && !series.values.is_empty()
            {
                building.add(series, &place.gpus);
            }
        }
        let told = book.hosts.into_iter().zip(hosts).filter(|(_, told)| !told.series.is_empty());
        told.map(|(place, Building { gpus, series, .. })| HostSamples {
            host: place.host,
            gpus,
            series,
        })
        .collect()
    }
}

/// One host of a request.
#[derive(Default)]
struct Building {
    gpus: Vec<Gpu>,
    series: Vec<SeriesSamples>,
    /// Where each GPU of the book stands in `gpus`.
    places: HashMap<u32, u32>,
}

impl Building {
    fn add(&mut self, mut series: SeriesSamples, met: &[Gpu]) {
        series.gpu = series.gpu.and_then(|nth| {
            let gpu = met.get(usize::try_from(nth).ok()?)?;
            Some(*self.places.entry(nth).or_insert_with(|| {
                self.gpus.push(gpu.clone());
                self.gpus.len() as u32 - 1
            }))
        });
        self.series.push(series);
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

fn is_label_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().all(allowed) && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// Whether a name does; senders sort them, so this most often is one look.
fn stands_twice(labels: &[(&str, &str)]) -> bool {
    if labels.is_sorted_by(|a, b| a.0 < b.0) {
        return false;
    }
    let mut seen = BTreeMap::new();
    labels.iter().any(|(name, _)| match seen.entry(*name) {
        Entry::Occupied(_) => true,
        Entry::Vacant(free) => {
            free.insert(());
            false
        }
    })
}

/// A series as people write it.
fn show(series: &Series<'_>) -> String {
    let name = series.labels.iter().find(|(name, _)| *name == NAME_LABEL).map_or("", |l| l.1);
    let others = series.labels.iter().filter(|(name, _)| *name != NAME_LABEL).take(8);
    let others: Vec<String> = others.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", others.join(","))
}

#[cfg(test)]
mod tests {
    use super::{
        wire::sent::{TimeSeries, packed, series},
        *,
    };

    const T: i64 = 1_752_871_354_000;
    const STALE: u64 = 0x7ff0_0000_0000_0002;

    fn read(sent: &[TimeSeries]) -> Told {
        told(&packed(sent), &"c".parse().unwrap()).unwrap()
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

    #[test]
    fn the_hash_is_of_samples_and_cluster() {
        let up = |value| packed(&[series(&[("__name__", "up"), ("instance", "h")], &[(T, value)])]);
        let hash = |body: &[u8], cluster: &str| told(body, &cluster.parse().unwrap()).unwrap().hash;
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
        let error = told(&packed(&sent), &"c".parse().unwrap()).unwrap_err();
        assert_eq!(error, ToldError::TooLarge { samples: 1500 });
        assert!(told(&packed(&sent[..900]), &"c".parse().unwrap()).is_ok());
    }
}
