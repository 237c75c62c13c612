//! Sources that somebody asked for over an API: the first streamer that finds the file says which
//! it is, then cuts it into shards. Whoever finds one that was left half cut goes on.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use nexus_common::{
    etcd::{Claim, Error, Etcd, Position},
    keyspace::{
        ClaimItem, Key, Source, SourceKind, ValueError, csv::FOLLOWED_END, from_json, to_json,
    },
    model::{SourceId, Timestamp},
    runtime::Life,
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::interval,
};

use crate::{
    register::{create_shards, fingerprint, replay, shards},
    source::{FileError, fetched::Fetched},
    sources::Sources,
};

/// How often it is tried again without an event: whoever had the claim may have died.
const LOOK: Duration = Duration::from_secs(1);
/// Sources that are cut at the same time: each is a file that is read, or fetched, which may take
/// minutes and must not keep the others from being begun.
const CUT_AT_ONCE_MAX: usize = 4;

/// Why a source was not cut.
#[derive(Debug, thiserror::Error)]
enum CutError {
    #[error(transparent)]
    Etcd(#[from] Error),
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0:#}")]
    Unusable(anyhow::Error),
    #[error("it was cut into {was} shards, here it would be {is}")]
    Otherwise { was: u32, is: usize },
    #[error("a thread of ours panicked")]
    Thread(#[from] tokio::task::JoinError),
}

/// Cuts what is to be cut, for as long as it is polled.
pub(crate) async fn cut_declared(life: &Life, sources: &Sources, fetched: &Arc<Fetched>) {
    let mut uncut = sources.uncut();
    let mut look = interval(LOOK);
    let mut cutting = JoinSet::new();
    let mut busy = BTreeSet::new();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            Ok(()) = uncut.changed() => {}
            Some(done) = cutting.join_next() => {
                match done {
                    Ok((id, done)) => {
                        busy.remove(&id);
                        settle(sources, &id, done);
                    }
                    // Claims keep apart what is begun anew.
                    Err(_) => busy.clear(),
                }
                // One that somebody else cuts is looked at again when it is time.
                continue;
            }
        }
        let ids = uncut.borrow_and_update().clone();
        for id in ids {
            if busy.len() < CUT_AT_ONCE_MAX && busy.insert(id.clone()) {
                let (life, fetched) = (life.clone(), Arc::clone(fetched));
                cutting.spawn(async move {
                    let done = claim_and_cut(&life, &id, &fetched).await;
                    (id, done)
                });
            }
        }
    }
}

fn settle(sources: &Sources, id: &SourceId, done: Result<(), CutError>) {
    match done {
        Ok(()) => {}
        Err(CutError::Etcd(error)) => {
            tracing::warn!(source = %id, %error, "could not cut a source, trying again");
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!(source = %id, error = format!("{error:#}"), "the source cannot be cut here, leaving it to others");
            sources.shun(id);
        }
    }
}

/// The claim only saves work: each write is made once, whoever makes it.
async fn claim_and_cut(life: &Life, id: &SourceId, fetched: &Arc<Fetched>) -> Result<(), CutError> {
    let etcd = &life.process.etcd;
    let item = ClaimItem::Source(id.clone());
    let Some(claim) = Claim::take(etcd, &life.session, item).await? else { return Ok(()) };
    let cut = cut(etcd, id, fetched).await;
    claim.release(etcd).await?;
    cut
}

/// First says which file it is, so that nobody mixes two that go by one path, then cuts it.
async fn cut(etcd: &Etcd, id: &SourceId, fetched: &Arc<Fetched>) -> Result<(), CutError> {
    let key = etcd.keyspace().key(&Key::Source(id.clone()));
    let Some(entry) = etcd.get(&key).await? else { return Ok(()) };
    let source: Source = from_json(&entry.key, &entry.value)?;
    if source.paused {
        return Ok(());
    }
    if source.kind.is_live() {
        create_shards(etcd, id, &live_ranges(&source)).await?;
        tracing::info!(source = %id, shards = source.shards, "source has its shards");
        return Ok(());
    }
    let wanted = source.clone();
    let fetched = Arc::clone(fetched);
    let (kind, ranges) = spawn_blocking(move || open(wanted, &fetched)).await??;
    let count = ranges.len();
    if matches!(source.kind, SourceKind::Declared { .. }) {
        let known = Source { kind, shards: count as u32, ..source };
        let position = Position::seen(key, Some(&entry));
        if etcd.swap(&position, Some(to_json(&known)), &[]).await?.is_none() {
            return Ok(()); // paused or withdrawn meanwhile; the watch tells
        }
    } else if count != source.shards as usize {
        return Err(CutError::Otherwise { was: source.shards, is: count });
    }
    create_shards(etcd, id, &ranges).await?;
    tracing::info!(source = %id, shards = count, "source cut");
    Ok(())
}

/// Each shard begins when it comes into being: nothing before was anybody's to measure. Of a file
/// that is followed all is read that is there.
fn live_ranges(source: &Source) -> Vec<std::ops::Range<u64>> {
    let millis = |at: Timestamp| u64::try_from(at.as_millis()).unwrap_or(0);
    let start = millis(Timestamp::now());
    // One more than the last, so that a shard without anything to do still is read to its end.
    let end = millis(Timestamp::MAX).max(start + 1);
    if matches!(source.kind, SourceKind::Follow(_)) {
        return std::iter::once(0..FOLLOWED_END).collect();
    }
    vec![start..end; source.shards as usize]
}

type Cut = (SourceKind, Vec<std::ops::Range<u64>>);

/// Opens the file that is meant and looks where to cut it.
fn open(source: Source, fetched: &Fetched) -> Result<Cut, CutError> {
    let (path, file, replay) = match source.kind {
        SourceKind::Declared { path, speed_milli, looped, mapping } => {
            let file = fetched.open(&path, mapping)?;
            let speed_milli = speed_milli.or(looped.then_some(1000));
            let replay = speed_milli.map(|speed| replay(&file, speed, looped)).transpose();
            (path, file, replay.map_err(CutError::Unusable)?)
        }
        SourceKind::Csv { path, bytes, fingerprint, replay, mapping } => {
            let file = fetched.open_same(&path, bytes, &fingerprint, mapping)?;
            (path, file, replay)
        }
        SourceKind::Follow(_)
        | SourceKind::Simulate(_)
        | SourceKind::Scrape(_)
        | SourceKind::Nvml(_)
        | SourceKind::Push => {
            return Err(CutError::Unusable(anyhow::anyhow!("it has no file to be cut")));
        }
    };
    let ranges = shards(&file, replay.is_some()).map_err(CutError::Unusable)?;
    let kind = SourceKind::Csv {
        path,
        bytes: file.identity.bytes,
        fingerprint: fingerprint(&file.identity),
        replay,
        mapping: file.mapping,
    };
    Ok((kind, ranges))
}
