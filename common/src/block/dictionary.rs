//! What a section's columns stand for: its GPUs and the identities of its series.
//!
//! ```text
//! byte: 0 as it is | 1 zstd (behind it: length before compression)
//! count of GPUs; if there are any, each of `uuid id index device model driver mig_profile` as
//!     0 all texts | 1 one text for all | 2 all as 16 bytes (GPU-xxxxxxxx-xxxx-...)
//!     3 the UUIDs, each with a text behind it | 4 a text with a number behind it that counts on
//!     from GPU to GPU (behind the text: the first one)
//! count of label texts, these; count of label sets, each: count of labels, each: name, value
//! count of metrics; each: 0 and its name | its position in WIRE_METRICS + 1; then
//!     0 one series for each GPU | 1 one for the host | count + 1, each: GPU + 1 (0 for the
//!     host), label set + 1 (0 for none)
//! ```
//! Texts are bytes behind their length. All numbers are varints.

use std::collections::HashMap;

use super::bytes::{Reader, put_bytes, put_varint};
use super::gpus::{TextBudget, decode_gpus, encode_gpus};
use super::{BlockError, EncodeError};
use crate::limits::{
    DICTIONARY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, SECTION_SERIES_MAX,
};
use crate::model::{Gpu, Labels, MetricName};

/// What tells one series of a host from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesIdentity {
    /// Position in [`Dictionary::gpus`]; none for a series of the host itself.
    pub gpu: Option<u32>,
    /// What is measured.
    pub metric: MetricName,
    /// Anything else that tells the series apart.
    pub labels: Labels,
}

/// GPUs and series of a section, sorted: GPUs by index, series by metric, GPU and labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dictionary {
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// The series, in the order in which [`super::Section::decode`] gives them.
    pub series: Vec<SeriesIdentity>,
}

/// Metrics that take a byte instead of their name. Frozen: append only, for written blocks
/// refer to them by position.
const WIRE_METRICS: &[&str] = &[
    "gpu_utilization",
    "memory_utilization",
    "memory_used_mb",
    "memory_free_mb",
    "temperature",
    "power_draw",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "encoder_utilization",
    "decoder_utilization",
    "memory_temperature",
    "total_energy_mj",
    "pcie_replay_count",
    "xid_error",
];

const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// Below, a dictionary is mostly UUIDs and single words: nothing that zstd could shorten.
const ZSTD_FROM: usize = 384;
/// zstd's own default: a dictionary is small, higher levels gain nothing.
const ZSTD_LEVEL: i32 = 3;

/// What may stand as `gpu`, `metric` and `labels` of a series.
pub(super) type IdentityRef<'a> = (Option<u32>, &'a MetricName, &'a Labels);

/// Writes GPUs and the sorted identities of series.
pub(super) fn encode(gpus: &[&Gpu], series: &[IdentityRef<'_>]) -> Result<Vec<u8>, EncodeError> {
    let mut raw = Vec::with_capacity(256);
    let mut budget = TextBudget::default();
    encode_gpus(gpus, &mut budget, &mut raw)?;
    let sets = encode_labels(series, &mut budget, &mut raw);
    let metrics: Vec<_> = series.chunk_by(|a, b| a.1 == b.1).collect();
    put_varint(&mut raw, metrics.len() as u64);
    for group in metrics {
        encode_metric(group, gpus.len(), &sets, &mut raw);
    }
    budget.check_written()?;
    if raw.len() > DICTIONARY_BYTES_MAX {
        let what = "bytes of a dictionary";
        return Err(EncodeError::TooMany { what, value: raw.len(), max: DICTIONARY_BYTES_MAX });
    }
    compress(&raw)
}

fn compress(raw: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::with_capacity(raw.len() + 1);
    if raw.len() >= ZSTD_FROM {
        let packed = zstd::bulk::compress(raw, ZSTD_LEVEL)
            .map_err(|error| EncodeError::Codec(error.to_string()))?;
        if packed.len() + 4 < raw.len() {
            out.push(ZSTD);
            put_varint(&mut out, raw.len() as u64);
            out.extend_from_slice(&packed);
            return Ok(out);
        }
    }
    out.push(PLAIN);
    out.extend_from_slice(raw);
    Ok(out)
}

/// Appends the label sets and says where each stands, counted from 1.
fn encode_labels<'a>(
    series: &[IdentityRef<'a>],
    budget: &mut TextBudget,
    out: &mut Vec<u8>,
) -> HashMap<&'a Labels, u64> {
    let mut texts: Vec<&str> = Vec::new();
    let mut text_positions: HashMap<&str, u64> = HashMap::new();
    let mut sets: HashMap<&Labels, u64> = HashMap::new();
    let mut raw_sets = Vec::new();
    for (_, _, labels) in series.iter().filter(|(_, _, labels)| !labels.is_empty()) {
        if sets.contains_key(labels) {
            continue;
        }
        sets.insert(labels, sets.len() as u64 + 1);
        put_varint(&mut raw_sets, labels.iter().len() as u64);
        for text in labels.iter().flat_map(|(name, value)| [name, value]) {
            budget.add(text);
            let position = *text_positions.entry(text).or_insert_with(|| {
                texts.push(text);
                texts.len() as u64 - 1
            });
            put_varint(&mut raw_sets, position);
        }
    }
    put_varint(out, texts.len() as u64);
    texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
    put_varint(out, sets.len() as u64);
    out.append(&mut raw_sets);
    sets
}

fn encode_metric(
    group: &[IdentityRef<'_>],
    gpus: usize,
    sets: &HashMap<&Labels, u64>,
    out: &mut Vec<u8>,
) {
    let Some((_, metric, _)) = group.first() else { return };
    match WIRE_METRICS.iter().position(|name| *name == metric.as_str()) {
        Some(position) => put_varint(out, position as u64 + 1),
        None => {
            out.push(0);
            put_bytes(out, metric.as_str().as_bytes());
        }
    }
    let bare = |gpu: Option<u32>, entry: &IdentityRef<'_>| entry.0 == gpu && entry.2.is_empty();
    if gpus > 0 && group.len() == gpus && (0..).zip(group).all(|(g, entry)| bare(Some(g), entry)) {
        return out.push(0);
    }
    if let [entry] = group
        && bare(None, entry)
    {
        return out.push(1);
    }
    put_varint(out, group.len() as u64 + 1);
    for (gpu, _, labels) in group {
        put_varint(out, gpu.map_or(0, |gpu| u64::from(gpu) + 1));
        put_varint(out, sets.get(labels).copied().unwrap_or(0));
    }
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Dictionary, BlockError> {
    let mut reader = Reader::new(bytes);
    match reader.byte("dictionary")? {
        PLAIN => decode_raw(reader),
        ZSTD => {
            let n = reader.count("dictionary", DICTIONARY_BYTES_MAX)?;
            let raw = zstd::bulk::decompress(reader.rest(), n)
                .map_err(|error| BlockError::Codec(error.to_string()))?;
            if raw.len() != n {
                return Err(BlockError::Corrupt("a dictionary is not as long as it should be"));
            }
            decode_raw(Reader::new(&raw))
        }
        _ => Err(BlockError::Corrupt("a dictionary of unknown kind")),
    }
}

fn decode_raw(mut reader: Reader<'_>) -> Result<Dictionary, BlockError> {
    let mut budget = TextBudget::default();
    let gpus = decode_gpus(&mut reader, &mut budget)?;
    let sets = decode_labels(&mut reader, &mut budget)?;
    let metrics = reader.count_of("metrics", SECTION_SERIES_MAX)?;
    let mut series = Vec::new();
    for _ in 0..metrics {
        decode_metric(&mut reader, gpus.len(), &sets, &mut series)?;
        if series.len() > SECTION_SERIES_MAX {
            return Err(BlockError::TooLarge {
                what: "series of a section",
                value: series.len() as u64,
                max: SECTION_SERIES_MAX as u64,
            });
        }
    }
    reader.finish()?;
    Ok(Dictionary { gpus, series })
}

fn decode_labels(
    reader: &mut Reader<'_>,
    budget: &mut TextBudget,
) -> Result<Vec<Labels>, BlockError> {
    let n = reader.count_of("label texts", DICTIONARY_BYTES_MAX)?;
    let mut texts = Vec::with_capacity(n);
    for _ in 0..n {
        texts.push(reader.text("label text", NAME_BYTES_MAX.max(LABEL_VALUE_BYTES_MAX))?);
    }
    let n = reader.count_of("label sets", SECTION_SERIES_MAX)?;
    let mut sets = Vec::with_capacity(n);
    for _ in 0..n {
        let mut pairs = Vec::new();
        for _ in 0..reader.count("labels", LABELS_MAX)? {
            let mut text = || -> Result<&str, BlockError> {
                let position = reader.count("labels", texts.len())?;
                let text = texts.get(position).copied();
                let text = text.ok_or(BlockError::Corrupt("a label refers to no text"))?;
                budget.add(text);
                Ok(text)
            };
            pairs.push((text()?, text()?));
        }
        budget.check_read()?;
        sets.push(Labels::new(pairs)?);
    }
    Ok(sets)
}

fn decode_metric(
    reader: &mut Reader<'_>,
    gpus: usize,
    sets: &[Labels],
    series: &mut Vec<SeriesIdentity>,
) -> Result<(), BlockError> {
    let name = match reader.count("metric", WIRE_METRICS.len())?.checked_sub(1) {
        None => reader.text("metric name", NAME_BYTES_MAX)?,
        Some(position) => WIRE_METRICS.get(position).copied().unwrap_or_default(),
    };
    let metric = MetricName::new(name)?;
    let mut push = |gpu: Option<u32>, labels: Labels| {
        series.push(SeriesIdentity { gpu, metric: metric.clone(), labels });
    };
    match reader.count("series", SECTION_SERIES_MAX + 1)? {
        0 => (0..gpus as u32).for_each(|gpu| push(Some(gpu), Labels::default())),
        1 => push(None, Labels::default()),
        n => {
            for _ in 0..n - 1 {
                let gpu = reader.count("GPU of a series", gpus)?;
                let set = reader.count("labels of a series", sets.len())?;
                let labels = set.checked_sub(1).and_then(|set| sets.get(set)).cloned();
                push(gpu.checked_sub(1).map(|gpu| gpu as u32), labels.unwrap_or_default());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::METRICS;

    #[test]
    fn known_metrics_keep_their_position_for_ever() {
        let known: Vec<_> = METRICS.iter().map(|m| m.name).take(WIRE_METRICS.len()).collect();
        assert_eq!(known, WIRE_METRICS, "the registry may differ, this list may only grow");
    }

    #[test]
    fn a_small_dictionary_that_unfolds_to_a_large_one_is_refused() {
        let label = |i: usize| format!("{i:0256}");
        let mut raw = vec![PLAIN, 0];
        put_varint(&mut raw, LABELS_MAX as u64);
        (0..LABELS_MAX).for_each(|i| put_bytes(&mut raw, label(i).as_bytes()));
        let sets = 2000;
        put_varint(&mut raw, sets);
        for _ in 0..sets {
            raw.push(LABELS_MAX as u8);
            (0..LABELS_MAX as u8).for_each(|i| raw.extend([i, 0]));
        }
        raw.push(0);
        let refused = decode(&raw);
        assert!(matches!(refused, Err(BlockError::TooLarge { .. })), "{refused:?}");
    }

    #[test]
    fn a_decompressor_is_not_given_more_room_than_was_declared() {
        let bomb = zstd::bulk::compress(&vec![0; 2 * DICTIONARY_BYTES_MAX], 3).unwrap();
        let check = |declared: usize| {
            let mut bytes = vec![ZSTD];
            put_varint(&mut bytes, declared as u64);
            bytes.extend_from_slice(&bomb);
            decode(&bytes)
        };
        assert!(matches!(check(100), Err(BlockError::Codec(_))));
        let declared = 2 * DICTIONARY_BYTES_MAX;
        assert!(matches!(check(declared), Err(BlockError::TooLarge { .. })));
    }
}
