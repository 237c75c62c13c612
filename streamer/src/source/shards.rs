//! Cutting a file into byte ranges at record boundaries, so that streamers can share it.
//!
//! A line feed ends a record unless it stands inside quotes, and it stands inside quotes if the
//! number of quotes before it is odd. Counting bytes is as fast as reading them, so the whole
//! file is counted once, when it is registered.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

/// Size to aim at: seconds of work, so that a takeover repeats little and shares stay even.
pub const SHARD_BYTES: u64 = 32 << 20;
/// Smallest shard worth a claim of its own.
pub const SHARD_BYTES_MIN: u64 = 32 << 10;
/// Shards even a small file is cut into, so that several streamers have something to do.
pub const SHARDS_WANTED: u64 = 8;
/// Most shards of one file: each is a key, and all of a source's keys are listed at once.
pub const SHARDS_MAX: u64 = 4096;

/// How far a cut may look for a line feed outside quotes, in bytes: the longest record taken.
const BALANCED_SCAN_MAX: u64 = 1 << 20;
/// Where a cut falls if there is no line feed at all, in bytes: bounds what a reader holds. The
/// record cut in two is rejected on either side.
const SCAN_MAX: u64 = 16 << 20;
/// Read buffer, in bytes.
const BUFFER_BYTES: usize = 1 << 20;

/// The shard size for a file with `bytes` behind its header.
pub fn shard_bytes(bytes: u64) -> u64 {
    let shared = (bytes / SHARDS_WANTED).max(SHARD_BYTES_MIN);
    SHARD_BYTES.min(shared).max(bytes.div_ceil(SHARDS_MAX))
}

/// Cuts `[header_end, size)` into ranges of `shard_bytes` or a little more (the last one may be
/// shorter). They tile it exactly. Reads all of it once, with one buffer.
///
/// # Errors
/// When reading fails, or the file ends before `size`.
pub fn cut(
    mut reader: impl Read + Seek,
    size: u64,
    header_end: u64,
    shard_bytes: u64,
) -> io::Result<Vec<Range<u64>>> {
    reader.seek(SeekFrom::Start(header_end))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut cutter = Cutter::new(header_end, size, shard_bytes.max(1));
    while cutter.at < size && cutter.target < size {
        let most = usize::try_from(size - cutter.at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let got = reader.read(&mut buffer[..most])?; // `most` is at most its length
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        cutter.feed(&buffer[..got]);
    }
    Ok(cutter.finish())
}

struct Cutter {
    shard_bytes: u64,
    size: u64,
    cuts: Vec<Range<u64>>,
    /// Start of the shard being measured.
    start: u64,
    /// From here on a boundary is looked for.
    target: u64,
    /// Bytes before this one were looked at.
    at: u64,
    /// Whether `at` is inside quotes.
    quoted: bool,
    /// Behind the first line feed inside quotes after `target`, and how `quoted` stood there.
    fallback: Option<u64>,
}

impl Cutter {
    fn new(start: u64, size: u64, shard_bytes: u64) -> Self {
        let target = start.saturating_add(shard_bytes);
        Self {
            shard_bytes,
            size,
            cuts: Vec::new(),
            start,
            target,
            at: start,
            quoted: false,
            fallback: None,
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let used = if self.at < self.target { self.count(bytes) } else { self.look(bytes) };
            bytes = bytes.get(used..).unwrap_or_default();
        }
    }

    /// Counts quotes up to the target.
    fn count(&mut self, bytes: &[u8]) -> usize {
        let far = usize::try_from(self.target - self.at).unwrap_or(usize::MAX).min(bytes.len());
        let quotes = memchr::memchr_iter(b'"', bytes.get(..far).unwrap_or_default()).count();
        self.quoted ^= quotes % 2 == 1;
        self.at += far as u64;
        far
    }

    /// Looks for a boundary; stops behind the byte that decides.
    fn look(&mut self, bytes: &[u8]) -> usize {
        let looked = self.at - self.target;
        let bound = if looked < BALANCED_SCAN_MAX { BALANCED_SCAN_MAX } else { SCAN_MAX };
        let far = usize::try_from(bound - looked).unwrap_or(usize::MAX).min(bytes.len());
        for hit in memchr::memchr2_iter(b'"', b'\n', bytes.get(..far).unwrap_or_default()) {
            let behind = self.at + hit as u64 + 1;
            if bytes.get(hit) == Some(&b'"') {
                self.quoted = !self.quoted;
            } else if !self.quoted || looked >= BALANCED_SCAN_MAX {
                self.at = behind;
                self.quoted = false;
                self.cut(behind);
                return hit + 1;
            } else {
                self.fallback.get_or_insert(behind);
            }
        }
        self.at += far as u64;
        if self.at - self.target == bound {
            self.give_up(bound);
        }
        far
    }

    /// No boundary within `bound`: a stray quote turned the parity, or there is no line feed.
    fn give_up(&mut self, bound: u64) {
        if let Some(behind) = self.fallback {
            // That line feed does end a record, so what was inside quotes is outside.
            self.quoted = !self.quoted;
            self.cut(behind);
        } else if bound == SCAN_MAX {
            self.cut(self.at);
        }
    }

    fn cut(&mut self, at: u64) {
        if at < self.size {
            self.cuts.push(self.start..at);
            self.start = at;
            // Not behind what was looked at: its quotes are counted already.
            self.target = at.saturating_add(self.shard_bytes).max(self.at);
        } else {
            self.target = self.size;
        }
        self.fallback = None;
    }

    fn finish(mut self) -> Vec<Range<u64>> {
        if self.start < self.size {
            self.cuts.push(self.start..self.size);
        }
        self.cuts
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn cut_text(text: &[u8], header_end: u64, shard_bytes: u64) -> Vec<Range<u64>> {
        cut(Cursor::new(text), text.len() as u64, header_end, shard_bytes).unwrap()
    }

    fn records(bytes: &[u8]) -> Vec<csv::ByteRecord> {
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
        reader.byte_records().map(|r| r.unwrap()).collect()
    }

    fn check_tiles(shards: &[Range<u64>], start: u64, end: u64) {
        let mut at = start;
        for shard in shards {
            assert_eq!(shard.start, at);
            assert!(shard.end > shard.start);
            at = shard.end;
        }
        assert_eq!(at, end.max(start));
    }

    #[test]
    fn the_plan_shares_small_files_and_bounds_the_keys_of_large_ones() {
        let check = |bytes: u64, expected: u64| assert_eq!(shard_bytes(bytes), expected);
        check(0, SHARD_BYTES_MIN);
        check(8 * SHARD_BYTES_MIN, SHARD_BYTES_MIN);
        check(1 << 20, 128 << 10);
        check(1 << 30, SHARD_BYTES);
        check(1 << 40, 256 << 20);
    }

    #[test]
    fn cuts_fall_behind_line_feeds() {
        let check = |text: &str, header_end, shard_bytes, expected: &[(u64, u64)]| {
            let shards = cut_text(text.as_bytes(), header_end, shard_bytes);
            let shards: Vec<_> = shards.iter().map(|s| (s.start, s.end)).collect();
            assert_eq!(shards, expected, "{text:?}");
        };
        check("h\n", 2, 4, &[]);
        check("h\na\nb\nc\n", 2, 1, &[(2, 4), (4, 6), (6, 8)]);
        check("h\na\nb\nc", 2, 3, &[(2, 6), (6, 7)]);
        check("h\na\nb\n", 2, 100, &[(2, 6)]);
        check("\"a\nb\"\nc\n", 0, 1, &[(0, 6), (6, 8)]);
    }

    #[test]
    fn a_stray_quote_costs_no_shard() {
        let mut text = b"a\",1\n".to_vec();
        for n in 0..600_000 {
            text.extend_from_slice(format!("b,{n}\n").as_bytes());
        }
        let shards = cut_text(&text, 0, 1 << 20);
        check_tiles(&shards, 0, text.len() as u64);
        assert!(shards.len() >= 3, "{shards:?}");
        let whole = records(&text).len();
        let parts: usize =
            shards.iter().map(|s| records(&text[s.start as usize..s.end as usize]).len()).sum();
        assert_eq!(parts, whole);
    }

    #[test]
    fn a_line_without_end_is_cut_hard() {
        let text = vec![b'x'; 40 << 20];
        let shards = cut_text(&text, 0, 1 << 20);
        assert_eq!(shards, [0..17 << 20, 17 << 20..34 << 20, 34 << 20..40 << 20]);
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let error = cut(Cursor::new(b"a\nb\n"), 400, 0, 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-z0-9]{0,6}",
            "[a-z,\n\r\"]{0,8}".prop_map(|t| format!("\"{}\"", t.replace('"', "\"\""))),
        ]
    }

    proptest! {
        #[test]
        fn shards_tile_the_file_and_keep_records_whole(
            rows in prop::collection::vec(prop::collection::vec(field(), 2..5), 0..60),
            crlf: bool,
            end_missing: bool,
            shard_bytes in 1u64..80,
        ) {
            let line_end = if crlf { "\r\n" } else { "\n" };
            let lines: Vec<String> = rows.iter().map(|row| row.join(",")).collect();
            let mut text = lines.join(line_end);
            if !end_missing && !text.is_empty() {
                text += line_end;
            }
            let bytes = text.as_bytes();
            let shards = cut_text(bytes, 0, shard_bytes);
            check_tiles(&shards, 0, bytes.len() as u64);
            let parts: Vec<_> = shards
                .iter()
                .flat_map(|s| records(&bytes[s.start as usize..s.end as usize]))
                .collect();
            prop_assert_eq!(parts, records(bytes));
        }

        #[test]
        fn any_bytes_are_tiled(
            bytes in prop::collection::vec(prop_oneof![Just(b'"'), Just(b'\n'), any::<u8>()], 0..400),
            shard_bytes in 0u64..60,
        ) {
            check_tiles(&cut_text(&bytes, 0, shard_bytes), 0, bytes.len() as u64);
        }
    }
}
