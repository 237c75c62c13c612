//! Which series a row belongs to: parsed once, then found again by the bytes that say so.

use std::{borrow::Cow, sync::Arc};

use hashbrown::HashTable;
use nexus_common::{
    limits::LABEL_VALUE_BYTES_MAX,
    model::{
        Blank, Gpu, GpuId, HostName, Labels, Metric, MetricName, metric_by_dcgm, metric_by_name,
    },
    sources::{
        header::{Kind, Layout, ValueColumn},
        label_text::parse_labels,
        series::{DROPPED, MIG_INSTANCE, MIG_PROFILE},
    },
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{batch::RejectReason, records::Record, template::Template};

/// Most series remembered: 20,000 GPUs with ten metrics each. Beyond, parsing again is cheaper
/// than the memory.
const SERIES_MAX: usize = 200_000;
/// Most bytes of remembered rows: series with huge labels must not fill the memory.
const KEY_BYTES_MAX: usize = 128 << 20;

/// Where a series stands in the batch of one epoch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) epoch: u64,
    pub(super) host: u32,
    pub(super) series: u32,
}

/// One metric of a row.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) metric: MetricName,
    blank: Blank,
    zero_is_absent: bool,
    pub(super) slot: Slot,
}

impl Measured {
    fn new(metric: MetricName, known: Option<&Metric>) -> Self {
        Self {
            metric,
            blank: known.map_or(Blank::Any, |m| m.blank),
            // Cards without the sensor report 0; no memory in use is at 0 degrees.
            zero_is_absent: known.is_some_and(|m| m.dcgm == "DCGM_FI_DEV_MEMORY_TEMP"),
            slot: Slot::default(),
        }
    }

    /// Whether `value` says that nothing was measured.
    pub(super) fn is_absent(&self, value: f64) -> bool {
        self.blank.is_blank(value) || (self.zero_is_absent && value == 0.0)
    }
}

/// What a row says besides when and how much.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) host: HostName,
    pub(super) gpu: Gpu,
    pub(super) labels: Labels,
    /// One a value column, in their order.
    pub(super) measured: Vec<Measured>,
}

/// Why a row names no series: the reason, and what exactly was wrong.
pub(super) type Refusal = (RejectReason, String);

type Pairs<'a> = Vec<(&'a str, Cow<'a, str>)>;

fn text(record: &Record, column: Option<usize>) -> Result<&str, Refusal> {
    let bytes = column.and_then(|c| record.get(c)).unwrap_or_default();
    let text = std::str::from_utf8(bytes)
        .map_err(|e| (RejectReason::Utf8, format!("{}: {e}", String::from_utf8_lossy(bytes))))?;
    Ok(text.trim())
}

/// The column's text, or that of the first of `labels` there is.
fn text_or<'a>(
    record: &'a Record,
    column: Option<usize>,
    raw: &'a Pairs<'_>,
    labels: &[&str],
) -> Result<&'a str, Refusal> {
    let own = text(record, column)?;
    let labelled = || raw.iter().find(|(n, v)| labels.contains(n) && !v.is_empty());
    Ok(if own.is_empty() { labelled().map_or("", |(_, v)| v.as_ref()) } else { own })
}

/// Reads everything but timestamp and values.
pub(super) fn read_series(record: &Record, layout: &Layout) -> Result<Series, Refusal> {
    let raw = parse_labels(text(record, layout.labels_raw)?)
        .map_err(|e| (RejectReason::BadLabels, e.to_string()))?;
    let host = match &layout.host_is {
        Some(host) => host,
        None => text_or(record, layout.host, &raw, &["Hostname", "hostname"])?,
    };
    let host = HostName::new(host).map_err(|e| (RejectReason::BadHost, e.to_string()))?;
    let gpu = read_gpu(record, layout, &raw, &host)?;
    let labels = read_labels(record, layout, &raw)?;
    let name = text(record, layout.metric)?;
    let measured: Result<_, Refusal> =
        layout.values.iter().map(|value| read_metric(layout.kind, value, name)).collect();
    Ok(Series { host, gpu, labels, measured: measured? })
}

fn read_metric(kind: Kind, value: &ValueColumn, name: &str) -> Result<Measured, Refusal> {
    let known = match kind {
        Kind::Wide => value.metric,
        Kind::Long => metric_by_dcgm(name).or_else(|| metric_by_name(name)),
    };
    let metric = match &value.name {
        Some(name) => name.clone(),
        None => MetricName::new(known.map_or(name, |m| m.name))
            .map_err(|e| (RejectReason::BadMetric, e.to_string()))?,
    };
    Ok(Measured::new(metric, known))
}

fn read_gpu(
    record: &Record,
    layout: &Layout,
    raw: &Pairs<'_>,
    host: &HostName,
) -> Result<Gpu, Refusal> {
    let get = |column, labels: &[&str]| text_or(record, column, raw, labels);
    let named = match &layout.gpu_is {
        Some(gpu) => gpu,
        None => text(record, layout.gpu)?,
    };
    let (uuid, index) = if named.starts_with("GPU-") || named.starts_with("MIG-") {
        (named, "")
    } else if !named.is_empty() {
        ("", named)
    } else {
        (get(layout.uuid, &["UUID", "uuid", "gpu_uuid"])?, get(layout.index, &["gpu", "gpu_id"])?)
    };
    let bad = |detail: String| (RejectReason::BadGpu, detail);
    let mut id = match (uuid, index) {
        ("", "") => return Err(bad("neither uuid nor gpu_id".to_owned())),
        ("", index) => format!("{host}:{index}"),
        (uuid, _) => uuid.to_owned(),
    };
    let instance = get(layout.mig_instance, &[MIG_INSTANCE])?;
    if !instance.is_empty() {
        id = format!("{id}:{instance}");
    }
    let checked = |text: &str| {
        if text.len() > LABEL_VALUE_BYTES_MAX || text.chars().any(char::is_control) {
            let limit = LABEL_VALUE_BYTES_MAX;
            return Err(bad(format!(
                "a description over {limit} bytes or with control characters"
            )));
        }
        Ok(text.to_owned())
    };
    let described = |column, labels: &[&str]| checked(get(column, labels)?);
    Ok(Gpu {
        id: GpuId::new(&id).map_err(|e| bad(e.to_string()))?,
        uuid: uuid.to_owned(),
        index: match index {
            "" => described(layout.index, &["gpu", "gpu_id"])?,
            index => checked(index)?,
        },
        device: described(layout.device, &["device"])?,
        model: described(layout.model, &["modelName", "model_name"])?,
        driver: described(layout.driver, &["DCGM_FI_DRIVER_VERSION", "driver_version"])?,
        mig_profile: described(layout.mig_profile, &[MIG_PROFILE])?,
    })
}

/// Columns first; a label of the same name does not override them.
fn read_labels(record: &Record, layout: &Layout, raw: &Pairs<'_>) -> Result<Labels, Refusal> {
    let mut labels: Vec<(&str, &str)> = Vec::with_capacity(raw.len());
    for (name, column) in &layout.labels {
        labels.push((name, text(record, Some(*column))?));
    }
    labels.retain(|(_, value)| !value.is_empty());
    let columns = labels.len();
    for (name, value) in raw {
        let identity = DROPPED.contains(name) || [MIG_INSTANCE, MIG_PROFILE].contains(name);
        let given = labels.iter().take(columns).any(|(known, _)| known == name);
        if !identity && !given {
            labels.push((name, value));
        }
    }
    Labels::new(labels).map_err(|e| (RejectReason::BadLabels, e.to_string()))
}

struct Entry {
    hash: u64,
    /// The identity columns' bytes, one behind the other, and where each ends.
    key: Box<[u8]>,
    ends: Box<[u32]>,
    known: Result<Series, Refusal>,
    /// A line of the series as it stood in the file, and which entry the line behind it was of:
    /// exporters write their series in the same order every time.
    template: Option<Template>,
    next: Option<u32>,
}

/// Series already parsed, found by the bytes of their identity columns. One cache serves any
/// number of shards, one after the other; another layout empties it.
#[derive(Default)]
pub struct SeriesCache {
    layout: Option<Arc<Layout>>,
    table: HashTable<u32>,
    entries: Vec<Entry>,
    key_bytes: usize,
    epoch: u64,
    /// Counts how often the entries were thrown away: older numbers of entries are void.
    cleared: u64,
}

/// An entry of the cache, as long as it is not emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    at: u32,
    cleared: u64,
}

impl std::fmt::Debug for SeriesCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeriesCache({} series)", self.entries.len())
    }
}

impl SeriesCache {
    /// Makes the cache one of `layout`.
    pub(super) fn attach(&mut self, layout: &Arc<Layout>) {
        if self.layout.as_ref() != Some(layout) {
            self.clear();
            self.layout = Some(Arc::clone(layout));
        }
    }

    /// A number no earlier batch had: slots of other epochs are void.
    pub(super) fn next_epoch(&mut self) -> u64 {
        self.epoch += 1;
        self.epoch
    }

    fn clear(&mut self) {
        self.table.clear();
        self.entries.clear();
        self.key_bytes = 0;
        self.cleared += 1;
    }

    fn entry(&mut self, known: Known) -> Option<&mut Entry> {
        self.entries.get_mut(known.at as usize).filter(|_| known.cleared == self.cleared)
    }

    /// The entry that came behind `before` the last time, with its line.
    pub(super) fn expected(&mut self, before: Known) -> Option<(Known, &Template, &mut Series)> {
        let next = Known { at: self.entry(before)?.next?, cleared: before.cleared };
        let Entry { known: Ok(series), template: Some(template), .. } = self.entry(next)? else {
            return None;
        };
        Some((next, template, series))
    }

    /// Remembers that `now` came behind `before`.
    pub(super) fn follows(&mut self, before: Option<Known>, now: Known) {
        if let Some(before) = before.and_then(|before| self.entry(before)) {
            before.next = Some(now.at);
        }
    }

    /// Remembers the line that `now` was read from, where it has none yet.
    pub(super) fn learn(&mut self, now: Known, template: impl FnOnce() -> Option<Template>) {
        let Some(entry) = self.entry(now) else { return };
        if entry.template.is_none() && entry.known.is_ok() {
            entry.template = template();
            self.key_bytes += entry.template.as_ref().map_or(0, Template::bytes);
        }
    }

    /// The series of a record that has all of the layout's columns.
    pub(super) fn find(
        &mut self,
        record: &Record,
        layout: &Layout,
    ) -> (Known, &mut Result<Series, Refusal>) {
        let hash = layout
            .identity
            .iter()
            .fold(0, |hash, run| xxh3_64_with_seed(slice(record, run.start, run.end), hash));
        let entries = &self.entries;
        let found = self.table.find(hash, |&at| {
            entries.get(at as usize).is_some_and(|e| e.hash == hash && matches(e, record, layout))
        });
        let at = match found {
            Some(at) => *at as usize,
            None => self.insert(hash, record, layout),
        };
        let known = Known { at: at as u32, cleared: self.cleared }; // SERIES_MAX fits a u32
        (known, &mut self.entries[at].known) // in range: found among or just added to the entries
    }

    fn insert(&mut self, hash: u64, record: &Record, layout: &Layout) -> usize {
        if self.entries.len() >= SERIES_MAX || self.key_bytes >= KEY_BYTES_MAX {
            self.clear();
        }
        let mut key = Vec::new();
        let mut ends = Vec::new();
        for column in layout.identity.iter().cloned().flatten() {
            key.extend_from_slice(record.get(column).unwrap_or_default());
            ends.push(key.len() as u32); // a record's length is bounded far below 4 GiB
        }
        self.key_bytes += key.len();
        let at = self.entries.len();
        self.entries.push(Entry {
            hash,
            key: key.into(),
            ends: ends.into(),
            known: read_series(record, layout),
            template: None,
            next: None,
        });
        let entries = &self.entries;
        // SERIES_MAX fits a u32.
        self.table
            .insert_unique(hash, at as u32, |&at| entries.get(at as usize).map_or(0, |e| e.hash));
        at
    }
}

/// The bytes of the columns `first..end`, which lie behind one another.
fn slice(record: &Record, first: usize, end: usize) -> &[u8] {
    let range = record.range(first).zip(record.range(end.saturating_sub(1)));
    range.and_then(|(a, b)| record.as_slice().get(a.start..b.end)).unwrap_or_default()
}

fn matches(entry: &Entry, record: &Record, layout: &Layout) -> bool {
    let mut key = &*entry.key;
    for run in &layout.identity {
        match key.strip_prefix(slice(record, run.start, run.end)) {
            Some(rest) => key = rest,
            None => return false,
        }
    }
    let mut end = 0;
    let columns = layout.identity.iter().cloned().flatten();
    key.is_empty()
        && columns.zip(&*entry.ends).all(|(column, expected)| {
            end += record.range(column).map_or(0, |r| r.len());
            end == *expected as usize
        })
}
