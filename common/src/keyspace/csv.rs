//! CSV files as they stand in etcd: how their columns are read, and those that grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A followed source is one shard, whose range ends here: no file grows so long, and readers of
/// JSON keep every number up to it.
pub const FOLLOWED_END: u64 = 1 << 53;

/// What the columns of a file mean, where its header does not say it. Columns are called as the
/// header does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mapping {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// How far east of UTC times are that do not say it, in seconds.
    #[serde(skip_serializing_if = "is_utc")]
    pub utc_offset_seconds: i32,
    /// Column of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The one host that all of it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_is: Option<String>,
    /// Column of the GPU, an index or a UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// The one GPU that all of it is of, an index or a UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_is: Option<String>,
    /// Column of the metric's name, where a row is a sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Column of its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Columns of values, and the metric of each, where a row is a point.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, String>,
    /// Columns that are labels, and the name of each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn is_utc(seconds: &i32) -> bool {
    *seconds == 0
}

/// A file that is read while it grows, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Where streamers open it: the newest file, where it is rotated.
    pub path: String,
    /// What its columns mean, if its header does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Box<Mapping>>,
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
