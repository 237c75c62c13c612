//! Reads blocks and messages, at a revision.

use bytes::Bytes;

use crate::{
    etcd::{Error, Etcd, RangeRead},
    keyspace::{BlockName, Key, KeyRange},
    model::{BucketId, HostName, Lane, PartitionId},
    queue::Received,
};

/// A stored block by name, and the revision of its write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its name.
    pub name: BlockName,
    /// Revision of its write.
    pub mod_revision: i64,
}

/// Reads the store and never writes.
#[derive(Clone)]
pub struct Reader {
    etcd: Etcd,
}

impl Reader {
    /// A reader of `etcd`'s keyspace.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    /// etcd, for the listings and watches a view is made of.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// The blocks of `range` at `revision` (the newest if none), by name only. Keys below
    /// `blocks/` that are not blocks are left out and logged.
    ///
    /// # Errors
    /// When etcd does not answer, or the revision was compacted.
    pub async fn blocks(
        &self,
        range: &KeyRange,
        revision: Option<i64>,
    ) -> Result<(Vec<StoredBlock>, i64), Error> {
        let how = RangeRead { revision, keys_only: true, page: 5000, ..RangeRead::default() };
        let listing = self.etcd.range(range, how).await?;
        let mut blocks = Vec::with_capacity(listing.entries.len());
        for entry in &listing.entries {
            match self.etcd.keyspace().parse(&entry.key) {
                Ok(Key::Block(name)) => {
                    blocks.push(StoredBlock { name, mod_revision: entry.mod_revision });
                }
                _ => {
                    let key = String::from_utf8_lossy(&entry.key);
                    tracing::warn!(%key, "a key below blocks/ that is no block");
                }
            }
        }
        Ok((blocks, listing.revision))
    }

    /// All blocks.
    pub fn all_blocks(&self) -> KeyRange {
        self.etcd.keyspace().prefix("blocks/")
    }

    /// The blocks of one bucket.
    pub fn bucket_blocks(&self, bucket: &BucketId) -> KeyRange {
        self.etcd.keyspace().prefix(&format!("blocks/{bucket}/"))
    }

    /// The buckets that hold blocks, oldest first, at most `limit`: one tiny read each.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn buckets(&self, limit: usize) -> Result<Vec<BucketId>, Error> {
        let mut range = self.all_blocks();
        let mut buckets: Vec<BucketId> = Vec::new();
        let how = RangeRead { keys_only: true, limit: Some(1), page: 1, ..RangeRead::default() };
        while buckets.len() < limit {
            let listing = self.etcd.range(&range, how).await?;
            let Some(entry) = listing.entries.first() else { break };
            match self.etcd.keyspace().parse(&entry.key) {
                Ok(Key::Block(name)) => {
                    range.start = self.bucket_blocks(&name.bucket).end;
                    buckets.push(name.bucket);
                }
                // Not a block: step over it.
                _ => {
                    range.start.clone_from(&entry.key);
                    range.start.push(0);
                }
            }
        }
        Ok(buckets)
    }

    /// The bytes of a block, as they were at `revision` (the newest if none). `None` if it was
    /// not there.
    ///
    /// # Errors
    /// When etcd does not answer, or the revision was compacted.
    pub async fn block(
        &self,
        name: &BlockName,
        revision: Option<i64>,
    ) -> Result<Option<Bytes>, Error> {
        let start = self.etcd.keyspace().key(&Key::Block(name.clone())).into_bytes();
        let mut end = start.clone();
        end.push(0);
        let how = RangeRead { revision, limit: Some(1), page: 1, ..RangeRead::default() };
        let listing = self.etcd.range(&KeyRange { start, end }, how).await?;
        Ok(listing.entries.into_iter().next().map(|entry| entry.value))
    }

    /// The messages `from..to` of a lane as they were at `revision`.
    ///
    /// # Errors
    /// When etcd does not answer, or the revision was compacted.
    pub async fn messages(
        &self,
        partition: PartitionId,
        lane: &Lane,
        from: u64,
        to: u64,
        revision: Option<i64>,
    ) -> Result<Vec<Received>, Error> {
        let range = self.etcd.keyspace().messages(partition, lane, from, to);
        let how = RangeRead { revision, page: 16, ..RangeRead::default() };
        let listing = self.etcd.range(&range, how).await?;
        let mut messages = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            if let Key::Message(_, lane, seq, samples) = self.etcd.keyspace().parse(&entry.key)? {
                messages.push(Received { lane, seq, samples, bytes: entry.value });
            }
        }
        Ok(messages)
    }

    /// The blocks of one host in one bucket, by name.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn host_blocks(
        &self,
        bucket: &BucketId,
        cluster: &crate::model::ClusterId,
        host: &HostName,
    ) -> Result<Vec<StoredBlock>, Error> {
        let range = self.etcd.keyspace().prefix(&format!("blocks/{bucket}/{cluster}/{host}/"));
        Ok(self.blocks(&range, None).await?.0)
    }
}
