//! A CSV file as a source: what it is, and whether it still is the file it was.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use nexus_common::{
    keyspace::Mapping,
    model::{IdError, SourceId, Timestamp},
    sources::{
        header::{HEADER_BYTES_MAX, HeaderError, Layout, read_header},
        input::{Input, Packing, packing, tail},
    },
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{csv::parse_local, fetched::FetchFileError, sessions, shards};

/// Bytes of either end of a file that identify it: enough to hold timestamps and values.
const EDGE_BYTES: u64 = 64 * 1024;
/// Longest part of a source id that comes from the file's name, in bytes.
const STEM_BYTES_MAX: usize = 64;

/// Why a file cannot be a source. Every message names the path and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Nothing there.
    #[error("open {0}: no such file; give the path of a CSV file that this streamer can read")]
    Missing(PathBuf),
    /// Not a regular file.
    #[error("open {0}: not a regular file (a directory, a pipe or a device); give one CSV file")]
    NotAFile(PathBuf),
    /// No permission.
    #[error("open {0}: permission denied; let the user that runs the streamer read it")]
    Denied(PathBuf),
    /// Any other trouble.
    #[error("read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The first line is not a header, or there is none.
    #[error("read {path}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// Not the file that was registered.
    #[error(
        "read {path}: it changed since it was registered ({was} bytes then, {is} now); put the \
         same file back, or register this one as a new source"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its size at registration.
        was: u64,
        /// Its size now.
        is: u64,
    },
    /// It lies on a web server, and is not to be had.
    #[error(transparent)]
    Fetch(#[from] Box<FetchFileError>),
}

impl From<FetchFileError> for FileError {
    fn from(error: FetchFileError) -> Self {
        Self::Fetch(Box::new(error))
    }
}

impl FileError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing(path.to_owned()),
            io::ErrorKind::PermissionDenied => Self::Denied(path.to_owned()),
            io::ErrorKind::IsADirectory => Self::NotAFile(path.to_owned()),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// The same of the file that this one is a copy of.
    pub(crate) fn of(self, name: &str) -> Self {
        let path = PathBuf::from(name);
        match self {
            Self::Missing(_) => Self::Missing(path),
            Self::NotAFile(_) => Self::NotAFile(path),
            Self::Denied(_) => Self::Denied(path),
            Self::Io { source, .. } => Self::Io { path, source },
            Self::Header { source, .. } => Self::Header { path, source },
            Self::Changed { was, is, .. } => Self::Changed { path, was, is },
            Self::Fetch(error) => Self::Fetch(error),
        }
    }
}

/// What tells a file from another or from its former self, wherever it lies: its size and the
/// hashes of its ends. A change in the middle that keeps the size goes unnoticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Size.
    pub bytes: u64,
    /// xxh3 of the first 64 KiB.
    #[serde(with = "hex")]
    pub head_hash: u64,
    /// xxh3 of the last 64 KiB.
    #[serde(with = "hex")]
    pub tail_hash: u64,
}

/// Hashes as text: JSON readers round numbers above 2^53.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{hash:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

/// Reads the identity of an open file.
///
/// # Errors
/// When it cannot be read.
pub fn identity(file: &mut File) -> io::Result<FileIdentity> {
    let bytes = file.metadata()?.len();
    let head_hash = xxh3_64(&read_at(file, 0, EDGE_BYTES.min(bytes))?);
    let tail_hash = xxh3_64(&read_at(file, bytes.saturating_sub(EDGE_BYTES), EDGE_BYTES)?);
    Ok(FileIdentity { bytes, head_hash, tail_hash })
}

/// The source id of a file: its stem, and eight hex digits of its identity, so that the same
/// file is the same source under any directory.
///
/// # Errors
/// None in practice: the text is made of allowed characters and at most 73 bytes long.
pub fn source_id(path: &Path, identity: &FileIdentity) -> Result<SourceId, IdError> {
    let mut hash = Xxh3::new();
    for part in [identity.bytes, identity.head_hash, identity.tail_hash] {
        hash.update(&part.to_le_bytes());
    }
    let digits = hash.digest() >> 32;
    SourceId::new(&format!("{}-{digits:08x}", stem(path)))
}

/// The source id of a file that is followed: its content is no name, so its path is.
///
/// # Errors
/// None in practice, as for [`source_id`].
pub(crate) fn id_of_path(path: &Path) -> Result<SourceId, IdError> {
    let digits = xxh3_64(path.as_os_str().as_encoded_bytes()) >> 32;
    SourceId::new(&format!("{}-{digits:08x}.follow", stem(path)))
}

/// The stem of a file's name, in characters that an id may have.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let mut stem: String =
        stem.chars().map(|c| if allowed(c) { c } else { '-' }).take(STEM_BYTES_MAX).collect();
    if stem.is_empty() {
        stem.push_str("file");
    }
    stem
}

fn read_at(file: &mut File, from: u64, most: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A file whose header was understood.
#[derive(Debug, Clone)]
pub struct CsvFile {
    /// Where it is.
    pub path: PathBuf,
    /// What its columns mean.
    pub layout: Arc<Layout>,
    /// Byte at which the first row begins; of what is in it, where it is packed.
    pub header_end: u64,
    /// How it is packed.
    pub packing: Packing,
    /// What its columns mean, where its header does not say it.
    pub mapping: Option<Box<Mapping>>,
    /// What it is.
    pub identity: FileIdentity,
}

impl CsvFile {
    /// Opens a file and reads its header. Blocking, as everything here.
    ///
    /// # Errors
    /// When it cannot be read or its first line is not a header.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_as(path, None)
    }

    /// Likewise, with a mapping for what the header does not say.
    ///
    /// # Errors
    /// As there.
    pub fn open_as(path: &Path, mapping: Option<Box<Mapping>>) -> Result<Self, FileError> {
        let fail = |source| FileError::io(path, source);
        let mut file = open(path)?;
        let identity = identity(&mut file).map_err(fail)?;
        let packing = packing(&mut file).map_err(fail)?;
        let mut head = Vec::new();
        let input = Input::open(path, 0).map_err(fail)?;
        input.take(HEADER_BYTES_MAX).read_to_end(&mut head).map_err(fail)?;
        let (header, header_end) = read_header(&head).map_err(fail)?;
        let layout = Layout::parse_as(&header, mapping.as_deref())
            .map_err(|source| FileError::Header { path: path.to_owned(), source })?;
        Ok(Self {
            path: path.to_owned(),
            layout: Arc::new(layout),
            header_end,
            packing,
            mapping,
            identity,
        })
    }

    /// Like [`CsvFile::open`], for a file that was registered before.
    ///
    /// # Errors
    /// As there, and when it is not the file that `registered` describes.
    pub fn open_same(path: &Path, registered: &FileIdentity) -> Result<Self, FileError> {
        let fail = |source| FileError::io(path, source);
        let found = identity(&mut open(path)?).map_err(fail)?;
        if found != *registered {
            let (was, is) = (registered.bytes, found.bytes);
            return Err(FileError::Changed { path: path.to_owned(), was, is });
        }
        Self::open(path)
    }

    /// Its id as a source.
    ///
    /// # Errors
    /// See [`source_id`].
    pub fn source_id(&self) -> Result<SourceId, IdError> {
        source_id(&self.path, &self.identity)
    }

    /// The file as a shard that begins at `start` is to be read: where sessions have headers of
    /// their own, that of its session counts. Reads all before it, then.
    ///
    /// # Errors
    /// When it cannot be read, or that header not be understood.
    pub fn at_shard(mut self, start: u64) -> Result<Self, FileError> {
        if self.layout.gpu_z && start > self.header_end {
            let fail = |source| FileError::io(&self.path, source);
            let before = Input::open(&self.path, 0).map_err(fail)?.take(start);
            let header = sessions::headers(before).map_err(fail)?.last;
            let (header, _) = read_header(&header).map_err(fail)?;
            let layout = Layout::parse_as(&header, self.mapping.as_deref())
                .map_err(|source| FileError::Header { path: self.path.clone(), source })?;
            self.layout = Arc::new(layout);
        }
        Ok(self)
    }

    /// How many bytes there are in it. Reads all of a packed file.
    ///
    /// # Errors
    /// When it cannot be read, or not be unpacked.
    pub fn length(&self) -> Result<u64, FileError> {
        if self.packing == Packing::Plain {
            return Ok(self.identity.bytes);
        }
        self.packed_tail().map(|(_, bytes)| bytes)
    }

    fn packed_tail(&self) -> Result<(Vec<u8>, u64), FileError> {
        let read = Input::open(&self.path, 0).and_then(|mut i| tail(&mut i, EDGE_BYTES as usize));
        read.map_err(|source| FileError::io(&self.path, source))
    }

    /// Its shards, of `shard_bytes` or of the size [`shards::shard_bytes`] plans. Reads the whole
    /// file once. A packed file is one shard: it cannot be entered in the middle. A log of GPU-Z has
    /// one a session.
    ///
    /// # Errors
    /// When it cannot be read or became shorter.
    pub fn shards(&self, shard_bytes: Option<u64>) -> Result<Vec<Range<u64>>, FileError> {
        if self.layout.gpu_z {
            let fail = |source| FileError::io(&self.path, source);
            let found = sessions::headers(Input::open(&self.path, 0).map_err(fail)?);
            return Ok(sessions::rows(&found.map_err(fail)?.at, self.length()?));
        }
        if self.packing != Packing::Plain {
            let whole = self.header_end..self.length()?;
            return Ok(if whole.is_empty() { Vec::new() } else { vec![whole] });
        }
        let file = open(&self.path)?;
        let size = self.identity.bytes;
        let planned = || shards::shard_bytes(size.saturating_sub(self.header_end));
        shards::cut(file, size, self.header_end, shard_bytes.unwrap_or_else(planned))
            .map_err(|source| FileError::io(&self.path, source))
    }

    /// First and last timestamp, from the rows of the file's ends: what a paced replay spreads
    /// over time. None if no row there has one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn span(&self) -> Result<Option<(Timestamp, Timestamp)>, FileError> {
        let fail = |source| FileError::io(&self.path, source);
        let mut head = Vec::new();
        let input = Input::open(&self.path, self.header_end).map_err(fail)?;
        input.take(EDGE_BYTES).read_to_end(&mut head).map_err(fail)?;
        let tail = if self.packing == Packing::Plain {
            let tail_start = self.identity.bytes.saturating_sub(EDGE_BYTES).max(self.header_end);
            read_at(&mut open(&self.path)?, tail_start, EDGE_BYTES).map_err(fail)?
        } else {
            self.packed_tail()?.0
        };
        let mut times = self.timestamps(&head);
        times.extend(self.timestamps(&tail));
        Ok(times.iter().min().copied().zip(times.iter().max().copied()))
    }

    fn timestamps(&self, bytes: &[u8]) -> Vec<Timestamp> {
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
        let records = reader.byte_records().map_while(Result::ok);
        records
            .filter_map(|r| parse_local(self.layout.timestamp_of(&r)?, self.layout.east_ms))
            .collect()
    }
}

pub(crate) fn open(path: &Path) -> Result<File, FileError> {
    let fail = |source| FileError::io(path, source);
    // Asked before opening: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    File::open(path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn written(name: &str, text: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    const HEADER: &str = "timestamp,hostname,uuid,temperature\n";

    #[test]
    fn every_refusal_names_the_path_and_the_remedy() {
        let (dir, empty) = written("empty.csv", b"");
        let check = |path: &Path, expected: &str| {
            let error = CsvFile::open(path).unwrap_err();
            let cause = error.source().map(|s| format!(": {s}")).unwrap_or_default();
            let message = format!("{error}{cause}");
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(message.contains(expected), "{message}");
        };
        check(&dir.path().join("none.csv"), "no such file; give the path");
        check(dir.path(), "not a regular file (a directory");
        check(&empty, "the file is empty; its first line must name the columns");
        let (_dir, other) = written("other.csv", b"a,b\n1,2\n");
        check(&other, "saw the columns [a, b]; known are the long layout");
        let (_dir, binary) = written("binary.csv", &[0xff; 3000]);
        check(&binary, "unknown header");
    }

    #[test]
    fn bom_crlf_and_a_header_alone_are_understood() {
        let check = |text: &str, header_end: usize| {
            let (_dir, path) = written("a.csv", text.as_bytes());
            let file = CsvFile::open(&path).unwrap();
            assert_eq!(file.header_end, header_end as u64, "{text:?}");
            let rows = text.len() - header_end;
            let shards = file.shards(None).unwrap();
            assert_eq!(shards.iter().map(|s| s.end - s.start).sum::<u64>(), rows as u64);
        };
        check(HEADER, HEADER.len());
        check(HEADER.trim_end(), HEADER.len() - 1);
        check(&format!("\u{feff}{HEADER}"), HEADER.len() + 3);
        check(&format!("{}\r\nx\r\n", HEADER.trim_end()), HEADER.len() + 1);
    }

    #[test]
    fn the_same_file_is_the_same_source_anywhere_and_a_changed_one_is_not() {
        let (_a, first) = written("my export (1).csv", HEADER.as_bytes());
        let (_b, second) = written("my export (1).csv", HEADER.as_bytes());
        let file = CsvFile::open(&first).unwrap();
        let id = file.source_id().unwrap();
        assert!(id.as_str().starts_with("my-export--1--"), "{id}");
        assert_eq!(CsvFile::open(&second).unwrap().source_id().unwrap(), id);
        assert_eq!(CsvFile::open_same(&second, &file.identity).unwrap().identity, file.identity);
        std::fs::write(&second, format!("{HEADER}x,y,z,1\n")).unwrap();
        let error = CsvFile::open_same(&second, &file.identity).unwrap_err().to_string();
        assert!(error.contains("(36 bytes then, 44 now)"), "{error}");
    }

    #[test]
    fn identity_survives_json() {
        let identity = FileIdentity { bytes: 1, head_hash: u64::MAX, tail_hash: 2 };
        let text = serde_json::to_string(&identity).unwrap();
        assert_eq!(
            text,
            r#"{"bytes":1,"head_hash":"ffffffffffffffff","tail_hash":"0000000000000002"}"#
        );
        assert_eq!(serde_json::from_str::<FileIdentity>(&text).unwrap(), identity);
    }

    #[test]
    fn the_span_comes_from_both_ends() {
        let mut text = HEADER.to_owned();
        for n in 0..5000 {
            let (minute, second) = (n / 60, n % 60);
            text +=
                &format!("2025-07-18 {:02}:{:02}:{second:02},h,u,1\n", minute / 60, minute % 60);
        }
        let (_dir, path) = written("a.csv", text.as_bytes());
        let (first, last) = CsvFile::open(&path).unwrap().span().unwrap().unwrap();
        assert_eq!(first.to_string(), "2025-07-18T00:00:00Z");
        assert_eq!(last.to_string(), "2025-07-18T01:23:19Z");
        let (_dir, path) = written("b.csv", HEADER.as_bytes());
        assert_eq!(CsvFile::open(&path).unwrap().span().unwrap(), None);
    }
}
