//! What one read hands on: samples by host and series, and an account of every row.

use std::{collections::BTreeMap, fmt};

use hashbrown::HashMap;
use nexus_common::{
    limits::{MESSAGE_HOSTS_MAX, MESSAGE_SAMPLES_MAX, SECTION_GPUS_MAX, SECTION_SERIES_MAX},
    model::{Gpu, GpuId, HostName, HostSamples, Labels, MetricName, SeriesSamples},
};
use serde::{Deserialize, Serialize};

use super::series::{Series, Slot};

/// Most rejected rows a batch describes: enough to see what is wrong, few enough to log.
const REJECTS_DESCRIBED_MAX: usize = 8;

/// Why a row was refused. The words are stable: they are counted in control values and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Another number of columns than the header.
    Columns,
    /// The header again, as where two files were joined.
    Header,
    /// Text that is not UTF-8.
    Utf8,
    /// Longer than any real row.
    TooLong,
    /// Not a time between 1970 and 2200.
    BadTimestamp,
    /// No metric name, or one outside the alphabet.
    BadMetric,
    /// No host name, or one outside the alphabet.
    BadHost,
    /// Neither UUID nor index, or ones outside the alphabet.
    BadGpu,
    /// A value that is not a number.
    BadValue,
    /// An infinite value.
    NotFinite,
    /// Labels that cannot be read, or too many of them.
    BadLabels,
}

impl RejectReason {
    /// The word for it in logs, metrics and control values.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Columns => "columns",
            Self::Header => "header",
            Self::Utf8 => "utf8",
            Self::TooLong => "too_long",
            Self::BadTimestamp => "bad_timestamp",
            Self::BadMetric => "bad_metric",
            Self::BadHost => "bad_host",
            Self::BadGpu => "bad_gpu",
            Self::BadValue => "bad_value",
            Self::NotFinite => "not_finite",
            Self::BadLabels => "bad_labels",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rejected row, described for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Byte of the file at which the row begins (blank lines before it count as part of it).
    pub offset: u64,
    /// Which row since the reader was opened, from 1.
    pub row: u64,
    /// Why.
    pub reason: RejectReason,
    /// What exactly was wrong.
    pub detail: String,
}

/// Where a batch ends at the latest; also before a host has more GPUs or series than a message
/// can hold of one. It always takes at least one row if there is one that is
/// due, so that a row wider than `samples_max` still gets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most rows, accepted and rejected.
    pub rows_max: u64,
    /// Most samples.
    pub samples_max: u64,
    /// Most hosts.
    pub hosts_max: usize,
    /// Source time, in milliseconds since the epoch: the first row after it ends the batch.
    pub until: Option<i64>,
}

impl Default for BatchLimits {
    /// What fits one message; rows are bounded so that a file of bad rows still makes progress.
    fn default() -> Self {
        Self {
            rows_max: 2 * MESSAGE_SAMPLES_MAX as u64,
            samples_max: MESSAGE_SAMPLES_MAX as u64,
            hosts_max: MESSAGE_HOSTS_MAX,
            until: None,
        }
    }
}

/// The rows of one read. Every record is in `rows_accepted` or in `rejected`, never in both.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The samples.
    pub hosts: Vec<HostSamples>,
    /// How many samples there are in `hosts`.
    pub samples: u64,
    /// Rows taken, those without a measurement included.
    pub rows_accepted: u64,
    /// Of these, rows in which nothing was measured: empty, NaN or one of DCGM's blanks.
    pub rows_absent: u64,
    /// Rows refused.
    pub rejected: BTreeMap<RejectReason, u64>,
    /// The first few of them, for the log.
    pub rejects: Vec<Reject>,
    /// Byte of the file just behind the last row taken: open there to go on.
    pub end_offset: u64,
    /// Whether the shard has no row left.
    pub done: bool,
}

impl Batch {
    /// Rows refused, for any reason.
    pub fn rows_rejected(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Rows read: accepted and rejected.
    pub fn rows_offered(&self) -> u64 {
        self.rows_accepted + self.rows_rejected()
    }

    pub(super) fn reject(&mut self, reject: impl FnOnce() -> Reject, reason: RejectReason) {
        *self.rejected.entry(reason).or_default() += 1;
        if self.rejects.len() < REJECTS_DESCRIBED_MAX {
            self.rejects.push(reject());
        }
    }
}

/// A batch in the making. `epoch` tells its slots from those of earlier batches.
pub(super) struct Fill {
    pub(super) batch: Batch,
    epoch: u64,
    hosts: HashMap<HostName, u32>,
    gpus: HashMap<(u32, GpuId), u32>,
    series: HashMap<(u32, u32, MetricName, Labels), u32>,
}

impl Fill {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            batch: Batch::default(),
            epoch,
            hosts: HashMap::new(),
            gpus: HashMap::new(),
            series: HashMap::new(),
        }
    }

    /// Whether a row with `samples` of `series` still fits.
    pub(super) fn has_room(&self, series: &Series, samples: u64, limits: &BatchLimits) -> bool {
        if samples == 0 || self.batch.hosts.is_empty() {
            return true;
        }
        if self.batch.samples + samples > limits.samples_max {
            return false;
        }
        let new = series.measured.iter().filter(|m| m.slot.epoch != self.epoch).count();
        if new == 0 {
            return true;
        }
        let known = self.hosts.get(&series.host).and_then(|h| self.batch.hosts.get(*h as usize));
        match known {
            None => self.batch.hosts.len() < limits.hosts_max,
            // What the queue's format can hold of one host; the GPU may be known, but a batch
            // this large loses nothing by ending.
            Some(host) => {
                host.series.len() + new <= SECTION_SERIES_MAX && host.gpus.len() < SECTION_GPUS_MAX
            }
        }
    }

    /// Takes the row's values, one a metric of `series`; returns how many were there.
    pub(super) fn push(&mut self, series: &mut Series, at: i64, values: &[Option<f64>]) {
        for (nth, value) in values.iter().enumerate() {
            let Some(value) = *value else { continue };
            let slot = match series.measured.get(nth) {
                Some(measured) if measured.slot.epoch == self.epoch => measured.slot,
                Some(_) => self.place(series, nth),
                None => continue, // a value column always has its metric
            };
            // Slots of this epoch were handed out by `place` and nothing is ever removed.
            let column = &mut self.batch.hosts[slot.host as usize].series[slot.series as usize];
            column.timestamps.push(at);
            column.values.push(value);
            self.batch.samples += 1;
        }
    }

    /// Finds or makes the column of the `nth` metric. Two cached series may share one: labels
    /// that only tell scrapes apart are dropped.
    fn place(&mut self, series: &mut Series, nth: usize) -> Slot {
        let hosts = &mut self.batch.hosts;
        let host = *self.hosts.entry_ref(&series.host).or_insert_with(|| {
            let host = series.host.clone();
            hosts.push(HostSamples { host, gpus: Vec::new(), series: Vec::new() });
            hosts.len() as u32 - 1
        });
        let section = &mut hosts[host as usize]; // made above at the latest
        let gpus = &mut section.gpus;
        let gpu = *self.gpus.entry((host, series.gpu.id.clone())).or_insert_with(|| {
            gpus.push(series.gpu.clone());
            gpus.len() as u32 - 1
        });
        if let Some(known) = gpus.get_mut(gpu as usize) {
            complete(known, &series.gpu);
        }
        let metric = &mut series.measured[nth]; // the caller looked it up
        let key = (host, gpu, metric.metric.clone(), series.labels.clone());
        let index = *self.series.entry(key).or_insert_with_key(|(_, _, metric, labels)| {
            section.series.push(SeriesSamples {
                gpu: Some(gpu),
                metric: metric.clone(),
                labels: labels.clone(),
                timestamps: Vec::new(),
                values: Vec::new(),
            });
            section.series.len() as u32 - 1
        });
        metric.slot = Slot { epoch: self.epoch, host, series: index };
        metric.slot
    }
}

/// One GPU is described once a host: a later row may add what an earlier one left empty.
fn complete(known: &mut Gpu, seen: &Gpu) {
    let pairs = [
        (&mut known.uuid, &seen.uuid),
        (&mut known.index, &seen.index),
        (&mut known.device, &seen.device),
        (&mut known.model, &seen.model),
        (&mut known.driver, &seen.driver),
        (&mut known.mig_profile, &seen.mig_profile),
    ];
    for (known, seen) in pairs {
        if known.is_empty() && !seen.is_empty() {
            known.clone_from(seen);
        }
    }
}
