//! Rice codes: the cheapest way to write a few small numbers, having no table to carry.

use super::BlockError;

/// Longest unary part. What would be longer is written out behind it.
const ESCAPE: u32 = 24;
/// Largest parameter of a Rice code.
pub(super) const RICE_MAX: u32 = 63;

fn low_bits(value: u64, n: u32) -> u64 {
    if n >= 64 { value } else { value & ((1 << n) - 1) }
}

/// How many bits `value` needs.
pub(super) fn bit_length(value: u64) -> u32 {
    64 - value.leading_zeros()
}

/// How many bits [`BitWriter::rice`] spends on `value`.
pub(super) fn rice_cost(value: u64, k: u32) -> u64 {
    let quotient = value >> k;
    if quotient < u64::from(ESCAPE) {
        quotient + 1 + u64::from(k)
    } else {
        u64::from(ESCAPE + 1 + 6 + bit_length(value))
    }
}

/// The parameter that makes `values` shortest, and the bits they take then.
pub(super) fn best_rice(values: impl Iterator<Item = u64> + Clone) -> (u32, u64) {
    let widest = bit_length(values.clone().max().unwrap_or(0)).min(RICE_MAX);
    let cost = |k| values.clone().map(|v| rice_cost(v, k)).sum::<u64>();
    (0..=widest).map(|k| (k, cost(k))).min_by_key(|&(_, bits)| bits).unwrap_or((0, 0))
}

/// Bits on their way out, low ones first.
pub(super) struct BitWriter<'a> {
    out: &'a mut Vec<u8>,
    pending: u64,
    count: u32,
}

impl<'a> BitWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, pending: 0, count: 0 }
    }

    fn put(&mut self, value: u64, n: u32) {
        if n > 32 {
            self.put(low_bits(value, 32), 32);
            return self.put(value >> 32, n - 32);
        }
        // At most 7 + 32 bits are pending here.
        self.pending |= low_bits(value, n) << self.count;
        self.count += n;
        while self.count >= 8 {
            self.out.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Writes `value` as quotient in unary and `k` bits of remainder.
    pub(super) fn rice(&mut self, value: u64, k: u32) {
        let quotient = value >> k;
        if quotient < u64::from(ESCAPE) {
            self.put(1 << quotient, quotient as u32 + 1);
            self.put(value, k);
        } else {
            let length = bit_length(value); // at least 5: the quotient is above 1
            self.put(1 << ESCAPE, ESCAPE + 1);
            self.put(u64::from(length - 1), 6);
            self.put(value, length);
        }
    }

    /// Fills the last byte up.
    pub(super) fn finish(self) {
        if self.count > 0 {
            self.out.push(self.pending as u8);
        }
    }
}

/// Bits on their way in. Behind the end stand zeros, which no code consists of; whether the end
/// was passed is told by [`BitReader::finish`].
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next 57 bits or more.
    fn window(&self) -> u64 {
        let tail = self.bytes.get(self.position / 8..).unwrap_or_default();
        let word = match tail.first_chunk() {
            Some(&chunk) => u64::from_le_bytes(chunk),
            None => tail.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        word >> (self.position % 8)
    }

    fn take(&mut self, n: u32) -> u64 {
        if n > 32 {
            let low = self.take(32);
            return low | self.take(n - 32) << 32;
        }
        let value = low_bits(self.window(), n);
        self.position += n as usize;
        value
    }

    /// Reads what [`BitWriter::rice`] wrote.
    pub(super) fn rice(&mut self, k: u32) -> Result<u64, BlockError> {
        let window = self.window();
        let quotient = window.trailing_zeros();
        if quotient < ESCAPE && k <= 32 {
            self.position += (quotient + 1 + k) as usize;
            return Ok(u64::from(quotient) << k | low_bits(window >> (quotient + 1), k));
        }
        if quotient > ESCAPE {
            return Err(BlockError::Corrupt("bits are no Rice code"));
        }
        self.position += quotient as usize + 1;
        if quotient == ESCAPE {
            let length = self.take(6) as u32 + 1;
            return Ok(self.take(length));
        }
        let low = self.take(k);
        Ok(u64::from(quotient).checked_shl(k).unwrap_or(0) | low)
    }

    /// How many bytes were read.
    pub(super) fn finish(self) -> Result<usize, BlockError> {
        let read = self.position.div_ceil(8);
        if read > self.bytes.len() {
            return Err(BlockError::Truncated { what: "bits" });
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_comes_back_under_every_parameter() {
        let values: Vec<u64> = (0..64)
            .flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1])
            .chain([u64::MAX])
            .collect();
        for k in 0..=RICE_MAX {
            let mut out = Vec::new();
            let mut writer = BitWriter::new(&mut out);
            values.iter().for_each(|&v| writer.rice(v, k));
            writer.finish();
            let bits: u64 = values.iter().map(|&v| rice_cost(v, k)).sum();
            assert_eq!(out.len() as u64, bits.div_ceil(8));
            let mut reader = BitReader::new(&out);
            for &v in &values {
                assert_eq!(reader.rice(k), Ok(v), "k = {k}");
            }
            assert_eq!(reader.finish(), Ok(out.len()));
        }
    }

    #[test]
    fn zeros_for_ever_are_no_code() {
        assert!(BitReader::new(&[0; 16]).rice(3).is_err());
        assert!(BitReader::new(&[]).rice(0).is_err());
    }
}
