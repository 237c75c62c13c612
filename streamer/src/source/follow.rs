//! A file that grows: rows that are complete, and what becomes of it when it is rotated.
//!
//! A file is known by its inode and its first bytes, not by its path. (The number of its device is
//! not looked at: it changes when a machine starts anew.) Whoever stands in one reads it to its
//! end, whatever it is called by now, before going on with the one that has its path.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nexus_common::{
    keyspace::{Followed, Mapping},
    sources::{
        header::{HEADER_BYTES_MAX, Layout, read_header},
        input::Input,
    },
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    csv::{Batch, BatchLimits, ReadError, SeriesCache, ShardReader},
    file::{FileError, open},
    sessions,
};

/// Bytes of a file's head that it is known by: more than its header, so that they hold a time.
const HEAD_BYTES: u64 = 4096;
/// What is looked at once, in bytes: thousands of rows.
const LOOK_BYTES: u64 = 4 << 20;
/// What is looked at where no row ends in that, in bytes: longer than any row.
const LOOK_BYTES_MAX: u64 = 16 << 20;
/// How long a file that was rotated away must have been still before it counts as ended: its
/// writer may not have noticed yet.
const STILL: Duration = Duration::from_secs(2);
/// Most entries of a folder among which a file that was renamed is looked for.
const SIBLINGS_MAX: usize = 10_000;

/// One look at a file.
#[derive(Debug)]
pub(crate) enum Look {
    /// Rows that were not there before.
    Rows(Batch),
    /// Nothing new.
    Nothing,
    /// Another file has the path, and this one was read to its end.
    Switched,
    /// The file was made shorter than it was read, so it begins anew.
    Truncated,
}

/// A followed file, and how far it was read.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    mapping: Option<Box<Mapping>>,
    file: File,
    layout: Arc<Layout>,
    position: u64,
    head: Head,
    cache: SeriesCache,
    /// Since when another file has the path and this one has been still, and how long it was.
    still: Option<(Instant, u64)>,
}

/// The first bytes of a file, as far as they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Head {
    bytes: u64,
    hash: u64,
}

impl Tail {
    /// Opens the file that is at `path`, or the one that was stood in, whatever it is called now.
    /// None while there is no header yet. The flag says that what was left of the earlier file was
    /// not found.
    ///
    /// # Errors
    /// When a file cannot be read, or its first line is not a header.
    pub(crate) fn open(
        path: &Path,
        mapping: Option<Box<Mapping>>,
        stood: Option<&Followed>,
    ) -> Result<(Option<Self>, bool), FileError> {
        let Some(stood) = stood else {
            return Ok((Self::begin(path, mapping)?, false));
        };
        let head = Head { bytes: stood.head_bytes, hash: stood.head_hash };
        let fail = |source| FileError::io(path, source);
        let here = known(path, stood.inode, head).map_err(fail)?;
        let file = match here {
            Some(file) => Some(file),
            None => renamed(path, stood.inode, head).map_err(fail)?,
        };
        let Some(mut file) = file else { return Ok((Self::begin(path, mapping)?, true)) };
        let Some((mut layout, _)) = header(path, &mut file, mapping.as_deref())? else {
            return Ok((Self::begin(path, mapping)?, true));
        };
        if layout.gpu_z {
            file.seek(SeekFrom::Start(0)).map_err(fail)?;
            let last = sessions::headers(file.by_ref().take(stood.position)).map_err(fail)?.last;
            layout = understood(path, &last, mapping.as_deref())?;
        }
        let (position, cache) = (stood.position, SeriesCache::default());
        let path = path.to_owned();
        Ok((Some(Self { path, mapping, file, layout, position, head, cache, still: None }), false))
    }

    /// The file that has the path now, from its first row. None while it has no header.
    fn begin(path: &Path, mapping: Option<Box<Mapping>>) -> Result<Option<Self>, FileError> {
        let mut file = open(path)?;
        let Some((layout, position)) = header(path, &mut file, mapping.as_deref())? else {
            return Ok(None);
        };
        let (path, cache) = (path.to_owned(), SeriesCache::default());
        let head = Head::default();
        Ok(Some(Self { path, mapping, file, layout, position, head, cache, still: None }))
    }

    /// Where it stands.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn followed(&self) -> io::Result<Followed> {
        Ok(Followed {
            inode: self.file.metadata()?.ino(),
            head_bytes: self.head.bytes,
            head_hash: self.head.hash,
            position: self.position,
        })
    }

    /// Columns that are read by nobody.
    pub(crate) fn ignored(&self) -> &[String] {
        self.layout.ignored()
    }

    /// Takes what is complete behind the position, or goes on with the next file.
    ///
    /// # Errors
    /// When a file cannot be read, or the next one's first line is not a header.
    pub(crate) fn look(&mut self, limits: &BatchLimits, now: Instant) -> Result<Look, ReadFailed> {
        let path = self.path.clone();
        let fail = |source| ReadFailed::File(FileError::io(&path, source));
        let bytes = self.file.metadata().map_err(fail)?.len();
        if bytes < self.position || self.head_changed().map_err(fail)? {
            return self.truncated();
        }
        let end = complete(&mut self.file, self.position, bytes).map_err(fail)?;
        if end > self.position {
            self.still = None;
            let Some(end) = self.session(end)? else { return Ok(Look::Nothing) };
            return self.read(end, limits).map(Look::Rows);
        }
        if !self.replaced().map_err(fail)? {
            self.still = None;
            return Ok(Look::Nothing);
        }
        match self.still {
            Some((since, was)) if was == bytes => {
                if now.saturating_duration_since(since) < STILL {
                    return Ok(Look::Nothing);
                }
            }
            _ => {
                self.still = Some((now, bytes));
                return Ok(Look::Nothing);
            }
        }
        if bytes > self.position {
            // Nobody will write the end of its last row any more.
            return self.read(bytes, limits).map(Look::Rows);
        }
        self.switch()
    }

    /// Where the rows of this session end; none where another one's header came first, and was
    /// taken.
    fn session(&mut self, end: u64) -> Result<Option<u64>, FileError> {
        if !self.layout.gpu_z {
            return Ok(Some(end));
        }
        let fail = |source| FileError::io(&self.path, source);
        self.file.seek(SeekFrom::Start(self.position)).map_err(fail)?;
        let new = sessions::headers((&self.file).take(end - self.position)).map_err(fail)?;
        let Some(first) = new.at.first() else { return Ok(Some(end)) };
        if first.start > 0 {
            return Ok(Some(self.position + first.start));
        }
        let mut line = Vec::new();
        self.file.seek(SeekFrom::Start(self.position)).map_err(fail)?;
        (&self.file).take(first.end).read_to_end(&mut line).map_err(fail)?;
        self.layout = understood(&self.path, &line, self.mapping.as_deref())?;
        self.position += first.end;
        Ok(None)
    }

    /// The next file has the path; it may be seen before its header is.
    fn switch(&mut self) -> Result<Look, ReadFailed> {
        match Self::begin(&self.path, self.mapping.clone())? {
            Some(next) => {
                let cache = std::mem::take(&mut self.cache);
                *self = Self { cache, ..next };
                Ok(Look::Switched)
            }
            None => Ok(Look::Nothing),
        }
    }

    fn truncated(&mut self) -> Result<Look, ReadFailed> {
        let mapping = self.mapping.as_deref();
        let Some((layout, position)) = header(&self.path, &mut self.file, mapping)? else {
            return Ok(Look::Nothing);
        };
        (self.layout, self.position) = (layout, position);
        (self.head, self.still) = (Head::default(), None);
        Ok(Look::Truncated)
    }

    /// Whether the head is not what it was: the file was written anew, and is as long as before.
    fn head_changed(&mut self) -> io::Result<bool> {
        let known = self.head;
        Ok(known.bytes > 0 && head(&mut self.file, known.bytes)? != known)
    }

    /// Whether another file has the path.
    fn replaced(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if there.ino() == own.ino() && there.dev() == own.dev() => Ok(false),
            Ok(_) => Ok(true),
            // Renamed, and the next is not made yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, end: u64, limits: &BatchLimits) -> Result<Batch, ReadFailed> {
        let io = |source| {
            let (path, offset) = (self.path.clone(), self.position);
            ReadFailed::Rows(ReadError::Io { path, offset, source })
        };
        let mut file = self.file.try_clone().map_err(io)?;
        file.seek(SeekFrom::Start(self.position)).map_err(io)?;
        let (layout, range) = (Arc::clone(&self.layout), self.position..end);
        let reader = ShardReader::over(Input::Plain(file), &self.path, layout, range);
        let mut reader = reader.with_cache(std::mem::take(&mut self.cache));
        let batch = reader.read_batch(limits);
        self.cache = reader.into_cache();
        let batch = batch?;
        self.position = batch.end_offset;
        let known = self.position.min(HEAD_BYTES);
        if self.head.bytes < known {
            self.head =
                head(&mut self.file, known).map_err(|source| FileError::io(&self.path, source))?;
        }
        Ok(batch)
    }

    /// Goes back, to read the same rows in smaller batches.
    pub(crate) fn back_to(&mut self, position: u64) {
        self.position = position;
    }

    /// The path that is followed.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How far this file was read, in bytes.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFailed {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Rows(#[from] ReadError),
}

/// What the columns mean and where the first row begins; none while the first line is not whole.
fn header(
    path: &Path,
    file: &mut File,
    mapping: Option<&Mapping>,
) -> Result<Option<(Arc<Layout>, u64)>, FileError> {
    let fail = |source| FileError::io(path, source);
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    file.by_ref().take(HEADER_BYTES_MAX).read_to_end(&mut head).map_err(fail)?;
    if !head.contains(&b'\n') && (head.len() as u64) < HEADER_BYTES_MAX {
        return Ok(None);
    }
    let (_, end) = read_header(&head).map_err(fail)?;
    Ok(Some((understood(path, &head, mapping)?, end)))
}

/// What the columns of a text's first line mean.
fn understood(
    path: &Path,
    text: &[u8],
    mapping: Option<&Mapping>,
) -> Result<Arc<Layout>, FileError> {
    let (record, _) = read_header(text).map_err(|source| FileError::io(path, source))?;
    let layout = Layout::parse_as(&record, mapping);
    layout.map(Arc::new).map_err(|source| FileError::Header { path: path.to_owned(), source })
}

fn head(file: &mut File, bytes: u64) -> io::Result<Head> {
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(bytes).read_to_end(&mut read)?;
    Ok(Head { bytes: read.len() as u64, hash: xxh3_64(&read) })
}

/// The file at `path`, if it is the one with this inode and head. One that was made shorter is.
fn known(path: &Path, inode: u64, known: Head) -> io::Result<Option<File>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() || metadata.ino() != inode {
        return Ok(None);
    }
    let mut file = File::open(path)?;
    Ok((head(&mut file, known.bytes)? == known).then_some(file))
}

/// The file with this inode and head among those beside `path`: rotation renames within a folder.
fn renamed(path: &Path, inode: u64, head: Head) -> io::Result<Option<File>> {
    let Some(folder) = path.parent() else { return Ok(None) };
    for entry in std::fs::read_dir(folder)?.take(SIBLINGS_MAX) {
        // One that goes while we look is not the one, or is gone.
        let Ok(entry) = entry else { continue };
        if let Ok(Some(file)) = known(&entry.path(), inode, head) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Behind the last line feed outside quotes, from `from` (where a record begins) on; `from` if
/// there is none. Looks at [`LOOK_BYTES_MAX`] at most: a row without end in all of them is cut
/// there.
fn complete(file: &mut File, from: u64, bytes: u64) -> io::Result<u64> {
    for look in [LOOK_BYTES, LOOK_BYTES_MAX] {
        let most = bytes.saturating_sub(from).min(look);
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.by_ref().take(most).read_to_end(&mut read)?;
        let end = last_end(&read);
        if end > 0 || (read.len() as u64) < look {
            return Ok(from + end);
        }
    }
    Ok(from + LOOK_BYTES_MAX)
}

/// Behind the last line feed outside quotes, 0 if there is none. A quote within a field that did
/// not begin with one is text.
fn last_end(read: &[u8]) -> u64 {
    let (mut quoted, mut end) = (false, 0);
    let mut hits = memchr::memchr2_iter(b'"', b'\n', read).peekable();
    while let Some(at) = hits.next() {
        let before = at.checked_sub(1).and_then(|before| read.get(before));
        match (read.get(at), quoted) {
            (Some(b'"'), false) => quoted = matches!(before, None | Some(b',' | b'\n' | b'\r')),
            (Some(b'"'), true) if read.get(at + 1) == Some(&b'"') => drop(hits.next()),
            (Some(b'"'), true) => quoted = false,
            (_, false) => end = at + 1,
            (_, true) => {}
        }
    }
    end as u64
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const HEADER: &str = "timestamp,hostname,uuid,temperature\n";

    fn row(n: u64) -> String {
        format!("2025-07-18T20:42:{:02}.{:03}Z,h,GPU-1,{n}\n", n / 1000, n % 1000)
    }

    fn rows(range: std::ops::Range<u64>) -> String {
        range.map(row).collect()
    }

    struct Case {
        folder: tempfile::TempDir,
        now: Instant,
        tail: Option<Tail>,
        seen: Vec<f64>,
        rejected: u64,
    }

    impl Case {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("log.csv"), text).unwrap();
            let (tail, lost) = Tail::open(&folder.path().join("log.csv"), None, None).unwrap();
            assert!(!lost);
            Self { folder, now: Instant::now(), tail, seen: Vec::new(), rejected: 0 }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn append(&self, name: &str, text: &str) {
            let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rename(&self, from: &str, to: &str) {
            std::fs::rename(self.path(from), self.path(to)).unwrap();
        }

        /// Looks until nothing is new, and long enough for a file that was rotated to count as
        /// ended.
        fn drain(&mut self) {
            let mut nothing = 0;
            let tail = self.tail.as_mut().unwrap();
            let limits = BatchLimits { rows_max: 7, ..BatchLimits::default() };
            while nothing < 3 {
                match tail.look(&limits, self.now).unwrap() {
                    Look::Rows(batch) => {
                        let series = batch.hosts.iter().flat_map(|host| &host.series);
                        self.seen.extend(series.flat_map(|series| series.values.clone()));
                        self.rejected += batch.rows_rejected();
                        nothing = 0;
                    }
                    Look::Nothing => {
                        self.now += STILL;
                        nothing += 1;
                    }
                    Look::Switched | Look::Truncated => nothing = 0,
                }
            }
        }

        /// Somebody else goes on from what was written down. Whether anything was lost.
        fn taken_over(&mut self) -> bool {
            let stood = self.tail.as_ref().unwrap().followed().unwrap();
            let json = serde_json::to_string(&stood).unwrap();
            let stood: Followed = serde_json::from_str(&json).unwrap();
            let (tail, lost) = Tail::open(&self.path("log.csv"), None, Some(&stood)).unwrap();
            self.tail = tail;
            lost
        }

        fn check(&self, rows: u64) {
            let expected: Vec<f64> = (0..rows).map(|n| n as f64).collect();
            assert_eq!(self.seen, expected);
            assert_eq!(self.rejected, 0);
        }
    }

    #[test]
    fn rows_come_when_they_are_whole() {
        let mut case = Case::new(&format!("{HEADER}{}", rows(0..20)));
        case.drain();
        case.check(20);
        let line = row(20);
        let (half, rest) = line.split_at(line.len() - 3);
        case.append("log.csv", half);
        case.drain();
        case.check(20);
        assert!(!case.taken_over());
        case.append("log.csv", &format!("{rest}{}", rows(21..40)));
        case.drain();
        case.check(40);
    }

    #[test]
    fn a_line_feed_within_quotes_ends_no_row() {
        let mut case = Case::new(HEADER);
        case.append("log.csv", "2025-07-18T20:42:34Z,\"a\nb");
        case.drain();
        case.append("log.csv", &format!("\",GPU-1,50\n{}", row(0)));
        case.drain();
        assert_eq!((case.seen.clone(), case.rejected), (vec![0.0], 1), "one row, of a bad host");
    }

    #[test]
    fn rows_end_where_a_reader_of_csv_ends_them() {
        let check =
            |text: &str, expected| assert_eq!(last_end(text.as_bytes()), expected, "{text}");
        check("", 0);
        check("a,b", 0);
        check("a,b\nc", 4);
        check("\"a\nb", 0);
        check("\"a\nb\"\nc", 6);
        check("\"a\"\"\nb\"\n", 8);
        check("5\" disk,\"a\nb\"\nc", 14);
        check("5\" disk\nc", 8);
    }

    #[test]
    fn a_file_that_is_renamed_is_read_to_its_end_before_the_next() {
        for taken_over in [false, true] {
            let mut case = Case::new(&format!("{HEADER}{}", rows(0..10)));
            case.drain();
            case.append("log.csv", &rows(10..15));
            case.rename("log.csv", "log.csv.1");
            // Its writer has not noticed yet, and never ends the last row.
            case.append("log.csv.1", rows(15..20).trim_end());
            case.append("log.csv", HEADER);
            case.append("log.csv", &rows(20..30));
            assert!(!(taken_over && case.taken_over()));
            case.drain();
            case.check(30);
            case.append("log.csv", &rows(30..31));
            assert!(!(taken_over && case.taken_over()));
            case.drain();
            case.check(31);
        }
    }

    #[test]
    fn a_file_that_is_gone_is_waited_for() {
        let mut case = Case::new(&format!("{HEADER}{}", rows(0..3)));
        case.drain();
        case.rename("log.csv", "old");
        case.append("old", &rows(3..5));
        case.drain();
        case.append("log.csv", HEADER.split_at(9).0);
        case.drain();
        case.check(5);
        case.append("log.csv", &format!("{}{}", HEADER.split_at(9).1, rows(5..8)));
        case.drain();
        case.check(8);
    }

    #[test]
    fn one_that_is_emptied_and_written_anew_is_read_from_its_beginning() {
        for (length, taken_over) in [(1, false), (1, true), (60, false), (60, true)] {
            let mut case = Case::new(&format!("{HEADER}{}", rows(0..20)));
            case.drain();
            // Shorter than before, and longer.
            let text = format!("{HEADER}{}", rows(20..20 + length));
            std::fs::write(case.path("log.csv"), text).unwrap();
            if taken_over {
                case.taken_over();
            }
            case.drain();
            case.check(20 + length);
        }
    }

    #[test]
    fn what_was_deleted_before_it_was_read_is_told() {
        let mut case = Case::new(&format!("{HEADER}{}", rows(0..3)));
        case.drain();
        case.append("log.csv", &rows(100..103));
        std::fs::remove_file(case.path("log.csv")).unwrap();
        case.append("log.csv", &format!("{HEADER}{}", rows(3..6)));
        assert!(case.taken_over());
        case.drain();
        case.check(6);
    }

    #[test]
    fn a_row_without_end_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long");
        std::fs::write(&path, vec![b'x'; LOOK_BYTES_MAX as usize + 1]).unwrap();
        let mut file = File::open(&path).unwrap();
        assert_eq!(complete(&mut file, 1, LOOK_BYTES_MAX).unwrap(), 1, "not long enough");
        assert_eq!(complete(&mut file, 1, LOOK_BYTES_MAX + 1).unwrap(), LOOK_BYTES_MAX + 1);
    }
}
