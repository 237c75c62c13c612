//! Runs of unsigned integers, of known count: whatever is shortest of nothing at all (all are
//! zero), Rice codes (a few), Rice codes of the ones that are not zero (mostly zeros), pco (many).
//!
//! ```text
//! 0                              all are zero
//! 1 + k        k = 0..=62        Rice codes with parameter k
//! 64 + k       k = 0..=62        count, byte g; then for each that is not zero: Rice code with g
//!                                of the zeros before it, Rice code with k of itself less 1
//! 128|129|130  length, bytes     pco (wrapped: header, chunk, page) over 16|32|64 bits,
//!                                classic mode, no delta
//! ```

use pco::data_types::Number;
use pco::wrapped::{FileCompressor, FileDecompressor};
use pco::{ChunkConfig, DeltaSpec, ModeSpec, PagingSpec};

use super::bits::{BitReader, BitWriter, best_rice};
use super::bytes::{Reader, put_bytes, put_varint};
use super::{BlockError, EncodeError};
use crate::limits::BLOCK_BYTES_MAX;

const ZERO: u8 = 0;
const RICE: u8 = 1;
const SPARSE: u8 = 64;
const PCO_16: u8 = 128;
const PCO_32: u8 = 129;
const PCO_64: u8 = 130;
/// Largest Rice parameter the tags have room for: 63 would hardly be shorter for anything.
const K_MAX: u32 = 62;

/// From here on pco earns its table: below, Rice codes take less space and less time.
pub(super) const MANY: usize = 256;

/// Appends `values`.
pub(super) fn encode(values: &[u64], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let Some(max) = values.iter().copied().max().filter(|&max| max > 0) else {
        out.push(ZERO);
        return Ok(());
    };
    let nonzero = values.iter().filter(|&&v| v > 0).count();
    let start = out.len();
    if values.len() >= MANY {
        encode_pco(values, max, out)?;
        if nonzero < values.len() / 8 {
            keep_shorter(out, start, |out| encode_sparse(values, nonzero, out));
        }
    } else {
        encode_rice(values, out);
        if nonzero < values.len() / 2 {
            keep_shorter(out, start, |out| encode_sparse(values, nonzero, out));
        }
    }
    Ok(())
}

/// Replaces what stands in `out` from `start` by what `encode` appends, if that is shorter.
fn keep_shorter(out: &mut Vec<u8>, start: usize, encode: impl FnOnce(&mut Vec<u8>)) {
    let mut other = Vec::new();
    encode(&mut other);
    if other.len() < out.len() - start {
        out.truncate(start);
        out.extend_from_slice(&other);
    }
}

fn encode_rice(values: &[u64], out: &mut Vec<u8>) {
    let (k, _) = best_rice(values.iter().copied());
    let k = k.min(K_MAX);
    out.push(RICE + k as u8);
    let mut writer = BitWriter::new(out);
    values.iter().for_each(|&v| writer.rice(v, k));
    writer.finish();
}

fn encode_sparse(values: &[u64], nonzero: usize, out: &mut Vec<u8>) {
    let mut gap = 0;
    let mut entries = Vec::with_capacity(nonzero);
    for &value in values {
        if value == 0 {
            gap += 1;
        } else {
            entries.push((gap, value - 1));
            gap = 0;
        }
    }
    let (g, _) = best_rice(entries.iter().map(|e| e.0));
    let k = best_rice(entries.iter().map(|e| e.1)).0.min(K_MAX);
    out.push(SPARSE + k as u8);
    put_varint(out, nonzero as u64);
    out.push(g as u8);
    let mut writer = BitWriter::new(out);
    for (gap, value) in entries {
        writer.rice(gap, g);
        writer.rice(value, k);
    }
    writer.finish();
}

fn encode_pco(values: &[u64], max: u64, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    // The narrower the type, the smaller pco's table.
    let (tag, bytes) = if max <= u64::from(u16::MAX) {
        (PCO_16, pco_bytes(&values.iter().map(|&v| v as u16).collect::<Vec<_>>()))
    } else if max <= u64::from(u32::MAX) {
        (PCO_32, pco_bytes(&values.iter().map(|&v| v as u32).collect::<Vec<_>>()))
    } else {
        (PCO_64, pco_bytes(values))
    };
    out.push(tag);
    put_bytes(out, &bytes.map_err(|error| EncodeError::Codec(error.to_string()))?);
    Ok(())
}

fn pco_bytes<T: Number>(values: &[T]) -> pco::errors::PcoResult<Vec<u8>> {
    let config = ChunkConfig::default()
        .with_mode_spec(ModeSpec::Classic)
        .with_delta_spec(DeltaSpec::NoOp)
        .with_paging_spec(PagingSpec::Exact(vec![values.len()]));
    let file = FileCompressor::default();
    let bytes = file.write_header(Vec::new())?;
    let mut chunk = file.chunk_compressor(values, &config)?;
    let bytes = chunk.write_meta(bytes)?;
    chunk.write_page(0, bytes)
}

/// Reads `n` integers, which the caller has checked to be a sane number of them.
pub(super) fn decode(reader: &mut Reader<'_>, n: usize) -> Result<Vec<u64>, BlockError> {
    match reader.byte("integers")? {
        ZERO => Ok(vec![0; n]),
        tag @ RICE..SPARSE => {
            let k = u32::from(tag - RICE);
            decode_bits(reader, |bits| {
                let mut values = Vec::with_capacity(n);
                for _ in 0..n {
                    values.push(bits.rice(k)?);
                }
                Ok(values)
            })
        }
        tag @ SPARSE..PCO_16 => decode_sparse(reader, n, u32::from(tag - SPARSE)),
        tag @ PCO_16..=PCO_64 => {
            let bytes = reader.bytes("packed integers", BLOCK_BYTES_MAX)?;
            match tag {
                PCO_16 => decode_pco::<u16>(bytes, n),
                PCO_32 => decode_pco::<u32>(bytes, n),
                _ => decode_pco::<u64>(bytes, n),
            }
        }
        _ => Err(BlockError::Corrupt("integers of an unknown kind")),
    }
}

fn decode_bits<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut BitReader<'_>) -> Result<T, BlockError>,
) -> Result<T, BlockError> {
    let mut bits = BitReader::new(reader.rest());
    let value = read(&mut bits)?;
    reader.take(bits.finish()?, "bits")?;
    Ok(value)
}

fn decode_sparse(reader: &mut Reader<'_>, n: usize, k: u32) -> Result<Vec<u64>, BlockError> {
    let nonzero = reader.count("integers that are not zero", n)?;
    let g = u32::from(reader.byte("integers")?);
    if k > K_MAX || g > K_MAX {
        return Err(BlockError::Corrupt("a Rice parameter is out of range"));
    }
    let mut values = vec![0; n];
    decode_bits(reader, |bits| {
        let mut rest = values.iter_mut();
        for _ in 0..nonzero {
            let gap = bits.rice(g)?;
            let slot = usize::try_from(gap).ok().and_then(|gap| rest.nth(gap));
            let slot = slot.ok_or(BlockError::Corrupt("more integers than there should be"))?;
            *slot = bits.rice(k)?.wrapping_add(1);
        }
        Ok(())
    })?;
    Ok(values)
}

fn decode_pco<T: Number + Into<u64>>(bytes: &[u8], n: usize) -> Result<Vec<u64>, BlockError> {
    let codec = |error: pco::errors::PcoError| BlockError::Codec(error.to_string());
    let (file, chunk_bytes) = FileDecompressor::new(bytes).map_err(codec)?;
    // Mode and delta encoding, four bits each. Others than ours may name dictionaries and
    // windows of a hundred megabytes, which pco allocates before it looks at what follows.
    if chunk_bytes.first() != Some(&0) {
        return Err(BlockError::Corrupt("packed integers are not in classic mode"));
    }
    let (mut chunk, page_bytes) = file.chunk_decompressor::<T, _>(chunk_bytes).map_err(codec)?;
    let mut page = chunk.page_decompressor(page_bytes, n).map_err(codec)?;
    let mut values = vec![T::default(); n];
    let progress = page.read(&mut values).map_err(codec)?;
    if progress.n_processed != n || !page.into_src().is_empty() {
        return Err(BlockError::Corrupt("packed integers are not as many as they should be"));
    }
    Ok(values.into_iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(values: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(values, &mut out).unwrap();
        let mut reader = Reader::new(&out);
        assert_eq!(decode(&mut reader, values.len()).unwrap(), values);
        assert_eq!(reader.finish(), Ok(()));
        out
    }

    #[test]
    fn each_kind_is_chosen_where_it_is_shortest() {
        let check = |values: Vec<u64>, tags: std::ops::RangeInclusive<u8>| {
            let out = round_trip(&values);
            assert!(tags.contains(&out[0]), "tag {} for {values:?}", out[0]);
        };
        check(vec![], 0..=0);
        check(vec![0; 5000], 0..=0);
        check((0..80).collect(), RICE..=SPARSE - 1);
        check(vec![u64::MAX >> 2], RICE..=SPARSE - 1);
        check((0..80).map(|i| u64::from(i == 70)).collect(), SPARSE..=127);
        check((0..4000).map(|i| u64::from(i % 700 == 3) * 900).collect(), SPARSE..=127);
        check((0..4000).map(|i| i * i % 97).collect(), PCO_16..=PCO_16);
        check((0..4000).map(|i| i * i % 97_001).collect(), PCO_32..=PCO_32);
        check((0..4000).map(|i| i << 40 | i).collect(), PCO_64..=PCO_64);
        check(vec![u64::MAX, 0, 1 << 62], RICE..=SPARSE - 1);
    }

    #[test]
    fn packed_integers_of_another_mode_are_refused_before_they_allocate() {
        let mut out = round_trip(&(0..4000).map(|i| i * i % 97).collect::<Vec<_>>());
        let mode = out.len() - Reader::new(&out[1..]).bytes("", usize::MAX).unwrap().len() + 2;
        assert_eq!(out[mode], 0);
        for byte in 1..=u8::MAX {
            out[mode] = byte;
            let refused = decode(&mut Reader::new(&out), 4000);
            assert!(matches!(refused, Err(BlockError::Corrupt(_))));
        }
    }
}
