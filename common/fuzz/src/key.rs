//! The key codec: what is accepted is written the same way again, what is written is accepted.

use nexus_common::{
    keyspace::{BlockName, ClaimItem, Key, KeyRange, Keyspace},
    model::{
        BucketId, ClusterId, GpuId, HostName, IdError, InstanceId, Lane, PartitionId, Role,
        ShardId, SourceId, Timestamp,
    },
};

use super::feed::Feed;

/// Bytes that begin with a slash are a key (or a root, a line feed and a key below it); others
/// choose one.
pub(crate) fn run(bytes: &[u8]) {
    if !bytes.starts_with(b"/") {
        if let Ok(key) = chosen(&mut Feed::new(bytes)) {
            let keyspace = Keyspace::default();
            let text = keyspace.key(&key);
            assert_eq!(keyspace.parse(text.as_bytes()), Ok(key), "{text}");
        }
        return;
    }
    let (keyspace, key) = match bytes.iter().position(|&byte| byte == b'\n') {
        None => (Keyspace::default(), bytes),
        Some(at) => match str::from_utf8(&bytes[..at]).map(str::parse) {
            Ok(Ok(keyspace)) => (keyspace, &bytes[at + 1..]),
            _ => return,
        },
    };
    if let Ok(parsed) = keyspace.parse(key) {
        assert_eq!(keyspace.key(&parsed).as_bytes(), key, "{parsed:?}");
        found_where_it_is_listed(&keyspace, &parsed, key);
    }
}

/// Who lists or watches a range must see every key of its kind.
fn found_where_it_is_listed(keyspace: &Keyspace, key: &Key, bytes: &[u8]) {
    let within = |range: KeyRange| *range.start <= *bytes && *bytes < *range.end;
    assert!(within(keyspace.prefix("")), "{key:?}");
    match key {
        Key::Message(partition, lane, seq, _) => {
            assert!(within(keyspace.messages(*partition, lane, 0, Keyspace::SEQ_END)), "{key:?}");
            assert!(within(keyspace.messages(*partition, lane, *seq, seq + 1)), "{key:?}");
            assert!(!within(keyspace.messages(*partition, lane, 0, *seq)), "{key:?}");
        }
        Key::Floor | Key::Retired(_) | Key::Shard(_) | Key::Source(_) => {
            assert!(within(keyspace.truth()), "{key:?}");
        }
        Key::Claim(_) | Key::Cluster(_) | Key::Commit(_) | Key::Config => {
            assert!(within(keyspace.places()), "{key:?}");
        }
        _ => {}
    }
}

fn chosen(feed: &mut Feed<'_>) -> Result<Key, IdError> {
    Ok(match feed.below(18) {
        0 => Key::Config,
        1 => Key::Instance(Role::ALL[usize::from(feed.below(3))], InstanceId::new(&feed.word())?),
        2 => Key::Claim(ClaimItem::Shard(lane(feed)?)),
        3 => Key::Claim(ClaimItem::Partition(partition(feed))),
        4 => Key::Claim(ClaimItem::Source(SourceId::new(&feed.word())?)),
        5 => Key::Claim(ClaimItem::Janitor),
        6 => Key::Source(SourceId::new(&feed.word())?),
        7 => Key::Shard(lane(feed)?),
        8 => {
            let (partition, lane) = (partition(feed), lane(feed)?);
            Key::Message(partition, lane, feed.number() % Keyspace::SEQ_END, feed.number())
        }
        9 => Key::Cursor(partition(feed), lane(feed)?),
        10 => Key::Commit(partition(feed)),
        11 => Key::Cluster(ClusterId::new(&feed.word())?),
        12 => Key::Host(ClusterId::new(&feed.word())?, HostName::new(&feed.word())?),
        13 => {
            let (cluster, host) = (ClusterId::new(&feed.word())?, HostName::new(&feed.word())?);
            Key::Gpu(cluster, host, GpuId::new(&feed.word())?)
        }
        14 => Key::Floor,
        15 => Key::Retired(bucket(feed)),
        16 => Key::Dead(lane(feed)?, feed.number() % Keyspace::SEQ_END),
        17 => Key::Request(SourceId::new(&feed.word())?, u128::from(feed.number())),
        _ => Key::Block(block(feed)?),
    })
}

fn lane(feed: &mut Feed<'_>) -> Result<Lane, IdError> {
    Ok(Lane { source: SourceId::new(&feed.word())?, shard: ShardId(feed.number() as u32) })
}

fn partition(feed: &mut Feed<'_>) -> PartitionId {
    PartitionId(feed.number() as u16)
}

/// Before 1970 as well: an instant of the model may be.
fn instant(feed: &mut Feed<'_>) -> Timestamp {
    Timestamp::saturating_from_millis(feed.number() as i64)
}

fn bucket(feed: &mut Feed<'_>) -> BucketId {
    BucketId::holding(instant(feed), feed.number() as u32)
}

fn block(feed: &mut Feed<'_>) -> Result<BlockName, IdError> {
    Ok(BlockName {
        bucket: bucket(feed),
        cluster: ClusterId::new(&feed.word())?,
        host: HostName::new(&feed.word())?,
        start: instant(feed),
        end: instant(feed),
        partition: partition(feed),
        commit: feed.number(),
        ordinal: feed.number() as u32,
        samples: feed.number(),
        bytes: feed.number(),
    })
}
