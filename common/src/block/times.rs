//! Timestamps: each distinct vector of a section once, and which series has which.
//!
//! ```text
//! count of vectors; for each: length in bytes, then
//!     count of timestamps
//!     first one, less the start of the section
//!     smallest step (signed), and the steps less that (integers)     if there are two or more
//! for each series the position of its vector (integers)
//! ```
//! A regular vector, the common case, takes seven bytes or so however long it is.

use std::collections::HashMap;

use super::bytes::{Reader, put_bytes, put_signed, put_varint};
use super::{BlockError, EncodeError, ints};
use crate::limits::{BLOCK_BYTES_MAX, SECTION_SAMPLES_MAX};

/// Appends the vectors of all series, in their order. None is empty.
pub(super) fn encode<'a>(
    series: impl Iterator<Item = &'a [i64]>,
    start: i64,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let mut distinct: Vec<&[i64]> = Vec::new();
    let mut positions = HashMap::new();
    let mut references = Vec::new();
    for times in series {
        // Nearly always the same as before: cheaper to see than to hash.
        if distinct.last() == Some(&times) {
            references.push(distinct.len() as u64 - 1);
            continue;
        }
        references.push(*positions.entry(times).or_insert_with(|| {
            distinct.push(times);
            distinct.len() as u64 - 1
        }));
    }
    put_varint(out, distinct.len() as u64);
    for times in distinct {
        put_bytes(out, &encode_vector(times, start)?);
    }
    ints::encode(&references, out)
}

fn encode_vector(times: &[i64], start: i64) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    put_varint(&mut out, times.len() as u64);
    put_varint(&mut out, times.first().map_or(0, |first| first.abs_diff(start)));
    let steps = || times.windows(2).map(|pair| pair[1] - pair[0]);
    if let Some(least) = steps().min() {
        put_signed(&mut out, least);
        let above: Vec<u64> = steps().map(|step| step.abs_diff(least)).collect();
        ints::encode(&above, &mut out)?;
    }
    Ok(out)
}

/// The timestamps of a section: how many each series has, and the vectors, not yet decoded.
pub(super) struct Times<'a> {
    vectors: Vec<Vector<'a>>,
    references: Vec<usize>,
}

struct Vector<'a> {
    count: usize,
    rest: Reader<'a>,
    decoded: Option<Vec<i64>>,
}

impl<'a> Times<'a> {
    /// Reads where things are. The series are `series` in number and have `samples` in all.
    pub(super) fn read(
        reader: &mut Reader<'a>,
        series: usize,
        samples: u64,
    ) -> Result<Self, BlockError> {
        let n = reader.count_of("vectors of timestamps", series)?;
        let mut vectors = Vec::with_capacity(n);
        for _ in 0..n {
            let mut rest = Reader::new(reader.bytes("timestamps", BLOCK_BYTES_MAX)?);
            let count = rest.count("timestamps", SECTION_SAMPLES_MAX)?;
            if count == 0 {
                return Err(BlockError::Corrupt("a series without a sample"));
            }
            vectors.push(Vector { count, rest, decoded: None });
        }
        let references: Vec<usize> =
            ints::decode(reader, series)?.into_iter().map(|r| r as usize).collect();
        if references.iter().any(|&r| r >= n) {
            return Err(BlockError::Corrupt("a series refers to timestamps that are not there"));
        }
        let times = Self { vectors, references };
        let distinct: u64 = times.vectors.iter().map(|v| v.count as u64).sum();
        if times.counts().map(|n| n as u64).sum::<u64>() != samples || distinct > samples {
            return Err(BlockError::Corrupt("series have not as many samples as the section"));
        }
        Ok(times)
    }

    /// How many samples each series has.
    pub(super) fn counts(&self) -> impl Iterator<Item = usize> {
        self.references.iter().map(|&r| self.vectors[r].count)
    }

    /// The timestamps of one series, all of them within `start..=end`.
    pub(super) fn of(
        &mut self,
        series: usize,
        start: i64,
        end: i64,
    ) -> Result<Vec<i64>, BlockError> {
        let vector = self.references.get(series).and_then(|&r| self.vectors.get_mut(r));
        let vector = vector.ok_or(BlockError::Corrupt("more series than timestamps"))?;
        if vector.decoded.is_none() {
            vector.decoded = Some(decode_vector(vector.rest, vector.count, start, end)?);
        }
        Ok(vector.decoded.clone().unwrap_or_default())
    }
}

fn decode_vector(
    mut reader: Reader<'_>,
    count: usize,
    start: i64,
    end: i64,
) -> Result<Vec<i64>, BlockError> {
    let mut at = start.wrapping_add_unsigned(reader.varint("timestamps")?);
    let mut times = Vec::with_capacity(count);
    times.push(at);
    if count > 1 {
        let least = reader.signed("timestamps")?;
        for above in ints::decode(&mut reader, count - 1)? {
            at = at.wrapping_add(least).wrapping_add_unsigned(above);
            times.push(at);
        }
    }
    reader.finish()?;
    if times.iter().any(|t| !(start..=end).contains(t)) {
        return Err(BlockError::Corrupt("a timestamp outside its section's span"));
    }
    Ok(times)
}
