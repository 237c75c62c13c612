//! One host's samples as a string of bytes that stands for itself.

use std::fmt;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::bytes::{Reader, put_bytes, put_signed, put_varint};
use super::dictionary::{self, Dictionary, IdentityRef};
use super::{BlockError, EncodeError, column, times};
use crate::limits::{
    BLOCK_BYTES_MAX, ID_BYTES_MAX, SECTION_GPUS_MAX, SECTION_SAMPLES_MAX, SECTION_SERIES_MAX,
};
use crate::model::{Gpu, HostName, HostSamples, MetricName, SeriesSamples, Timestamp};

/// Version of the bytes of a section, apart from the block's: sections outlive blocks.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// Some samples of one host, encoded. Cheap to clone: the bytes are shared, be it with the block
/// they came in.
#[derive(Clone, PartialEq)]
pub struct Section {
    bytes: Bytes,
    host: HostName,
    start: Timestamp,
    end: Timestamp,
    samples: u64,
    dictionary: Bytes,
    /// Where the columns begin.
    columns: usize,
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, host, start, end, samples, .. } = self;
        write!(f, "Section({host}, {start} to {end}, {samples} samples, {} bytes)", bytes.len())
    }
}

impl Section {
    /// Encodes `samples`. GPUs and series are sorted, so that equal sets of them give equal
    /// dictionaries; samples of a series keep their order. A series without a sample is left out.
    ///
    /// # Errors
    /// When there is no sample, too much of something, or what is there contradicts itself.
    pub fn encode(samples: &HostSamples) -> Result<Section, EncodeError> {
        let (start, end) = check(samples)?;
        let sorted = Sorted::new(samples);
        let dictionary = dictionary::encode(&sorted.gpus, &sorted.identities())?;
        let mut out = vec![0; CHECKSUM_BYTES];
        out.push(VERSION);
        put_bytes(&mut out, samples.host.as_str().as_bytes());
        put_signed(&mut out, start);
        put_varint(&mut out, start.abs_diff(end));
        put_varint(&mut out, samples.samples() as u64);
        put_varint(&mut out, dictionary.len() as u64);
        let dictionary_at = out.len();
        out.extend_from_slice(&dictionary);
        let columns = out.len();
        times::encode(sorted.series.iter().map(|(_, s)| &*s.timestamps), start, &mut out)?;
        for group in sorted.series.chunk_by(|a, b| a.1.metric == b.1.metric) {
            let values: Vec<&[f64]> = group.iter().map(|(_, s)| &*s.values).collect();
            let mut column = Vec::new();
            column::encode(&values, &mut column)?;
            put_bytes(&mut out, &column);
        }
        let checksum = crc32c::crc32c(&out[CHECKSUM_BYTES..]);
        out[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        let bytes = Bytes::from(out);
        Ok(Section {
            host: samples.host.clone(),
            start: Timestamp::saturating_from_millis(start),
            end: Timestamp::saturating_from_millis(end),
            samples: samples.samples() as u64,
            dictionary: bytes.slice(dictionary_at..columns),
            columns,
            bytes,
        })
    }

    /// Reads the beginning of a section, having checked that it is what was written.
    pub(super) fn parse(bytes: Bytes) -> Result<Section, BlockError> {
        verify(&bytes)?;
        let mut reader = Reader::new(&bytes);
        reader.word("checksum of a section")?;
        match reader.byte("version of a section")? {
            VERSION => {}
            other => return Err(BlockError::Version(other)),
        }
        let host = HostName::new(reader.text("host name", ID_BYTES_MAX)?)?;
        let timestamp = |millis: Option<i64>| {
            let timestamp = millis.and_then(|millis| Timestamp::from_millis(millis).ok());
            timestamp.ok_or(BlockError::Corrupt("a section's span is out of range"))
        };
        let start = timestamp(Some(reader.signed("start of a section")?))?;
        let span = reader.varint("end of a section")?;
        let end = timestamp(start.as_millis().checked_add_unsigned(span))?;
        let samples = reader.count("samples of a section", SECTION_SAMPLES_MAX)? as u64;
        if samples == 0 {
            return Err(BlockError::Corrupt("a section without a sample"));
        }
        let n = reader.count("dictionary", BLOCK_BYTES_MAX)?;
        let dictionary = bytes.slice_ref(reader.take(n, "dictionary")?);
        let columns = bytes.len() - reader.rest().len();
        Ok(Section { host, start, end, samples, dictionary, columns, bytes })
    }

    /// The host.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Earliest timestamp.
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// Latest timestamp.
    pub fn end(&self) -> Timestamp {
        self.end
    }

    /// How many samples there are.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// How many bytes there are, without those a block spends on the section.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Hash of GPUs and series: sections with equal ones have equal dictionaries, so that an
    /// inventory need not be read again.
    pub fn dictionary_hash(&self) -> u64 {
        xxh3_64(&self.dictionary)
    }

    /// GPUs and series, without decoding any values.
    ///
    /// # Errors
    /// When the section was written by something at fault.
    pub fn dictionary(&self) -> Result<Dictionary, BlockError> {
        dictionary::decode(&self.dictionary)
    }

    /// All samples.
    ///
    /// # Errors
    /// When the section was written by something at fault.
    pub fn decode(&self) -> Result<HostSamples, BlockError> {
        self.decode_matching(|_, _| true)
    }

    /// The samples of the series that `keep` wants, by GPU (none for a series of the host) and
    /// metric. Only their columns are decoded; all GPUs are listed.
    ///
    /// # Errors
    /// When the section was written by something at fault.
    pub fn decode_matching(
        &self,
        keep: impl Fn(Option<&Gpu>, &MetricName) -> bool,
    ) -> Result<HostSamples, BlockError> {
        let Dictionary { gpus, series: identities } = self.dictionary()?;
        let (start, end) = (self.start.as_millis(), self.end.as_millis());
        let mut reader = Reader::new(self.bytes.get(self.columns..).unwrap_or_default());
        let mut times = times::Times::read(&mut reader, identities.len(), self.samples)?;
        let counts: Vec<usize> = times.counts().collect();
        let mut series = Vec::new();
        let mut first = 0;
        for group in identities.chunk_by(|a, b| a.metric == b.metric) {
            let bytes = reader.bytes("column", BLOCK_BYTES_MAX)?;
            let position = first;
            first += group.len();
            let wanted =
                group.iter().map(|s| keep(s.gpu.and_then(|gpu| gpus.get(gpu as usize)), &s.metric));
            let wanted: Vec<bool> = wanted.collect();
            if !wanted.contains(&true) {
                continue;
            }
            let lengths = counts.get(position..first).unwrap_or_default();
            let column = column::Column::read(bytes, group.len(), lengths.iter().sum())?;
            let columns = column.values(lengths.iter().copied().zip(wanted));
            for ((position, identity), values) in (position..).zip(group).zip(columns) {
                let Some(values) = values else { continue };
                series.push(SeriesSamples {
                    gpu: identity.gpu,
                    metric: identity.metric.clone(),
                    labels: identity.labels.clone(),
                    timestamps: times.of(position, start, end)?,
                    values,
                });
            }
        }
        reader.finish()?;
        Ok(HostSamples { host: self.host.clone(), gpus, series })
    }

    /// Whether the bytes are still those that were written.
    ///
    /// # Errors
    /// When their checksum says otherwise.
    pub fn verify(&self) -> Result<(), BlockError> {
        verify(&self.bytes)
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn verify(bytes: &[u8]) -> Result<(), BlockError> {
    let mut reader = Reader::new(bytes);
    let found = reader.word("checksum of a section")?;
    let computed = crc32c::crc32c(reader.rest());
    if found != computed {
        return Err(BlockError::Checksum { what: "section", found, computed });
    }
    Ok(())
}

/// Refuses what cannot be written; gives the earliest and the latest timestamp.
fn check(samples: &HostSamples) -> Result<(i64, i64), EncodeError> {
    let bound = |what, value, max| {
        if value > max { Err(EncodeError::TooMany { what, value, max }) } else { Ok(()) }
    };
    bound("GPUs of a section", samples.gpus.len(), SECTION_GPUS_MAX)?;
    bound("series of a section", samples.series.len(), SECTION_SERIES_MAX)?;
    bound("samples of a section", samples.samples(), SECTION_SAMPLES_MAX)?;
    let mut span: Option<(i64, i64)> = None;
    for series in &samples.series {
        let (timestamps, values) = (series.timestamps.len(), series.values.len());
        if timestamps != values {
            let metric = series.metric.clone();
            return Err(EncodeError::Lengths { metric, timestamps, values });
        }
        if let Some(index) = series.gpu.filter(|&gpu| gpu as usize >= samples.gpus.len()) {
            let (metric, count) = (series.metric.clone(), samples.gpus.len());
            return Err(EncodeError::Gpu { metric, index, count });
        }
        for &at in &series.timestamps {
            let (start, end) = span.unwrap_or((at, at));
            span = Some((start.min(at), end.max(at)));
        }
    }
    let (start, end) = span.ok_or(EncodeError::Empty)?;
    for at in [start, end] {
        Timestamp::from_millis(at).map_err(|_| EncodeError::Timestamp(at))?;
    }
    Ok((start, end))
}

/// GPUs and series in the order in which they are written.
struct Sorted<'a> {
    gpus: Vec<&'a Gpu>,
    /// With the GPU's position among the sorted ones.
    series: Vec<(Option<u32>, &'a SeriesSamples)>,
}

impl<'a> Sorted<'a> {
    fn new(samples: &'a HostSamples) -> Self {
        let mut order: Vec<usize> = (0..samples.gpus.len()).collect();
        // Shorter indices first: that sorts numbers, and needs them not to be numbers.
        order.sort_by_key(|&i| {
            let gpu = &samples.gpus[i];
            (gpu.index.len(), &gpu.index, &gpu.id)
        });
        let mut positions = vec![0; order.len()];
        (0..).zip(&order).for_each(|(position, &i)| positions[i] = position);
        let position = |gpu: u32| positions.get(gpu as usize).copied();
        let written = samples.series.iter().filter(|s| !s.timestamps.is_empty());
        let mut series: Vec<_> = written.map(|s| (s.gpu.and_then(position), s)).collect();
        series.sort_by(|(gpu_a, a), (gpu_b, b)| {
            (&a.metric, gpu_a, &a.labels).cmp(&(&b.metric, gpu_b, &b.labels))
        });
        Self { gpus: order.iter().map(|&i| &samples.gpus[i]).collect(), series }
    }

    fn identities(&self) -> Vec<IdentityRef<'a>> {
        self.series.iter().map(|(gpu, s)| (*gpu, &s.metric, &s.labels)).collect()
    }
}
