//! Where a gateway enqueues what is sent to it: one shard of the source, under a claim.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use nexus_common::{
    assign::score,
    etcd::{Claim, Error, Etcd, Position, RangeRead},
    keyspace::{ClaimItem, Key},
    model::{Lane, ShardId, SourceId},
    queue::Producer,
    runtime::Life,
    sources::{SourceDesk, SourceError, Written},
};
use tokio::time::Instant;

use super::Refusal;

/// How long a receipt is kept at least: longer than a sender tries in vain before somebody looks.
/// (Seconds.) A request that comes again after it is stored again.
const RECEIPT_TTL_SECONDS: i64 = 600;
/// How long new receipts hang on the same lease, and how many: so its end deletes few at once.
const LEASE_FOR: Duration = Duration::from_secs(60);
const LEASE_RECEIPTS_MAX: usize = 1000;

/// Why there is no seat, or it is no good any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeatError {
    /// What the senders are told.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// etcd does not answer, or the session is over.
    #[error(transparent)]
    Etcd(#[from] Error),
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A claimed shard.
pub(super) struct Seat {
    claim: Claim,
    pub(super) producer: Producer,
    /// The source as it was seen: what is paused or withdrawn takes nothing more.
    pub(super) source: Position,
    /// Where it stands has to be read again.
    pub(super) stale: bool,
}

impl Seat {
    /// Makes sure that the source is there, and claims one of its free shards.
    pub(super) async fn take(life: &Life, id: &SourceId) -> Result<Self, SeatError> {
        let etcd = &life.process.etcd;
        let written = SourceDesk::new(etcd.clone()).open_push(id).await;
        let written = written.map_err(|error| gone(id, error))?;
        let source = position(etcd, id, &written)?;
        let shards = written.source.shards;
        let claimed = claimed(etcd, id).await?;
        let lanes = (0..shards).map(|n| Lane { source: id.clone(), shard: ShardId(n) });
        let mut free: Vec<ClaimItem> =
            lanes.map(ClaimItem::Shard).filter(|item| !claimed.contains(item)).collect();
        // Each gateway begins with another one, and a gateway that comes again with its own.
        free.sort_by_cached_key(|item| Reverse(score(item, &life.process.instance)));
        for item in free {
            let Some(claim) = Claim::take(etcd, &life.session, item.clone()).await? else {
                continue;
            };
            let ClaimItem::Shard(lane) = item else { continue };
            match Producer::open(life, claim.clone(), lane.clone()).await {
                Ok(Some(producer)) => {
                    tracing::info!(%lane, "taking what is sent to this gateway");
                    return Ok(Self { claim, producer, source, stale: false });
                }
                Ok(None) => claim.release(etcd).await?,
                Err(error) => {
                    claim.release(etcd).await?;
                    return Err(error.into());
                }
            }
        }
        Err(Refusal::NoShard { id: id.clone(), shards }.into())
    }

    /// Reads again where the shard and its source stand, after something went otherwise.
    pub(super) async fn reopen(&mut self, life: &Life) -> Result<(), SeatError> {
        let lane = self.producer.lane().clone();
        let (id, etcd) = (&lane.source, &life.process.etcd);
        let written = SourceDesk::new(etcd.clone()).get(id).await;
        self.source = position(etcd, id, &written.map_err(|error| gone(id, error))?)?;
        let opened = Producer::open(life, self.claim.clone(), lane.clone()).await?;
        self.producer = opened.ok_or_else(|| Refusal::Withdrawn { id: id.clone() })?;
        self.stale = false;
        Ok(())
    }

    /// Gives the shard back.
    pub(super) async fn release(self, etcd: &Etcd) {
        if let Err(error) = self.claim.release(etcd).await {
            tracing::debug!(%error, "the shard is given back when the session ends");
        }
    }
}

/// Where a source stands that takes what is sent.
fn position(etcd: &Etcd, id: &SourceId, written: &Written) -> Result<Position, Refusal> {
    if written.source.paused {
        return Err(Refusal::Paused { id: id.clone() });
    }
    let key = etcd.keyspace().key(&Key::Source(id.clone()));
    Ok(Position { key, mod_revision: written.revision })
}

/// What an error of the desk means to a sender.
fn gone(id: &SourceId, error: SourceError) -> SeatError {
    match error {
        SourceError::Field { .. } | SourceError::Unknown(_) => {
            Refusal::Withdrawn { id: id.clone() }.into()
        }
        error => error.into(),
    }
}

async fn claimed(etcd: &Etcd, id: &SourceId) -> Result<BTreeSet<ClaimItem>, Error> {
    let keyspace = etcd.keyspace();
    let how = RangeRead { keys_only: true, ..RangeRead::default() };
    let listing = etcd.range(&keyspace.prefix(&format!("claims/shards/{id}/")), how).await?;
    let items = listing.entries.iter().filter_map(|entry| match keyspace.parse(&entry.key) {
        Ok(Key::Claim(item)) => Some(item),
        _ => None,
    });
    Ok(items.collect())
}

/// The lease that new receipts hang on. It is never renewed and never revoked: it ends by itself.
#[derive(Default)]
pub(super) struct ReceiptLease {
    granted: Option<(i64, Instant)>,
    used: usize,
}

impl ReceiptLease {
    /// The lease for so many more.
    pub(super) async fn of(&mut self, etcd: &Etcd, receipts: usize) -> Result<i64, Error> {
        let good = |(_, at): &(i64, Instant)| {
            at.elapsed() < LEASE_FOR && self.used + receipts <= LEASE_RECEIPTS_MAX
        };
        let lease = match self.granted.filter(good) {
            Some((lease, _)) => lease,
            None => {
                let (at, lease) = (Instant::now(), etcd.grant(RECEIPT_TTL_SECONDS).await?);
                (self.granted, self.used) = (Some((lease, at)), 0);
                lease
            }
        };
        self.used += receipts;
        Ok(lease)
    }
}
