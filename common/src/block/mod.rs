//! The columnar block: what a message carries and what the store keeps.
//!
//! A *block* belongs to one cluster and holds *sections*, each some samples of one host. A section
//! is a string of bytes of its own, with its own version and checksum: collectors move sections
//! from messages into blocks as they are, and one host may have several in a block. Pure: no I/O,
//! no clock.
//!
//! # Layout, version 1
//!
//! Numbers are varints (seven bits a byte, low ones first), signed ones zigzag (0, -1, 1, -2, ...);
//! texts and inner byte strings stand behind their length.
//!
//! | block | |
//! | --- | --- |
//! | `NXB` | 3 bytes |
//! | version | byte: 1 |
//! | checksum | CRC-32C of what follows up to the first section, 4 bytes, little-endian |
//! | cluster | text |
//! | sections | count |
//! | lengths | bytes of each section |
//! | sections | one behind the other, nothing behind the last |
//!
//! | section | |
//! | --- | --- |
//! | checksum | CRC-32C of all that follows, 4 bytes, little-endian |
//! | version | byte: 1 |
//! | host | text |
//! | start | earliest timestamp: signed, milliseconds since the epoch |
//! | span | latest timestamp less the earliest |
//! | samples | count |
//! | dictionary | byte string: GPUs and series (`dictionary.rs`, `gpus.rs`) |
//! | timestamps | distinct vectors, and which series has which (`times.rs`) |
//! | columns | for each metric a byte string: the values of its series (`column.rs`) |
//!
//! Series are sorted by metric, GPU and labels; a column holds all series of a metric, so that
//! what they have in common is written once. Integers in vectors and columns are packed by
//! `ints.rs`, each run the shortest way. What compresses is pco and zstd; the rest arranges it.
//!
//! Decoding trusts nothing: every count is checked against [`crate::limits`] and the bytes there
//! are before anything is allocated.

mod bits;
mod bytes;
mod column;
mod dictionary;
mod error;
mod gpus;
mod ints;
mod merge;
mod section;
#[cfg(test)]
mod tests;
mod times;

use ::bytes::Bytes;

use self::bytes::{Reader, put_bytes, put_varint};
pub use dictionary::{Dictionary, SeriesIdentity};
pub use error::{BlockError, EncodeError};
pub use merge::merge;
pub use section::Section;

use crate::limits::{BLOCK_BYTES_MAX, ID_BYTES_MAX};
use crate::model::ClusterId;

const MAGIC: [u8; 3] = *b"NXB";
const VERSION: u8 = 1;
/// Magic, version and checksum.
const PREAMBLE_BYTES: usize = 8;

/// Sections of one cluster: the body of a message, or a block of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    /// The cluster of all hosts.
    pub cluster: ClusterId,
    /// The sections, in no particular order.
    pub sections: Vec<Section>,
}

impl Block {
    /// How many samples there are.
    pub fn samples(&self) -> u64 {
        self.sections.iter().map(Section::samples).sum()
    }

    /// Puts header and sections one behind the other. Nothing is encoded again.
    ///
    /// # Errors
    /// When that is more than [`BLOCK_BYTES_MAX`].
    pub fn encode(&self) -> Result<Bytes, EncodeError> {
        let mut header = Vec::new();
        put_bytes(&mut header, self.cluster.as_str().as_bytes());
        put_varint(&mut header, self.sections.len() as u64);
        let lengths = self.sections.iter().map(Section::byte_len);
        lengths.clone().for_each(|n| put_varint(&mut header, n as u64));
        let size = PREAMBLE_BYTES + header.len() + lengths.sum::<usize>();
        if size > BLOCK_BYTES_MAX {
            let (what, value, max) = ("bytes of a block", size, BLOCK_BYTES_MAX);
            return Err(EncodeError::TooMany { what, value, max });
        }
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
        out.extend_from_slice(&header);
        self.sections.iter().for_each(|section| out.extend_from_slice(section.bytes()));
        Ok(Bytes::from(out))
    }

    /// Checks header, lengths and every section's checksum. Values are not decoded; sections
    /// share `bytes`.
    ///
    /// # Errors
    /// When the bytes are not a block, not all of it, or not what was written.
    pub fn decode(bytes: Bytes) -> Result<Block, BlockError> {
        if bytes.len() > BLOCK_BYTES_MAX {
            let (value, max) = (bytes.len() as u64, BLOCK_BYTES_MAX as u64);
            return Err(BlockError::TooLarge { what: "bytes of a block", value, max });
        }
        let mut reader = Reader::new(&bytes);
        if reader.take(MAGIC.len(), "magic")? != MAGIC {
            return Err(BlockError::NotABlock);
        }
        match reader.byte("version of a block")? {
            VERSION => {}
            other => return Err(BlockError::Version(other)),
        }
        let found = reader.word("checksum of a block")?;
        let checked = reader.rest();
        let cluster = reader.text("cluster id", ID_BYTES_MAX)?;
        let n = reader.count_of("sections", BLOCK_BYTES_MAX)?;
        let mut lengths = Vec::with_capacity(n);
        for _ in 0..n {
            lengths.push(reader.count("section", BLOCK_BYTES_MAX)?);
        }
        let computed = crc32c::crc32c(&checked[..checked.len() - reader.rest().len()]);
        if found != computed {
            return Err(BlockError::Checksum { what: "header", found, computed });
        }
        let cluster = ClusterId::new(cluster)?;
        let mut sections = Vec::with_capacity(n);
        for length in lengths {
            let section = reader.take(length, "section")?;
            sections.push(Section::parse(bytes.slice_ref(section))?);
        }
        reader.finish()?;
        Ok(Block { cluster, sections })
    }
}
