//! Reads one byte range of a file, batch by batch.

use std::{
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use nexus_common::sources::{header::Layout, input::Input};

use super::{
    batch::{Batch, BatchLimits, Fill, Reject, RejectReason},
    clock::{Clock, Restamp, Stamped},
    records::{Record, Records},
    series::{Known, Refusal, SeriesCache},
    template::Template,
    value::{ValueError, parse_value},
};

/// Longest record, in bytes of its fields: real ones have 400.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// Why a shard cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position to go on from is not in the range.
    #[error("open shard of {path}: offset {from} is outside its range {range:?}")]
    Offset {
        /// The file.
        path: PathBuf,
        /// The shard.
        range: Range<u64>,
        /// Where to go on.
        from: u64,
    },
    /// The file cannot be opened or read.
    #[error("read {path} from byte {offset}")]
    Io {
        /// The file.
        path: PathBuf,
        /// How far it was read.
        offset: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file became shorter than it was when its shards were cut.
    #[error(
        "read {path}: it ends before byte {expected}, where its shard does; it was truncated or \
         replaced, so register it again as a new source"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where the shard ends.
        expected: u64,
    },
}

/// One range of the file, behind one line feed: it makes a reader that starts anywhere parse
/// like one that has come by (a byte order mark is only skipped at the very start of input).
#[derive(Debug)]
struct Window {
    input: Input,
    started: bool,
    left: u64,
    truncated: bool,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.started && !buffer.is_empty() {
            self.started = true;
            buffer[0] = b'\n'; // not empty, checked above
            return Ok(1);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buffer[..most])?; // `most` is at most its length
        self.left -= got as u64;
        self.truncated |= got == 0;
        Ok(got)
    }
}

/// What comes next in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A row of this source time, in milliseconds since the epoch.
    At(i64),
    /// A row that will be rejected: due at once.
    Unreadable,
    /// Nothing.
    End,
}

/// What became of a line that was looked for.
enum Line {
    /// It was the one, and its row is in the batch.
    Taken,
    /// It is the one, and belongs to the next batch.
    Full,
    /// It is another, or not all of it was read yet.
    Unknown,
}

/// Reads one shard: `range` of the file, which begins at a record. Blocking.
#[derive(Debug)]
pub struct ShardReader {
    path: PathBuf,
    layout: Arc<Layout>,
    records: Records<Window>,
    from: u64,
    end: u64,
    /// Just behind the last record taken.
    offset: u64,
    row: u64,
    record: Record,
    /// Bytes taken before `record` was read, and the last of them.
    begun: (u64, u8),
    /// `record` was read and not yet taken.
    held: bool,
    /// The series of the last row taken.
    before: Option<Known>,
    #[cfg(test)]
    recognised: u64,
    clock: Clock,
    cache: SeriesCache,
    values: Vec<Option<f64>>,
}

impl ShardReader {
    /// Opens `range` of the file to go on at `from`: its start, or an earlier batch's
    /// `end_offset`.
    ///
    /// # Errors
    /// When `from` is outside `range` or the file cannot be opened.
    pub fn open(
        path: &Path,
        layout: Arc<Layout>,
        range: Range<u64>,
        from: u64,
    ) -> Result<Self, ReadError> {
        let path = path.to_owned();
        if from < range.start || from > range.end {
            return Err(ReadError::Offset { path, range, from });
        }
        let input = Input::open(&path, from).map_err(|source| ReadError::Io {
            path: path.clone(),
            offset: from,
            source,
        })?;
        Ok(Self::over(input, &path, layout, from..range.end))
    }

    /// Reads a range of what `input`, which stands at its beginning, has to give.
    pub(crate) fn over(input: Input, path: &Path, layout: Arc<Layout>, range: Range<u64>) -> Self {
        let (path, from) = (path.to_owned(), range.start);
        let left = range.end - from;
        let records = Records::new(Window { input, started: false, left, truncated: false });
        let mut cache = SeriesCache::default();
        cache.attach(&layout);
        let clock = Clock::east(layout.east_ms);
        Self {
            path,
            values: Vec::with_capacity(layout.values.len()),
            layout,
            records,
            from,
            end: range.end,
            offset: from,
            row: 0,
            record: Record::default(),
            begun: (0, 0),
            held: false,
            before: None,
            #[cfg(test)]
            recognised: 0,
            clock,
            cache,
        }
    }

    /// Goes on with the series another reader has met.
    #[must_use]
    pub fn with_cache(mut self, cache: SeriesCache) -> Self {
        self.cache = cache;
        self.cache.attach(&self.layout);
        self
    }

    /// The series met so far, for the next reader.
    pub fn into_cache(self) -> SeriesCache {
        self.cache
    }

    /// Stores rows at `restamp`'s time instead of their own.
    #[must_use]
    pub fn restamped(mut self, restamp: Restamp) -> Self {
        self.clock.restamp(restamp);
        self
    }

    /// Rows that were not read in full.
    #[cfg(test)]
    pub(super) fn recognised(&self) -> u64 {
        self.recognised
    }

    /// Byte of the file just behind the last row taken.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When the next row is due; takes nothing.
    ///
    /// # Errors
    /// When the file cannot be read or ends too soon.
    pub fn next_timestamp(&mut self) -> Result<Next, ReadError> {
        let more = self.advance()?;
        self.check_length()?;
        if !more {
            return Ok(Next::End);
        }
        Ok(self.stamp().map_or(Next::Unreadable, |at| Next::At(at.source)))
    }

    /// Reads rows until a limit or the end of the shard. The row that does not fit begins the
    /// next batch.
    ///
    /// # Errors
    /// When the file cannot be read or ends before the shard does. Rows read before that are
    /// handed on first where the file was truncated; otherwise they are read again by a reader
    /// opened at the last batch's end.
    pub fn read_batch(&mut self, limits: &BatchLimits) -> Result<Batch, ReadError> {
        let mut fill = Fill::new(self.cache.next_epoch());
        let rows_max = limits.rows_max.max(1);
        let mut rows = 0;
        while rows < rows_max {
            match self.take_line(&mut fill, limits) {
                Line::Taken => {
                    #[cfg(test)]
                    {
                        self.recognised += 1;
                    }
                    self.offset = self.position();
                    self.row += 1;
                    rows += 1;
                    continue;
                }
                Line::Full => break,
                Line::Unknown => {}
            }
            if !self.advance()? {
                self.check_length()?;
                self.offset = self.end;
                fill.batch.done = true;
                break;
            }
            if self.records.input().truncated {
                // The record at hand is what is left of a longer one.
                if rows == 0 {
                    self.check_length()?;
                }
                break;
            }
            match self.take(&mut fill, limits) {
                Ok(true) => {}
                Ok(false) => break,
                Err((reason, detail)) => self.reject(&mut fill.batch, reason, detail),
            }
            self.held = false;
            self.offset = self.position();
            self.row += 1;
            rows += 1;
        }
        let mut batch = fill.batch;
        batch.end_offset = self.offset;
        Ok(batch)
    }

    /// Makes `record` the next one to take; false at the end.
    fn advance(&mut self) -> Result<bool, ReadError> {
        if self.held {
            return Ok(true);
        }
        if self.record.size() > RECORD_BYTES_MAX {
            self.record = Record::default(); // do not keep a giant's memory
        }
        self.begun = (self.records.position(), self.records.last());
        self.held = self.records.read(&mut self.record).map_err(|source| ReadError::Io {
            path: self.path.clone(),
            offset: self.offset,
            source,
        })?;
        Ok(self.held)
    }

    fn check_length(&self) -> Result<(), ReadError> {
        if self.records.input().truncated {
            return Err(ReadError::Truncated { path: self.path.clone(), expected: self.end });
        }
        Ok(())
    }

    /// Byte of the file up to which records were parsed.
    fn position(&self) -> u64 {
        self.from + self.records.position().saturating_sub(1) // less the window's line feed
    }

    /// Takes the next line if it is that of the series that came behind the last one before, but
    /// for what changes: most lines of an export are. The rest is for [`ShardReader::take`].
    fn take_line(&mut self, fill: &mut Fill, limits: &BatchLimits) -> Line {
        let Self { records, layout, values, cache, clock, .. } = self;
        let expected = self.before.filter(|_| !self.held).and_then(|b| cache.expected(b));
        let Some((known, template, series)) = expected else { return Line::Unknown };
        if template.last() != records.last() {
            return Line::Unknown;
        }
        values.clear();
        let (mut timestamp, mut samples, mut columns) = (None, 0, layout.values.iter().peekable());
        let matched = template.matches(records.ahead(), |column, text| {
            if column == layout.timestamp {
                timestamp = Some(text);
            } else if columns.next_if(|value| value.column == column).is_some()
                && let Some(measured) = series.measured.get(values.len())
                && let Ok(value) = measured_value(layout, text)
            {
                let value = value.filter(|v| !measured.is_absent(*v));
                samples += u64::from(value.is_some());
                values.push(value);
            }
        });
        let at = timestamp.and_then(|text| clock.read(text));
        // What cannot be read is told by whom reads it in full.
        let (Some(bytes), Some(at), true) = (matched, at, values.len() == layout.values.len())
        else {
            return Line::Unknown;
        };
        if limits.until.is_some_and(|until| at.source > until)
            || !fill.has_room(series, samples, limits)
        {
            return Line::Full;
        }
        fill.push(series, at.stored, values);
        fill.batch.rows_accepted += 1;
        fill.batch.rows_absent += u64::from(samples == 0);
        records.skip(bytes);
        self.before = Some(known);
        Line::Taken
    }

    /// Remembers the line that `record` was read from, and whose it is.
    fn learn(&mut self, known: Known) {
        let Self { records, record, layout, cache, .. } = self;
        cache.follows(self.before, known);
        self.before = Some(known);
        let (begun, last) = self.begun;
        // A line that leaves another state of the grammar than it found fits nowhere else.
        if last == records.last() {
            cache.learn(known, || {
                let line = records.behind(records.position() - begun)?;
                Template::of(line, record, layout)
            });
        }
    }

    fn stamp(&mut self) -> Option<Stamped> {
        let whole = self.layout.fits(self.record.len());
        let text = if whole { self.record.get(self.layout.timestamp) } else { None };
        self.clock.read(text?)
    }

    /// Takes the record at hand; false if it does not belong to this batch.
    fn take(&mut self, fill: &mut Fill, limits: &BatchLimits) -> Result<bool, Refusal> {
        let size = self.record.size();
        if size > RECORD_BYTES_MAX {
            let detail = format!("a record of {size} bytes, at most {RECORD_BYTES_MAX} are read");
            return Err((RejectReason::TooLong, detail));
        }
        if !self.layout.fits(self.record.len()) {
            let (got, wanted) = (self.record.len(), self.layout.columns);
            let detail = format!("{got} columns where the header has {wanted}");
            return Err((RejectReason::Columns, detail));
        }
        let Some(at) = self.stamp() else { return Err(self.refuse_timestamp()) };
        if limits.until.is_some_and(|until| at.source > until) {
            return Ok(false);
        }
        let (known, series) = self.cache.find(&self.record, &self.layout);
        let series = series.as_mut().map_err(|refusal| refusal.clone())?;
        self.values.clear();
        let mut samples = 0;
        for (value, measured) in self.layout.values.iter().zip(&series.measured) {
            let text = self.record.get(value.column).unwrap_or_default();
            let value = measured_value(&self.layout, text).map_err(|e| refuse_value(e, text))?;
            let value = value.filter(|v| !measured.is_absent(*v));
            samples += u64::from(value.is_some());
            self.values.push(value);
        }
        if !fill.has_room(series, samples, limits) {
            return Ok(false);
        }
        fill.push(series, at.stored, &self.values);
        fill.batch.rows_accepted += 1;
        fill.batch.rows_absent += u64::from(samples == 0);
        self.learn(known);
        Ok(true)
    }

    fn refuse_timestamp(&self) -> Refusal {
        let bytes = self.record.get(self.layout.timestamp).unwrap_or_default();
        let text = shown(bytes);
        let word = text.trim_start_matches('\u{feff}').trim().trim_matches('"');
        if ["timestamp", "time"].iter().any(|name| word.eq_ignore_ascii_case(name)) {
            return (RejectReason::Header, "the header again".to_owned());
        }
        let wanted = "a time from 1970 to 2200 such as 2025-07-18T20:42:34Z";
        (RejectReason::BadTimestamp, format!("{text:?} is not {wanted}"))
    }

    fn reject(&self, batch: &mut Batch, reason: RejectReason, detail: String) {
        let offset = self.from + self.begun.0.saturating_sub(1);
        batch.reject(|| Reject { offset, row: self.row + 1, reason, detail }, reason);
    }
}

/// A measurement, or none where the layout's way to say so stands there.
fn measured_value(layout: &Layout, text: &[u8]) -> Result<Option<f64>, ValueError> {
    if layout.is_absent(text) { Ok(None) } else { parse_value(text) }
}

/// The beginning of a field, fit for a log line.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(64).collect()
}

fn refuse_value(error: ValueError, text: &[u8]) -> Refusal {
    let text = shown(text);
    match error {
        ValueError::Text => (RejectReason::BadValue, format!("{text:?} is not a number")),
        ValueError::Infinite => (RejectReason::NotFinite, format!("{text:?} is not finite")),
    }
}
