//! A message as it comes out of etcd: checked, split by host, its newest values picked. Pure.

use std::sync::Arc;

use nexus_common::{
    block::{Block, Section},
    model::{ClusterId, Gpu, HostName, HostSamples, Labels, Lane, MetricName},
    queue::Received,
};

/// A message in hand.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Its lane.
    pub lane: Lane,
    /// Its place there.
    pub seq: u64,
    /// Samples that its key promises.
    pub samples: u64,
    /// Its size.
    pub bytes: u64,
    /// What is in it, or why that cannot be read.
    pub content: Result<Content, String>,
}

/// What is in a message.
#[derive(Debug, Clone)]
pub struct Content {
    /// The cluster of its hosts.
    pub cluster: ClusterId,
    /// Sections by host.
    pub hosts: Vec<(HostName, Arc<[Section]>)>,
    /// The newest of them.
    pub news: Vec<HostNews>,
}

/// Samples in one section up to which they stay decoded for who follows along: most messages of a
/// replay in time, and a few hundred KiB at most.
pub(super) const KEPT_SAMPLES_MAX: u64 = 4096;

/// GPUs of a host and the newest value of each of its series.
#[derive(Debug, Clone)]
pub struct HostNews {
    /// The host.
    pub host: HostName,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// Newest values.
    pub series: Vec<SeriesNews>,
    /// All of them, if they are few and somebody may want them soon.
    pub samples: Option<Arc<HostSamples>>,
}

/// The newest value of one series.
#[derive(Debug, Clone)]
pub struct SeriesNews {
    /// Position among the GPUs; none for the host itself.
    pub gpu: Option<u32>,
    /// What is measured.
    pub metric: MetricName,
    /// Anything else that tells the series apart.
    pub labels: Labels,
    /// Milliseconds since the epoch.
    pub at: i64,
    /// The value.
    pub value: f64,
}

impl Arrived {
    /// Checks and splits a message. All of it is decoded, once.
    pub fn read(message: Received) -> Self {
        let Received { lane, seq, samples, bytes } = message;
        let size = bytes.len() as u64;
        let content = Block::decode(bytes).map(Content::of).map_err(|e| e.to_string());
        Self { lane, seq, samples, bytes: size, content }
    }
}

impl Content {
    fn of(block: Block) -> Self {
        let news = block.sections.iter().filter_map(HostNews::of_message).collect();
        let mut hosts: Vec<(HostName, Vec<Section>)> = Vec::new();
        for section in block.sections {
            match hosts.iter_mut().find(|(host, _)| host == section.host()) {
                Some((_, sections)) => sections.push(section),
                None => hosts.push((section.host().clone(), vec![section])),
            }
        }
        let hosts = hosts.into_iter().map(|(host, sections)| (host, sections.into())).collect();
        Self { cluster: block.cluster, hosts, news }
    }
}

impl HostNews {
    /// The news of a section; none if it was written by something at fault.
    pub fn of_section(section: &Section) -> Option<Self> {
        Self::decoded(section).map(|samples| Self::of(&samples))
    }

    /// Likewise, with the samples, if they are few.
    fn of_message(section: &Section) -> Option<Self> {
        let samples = Self::decoded(section)?;
        let news = Self::of(&samples);
        let keep = section.samples() <= KEPT_SAMPLES_MAX;
        Some(Self { samples: keep.then(|| Arc::new(samples)), ..news })
    }

    fn decoded(section: &Section) -> Option<HostSamples> {
        match section.decode() {
            Ok(samples) => Some(samples),
            Err(error) => {
                tracing::warn!(host = %section.host(), %error, "a section cannot be decoded");
                None
            }
        }
    }

    fn of(samples: &HostSamples) -> Self {
        let newest = samples.series.iter().filter_map(|s| {
            let timed = s.timestamps.iter().zip(&s.values);
            // Of equal instants the last one: `max_by_key` keeps the last maximum.
            let (at, value) = timed.max_by_key(|(at, _)| **at)?;
            let (at, value) = (*at, *value);
            let (metric, labels) = (s.metric.clone(), s.labels.clone());
            Some(SeriesNews { gpu: s.gpu, metric, labels, at, value })
        });
        let (host, gpus) = (samples.host.clone(), samples.gpus.clone());
        Self { host, gpus, series: newest.collect(), samples: None }
    }
}
