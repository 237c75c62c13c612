//! The records of a byte range: fields found by the csv crate's own state machine, or a line
//! that is known but for a few fields, recognised by comparing it.

use std::{
    io::{self, Read},
    ops::Range,
};

use csv_core::ReadRecordResult;

/// Read buffer, in bytes: large enough that system calls do not show, small enough for the L2.
const BUFFER_BYTES: usize = 256 * 1024;
/// Room for fields and for their ends to begin with; both grow twofold as a record needs.
const FIELDS_BYTES: usize = 1024;
const ENDS: usize = 32;
/// Most room for either: what is longer is no row, and is passed over without being held. A
/// packed file of a few MiB may hold a record of many GiB.
const FIELDS_BYTES_MAX: usize = 4 << 20;
const ENDS_MAX: usize = 1 << 18;

/// One record's fields without their quotes, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Record {
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// How many of `ends` and, by the last of them, of `fields` are the record's.
    len: usize,
    /// Bytes of a record that was too long to be held, and has no fields.
    passed_over: usize,
}

impl Record {
    /// How many fields there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All fields' bytes.
    pub(super) fn as_slice(&self) -> &[u8] {
        let end = self.ends[..self.len].last().copied().unwrap_or(0); // `len` is at most theirs
        &self.fields[..end] // ends lie in the fields
    }

    /// Bytes of its fields, held or passed over.
    pub(super) fn size(&self) -> usize {
        self.as_slice().len() + self.passed_over
    }

    /// Where the `nth` field lies in [`Record::as_slice`].
    pub(super) fn range(&self, nth: usize) -> Option<Range<usize>> {
        let ends = &self.ends[..self.len]; // `len` is at most theirs
        let end = *ends.get(nth)?;
        Some(if nth == 0 { 0 } else { ends[nth - 1] }..end) // before one that is there
    }

    /// The `nth` field.
    pub(super) fn get(&self, nth: usize) -> Option<&[u8]> {
        self.fields.get(self.range(nth)?)
    }
}

/// Reads records from `input`, which begins at one.
#[derive(Debug)]
pub(super) struct Records<R> {
    input: R,
    core: csv_core::Reader,
    buffer: Box<[u8]>,
    /// What of the buffer was read and not taken.
    at: usize,
    end: usize,
    /// Bytes taken since the beginning.
    taken: u64,
    /// The last byte taken: what the state machine would make of the next one hangs on it alone.
    last: u8,
    ended: bool,
}

impl<R: Read> Records<R> {
    pub(super) fn new(input: R) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        let core = csv_core::Reader::new();
        Self { input, core, buffer, at: 0, end: 0, taken: 0, last: 0, ended: false }
    }

    pub(super) fn input(&self) -> &R {
        &self.input
    }

    /// Bytes taken so far.
    pub(super) fn position(&self) -> u64 {
        self.taken
    }

    /// The last byte taken, 0 before the first.
    pub(super) fn last(&self) -> u8 {
        self.last
    }

    /// What was read and not taken yet; may end anywhere.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.buffer[self.at..self.end] // within the buffer, in this order
    }

    /// Takes `bytes` of [`Records::ahead`], which must be whole records that end as the last one
    /// taken did.
    pub(super) fn skip(&mut self, bytes: usize) {
        let bytes = bytes.min(self.end - self.at);
        if let Some(last) = bytes.checked_sub(1).and_then(|nth| self.ahead().get(nth)) {
            self.last = *last;
        }
        self.at += bytes;
        self.taken += bytes as u64;
    }

    /// Takes the next record; false at the end. Its raw bytes, where they lie in one piece, are
    /// left to [`Records::behind`].
    ///
    /// # Errors
    /// When `input` cannot be read.
    pub(super) fn read(&mut self, record: &mut Record) -> io::Result<bool> {
        (record.len, record.passed_over) = (0, 0);
        if self.ended {
            return Ok(false);
        }
        if record.ends.is_empty() {
            record.fields.resize(FIELDS_BYTES, 0);
            record.ends.resize(ENDS, 0);
        }
        let (mut bytes, mut ends, mut passed_over, mut too_long) = (0, 0, 0, false);
        loop {
            if self.at == self.end {
                (self.at, self.end) = (0, self.input.read(&mut self.buffer)?);
            }
            let (result, read, written, ended) = self.core.read_record(
                &self.buffer[self.at..self.end], // within the buffer, in this order
                &mut record.fields[bytes..],     // the machine wrote so many of them
                &mut record.ends[ends..],
            );
            self.skip(read);
            bytes += written;
            ends += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if bytes >= FIELDS_BYTES_MAX => {
                    passed_over += bytes;
                    (bytes, too_long) = (0, true);
                }
                ReadRecordResult::OutputFull => record.fields.resize(bytes * 2, 0),
                ReadRecordResult::OutputEndsFull if ends >= ENDS_MAX => {
                    (ends, too_long) = (0, true);
                }
                ReadRecordResult::OutputEndsFull => record.ends.resize(ends * 2, 0),
                ReadRecordResult::Record if too_long => {
                    // Never less than what was not held.
                    record.passed_over = (passed_over + bytes).max(FIELDS_BYTES_MAX);
                    return Ok(true);
                }
                ReadRecordResult::Record => {
                    record.len = ends;
                    return Ok(true);
                }
                ReadRecordResult::End => {
                    self.ended = true;
                    return Ok(false);
                }
            }
        }
    }

    /// The last `bytes` taken, if they are still in the buffer.
    pub(super) fn behind(&self, bytes: u64) -> Option<&[u8]> {
        let start = self.at.checked_sub(usize::try_from(bytes).ok()?)?;
        self.buffer.get(start..self.at)
    }
}
