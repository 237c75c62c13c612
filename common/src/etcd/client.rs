//! Connections to etcd, and reads.
//!
//! A process has three channels, so that a bulk read never delays a watch and neither delays a
//! lease: control (session, claims; in the session's own thread), watch, and data.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KvClient, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};
use tokio::time::{sleep, timeout};

use super::error::{Error, Fate};
use crate::keyspace::{Key, KeyRange, Keyspace};

/// Largest answer that is decoded: 64 messages of the largest size, or a full watch batch.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a read is tried: one more than a cluster of five has members.
const READ_TRIES: u32 = 6;
/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// Where our keys are.
    pub keyspace: Keyspace,
    /// Longest wait for one answer.
    pub request_timeout: Duration,
}

impl EtcdConfig {
    /// Options with every time-out that the client library leaves open.
    fn options() -> ConnectOptions {
        ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // etcd refuses pings more often than every 5 s, and pings without a stream.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
    }

    /// A channel of its own. Never waits for etcd: the first request does.
    pub(crate) async fn channel(&self) -> Result<Client, Error> {
        Client::connect(&self.endpoints, Some(Self::options()))
            .await
            .map_err(|e| Error::request("open a channel to etcd", e))
    }
}

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
    watch: Client,
    data: Client,
}

impl Etcd {
    /// Opens the channels. etcd need not be there: use [`Etcd::wait_until_reachable`].
    ///
    /// # Errors
    /// When an endpoint is not a URL.
    pub async fn connect(config: EtcdConfig) -> Result<Self, Error> {
        let (watch, data) = (config.channel().await?, config.channel().await?);
        Ok(Self { config, watch, data })
    }

    /// Where our keys are.
    pub fn keyspace(&self) -> &Keyspace {
        &self.config.keyspace
    }

    /// How etcd is reached.
    pub fn config(&self) -> &EtcdConfig {
        &self.config
    }

    pub(crate) fn watch_channel(&self) -> &Client {
        &self.watch
    }

    pub(crate) fn kv(&self) -> KvClient {
        self.data.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX)
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
        let mut kv = self.kv();
        let answer =
            within(self.config.request_timeout, "reach etcd", kv.get(key, Some(options))).await?;
        Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision))
    }

    /// One key, or none.
    ///
    /// # Errors
    /// When etcd does not answer after several tries.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let attempt = format!("read {key}");
        let answer = self
            .read(&attempt, |mut kv| {
                let key = key.to_owned();
                async move { kv.get(key, None).await }
            })
            .await?;
        Ok(one(answer))
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
        let mut kv = self.kv();
        let put = kv.put(key, value, Some(options));
        within(self.config.request_timeout, &attempt, put).await.map(|_| ())
    }

    /// Renews the value of a leased key of ours and leaves its lease as it is.
    ///
    /// # Errors
    /// When etcd does not answer, or the key is gone.
    pub async fn renew(&self, key: &str, value: Vec<u8>) -> Result<(), Error> {
        let attempt = format!("renew {key}");
        let options = PutOptions::new().with_ignore_lease();
        let mut kv = self.kv();
        let put = kv.put(key, value, Some(options));
        within(self.config.request_timeout, &attempt, put).await.map(|_| ())
    }

    /// Bytes in use in etcd's database (free pages not counted), when this client may know.
    ///
    /// # Errors
    /// When etcd does not answer or refuses: callers treat the size as unknown.
    pub async fn used_bytes(&self) -> Result<u64, Error> {
        let mut client = self.data.maintenance_client();
        let status =
            within(self.config.request_timeout, "ask for etcd's status", client.status()).await?;
        // The client's name for `dbSizeInUse`; members before 3.4 do not tell it.
        let used = match status.raft_used_db_size() {
            0 => status.db_size(),
            used => used,
        };
        Ok(u64::try_from(used).unwrap_or(0))
    }

    /// A request that may be repeated, with growing pauses between tries.
    async fn read<T, F>(&self, attempt: &str, request: impl Fn(KvClient) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut pause = PAUSE.0;
        let mut tries = 1;
        loop {
            match within(self.config.request_timeout, attempt, request(self.kv())).await {
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

/// The outer time-out that the client library does not have.
pub(crate) async fn within<T>(
    after: Duration,
    attempt: &str,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match timeout(after, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::request(attempt, source)),
        Err(_) => Err(Error::Timeout { attempt: attempt.to_owned(), after }),
    }
}

pub(crate) fn one(mut answer: etcd_client::GetResponse) -> Option<Entry> {
    answer.take_kvs().into_iter().next().map(Entry::from)
}

fn compacted(error: Error, revision: i64) -> Error {
    match &error {
        Error::Request { attempt, source } => match &**source {
            etcd_client::Error::GRpcStatus(s) if s.message().contains("compacted") => {
                Error::Compacted { attempt: attempt.clone(), revision }
            }
            _ => error,
        },
        _ => error,
    }
}
