//! Everything at one revision: how a view begins, and begins again after a gap.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use nexus_common::{
    block::Block,
    etcd::{Change, Entry, Error, RangeRead},
    keyspace::{BlockName, CommitSummary, Config, Key, ValueError, from_json},
    model::Timestamp,
    queue::Received,
    store::Reader,
};

use super::{
    arrival::{Arrived, HostNews, KEPT_SAMPLES_MAX},
    fold::Fold,
    intake::{self, Planned},
    snapshot::Snapshot,
};

/// Latest values are sought in all blocks that reach into this span before the newest sample of
/// their host. What was silent for longer shows no latest value until it speaks again.
const LATEST_SPAN_MS: i64 = 5 * 60 * 1000;
/// Most blocks of one host that are decoded for its latest values: a host with more in that
/// span has not been merged yet.
const LATEST_BLOCKS_MAX: usize = 64;
/// Blocks fetched at once while loading.
const FETCHES: usize = 8;
/// Messages in one request: together below the answer limit.
const QUEUE_PAGE: usize = 16;

/// Loads everything (and the number of partitions) at one revision not before `at_least`. What `previous` knows of blocks that
/// are still there is not read again.
///
/// # Errors
/// When etcd does not answer, or compacts the revision under us: then load again.
pub(super) async fn load(
    reader: &Reader,
    at_least: i64,
    previous: Option<&Snapshot>,
) -> Result<(Fold, u16), Error> {
    let etcd = reader.etcd();
    let keyspace = etcd.keyspace();
    let revision = etcd.revision().await?;
    if revision < at_least {
        // A member that lags; another try asks again.
        let attempt = format!("load the view at revision {at_least} or later");
        return Err(Error::Compacted { attempt, revision });
    }
    let pinned = RangeRead { revision: Some(revision), ..RangeRead::default() };
    let partitions = partitions(reader, pinned).await?;
    let mut fold = Fold::new(revision);
    let mut plan = intake::Intake::default();
    for entry in etcd.range(&keyspace.truth(), pinned).await?.entries {
        let change = Change::Put(entry);
        match plan.plan(keyspace, &change)? {
            Some(Planned::Fetch { lane, progress, .. }) => fold.found_progress(lane, *progress),
            Some(Planned::Ready(change)) => {
                // Nothing is there yet that could be missed.
                let _ = fold.truth(revision, vec![change]);
            }
            None => {}
        }
    }
    if let Some(previous) = previous {
        previous.hosts().for_each(|(cluster, name, host)| fold.remember(cluster, name, host));
    }
    for entry in etcd.range(&keyspace.prefix("clusters/"), pinned).await?.entries {
        if let Some(change) = intake::place(keyspace, &Change::Put(entry))? {
            let _ = fold.places(revision, vec![change]);
        }
    }
    for entry in etcd.range(&keyspace.prefix("commits/"), pinned).await?.entries {
        if let Ok(Key::Commit(partition)) = keyspace.parse(&entry.key) {
            let summary: CommitSummary = from_json(&entry.key, &entry.value)?;
            fold.found_commit(partition, summary.number);
        }
    }
    for block in reader.blocks(&reader.all_blocks(), Some(revision)).await?.0 {
        fold.found_block(block.name);
    }
    latest_of_blocks(reader, &mut fold, previous).await?;
    let how = RangeRead { page: QUEUE_PAGE, ..pinned };
    let queue = etcd.range(&keyspace.prefix("queue/"), how).await?.entries;
    let received: Vec<Received> =
        queue.into_iter().filter_map(|entry| message(reader, entry)).collect();
    read_all(received).await.into_iter().for_each(|message| fold.arrived(message));
    if previous.is_some_and(|p| p.floor < fold.now().floor) {
        fold.forget_retired();
    }
    Ok((fold, partitions))
}

async fn partitions(reader: &Reader, pinned: RangeRead) -> Result<u16, Error> {
    let range = reader.etcd().keyspace().prefix("config");
    let entries = reader.etcd().range(&range, pinned).await?.entries;
    let Some(entry) = entries.first() else {
        let key = reader.etcd().keyspace().key(&Key::Config);
        let reason = "it does not exist: no process has entered this keyspace yet".to_owned();
        return Err(ValueError { key, reason }.into());
    };
    Ok(from_json::<Config>(&entry.key, &entry.value)?.partitions)
}

/// Decodes messages where it delays nobody: a few thousand samples take less than handing them
/// over to a thread and back.
pub(super) async fn read_all(messages: Vec<Received>) -> Vec<Arrived> {
    let few = messages.iter().map(|message| message.samples).sum::<u64>() <= KEPT_SAMPLES_MAX;
    let read = move || messages.into_iter().map(Arrived::read).collect();
    // A panic in a decoder is a fault of ours; the messages then count as not there, and the
    // fold asks for a load because they are missing.
    if few {
        return catch_unwind(AssertUnwindSafe(read)).unwrap_or_default();
    }
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

fn message(reader: &Reader, entry: Entry) -> Option<Received> {
    match reader.etcd().keyspace().parse(&entry.key) {
        Ok(Key::Message(_, lane, seq, samples)) => {
            Some(Received { lane, seq, samples, bytes: entry.value })
        }
        _ => None,
    }
}

async fn latest_of_blocks(
    reader: &Reader,
    fold: &mut Fold,
    previous: Option<&Snapshot>,
) -> Result<(), Error> {
    let revision = fold.now().revision;
    let wanted: Vec<Arc<BlockName>> = fold
        .now()
        .hosts()
        .flat_map(|(cluster, name, host)| {
            let known = previous.and_then(|p| p.host(cluster.as_str(), name.as_str()));
            newest_blocks(&host.blocks, |b| known.is_none_or(|(_, host)| !host.blocks.contains(b)))
        })
        .collect();
    let fetch = |name: Arc<BlockName>| async move {
        let bytes = reader.block(&name, Some(revision)).await?;
        let read = move || {
            let block = bytes.and_then(|b| Block::decode(b).ok());
            let sections = block.map_or_else(Vec::new, |b| b.sections);
            sections.iter().filter_map(HostNews::of_section).collect::<Vec<_>>()
        };
        let news = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        Ok::<_, Error>((name, news))
    };
    let mut fetched = stream::iter(wanted).map(fetch).buffered(FETCHES);
    while let Some(done) = fetched.next().await {
        let (name, news) = done?;
        news.into_iter().for_each(|news| fold.news(&name.cluster, news));
    }
    Ok(())
}

/// The blocks that may hold latest values, oldest end first.
fn newest_blocks(
    blocks: &BTreeSet<Arc<BlockName>>,
    unknown: impl Fn(&BlockName) -> bool,
) -> Vec<Arc<BlockName>> {
    let mut all: Vec<&Arc<BlockName>> = blocks.iter().collect();
    all.sort_by_key(|b| std::cmp::Reverse((b.end, b.bucket.clone(), b.commit, b.ordinal)));
    let newest = all.first().map_or(Timestamp::MIN.as_millis(), |b| b.end.as_millis());
    let reaching = all
        .into_iter()
        .take_while(|b| b.end.as_millis() >= newest.saturating_sub(LATEST_SPAN_MS))
        .take(LATEST_BLOCKS_MAX);
    let mut wanted: Vec<Arc<BlockName>> = reaching.filter(|b| unknown(b)).cloned().collect();
    wanted.reverse();
    wanted
}
