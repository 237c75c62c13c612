//! The bytes of a file from some place on, unpacked where it is packed. Whether it is, is told by
//! how it begins: names lie.
//!
//! A packed file cannot be entered in the middle: what comes before is unpacked and dropped.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

/// What of a packed file is read at once, in bytes.
const PACKED_BYTES: usize = 64 * 1024;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip, RFC 1952; members may follow one another.
    Gzip,
    /// Zstandard, RFC 8878; frames may follow one another.
    Zstd,
}

/// Bytes that [`Packing::of`] looks at.
pub const MAGIC_BYTES: usize = 4;

impl Packing {
    /// What a file that begins with `head` is. Fewer than [`MAGIC_BYTES`] bytes are plain.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, _, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// A file that is read from front to back.
pub enum Input {
    /// Not packed.
    Plain(File),
    /// Unpacked as it is read.
    Gzip(Box<MultiGzDecoder<BufReader<File>>>),
    /// Unpacked as it is read.
    Zstd(Box<ZstdDecoder<'static, BufReader<File>>>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(packed) => packed.read(buffer),
            Self::Zstd(packed) => packed.read(buffer),
        }
    }
}

impl Input {
    /// Opens a file to be read from byte `from` of what is in it. Where a packed one ends before
    /// that, nothing is left to read.
    ///
    /// # Errors
    /// When it cannot be read, or what comes before cannot be unpacked.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let packing = packing(&mut file)?;
        if packing == Packing::Plain {
            file.seek(SeekFrom::Start(from))?;
            return Ok(Self::Plain(file));
        }
        let mut packed = Self::unpacked(file, packing)?;
        io::copy(&mut packed.by_ref().take(from), &mut io::sink())?;
        Ok(packed)
    }

    /// Reads a file that stands at its beginning.
    fn unpacked(file: File, packing: Packing) -> io::Result<Self> {
        let buffered = |file| BufReader::with_capacity(PACKED_BYTES, file);
        Ok(match packing {
            Packing::Plain => Self::Plain(file),
            Packing::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(file)))),
            Packing::Zstd => Self::Zstd(Box::new(ZstdDecoder::with_buffer(buffered(file))?)),
        })
    }
}

/// How a file is packed; leaves it at its beginning.
///
/// # Errors
/// When it cannot be read.
pub fn packing(file: &mut File) -> io::Result<Packing> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(Packing::of(&head))
}

/// The last `most` bytes of what is in a file, and how many there are of it in all. Reads all of
/// it; holds no more than a piece and twice those.
///
/// # Errors
/// When it cannot be read, not be unpacked, or is broken off.
pub fn tail(input: &mut Input, most: usize) -> io::Result<(Vec<u8>, u64)> {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    let mut piece = vec![0; PACKED_BYTES];
    loop {
        let got = input.read(&mut piece)?;
        if got == 0 {
            kept.drain(..kept.len().saturating_sub(most));
            return Ok((kept, bytes));
        }
        bytes += got as u64;
        kept.extend_from_slice(piece.get(..got).unwrap_or_default());
        // Moved seldom: only when as much again has come.
        if kept.len() > 2 * most + PACKED_BYTES {
            kept.drain(..kept.len() - most);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        ::zstd::encode_all(text, 1).unwrap()
    }

    #[test]
    fn a_file_is_read_from_anywhere_however_it_is_packed() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let (first, second) = text.split_at(500_001);
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, content: Vec<u8>| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            for from in [0, 1, 4, 499_999, 500_001, text.len()] {
                let mut read = Vec::new();
                Input::open(&path, from as u64).unwrap().read_to_end(&mut read).unwrap();
                assert!(read == text[from..], "{name} from {from}");
            }
            let (end, bytes) = tail(&mut Input::open(&path, 0).unwrap(), 1000).unwrap();
            assert!(bytes == text.len() as u64 && end == text[text.len() - 1000..], "{name}");
        };
        check("plain", text.clone());
        check("gzip", gzip(&text));
        check("zstd", zstd(&text));
        check("two members", [gzip(first), gzip(second)].concat());
        check("two frames", [zstd(first), zstd(second)].concat());
    }

    #[test]
    fn a_packed_file_that_is_broken_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken");
        for packed in [gzip(&[7; 100_000]), zstd(&[7; 100_000])] {
            std::fs::write(&path, &packed[..packed.len() - 3]).unwrap();
            assert!(tail(&mut Input::open(&path, 0).unwrap(), 10).is_err());
        }
    }

    #[test]
    fn packed_files_are_known_by_their_first_bytes() {
        let check = |head: &[u8], expected| assert_eq!(Packing::of(head), expected, "{head:?}");
        check(b"", Packing::Plain);
        check(b"time", Packing::Plain);
        check(&[0x1f, 0x8b, 8], Packing::Plain);
        check(&[0x1f, 0x8b, 8, 0, 0], Packing::Gzip);
        check(&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd);
    }
}
