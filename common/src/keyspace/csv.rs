//! A CSV file that grows, as it stands in etcd.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A followed source is one shard, whose range ends here: no file grows so long, and readers of
/// JSON keep every number up to it.
pub const FOLLOWED_END: u64 = 1 << 53;

/// A file that is read while it grows, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Where streamers open it: the newest file, where it is rotated.
    pub path: String,
}

/// The file that whoever follows stands in, and where. The shard's `offset` counts the bytes of
/// all files there were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its inode: its name changes.
    pub inode: u64,
    /// How many bytes of its head `head_hash` is of.
    pub head_bytes: u64,
    /// xxh3 of them: inodes are used again.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub head_hash: u64,
    /// Next byte to read.
    pub position: u64,
}

/// Hashes as text: JSON readers round numbers above 2^53.
fn to_hex<S: Serializer>(hash: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{hash:016x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    u64::from_str_radix(&text, 16).map_err(D::Error::custom)
}
