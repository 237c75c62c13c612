//! The fuzzer's bytes as numbers and texts. At their end stand zeros.

/// What is left of them.
pub(crate) struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte, below `bound`.
    pub(crate) fn below(&mut self, bound: u8) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte % bound
    }

    /// A number of at most 64 bits. The first byte says how many follow, so that small ones are
    /// as likely as large ones.
    pub(crate) fn number(&mut self) -> u64 {
        let bytes = self.below(9);
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.below(u8::MAX)))
    }

    /// Up to fifteen letters of those that any identifier may have.
    pub(crate) fn word(&mut self) -> String {
        const LETTERS: &[u8; 66] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:";
        let length = self.below(16);
        (0..length).map(|_| LETTERS[usize::from(self.below(66))] as char).collect()
    }
}
