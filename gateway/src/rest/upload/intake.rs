//! A CSV file on its way in: written beside where it will lie, hashed, looked at and counted as it
//! comes, so that none of it is kept in memory. Blocking.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use csv_core::ReadRecordResult;
use nexus_common::{
    keyspace::Mapping,
    sources::{
        header::{HEADER_BYTES_MAX, HeaderError, Layout, read_header},
        input::{Input, MAGIC_BYTES, Packing},
    },
};
use ring::digest::{Context, SHA256};
use tempfile::{Builder, NamedTempFile};

/// What a file is called while it comes in.
pub(super) const PART_PREFIX: &str = ".upload-";
pub(super) const PART_SUFFIX: &str = ".part";
/// Streamers run as other users, and may read.
const MODE: u32 = 0o644;
/// Room for the fields and their ends that only are counted: any size would do.
const FIELD_BYTES: usize = 4096;
const ENDS: usize = 64;
/// What of an unpacked file is looked at at once, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// How many times the largest file's bytes one may unpack to: DCGM's rows shrink twentyfold, and
/// few files are the largest.
const UNPACKED_TIMES_MAX: u64 = 16;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// More bytes than may be.
    #[error(
        "the file has more than {max} bytes, which is the most that is taken (--upload-bytes-max)"
    )]
    TooLarge { max: u64 },
    /// It unpacks to more bytes than may be.
    #[error("the file unpacks to more than {max} bytes, which is the most that is taken")]
    TooLargeUnpacked { max: u64 },
    /// It says that it is packed, and is not, or not to its end.
    #[error("the file is packed and cannot be unpacked: {0}")]
    Packed(#[source] io::Error),
    /// Nothing, or only a header.
    #[error("the file is empty: {0}")]
    Empty(&'static str),
    /// Bytes that no text has.
    #[error("the file is binary ({0}); send the CSV itself, as text in UTF-8")]
    Binary(&'static str),
    /// A first line that is no header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The directory has no room, or is not to be written.
    #[error("write to the directory of uploads: {0}")]
    Write(#[from] io::Error),
}

/// Checks the header and counts records as streamers do, in one small buffer however long a record
/// is.
struct Look {
    core: csv_core::Reader,
    records: u64,
    /// What came before the header was understood.
    head: Option<Vec<u8>>,
    /// What the header does not say.
    mapping: Option<Mapping>,
}

impl Look {
    fn new(mapping: Option<Mapping>) -> Self {
        Self { core: csv_core::Reader::new(), records: 0, head: Some(Vec::new()), mapping }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut left = bytes;
        while !left.is_empty() {
            let read = self.step(left).1;
            left = left.get(read..).unwrap_or_default();
        }
        if let Some(head) = &mut self.head {
            head.extend_from_slice(bytes);
            if self.records > 0 || head.len() as u64 >= HEADER_BYTES_MAX {
                check_head(head, self.mapping.as_ref())?;
                self.head = None;
            }
        }
        Ok(())
    }

    /// How many rows there are behind the header. The last one may lack its line end.
    fn finish(mut self) -> Result<u64, Refusal> {
        if let Some(head) = &self.head {
            check_head(head, self.mapping.as_ref())?;
        }
        // The end is told after the last record: twice at most.
        while self.step(&[]).0 == ReadRecordResult::Record {}
        match self.records.saturating_sub(1) {
            0 => Err(Refusal::Empty("it has a header and no row behind it")),
            rows => Ok(rows),
        }
    }

    fn step(&mut self, bytes: &[u8]) -> (ReadRecordResult, usize) {
        let (mut fields, mut ends) = ([0; FIELD_BYTES], [0; ENDS]);
        let (result, read, ..) = self.core.read_record(bytes, &mut fields, &mut ends);
        self.records += u64::from(result == ReadRecordResult::Record);
        (result, read)
    }
}

/// A file that comes in. Dropped before it was kept, it leaves nothing.
pub(super) struct Intake {
    part: NamedTempFile,
    digest: Context,
    /// How it is packed; none before its first bytes came.
    packing: Option<Packing>,
    begin: Vec<u8>,
    look: Look,
    bytes: u64,
    bytes_max: u64,
}

impl Intake {
    /// Begins a file in `folder`, whose columns mean what `mapping` says.
    pub(super) fn begin(
        folder: &Path,
        bytes_max: u64,
        mapping: Option<Mapping>,
    ) -> Result<Self, Refusal> {
        let part = Builder::new().prefix(PART_PREFIX).suffix(PART_SUFFIX).tempfile_in(folder)?;
        // Whatever the mask of this process: that is for files nobody else reads.
        part.as_file().set_permissions(Permissions::from_mode(MODE))?;
        Ok(Self {
            part,
            digest: Context::new(&SHA256),
            packing: None,
            begin: Vec::new(),
            look: Look::new(mapping),
            bytes: 0,
            bytes_max,
        })
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.bytes_max {
            return Err(Refusal::TooLarge { max: self.bytes_max });
        }
        match self.packing {
            // What is packed is looked at when all of it is there.
            Some(Packing::Gzip | Packing::Zstd) => {}
            Some(Packing::Plain) => self.look.feed(bytes)?,
            None => {
                self.begin.extend_from_slice(bytes);
                if self.begin.len() >= MAGIC_BYTES {
                    self.begun()?;
                }
            }
        }
        self.digest.update(bytes);
        self.part.as_file_mut().write_all(bytes)?;
        Ok(())
    }

    fn begun(&mut self) -> Result<(), Refusal> {
        let packing = Packing::of(&self.begin);
        self.packing = Some(packing);
        if packing == Packing::Plain {
            self.look.feed(&std::mem::take(&mut self.begin))?;
        }
        Ok(())
    }

    /// Takes the file's end: what there is of it now survives a power cut.
    pub(super) fn finish(mut self) -> Result<Taken, Refusal> {
        if self.bytes == 0 {
            return Err(Refusal::Empty("it has no bytes"));
        }
        if self.packing.is_none() {
            self.begun()?;
        }
        if self.packing != Some(Packing::Plain) {
            self.unpack()?;
        }
        let records = self.look.finish()?;
        self.part.as_file().sync_all()?;
        let sha256 = self.digest.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        Ok(Taken { part: self.part, bytes: self.bytes, records, sha256 })
    }
}

impl Intake {
    /// Looks at what is in a packed file.
    fn unpack(&mut self) -> Result<(), Refusal> {
        let mut input = Input::open(self.part.path(), 0)?;
        let max = self.bytes_max.saturating_mul(UNPACKED_TIMES_MAX);
        let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0);
        loop {
            let got = match input.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(got) => piece.get(..got).unwrap_or_default(),
                Err(error) => return Err(Refusal::Packed(error)),
            };
            bytes += got.len() as u64;
            if bytes > max {
                return Err(Refusal::TooLargeUnpacked { max });
            }
            self.look.feed(got)?;
        }
    }
}

/// A file that came in whole, not yet under its name.
pub(super) struct Taken {
    part: NamedTempFile,
    pub(super) bytes: u64,
    /// Rows behind the header.
    pub(super) records: u64,
    /// SHA-256 of all of it, in hex.
    pub(super) sha256: String,
}

impl Taken {
    /// Gives it its name. What lies there is of the same bytes, for the name says them.
    pub(super) fn keep(self, path: &Path) -> io::Result<()> {
        self.part.persist(path).map_err(|error| error.error)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Whether a file that begins so may be one.
fn check_head(head: &[u8], mapping: Option<&Mapping>) -> Result<(), Refusal> {
    if let Some(what) = binary(head) {
        return Err(Refusal::Binary(what));
    }
    let (header, _) = read_header(head)?;
    Layout::parse_as(&header, mapping)?;
    Ok(())
}

fn binary(head: &[u8]) -> Option<&'static str> {
    let begins = |with: &[u8]| head.starts_with(with);
    match head {
        _ if begins(b"PK\x03\x04") => Some("a zip archive or a spreadsheet"),
        _ if begins(&[0xff, 0xfe]) || begins(&[0xfe, 0xff]) => Some("text in UTF-16"),
        _ => head.contains(&0).then_some("it has bytes that are 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "timestamp,hostname,uuid,temperature\n";
    const ROW: &str = "2025-07-18T20:42:34Z,h,GPU-1,50\n";

    fn take(pieces: &[&[u8]], bytes_max: u64) -> (tempfile::TempDir, Result<Taken, Refusal>) {
        let folder = tempfile::tempdir().unwrap();
        let mut intake = Intake::begin(folder.path(), bytes_max, None).unwrap();
        let pushed = pieces.iter().try_for_each(|piece| intake.push(piece));
        let taken = match pushed {
            Ok(()) => intake.finish(),
            Err(refusal) => {
                drop(intake);
                Err(refusal)
            }
        };
        (folder, taken)
    }

    fn left(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_is_refused_is_named_and_leaves_nothing() {
        let check = |pieces: &[&[u8]], expected: &str| {
            let (folder, taken) = take(pieces, 300);
            let told = taken.err().unwrap().to_string();
            assert!(told.contains(expected), "{told}");
            assert_eq!(left(folder.path()), 0, "{told}");
        };
        check(&[], "it has no bytes");
        check(&[HEADER.as_bytes()], "a header and no row");
        check(&[HEADER.trim_end().as_bytes()], "a header and no row");
        check(&[b"a,b\n1,2\n"], "saw the columns [a, b]; known are the long layout");
        check(&[b"a,b"], "saw the columns [a, b]");
        check(&[&[0x1f, 0x8b, 8, 0, b'\n', b'x', b'\n']], "cannot be unpacked");
        let zstd = ::zstd::encode_all(format!("{HEADER}{ROW}").as_bytes(), 1).unwrap();
        check(&[&zstd[..zstd.len() - 2]], "cannot be unpacked");
        check(&[&::zstd::encode_all(&b"a,b\n1,2\n"[..], 1).unwrap()], "saw the columns [a, b]");
        let bomb = ::zstd::encode_all(format!("{HEADER}{}", ROW.repeat(999)).as_bytes(), 1);
        check(&[&bomb.unwrap()], "unpacks to more than 4800 bytes");
        check(&[b"PK\x03\x04\nab"], "a zip archive or a spreadsheet");
        check(&[b"\xff\xfet\0i\0\n\0"], "UTF-16");
        check(&[b"time\0stamp\n"], "bytes that are 0");
        check(&[HEADER.as_bytes(), ROW.repeat(9).as_bytes()], "more than 300 bytes");
    }

    #[test]
    fn a_file_is_the_same_in_whatever_pieces_it_comes() {
        let text = format!("\u{feff}{HEADER}{ROW}\r\n\"a\nb\",{ROW}{}", ROW.trim_end());
        for size in [1, 7, 64, text.len()] {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let (folder, taken) = take(&pieces, text.len() as u64);
            let taken = taken.unwrap();
            assert_eq!((taken.bytes, taken.records), (text.len() as u64, 3), "by {size}");
            assert_eq!(taken.sha256.len(), 64);
            let path = folder.path().join(format!("{}.csv", taken.sha256));
            taken.keep(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!((left(folder.path()), mode & 0o444), (1, 0o444), "others may read it");
        }
    }

    #[test]
    fn what_is_packed_is_kept_as_it_came_and_counted_unpacked() {
        let text = format!("{HEADER}{ROW}{ROW}");
        let packed = ::zstd::encode_all(text.as_bytes(), 1).unwrap();
        for size in [1, 3, packed.len()] {
            let (_folder, taken) = take(&packed.chunks(size).collect::<Vec<_>>(), 300);
            let taken = taken.unwrap();
            assert_eq!((taken.bytes, taken.records), (packed.len() as u64, 2));
        }
    }

    #[test]
    fn a_record_longer_than_any_buffer_is_one_record() {
        let long = format!("2025-07-18T20:42:34Z,h,{},50\n{ROW}", "x\"\"y".repeat(20_000));
        let (_folder, taken) = take(&[HEADER.as_bytes(), long.as_bytes()], u64::MAX);
        assert_eq!(taken.unwrap().records, 2);
    }
}
