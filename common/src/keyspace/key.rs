//! Every key there is: text in, text out, and the ranges that are listed or watched.

use std::{fmt, str::FromStr, sync::Arc};

use crate::model::{
    BucketId, ClusterId, GpuId, HostName, IdError, InstanceId, Lane, PartitionId, Role, SourceId,
    Timestamp,
};

/// Something that is worked on by one claimant at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClaimItem {
    /// One shard of a source: a streamer's work.
    Shard(Lane),
    /// One partition of the queue: a collector's work.
    Partition(PartitionId),
    /// Registering a source: reading it through once to cut it is work for one.
    Source(SourceId),
    /// Retention: one collector's extra work.
    Janitor,
}

impl fmt::Display for ClaimItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimItem::Shard(lane) => write!(f, "shards/{lane}"),
            ClaimItem::Partition(partition) => write!(f, "partitions/{partition}"),
            ClaimItem::Source(source) => write!(f, "sources/{source}"),
            ClaimItem::Janitor => f.write_str("janitor"),
        }
    }
}

/// A stored block, told by its key alone: readers index keys and fetch bytes only when asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockName {
    /// Ingest-time bucket, the unit of retention.
    pub bucket: BucketId,
    /// Cluster of the host.
    pub cluster: ClusterId,
    /// Host whose samples it holds.
    pub host: HostName,
    /// First instant of a sample in it.
    pub start: Timestamp,
    /// Last instant of a sample in it.
    pub end: Timestamp,
    /// Partition whose commit made it.
    pub partition: PartitionId,
    /// Number of that commit in its partition, so that names never repeat.
    pub commit: u64,
    /// Position among the blocks of that commit.
    pub ordinal: u32,
    /// Samples in it.
    pub samples: u64,
    /// Size of its value, in bytes.
    pub bytes: u64,
}

impl fmt::Display for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, cluster, host, partition, commit, ordinal, samples, bytes, .. } = self;
        let (start, end) = (self.start.as_millis(), self.end.as_millis());
        write!(
            f,
            "{bucket}/{cluster}/{host}/{start:013}-{end:013}-{partition}.{commit}.{ordinal}-{samples}-{bytes}"
        )
    }
}

impl FromStr for BlockName {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let fail = || KeyError::Shape(text.to_owned());
        let mut parts = text.split('/');
        let mut next = || parts.next().ok_or_else(fail);
        let (bucket, cluster, host, tail) = (next()?, next()?, next()?, next()?);
        if parts.next().is_some() {
            return Err(fail());
        }
        let (start, tail) = split_signed(tail).ok_or_else(fail)?;
        let (end, tail) = split_signed(tail).ok_or_else(fail)?;
        let fields: Vec<&str> = tail.split(['-', '.']).collect();
        let [partition, commit, ordinal, samples, bytes] = fields[..] else {
            return Err(fail());
        };
        let millis = |t: &str| {
            t.parse().ok().and_then(|ms| Timestamp::from_millis(ms).ok()).ok_or_else(fail)
        };
        let name = Self {
            bucket: bucket.parse().map_err(|_| fail())?,
            cluster: cluster.parse()?,
            host: host.parse()?,
            start: millis(start)?,
            end: millis(end)?,
            partition: partition.parse()?,
            commit: commit.parse().map_err(|_| fail())?,
            ordinal: ordinal.parse().map_err(|_| fail())?,
            samples: samples.parse().map_err(|_| fail())?,
            bytes: bytes.parse().map_err(|_| fail())?,
        };
        if name.to_string() == text { Ok(name) } else { Err(fail()) }
    }
}

/// What stands before and behind the first dash that is no sign: instants before 1970 have one.
fn split_signed(text: &str) -> Option<(&str, &str)> {
    let sign = usize::from(text.starts_with('-'));
    let dash = sign + text.get(sign..)?.find('-')?;
    Some((text.get(..dash)?, text.get(dash + 1..)?))
}

/// Every kind of key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `config`: what was fixed when the keyspace was created. JSON [`super::Config`], for ever.
    Config,
    /// `instances/{role}/{instance}`: a running process. JSON [`super::Instance`], leased.
    Instance(Role, InstanceId),
    /// `claims/...`: who works on what. JSON [`super::Claimant`], leased, create-only.
    Claim(ClaimItem),
    /// `sources/{source}`: what to read. JSON [`super::Source`].
    Source(SourceId),
    /// `shards/{source}/{shard}`: how far it was read. JSON [`super::Progress`].
    Shard(Lane),
    /// `queue/{partition}/{source}/{shard}/{seq}-{samples}`: a message. Binary block.
    Message(PartitionId, Lane, u64, u64),
    /// `cursors/{partition}/{source}/{shard}`: how far it was committed. JSON [`super::Cursor`].
    Cursor(PartitionId, Lane),
    /// `commits/{partition}`: what the last commit moved. JSON [`super::CommitSummary`].
    Commit(PartitionId),
    /// `clusters/{cluster}`. JSON [`super::ClusterRecord`].
    Cluster(ClusterId),
    /// `clusters/{cluster}/hosts/{host}`. JSON [`super::HostRecord`].
    Host(ClusterId, HostName),
    /// `clusters/{cluster}/hosts/{host}/gpus/{gpu}`. JSON [`super::GpuRecord`].
    Gpu(ClusterId, HostName, GpuId),
    /// `blocks/{bucket}/{cluster}/{host}/{start}-{end}-{origin}-{samples}-{bytes}`: a block. Binary.
    Block(BlockName),
    /// `retention/floor`: first bucket that is kept. JSON-free text [`super::Floor`].
    Floor,
    /// `retention/retired/{bucket}`: what left with a bucket. JSON [`super::Retired`].
    Retired(BucketId),
    /// `dead/{source}/{shard}/{seq}`: a message nobody could decode. JSON line, then its bytes.
    Dead(Lane, u64),
    /// `requests/{source}/{hash}`: a request that was enqueued. JSON [`super::Receipt`], leased.
    Request(SourceId, u128),
}

/// Why a text is not a key of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not below our root, or not text.
    #[error("key is not below {0}")]
    Root(String),
    /// No kind of key looks like this.
    #[error("key {0:?} has no known shape")]
    Shape(String),
    /// A segment is not a valid id.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// Why a root is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "keyspace root {0:?} must look like /telemetry: a slash, then [A-Za-z0-9._/-], no slash at the end"
)]
pub struct KeyspaceError(String);

/// A half-open range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key in it.
    pub start: Vec<u8>,
    /// First key behind it.
    pub end: Vec<u8>,
}

impl KeyRange {
    /// The range that holds `key` alone.
    pub fn one(key: &str) -> Self {
        let start = key.as_bytes().to_vec();
        let mut end = start.clone();
        end.push(0);
        Self { start, end }
    }
}

/// Keys below one root, applied here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    root: Arc<str>,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self { root: Arc::from("/telemetry/") }
    }
}

impl FromStr for Keyspace {
    type Err = KeyspaceError;

    fn from_str(text: &str) -> Result<Self, KeyspaceError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        let good = text.len() > 1
            && text.len() <= 128
            && text.starts_with('/')
            && !text.ends_with('/')
            && !text.contains("//")
            && text.bytes().all(allowed);
        if good {
            Ok(Self { root: Arc::from(format!("{text}/")) })
        } else {
            Err(KeyspaceError(text.to_owned()))
        }
    }
}

impl Keyspace {
    /// Behind the last sequence number a lane can have: sixteen digits.
    pub const SEQ_END: u64 = 9_999_999_999_999_999;

    /// The root with its closing slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key as it stands in etcd.
    pub fn key(&self, key: &Key) -> String {
        let root = &self.root;
        match key {
            Key::Config => format!("{root}config"),
            Key::Instance(role, id) => format!("{root}instances/{role}/{id}"),
            Key::Claim(item) => format!("{root}claims/{item}"),
            Key::Source(source) => format!("{root}sources/{source}"),
            Key::Shard(lane) => format!("{root}shards/{lane}"),
            Key::Message(partition, lane, seq, samples) => {
                format!("{root}queue/{partition}/{lane}/{seq:016}-{samples}")
            }
            Key::Cursor(partition, lane) => format!("{root}cursors/{partition}/{lane}"),
            Key::Commit(partition) => format!("{root}commits/{partition}"),
            Key::Cluster(cluster) => format!("{root}clusters/{cluster}"),
            Key::Host(cluster, host) => format!("{root}clusters/{cluster}/hosts/{host}"),
            Key::Gpu(cluster, host, gpu) => {
                format!("{root}clusters/{cluster}/hosts/{host}/gpus/{gpu}")
            }
            Key::Block(name) => format!("{root}blocks/{name}"),
            Key::Floor => format!("{root}retention/floor"),
            Key::Retired(bucket) => format!("{root}retention/retired/{bucket}"),
            Key::Dead(lane, seq) => format!("{root}dead/{lane}/{seq:016}"),
            Key::Request(source, hash) => format!("{root}requests/{source}/{hash:032x}"),
        }
    }

    /// The key that stands in etcd as `bytes`.
    ///
    /// # Errors
    /// When it is not below the root, has no known shape, or a segment is no valid id.
    pub fn parse(&self, bytes: &[u8]) -> Result<Key, KeyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Root(self.root.to_string()))?;
        let path =
            text.strip_prefix(&*self.root).ok_or_else(|| KeyError::Root(self.root.to_string()))?;
        if let Some(name) = path.strip_prefix("blocks/") {
            return Ok(Key::Block(name.parse()?));
        }
        let shape = || KeyError::Shape(text.to_owned());
        let number = |t: &str, width: usize| {
            let number: u64 = t.parse().map_err(|_| shape())?;
            if format!("{number:0width$}") == t { Ok(number) } else { Err(shape()) }
        };
        // One digit more would not be listed among the messages of its lane.
        let seq = |t: &str| number(t, 16).ok().filter(|&n| n < Self::SEQ_END).ok_or_else(shape);
        let lane = |source: &str, shard: &str| -> Result<Lane, KeyError> {
            Ok(Lane { source: source.parse()?, shard: shard.parse()? })
        };
        let parts: Vec<&str> = path.split('/').collect();
        Ok(match parts[..] {
            ["config"] => Key::Config,
            ["instances", role, id] => Key::Instance(role.parse()?, id.parse()?),
            ["claims", "shards", source, shard] => {
                Key::Claim(ClaimItem::Shard(lane(source, shard)?))
            }
            ["claims", "partitions", partition] => {
                Key::Claim(ClaimItem::Partition(partition.parse()?))
            }
            ["claims", "sources", source] => Key::Claim(ClaimItem::Source(source.parse()?)),
            ["claims", "janitor"] => Key::Claim(ClaimItem::Janitor),
            ["sources", source] => Key::Source(source.parse()?),
            ["shards", source, shard] => Key::Shard(lane(source, shard)?),
            ["queue", partition, source, shard, tail] => {
                let (position, samples) = tail.split_once('-').ok_or_else(shape)?;
                let (position, samples) = (seq(position)?, number(samples, 1)?);
                Key::Message(partition.parse()?, lane(source, shard)?, position, samples)
            }
            ["cursors", partition, source, shard] => {
                Key::Cursor(partition.parse()?, lane(source, shard)?)
            }
            ["commits", partition] => Key::Commit(partition.parse()?),
            ["clusters", cluster] => Key::Cluster(cluster.parse()?),
            ["clusters", cluster, "hosts", host] => Key::Host(cluster.parse()?, host.parse()?),
            ["clusters", cluster, "hosts", host, "gpus", gpu] => {
                Key::Gpu(cluster.parse()?, host.parse()?, gpu.parse()?)
            }
            ["retention", "floor"] => Key::Floor,
            ["retention", "retired", bucket] => Key::Retired(bucket.parse().map_err(|_| shape())?),
            ["dead", source, shard, position] => Key::Dead(lane(source, shard)?, seq(position)?),
            ["requests", source, hash] => {
                let number = u128::from_str_radix(hash, 16).map_err(|_| shape())?;
                if format!("{number:032x}") != hash {
                    return Err(shape());
                }
                Key::Request(source.parse()?, number)
            }
            _ => return Err(shape()),
        })
    }

    /// All keys that begin with `path` below the root (`"shards/"`; `""` is everything).
    pub fn prefix(&self, path: &str) -> KeyRange {
        let start = format!("{}{path}", self.root).into_bytes();
        let mut end = start.clone();
        // Keys are ASCII and a root never ends in 0xff, so the last byte can be raised.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        KeyRange { start, end }
    }

    /// The messages `from..to` of a lane.
    pub fn messages(&self, partition: PartitionId, lane: &Lane, from: u64, to: u64) -> KeyRange {
        let bound = |seq: u64| format!("{}queue/{partition}/{lane}/{seq:016}", self.root);
        KeyRange { start: bound(from).into_bytes(), end: bound(to).into_bytes() }
    }

    /// Everything that says which samples exist: retention, progress, sources. The three stand
    /// next to each other, so one watch tells them in revision order.
    pub fn truth(&self) -> KeyRange {
        KeyRange {
            start: format!("{}retention/", self.root).into_bytes(),
            end: self.prefix("sources/").end,
        }
    }

    /// Everything that says where samples lie and who works: claims, clusters, commits, config.
    pub fn places(&self) -> KeyRange {
        KeyRange {
            start: format!("{}claims/", self.root).into_bytes(),
            end: self.prefix("config").end,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::ShardId;

    fn id() -> impl Strategy<Value = String> {
        "[A-Za-z0-9_-][A-Za-z0-9._:-]{0,40}"
    }

    fn lane() -> impl Strategy<Value = Lane> {
        (id(), 0u32..=999_999)
            .prop_map(|(s, n)| Lane { source: SourceId::new(&s).unwrap(), shard: ShardId(n) })
    }

    fn block() -> impl Strategy<Value = BlockName> {
        (
            id(),
            id(),
            -4_102_444_800_000i64..4_102_444_800_000,
            0i64..10_000_000,
            any::<(u16, u64, u32, u64)>(),
        )
            .prop_map(
                |(cluster, host, start, length, (partition, commit, ordinal, samples))| BlockName {
                    bucket: BucketId::holding(Timestamp::from_millis(start).unwrap(), 3600),
                    cluster: ClusterId::new(&cluster).unwrap(),
                    host: HostName::new(&host).unwrap(),
                    start: Timestamp::from_millis(start).unwrap(),
                    end: Timestamp::from_millis(start + length).unwrap(),
                    partition: PartitionId(partition),
                    commit,
                    ordinal,
                    samples,
                    bytes: samples / 2,
                },
            )
    }

    fn key() -> impl Strategy<Value = Key> {
        let partition = || any::<u16>().prop_map(PartitionId);
        let seq = || 0..Keyspace::SEQ_END;
        let bucket = || {
            (0i64..4_102_444_800_000)
                .prop_map(|ms| BucketId::holding(Timestamp::from_millis(ms).unwrap(), 60))
        };
        prop_oneof![
            Just(Key::Config),
            Just(Key::Floor),
            Just(Key::Claim(ClaimItem::Janitor)),
            (0usize..3, id())
                .prop_map(|(r, i)| Key::Instance(Role::ALL[r], InstanceId::new(&i).unwrap())),
            lane().prop_map(|l| Key::Claim(ClaimItem::Shard(l))),
            partition().prop_map(|p| Key::Claim(ClaimItem::Partition(p))),
            id().prop_map(|s| Key::Claim(ClaimItem::Source(SourceId::new(&s).unwrap()))),
            id().prop_map(|s| Key::Source(SourceId::new(&s).unwrap())),
            lane().prop_map(Key::Shard),
            (partition(), lane(), seq(), any::<u64>())
                .prop_map(|(p, l, s, n)| Key::Message(p, l, s, n)),
            (partition(), lane()).prop_map(|(p, l)| Key::Cursor(p, l)),
            partition().prop_map(Key::Commit),
            id().prop_map(|c| Key::Cluster(ClusterId::new(&c).unwrap())),
            (id(), id()).prop_map(|(c, h)| {
                Key::Host(ClusterId::new(&c).unwrap(), HostName::new(&h).unwrap())
            }),
            (id(), id(), id()).prop_map(|(c, h, g)| {
                Key::Gpu(
                    ClusterId::new(&c).unwrap(),
                    HostName::new(&h).unwrap(),
                    GpuId::new(&g).unwrap(),
                )
            }),
            block().prop_map(Key::Block),
            bucket().prop_map(Key::Retired),
            (lane(), seq()).prop_map(|(l, s)| Key::Dead(l, s)),
            (id(), any::<u128>()).prop_map(|(s, h)| Key::Request(SourceId::new(&s).unwrap(), h)),
        ]
    }

    proptest! {
        #[test]
        fn every_key_comes_back_from_its_text(key in key(), root in "(/[a-z]{1,8}){1,3}") {
            let keyspace: Keyspace = root.parse().unwrap();
            prop_assert_eq!(keyspace.parse(keyspace.key(&key).as_bytes()), Ok(key));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "/telemetry/(blocks|queue|claims|shards|requests)/[ -~/]{0,80}") {
            let keyspace = Keyspace::default();
            if let Ok(key) = keyspace.parse(text.as_bytes()) {
                prop_assert_eq!(keyspace.key(&key), text);
            }
        }

        #[test]
        fn a_range_of_messages_holds_exactly_its_sequence_numbers(
            lane in lane(), seq in 0u64..1000, samples in any::<u64>(), from in 0u64..1000, to in 0u64..1000,
        ) {
            let (keyspace, p) = (Keyspace::default(), PartitionId(3));
            let range = keyspace.messages(p, &lane, from, to);
            let text = keyspace.key(&Key::Message(p, lane, seq, samples)).into_bytes();
            prop_assert_eq!(text >= range.start && text < range.end, (from..to).contains(&seq));
        }
    }

    #[test]
    fn truth_and_places_hold_their_kinds_and_no_bulk() {
        let keyspace = Keyspace::default();
        let lane = Lane { source: SourceId::new("zz").unwrap(), shard: ShardId(0) };
        let holds = |range: &KeyRange, key: &Key| {
            let text = keyspace.key(key).into_bytes();
            text >= range.start && text < range.end
        };
        let (truth, places) = (keyspace.truth(), keyspace.places());
        for key in [Key::Floor, Key::Shard(lane.clone()), Key::Source(lane.source.clone())] {
            assert!(holds(&truth, &key) && !holds(&places, &key), "{key:?}");
        }
        for key in [Key::Commit(PartitionId(1)), Key::Config, Key::Claim(ClaimItem::Janitor)] {
            assert!(holds(&places, &key) && !holds(&truth, &key), "{key:?}");
        }
        let request = Key::Request(lane.source.clone(), 7);
        for key in [Key::Message(PartitionId(1), lane, 0, 1), request] {
            assert!(!holds(&truth, &key) && !holds(&places, &key), "{key:?}");
        }
    }

    #[test]
    fn a_sequence_number_that_no_range_lists_is_refused() {
        let check = |seq: &str, good: bool| {
            let (message, dead) =
                (format!("queue/0001/s/000000/{seq}-1"), format!("dead/s/000000/{seq}"));
            for path in [message, dead] {
                let text = format!("/telemetry/{path}");
                assert_eq!(Keyspace::default().parse(text.as_bytes()).is_ok(), good, "{text}");
            }
        };
        check("9999999999999998", true);
        check("9999999999999999", false);
        check("99999999999999990", false);
    }

    #[test]
    fn a_bad_root_is_refused() {
        for root in ["", "/", "telemetry", "/a/", "/a//b", "/a b"] {
            assert!(root.parse::<Keyspace>().is_err(), "{root}");
        }
    }
}
