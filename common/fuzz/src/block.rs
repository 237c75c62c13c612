//! The block decoder on bytes of strangers. Whatever they are, it answers; what it takes can be
//! written again and is the same then.

use bytes::Bytes;
use nexus_common::{
    block::{Block, BlockError, EncodeError, Section, merge},
    model::HostSamples,
};

/// Bytes that begin as a block are one; others are a section without its checksum. Checksums are
/// put right in both: nothing behind them would ever be reached otherwise.
pub(crate) fn run(bytes: &[u8]) {
    let bytes = if bytes.starts_with(b"NXB") { bytes.to_vec() } else { around(bytes) };
    if let Ok(block) = decode(bytes) {
        let written = block.encode();
        // Numbers may have been longer than they need to be, never shorter.
        assert_eq!(written.map(Block::decode), Ok(Ok(block.clone())));
        block.sections.iter().for_each(check);
    }
}

/// A block with one section, whose content is `bytes`.
fn around(bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![1, b'c', 1];
    let mut length = bytes.len() + 4;
    while length >= 0x80 {
        header.push(length as u8 | 0x80);
        length >>= 7;
    }
    header.push(length as u8);
    let mut out = b"NXB\x01".to_vec();
    out.extend(crc32c::crc32c(&header).to_le_bytes());
    out.extend(header);
    out.extend(crc32c::crc32c(bytes).to_le_bytes());
    out.extend(bytes);
    out
}

/// Decodes, if need be with the header's checksum put right.
fn decode(mut bytes: Vec<u8>) -> Result<Block, BlockError> {
    match Block::decode(Bytes::from(bytes.clone())) {
        Err(BlockError::Checksum { what: "header", computed, .. }) => {
            bytes[4..8].copy_from_slice(&computed.to_le_bytes());
            Block::decode(Bytes::from(bytes))
        }
        other => other,
    }
}

fn check(section: &Section) {
    let dictionary = section.dictionary();
    let Ok(samples) = section.decode() else { return };
    assert_eq!(samples.samples() as u64, section.samples());
    let span = section.start().as_millis()..=section.end().as_millis();
    for series in &samples.series {
        assert_eq!(series.timestamps.len(), series.values.len());
        assert!(series.timestamps.iter().all(|at| span.contains(at)));
        assert!(series.gpu.is_none_or(|gpu| (gpu as usize) < samples.gpus.len()));
    }
    assert_eq!(dictionary.map(|d| (d.gpus, d.series.len())), {
        Ok((samples.gpus.clone(), samples.series.len()))
    });
    one_series_alone_is_the_same(section, &samples);
    match Section::encode(&samples) {
        Ok(again) => same_bits(&again.decode().unwrap_or_else(|e| panic!("{e}")), &samples),
        // Read more generously than written: a merge leaves such a section as it is.
        Err(EncodeError::Text { .. } | EncodeError::TooMany { .. }) => {}
        Err(error) => panic!("what was decoded cannot be encoded: {error}"),
    }
    let twice = merge(vec![samples.clone(), samples.clone()]).map(|both| both.samples());
    assert_eq!(twice, Some(2 * samples.samples()));
}

fn one_series_alone_is_the_same(section: &Section, samples: &HostSamples) {
    let Some(last) = samples.series.last() else { return };
    let alone = section.decode_matching(|_, metric| *metric == last.metric);
    let series = alone.map(|alone| alone.series);
    let wanted = samples.series.iter().filter(|s| s.metric == last.metric);
    let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    // Metrics that stand in two places of the dictionary are two columns.
    let expected: Vec<_> = wanted.map(|s| (s.timestamps.clone(), bits(&s.values))).collect();
    let found = series.map(|series| {
        series.iter().map(|s| (s.timestamps.clone(), bits(&s.values))).collect::<Vec<_>>()
    });
    assert_eq!(found, Ok(expected));
}

/// Sorting may have changed the order of series, so what is compared is the heap of bits.
fn same_bits(left: &HostSamples, right: &HostSamples) {
    let heap = |samples: &HostSamples| {
        let mut heap = Vec::new();
        for series in samples.series.iter().filter(|s| !s.values.is_empty()) {
            let gpu = series.gpu.and_then(|gpu| samples.gpus.get(gpu as usize));
            let name = format!("{gpu:?} {} {:?}", series.metric, series.labels);
            let bits: Vec<_> = series.values.iter().map(|v| v.to_bits()).collect();
            heap.push((name, series.timestamps.clone(), bits));
        }
        heap.sort();
        heap
    };
    assert_eq!(heap(left), heap(right));
}
