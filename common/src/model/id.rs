//! Identities: validated once at construction, then free to use as a key segment.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::limits::{ID_BYTES_MAX, NAME_BYTES_MAX};

/// Why a text is not an identifier. Names the kind and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing at all.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// Longer than [`ID_BYTES_MAX`] or [`NAME_BYTES_MAX`].
    #[error("{0} has {1} bytes, at most {2} are allowed")]
    TooLong(&'static str, usize, usize),
    /// A character that cannot stand in a key.
    #[error("{0} {1:?} has a character outside {2}")]
    Character(&'static str, String, &'static str),
    /// Not a number in range.
    #[error("{0} {1:?} is not a number from 0 to {2}")]
    Number(&'static str, String, u64),
}

fn check_id(kind: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty(kind));
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong(kind, text.len(), ID_BYTES_MAX));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
    if !text.bytes().all(allowed) || text == "." || text == ".." {
        return Err(IdError::Character(kind, text.to_owned(), "[A-Za-z0-9._:-]"));
    }
    Ok(())
}

fn check_name(kind: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty(kind));
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(IdError::TooLong(kind, text.len(), NAME_BYTES_MAX));
    }
    let head = text.as_bytes()[0];
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':');
    if head.is_ascii_digit() || !text.bytes().all(allowed) {
        return Err(IdError::Character(kind, text.to_owned(), "[A-Za-z_:][A-Za-z0-9_:]*"));
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Validates `text`.
            ///
            /// # Errors
            /// Says what is wrong with it and what is allowed.
            pub fn new(text: &str) -> Result<Self, IdError> {
                $check($kind, text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A cluster of hosts.
    ClusterId, "cluster id", check_id
);
text_id!(
    /// A machine with GPUs, by the name its telemetry carries.
    HostName, "host name", check_id
);
text_id!(
    /// A GPU or one of its MIG instances: the UUID, with `:{instance}` behind it for MIG.
    GpuId, "GPU id", check_id
);
text_id!(
    /// A source of telemetry (a file, a scrape target set).
    SourceId, "source id", check_id
);
text_id!(
    /// A running process of Nexus.
    InstanceId, "instance id", check_id
);
text_id!(
    /// A metric, in Prometheus' alphabet. Common ones are in [`crate::model::METRICS`].
    MetricName, "metric name", check_name
);

/// Which kind of process an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Source to queue.
    Streamer,
    /// Queue to store.
    Collector,
    /// Store to REST, GraphQL and WebSocket.
    Gateway,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 3] = [Role::Streamer, Role::Collector, Role::Gateway];

    /// The word used in keys, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Streamer => "streamer",
            Role::Collector => "collector",
            Role::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Role::ALL.into_iter().find(|r| r.as_str() == text).ok_or_else(|| {
            IdError::Character("role", text.to_owned(), "streamer, collector, gateway")
        })
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $kind:literal, $width:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $width, "}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let number = text.parse().ok().map($name).filter(|id| id.to_string() == text);
                number.ok_or_else(|| {
                    IdError::Number($kind, text.to_owned(), u64::from(<$int>::MAX))
                })
            }
        }
    };
}

number_id!(
    /// One replayable part of a source, claimed by one streamer at a time.
    ShardId, u32, "shard", "6"
);
number_id!(
    /// One part of the queue, claimed by one collector at a time.
    PartitionId, u16, "partition", "4"
);

/// One shard's messages, in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The source it comes from.
    pub source: SourceId,
    /// Which part of it.
    pub shard: ShardId,
}

impl Lane {
    /// The partition that carries this lane, for ever: xxh3 of its text, modulo `partitions`.
    pub fn partition(&self, partitions: u16) -> PartitionId {
        partition_of(&self.to_string(), partitions)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.source, self.shard)
    }
}

impl HostName {
    /// The partition whose owner merges this host's blocks.
    pub fn partition(&self, partitions: u16) -> PartitionId {
        partition_of(self.as_str(), partitions)
    }
}

fn partition_of(text: &str, partitions: u16) -> PartitionId {
    let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    // The remainder is below `partitions`, so it fits.
    PartitionId((hash % u64::from(partitions.max(1))) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_name_the_kind_and_the_allowed_characters() {
        let check = |text: &str, expected: &str| {
            assert_eq!(HostName::new(text).unwrap_err().to_string(), expected);
        };
        check("", "host name is empty");
        check("a/b", "host name \"a/b\" has a character outside [A-Za-z0-9._:-]");
        check("..", "host name \"..\" has a character outside [A-Za-z0-9._:-]");
        check(&"x".repeat(129), "host name has 129 bytes, at most 128 are allowed");
        assert!(HostName::new("dgx-001.rack_2:9400").is_ok());
    }

    #[test]
    fn numbers_in_keys_have_one_spelling() {
        assert_eq!("000017".parse(), Ok(ShardId(17)));
        assert!("17".parse::<ShardId>().is_err());
        assert!("+00017".parse::<ShardId>().is_err());
        assert_eq!(PartitionId(7).to_string(), "0007");
    }

    #[test]
    fn a_lane_keeps_its_partition_across_versions() {
        // Golden: changing the hash would orphan every queue in the field.
        let lane = Lane { source: SourceId::new("demo").unwrap(), shard: ShardId(3) };
        assert_eq!(lane.to_string(), "demo/000003");
        assert_eq!(lane.partition(64), partition_of("demo/000003", 64));
        assert!(lane.partition(1).0 == 0);
    }
}
