//! The values of one metric: all its series one behind the other, turned into integers.
//!
//! ```text
//! byte: bits 0-3  0..=9: integers, to be divided by that power of ten
//!                 15: bits of the double, its lowest `shift` ones of magnitude, all zero, cut off
//!                     (behind the byte: shift); negative ones complemented
//!       bit 4     constant: then one signed number and nothing else
//!       bit 5     differences: within a series each to the one before, first ones to the first
//!                 one of the series before
//!       bit 6     differences less the smallest; without: signed, small magnitudes first
//! no differences:  smallest (signed), then all less that (integers)
//! differences:     smallest (signed; with bit 6), first ones, others (integers, each)
//! ```
//! Decoding gives the same 64 bits: a power of ten is only used when dividing by it does.

use super::bytes::{Reader, put_signed, unzigzag, zigzag};
use super::{BlockError, EncodeError, bits::bit_length, ints};

const BITS: u8 = 15;
const CONSTANT: u8 = 1 << 4;
const DIFFERENCES: u8 = 1 << 5;
const ONE_SIDED: u8 = 1 << 6;

/// Powers of ten that are tried: telemetry is printed with at most six decimals, ratios of some
/// exporters with nine.
const POWERS: [f64; 10] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
/// Above, neighbouring integers are no longer distinct doubles.
const EXACT: f64 = (1_u64 << 53) as f64;
const SIGN: u64 = 1 << 63;

/// How integers become doubles again.
#[derive(Clone, Copy)]
enum Scale {
    Decimals(usize),
    Bits(u32),
}

/// Appends the values of all series of one metric. None is empty.
pub(super) fn encode(series: &[&[f64]], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let values = || series.iter().flat_map(|s| s.iter().copied());
    let (scale, integers) = match decimals(values) {
        Some((power, integers)) => (Scale::Decimals(power), integers),
        None => from_bits(values),
    };
    let first = integers.first().copied().unwrap_or(0);
    if integers.iter().all(|&i| i == first) {
        scale.put(CONSTANT, out);
        put_signed(out, first);
        return Ok(());
    }
    let (firsts, others) = differences(&integers, series.iter().map(|s| s.len()));
    if integers.len() >= ints::MANY {
        return if estimate(&others) < estimate_plain(&integers) {
            encode_differences(scale, &firsts, &others, out)
        } else {
            encode_plain(scale, &integers, out)
        };
    }
    // So few are quicker written than estimated.
    let (mut a, mut b) = (Vec::new(), Vec::new());
    encode_differences(scale, &firsts, &others, &mut a)?;
    encode_plain(scale, &integers, &mut b)?;
    out.append(if a.len() <= b.len() { &mut a } else { &mut b });
    Ok(())
}

fn encode_plain(scale: Scale, integers: &[i64], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    scale.put(0, out);
    let least = integers.iter().copied().min().unwrap_or(0);
    put_signed(out, least);
    let above: Vec<u64> = integers.iter().map(|i| i.abs_diff(least)).collect();
    ints::encode(&above, out)
}

fn encode_differences(
    scale: Scale,
    firsts: &[i64],
    others: &[i64],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let signed = |differences: &[i64]| differences.iter().map(|&d| zigzag(d)).collect::<Vec<_>>();
    let others = match others.iter().copied().min() {
        Some(least) if least >= 0 => {
            scale.put(DIFFERENCES | ONE_SIDED, out);
            put_signed(out, least);
            others.iter().map(|d| d.abs_diff(least)).collect()
        }
        _ => {
            scale.put(DIFFERENCES, out);
            signed(others)
        }
    };
    ints::encode(&signed(firsts), out)?;
    ints::encode(&others, out)
}

/// Of each series the first one (less the one before it), and all others less those before.
fn differences(integers: &[i64], lengths: impl Iterator<Item = usize>) -> (Vec<i64>, Vec<i64>) {
    let mut firsts = Vec::new();
    let mut others = Vec::with_capacity(integers.len());
    let mut before = 0_i64;
    let mut rest = integers;
    for length in lengths {
        let (series, tail) = rest.split_at(length.min(rest.len()));
        rest = tail;
        if let Some(&first) = series.first() {
            firsts.push(first.wrapping_sub(before));
            before = first;
        }
        others.extend(series.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
    }
    (firsts, others)
}

fn estimate_plain(integers: &[i64]) -> f64 {
    let sum: i128 = integers.iter().map(|&i| i128::from(i)).sum();
    let mean = (sum / integers.len().max(1) as i128) as i64;
    estimate(&integers.iter().map(|i| i.wrapping_sub(mean)).collect::<Vec<_>>())
}

/// Bits an entropy coder would need: it knows the magnitudes' frequencies and writes the rest.
fn estimate(differences: &[i64]) -> f64 {
    let mut counts = [0_u32; 65];
    differences.iter().for_each(|&d| counts[bit_length(zigzag(d)) as usize] += 1);
    let all = differences.len() as f64;
    let cost = |(bits, &count): (usize, &u32)| {
        f64::from(count) * (bits.saturating_sub(1) as f64 + (all / f64::from(count)).log2())
    };
    counts.iter().enumerate().filter(|(_, count)| **count > 0).map(cost).sum()
}

/// `value` in units of 10^-power, if dividing gives the same bits again.
fn scaled(value: f64, power: usize) -> Option<i64> {
    let product = value * POWERS[power];
    let integer = (product + 0.5_f64.copysign(product)) as i64; // NaN gives 0, infinities saturate
    let exact =
        product.abs() <= EXACT && (integer as f64 / POWERS[power]).to_bits() == value.to_bits();
    exact.then_some(integer)
}

/// The lowest power of ten that makes integers of all, and these.
fn decimals<I: Iterator<Item = f64>>(values: impl Fn() -> I) -> Option<(usize, Vec<i64>)> {
    let mut power = 0;
    let mut integers = Vec::with_capacity(values().size_hint().0);
    'powers: loop {
        integers.clear();
        for value in values() {
            let Some(integer) = scaled(value, power) else {
                power = (power + 1..POWERS.len()).find(|&p| scaled(value, p).is_some())?;
                continue 'powers;
            };
            integers.push(integer);
        }
        return Some((power, integers));
    }
}

fn from_bits<I: Iterator<Item = f64>>(values: impl Fn() -> I) -> (Scale, Vec<i64>) {
    let magnitude = |value: f64| value.to_bits() & !SIGN;
    let zeros = values().map(|v| magnitude(v).trailing_zeros()).min().unwrap_or(0);
    let shift = zeros.min(62); // 64 for zero itself
    let integer = |value: f64| {
        let cut = (magnitude(value) >> shift) as i64;
        if value.is_sign_negative() { !cut } else { cut }
    };
    (Scale::Bits(shift), values().map(integer).collect())
}

impl Scale {
    fn put(self, flags: u8, out: &mut Vec<u8>) {
        match self {
            Scale::Decimals(power) => out.push(power as u8 | flags),
            Scale::Bits(shift) => out.extend([BITS | flags, shift as u8]),
        }
    }

    fn restore(self, integer: i64) -> f64 {
        match self {
            Scale::Decimals(power) => integer as f64 / POWERS[power],
            Scale::Bits(shift) if integer < 0 => f64::from_bits((!integer as u64) << shift | SIGN),
            Scale::Bits(shift) => f64::from_bits((integer as u64) << shift),
        }
    }
}

/// The integers of a column, series by series, and what they stand for.
pub(super) struct Column {
    scale: Scale,
    integers: Integers,
}

enum Integers {
    Constant(i64),
    Plain { least: i64, above: Vec<u64> },
    Differences { least: Option<i64>, firsts: Vec<u64>, others: Vec<u64> },
}

impl Column {
    /// Reads the column of `series` series that have `samples` in all.
    pub(super) fn read(bytes: &[u8], series: usize, samples: usize) -> Result<Self, BlockError> {
        let mut reader = Reader::new(bytes);
        let head = reader.byte("column")?;
        let scale = match head & 15 {
            BITS => Scale::Bits(u32::from(reader.byte("column")?)),
            power => Scale::Decimals(usize::from(power)),
        };
        if matches!(scale, Scale::Bits(63..) | Scale::Decimals(10..)) {
            return Err(BlockError::Corrupt("a column of unknown scale"));
        }
        let integers = match head & !15 {
            CONSTANT => Integers::Constant(reader.signed("column")?),
            0 => Integers::Plain {
                least: reader.signed("column")?,
                above: ints::decode(&mut reader, samples)?,
            },
            flags if flags & !ONE_SIDED == DIFFERENCES => {
                let one_sided = flags & ONE_SIDED != 0;
                let least = one_sided.then(|| reader.signed("column")).transpose()?;
                let firsts = ints::decode(&mut reader, series)?;
                let others = ints::decode(&mut reader, samples.saturating_sub(series))?;
                Integers::Differences { least, firsts, others }
            }
            _ => return Err(BlockError::Corrupt("a column of unknown kind")),
        };
        reader.finish()?;
        Ok(Self { scale, integers })
    }

    /// The values of each series; `lengths` says how many it has and whether they are wanted.
    pub(super) fn values(
        &self,
        lengths: impl Iterator<Item = (usize, bool)>,
    ) -> impl Iterator<Item = Option<Vec<f64>>> {
        let (mut offset, mut before) = (0, 0_i64);
        lengths.enumerate().map(move |(index, (length, wanted))| {
            let position = offset;
            offset += length;
            // Differences between first ones run through all series, wanted or not.
            if let Integers::Differences { firsts, .. } = &self.integers {
                let step = firsts.get(index).copied().unwrap_or(0);
                before = before.wrapping_add(unzigzag(step));
            }
            wanted.then(|| self.series(index, position, length, before))
        })
    }

    fn series(&self, index: usize, position: usize, length: usize, first: i64) -> Vec<f64> {
        let restore = |integer| self.scale.restore(integer);
        match &self.integers {
            Integers::Constant(integer) => vec![restore(*integer); length],
            Integers::Plain { least, above } => {
                let above = above.get(position..position + length).unwrap_or_default();
                above.iter().map(|a| restore(least.wrapping_add_unsigned(*a))).collect()
            }
            Integers::Differences { least, others, .. } => {
                // Each series before has one first one, which is not among the others.
                let range = position - index..position - index + length - 1;
                let others = others.get(range).unwrap_or_default();
                let mut values = Vec::with_capacity(length);
                let mut integer = first;
                values.push(restore(integer));
                values.extend(others.iter().map(|&other| {
                    integer = match least {
                        Some(least) => integer.wrapping_add(*least).wrapping_add_unsigned(other),
                        None => integer.wrapping_add(unzigzag(other)),
                    };
                    restore(integer)
                }));
                values
            }
        }
    }
}
