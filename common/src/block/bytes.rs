//! Bytes in and out: varints, texts and a reader that cannot run over.

use super::BlockError;

/// Appends `value`, seven bits a byte, low ones first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed `value`, small magnitudes short.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, zigzag(value));
}

/// Appends length and bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// 0, -1, 1, -2, ... to 0, 1, 2, 3, ...
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// What is left to read. Every step says what it was after when the bytes end.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], BlockError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(BlockError::Truncated { what })?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, BlockError> {
        let (&head, tail) = self.0.split_first().ok_or(BlockError::Truncated { what })?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn word(&mut self, what: &'static str) -> Result<u32, BlockError> {
        let (&head, tail) = self.0.split_first_chunk().ok_or(BlockError::Truncated { what })?;
        self.0 = tail;
        Ok(u32::from_le_bytes(head))
    }

    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, BlockError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(BlockError::Corrupt("a number has more than 64 bits"))
    }

    pub(super) fn signed(&mut self, what: &'static str) -> Result<i64, BlockError> {
        self.varint(what).map(unzigzag)
    }

    /// A number that may be used to count or to allocate: at most `max`.
    pub(super) fn count(&mut self, what: &'static str, max: usize) -> Result<usize, BlockError> {
        let value = self.varint(what)?;
        if value > max as u64 {
            return Err(BlockError::TooLarge { what, value, max: max as u64 });
        }
        Ok(value as usize)
    }

    /// The count of things of at least one byte each that follow: at most `max`, and no more
    /// than there are bytes.
    pub(super) fn count_of(&mut self, what: &'static str, max: usize) -> Result<usize, BlockError> {
        let count = self.count(what, max)?;
        if count > self.0.len() { Err(BlockError::Truncated { what }) } else { Ok(count) }
    }

    /// Bytes behind their length.
    pub(super) fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], BlockError> {
        let n = self.count(what, max)?;
        self.take(n, what)
    }

    pub(super) fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, BlockError> {
        str::from_utf8(self.bytes(what, max)?)
            .map_err(|_| BlockError::Corrupt("a text is not UTF-8"))
    }

    /// Nothing may be left.
    pub(super) fn finish(&self) -> Result<(), BlockError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(BlockError::Corrupt("bytes stand behind the end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_overlong_ones_are_refused() {
        let check = |value: u64| {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, value as i64);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.varint("n"), Ok(value));
            assert_eq!(reader.signed("n"), Ok(value as i64));
            assert_eq!(reader.finish(), Ok(()));
        };
        (0..64).for_each(|bit| check(1 << bit));
        [0, 127, 128, 16_383, 16_384, u64::MAX].into_iter().for_each(check);
        let overlong = [0xff; 11];
        assert!(matches!(Reader::new(&overlong).varint("n"), Err(BlockError::Corrupt(_))));
        assert!(matches!(
            Reader::new(&overlong[..3]).varint("n"),
            Err(BlockError::Truncated { .. })
        ));
    }
}
