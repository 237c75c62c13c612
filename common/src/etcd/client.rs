//! A handle to etcd: reads, and the few writes that need no guard.
//!
//! A process has three channels to a member, so that a bulk read never delays a watch and neither
//! delays a lease: control (the session, in its own thread), watch, and data.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KvClient, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    connect::EtcdConfig,
    error::{Error, Fate},
    members::{Headed, Members},
};
use crate::keyspace::{Key, KeyRange, Keyspace};

/// How often a read is tried: one more than a cluster of five has members, and, with the pauses
/// between, for longer than an election takes.
const READ_TRIES: u32 = 8;
/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in etcd.
    pub key: Vec<u8>,
    /// Its value; empty when only keys were asked for.
    pub value: Bytes,
    /// Revision at which this life of the key began: what a claim is fenced with.
    pub create_revision: i64,
    /// Revision of its last write: what a position is compared by.
    pub mod_revision: i64,
    /// Lease it hangs on, 0 for none.
    pub lease: i64,
}

impl Entry {
    pub(crate) fn from(kv: etcd_client::KeyValue) -> Self {
        let (create_revision, mod_revision, lease) =
            (kv.create_revision(), kv.mod_revision(), kv.lease());
        let (key, value) = kv.into_key_value();
        Self { key, value: Bytes::from(value), create_revision, mod_revision, lease }
    }
}

/// The keys of a range, all at one revision.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// In key order.
    pub entries: Vec<Entry>,
    /// The revision.
    pub revision: i64,
}

/// How to read a range.
#[derive(Debug, Clone, Copy, Default)]
pub struct RangeRead {
    /// At this revision instead of the newest.
    pub revision: Option<i64>,
    /// Without values.
    pub keys_only: bool,
    /// Stop after so many keys.
    pub limit: Option<usize>,
    /// Keys in one request: few for bulk values, many for tiny ones; 0 for tiny ones.
    pub page: usize,
}

/// A handle to etcd, cheap to clone.
#[derive(Clone)]
pub struct Etcd {
    config: EtcdConfig,
    members: Arc<Members>,
}

impl Etcd {
    /// Opens the channels. etcd need not be there: use [`Etcd::wait_until_reachable`].
    ///
    /// # Errors
    /// When an endpoint is not a URL, or a file cannot be used.
    pub async fn connect(config: EtcdConfig) -> Result<Self, Error> {
        let probe_key = config.keyspace.key(&Key::Config);
        let members = Arc::new(Members::connect(&config, probe_key).await?);
        Ok(Self { config, members })
    }

    /// Where our keys are.
    pub fn keyspace(&self) -> &Keyspace {
        &self.config.keyspace
    }

    /// How etcd is reached.
    pub fn config(&self) -> &EtcdConfig {
        &self.config
    }

    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Cancelled when etcd was found to be another than it was: nothing is written any more, and
    /// every request fails with [`Error::Regressed`].
    pub fn regressed(&self) -> &CancellationToken {
        self.members.seen.regressed()
    }

    /// Why etcd is taken for another.
    ///
    /// # Errors
    /// [`Error::Regressed`], if it is.
    pub fn check_same(&self) -> Result<(), Error> {
        self.members.seen.check()
    }

    /// Asks once.
    pub(super) async fn ask<T: Headed, F>(
        &self,
        attempt: &str,
        request: impl Fn(KvClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.members.ask(attempt, request).await
    }

    /// Waits until etcd answers a linearizable read, telling `waiting` each failed try.
    pub async fn wait_until_reachable(&self, mut waiting: impl FnMut(&Error)) {
        let mut pause = PAUSE.0;
        while let Err(error) = self.revision().await {
            waiting(&error);
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// The newest revision.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn revision(&self) -> Result<i64, Error> {
        let key = self.keyspace().key(&Key::Config);
        let options = GetOptions::new().with_count_only();
        let get = |mut kv: KvClient| {
            let (key, options) = (key.clone(), options.clone());
            async move { kv.get(key, Some(options)).await }
        };
        let answer = self.ask("reach etcd", get).await?;
        Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// One key, or none.
    ///
    /// # Errors
    /// When etcd does not answer after several tries.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.get_at(key).await?.0)
    }

    /// One key, or none, and the revision at which that was so.
    ///
    /// # Errors
    /// When etcd does not answer after several tries.
    pub async fn get_at(&self, key: &str) -> Result<(Option<Entry>, i64), Error> {
        let attempt = format!("read {key}");
        let answer = self
            .read(&attempt, |mut kv| {
                let key = key.to_owned();
                async move { kv.get(key, None).await }
            })
            .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok((one(answer), revision))
    }

    /// A range, in pages, all at one revision.
    ///
    /// # Errors
    /// When etcd does not answer after several tries, or the revision was compacted.
    pub async fn range(&self, range: &KeyRange, how: RangeRead) -> Result<Listing, Error> {
        let page = if how.page == 0 { 1000 } else { how.page };
        let mut listing = Listing { entries: Vec::new(), revision: how.revision.unwrap_or(0) };
        let mut start = range.start.clone();
        if how.limit == Some(0) {
            // etcd takes a limit of 0 for none.
            return Ok(listing);
        }
        loop {
            let wanted = how.limit.map_or(page, |l| page.min(l - listing.entries.len()));
            let mut options = GetOptions::new()
                .with_range(range.end.clone())
                .with_limit(i64::try_from(wanted).unwrap_or(i64::MAX));
            if how.keys_only {
                options = options.with_keys_only();
            }
            if listing.revision > 0 {
                options = options.with_revision(listing.revision);
            }
            let attempt = format!("list from {}", String::from_utf8_lossy(&start));
            let answer = self
                .read(&attempt, |mut kv| {
                    let (start, options) = (start.clone(), options.clone());
                    async move { kv.get(start, Some(options)).await }
                })
                .await
                .map_err(|e| compacted(e, listing.revision))?;
            if listing.revision == 0 {
                listing.revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let (more, mut answer) = (answer.more(), answer);
            listing.entries.extend(answer.take_kvs().into_iter().map(Entry::from));
            let full = how.limit.is_some_and(|l| listing.entries.len() >= l);
            match listing.entries.last() {
                Some(last) if more && !full => {
                    start = last.key.clone();
                    start.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }

    /// Several ranges (all of each, values included) at one revision, in one request. For
    /// ranges that are small together.
    ///
    /// # Errors
    /// When etcd does not answer after several tries.
    pub async fn ranges(&self, ranges: &[KeyRange]) -> Result<Vec<Listing>, Error> {
        let ops: Vec<TxnOp> = ranges
            .iter()
            .map(|r| TxnOp::get(r.start.clone(), Some(GetOptions::new().with_range(r.end.clone()))))
            .collect();
        let answer = self
            .read("read several ranges", |mut kv| {
                let txn = Txn::new().and_then(ops.clone());
                async move { kv.txn(txn).await }
            })
            .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let listing = |response| match response {
            TxnOpResponse::Get(mut got) => {
                Listing { entries: got.take_kvs().into_iter().map(Entry::from).collect(), revision }
            }
            _ => Listing { entries: Vec::new(), revision },
        };
        Ok(answer.op_responses().into_iter().map(listing).collect())
    }

    /// Puts keys that do not exist yet, all of them or none. False when one existed, be it from
    /// an earlier try of this very call: for what is written once, whoever writes it.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn create(&self, entries: &[(String, Vec<u8>)]) -> Result<bool, Error> {
        let Some((first, _)) = entries.first() else { return Ok(true) };
        let attempt = format!("create {first}");
        let compares: Vec<Compare> = entries
            .iter()
            .map(|(k, _)| Compare::create_revision(k.as_str(), CompareOp::Equal, 0))
            .collect();
        let puts: Vec<TxnOp> =
            entries.iter().map(|(k, v)| TxnOp::put(k.as_str(), v.clone(), None)).collect();
        let answer = self
            .read(&attempt, |mut kv| {
                let txn = Txn::new().when(compares.clone()).and_then(puts.clone());
                async move { kv.txn(txn).await }
            })
            .await?;
        Ok(answer.succeeded())
    }

    /// Puts keys whatever stood there. Only for descriptions (inventory), where the last writer
    /// is right and writing twice changes nothing.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn describe(&self, entries: &[(String, Vec<u8>)]) -> Result<(), Error> {
        for part in entries.chunks(crate::limits::TXN_OPS_MAX) {
            let puts: Vec<TxnOp> =
                part.iter().map(|(k, v)| TxnOp::put(k.as_str(), v.clone(), None)).collect();
            self.read("write descriptions", |mut kv| {
                let txn = Txn::new().and_then(puts.clone());
                async move { kv.txn(txn).await }
            })
            .await?;
        }
        Ok(())
    }

    /// Puts a key under a lease, whatever stood there: how an instance registers itself.
    ///
    /// # Errors
    /// When etcd does not answer or the lease is gone.
    pub async fn put_leased(&self, key: &str, value: Vec<u8>, lease: i64) -> Result<(), Error> {
        let attempt = format!("register {key}");
        let options = PutOptions::new().with_lease(lease);
        let put = |mut kv: KvClient| {
            let (value, options) = (value.clone(), options.clone());
            async move { kv.put(key, value, Some(options)).await }
        };
        self.ask(&attempt, put).await.map(|_| ())
    }

    /// Renews the value of a leased key of ours and leaves its lease as it is.
    ///
    /// # Errors
    /// When etcd does not answer, or the key is gone.
    pub async fn renew(&self, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let attempt = format!("renew {key}");
        let options = PutOptions::new().with_ignore_lease();
        let put = |mut kv: KvClient| {
            let (value, options) = (value.clone(), options.clone());
            async move { kv.put(key, value, Some(options)).await }
        };
        self.ask(&attempt, put).await.map(|_| ())
    }

    /// A lease of `ttl_seconds` that nobody renews: what hangs on it goes when it ends.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn grant(&self, ttl_seconds: i64) -> Result<i64, Error> {
        let ask = |client: &Client| {
            let mut client = client.lease_client();
            async move { client.grant(ttl_seconds, None).await }
        };
        Ok(self.members.ask_client("grant a lease", ask).await?.id())
    }

    /// Bytes in use in etcd's database (free pages not counted), when this client may know.
    ///
    /// # Errors
    /// When etcd does not answer or refuses: callers treat the size as unknown.
    pub async fn used_bytes(&self) -> Result<u64, Error> {
        let ask = |client: &Client| {
            let mut client = client.maintenance_client();
            async move { client.status().await }
        };
        let status = self.members.ask_client("ask for etcd's status", ask).await?;
        // The client's name for `dbSizeInUse`; members before 3.4 do not tell it.
        let used = match status.raft_used_db_size() {
            0 => status.db_size(),
            used => used,
        };
        Ok(u64::try_from(used).unwrap_or(0))
    }

    /// A request that may be repeated, with growing pauses between tries.
    pub(super) async fn read<T: Headed, F>(
        &self,
        attempt: &str,
        request: impl Fn(KvClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut pause = PAUSE.0;
        let mut tries = 1;
        loop {
            match self.ask(attempt, &request).await {
                Ok(answer) => return Ok(answer),
                Err(e) if tries >= READ_TRIES || e.fate() == Fate::Refused => return Err(e),
                Err(e) => tracing::debug!(error = %e, tries, "trying again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            tries += 1;
        }
    }
}

pub(crate) fn one(mut answer: etcd_client::GetResponse) -> Option<Entry> {
    answer.take_kvs().into_iter().next().map(Entry::from)
}

fn compacted(error: Error, revision: i64) -> Error {
    match error {
        Error::Request { ref attempt, .. } if error.is_compacted() => {
            Error::Compacted { attempt: attempt.clone(), revision }
        }
        other => other,
    }
}
