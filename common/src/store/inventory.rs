//! Clusters, hosts and GPUs that were seen. Written before the commit that brings their first
//! samples, so that whatever has samples is in the inventory.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{Mutex as Lock, PoisonError},
};

use tokio::sync::Mutex;

use crate::{
    block::{BlockError, Section},
    etcd::{Error, Etcd, RangeRead},
    keyspace::{ClusterRecord, GpuRecord, HostRecord, Key, from_json, to_json},
    limits::TXN_OPS_MAX,
    model::{ClusterId, Gpu, HostName, Timestamp},
};

/// Most dictionaries remembered of a host: several sources tell of it, each again and again the
/// same series, and some more when series come and go.
const DICTIONARIES_MAX: usize = 64;

/// By host, the hashes of dictionaries.
type Dictionaries = HashMap<ClusterId, HashMap<HostName, Vec<u64>>>;

/// What a section tells of its host.
#[derive(Debug)]
pub struct Description {
    /// Cluster of the host.
    pub cluster: ClusterId,
    /// The host.
    pub host: HostName,
    gpus: Vec<Gpu>,
    dictionary: u64,
}

impl Description {
    /// Reads what `section` tells.
    ///
    /// # Errors
    /// When its dictionary cannot be read.
    pub fn of(cluster: &ClusterId, section: &Section) -> Result<Self, BlockError> {
        let gpus = section.dictionary()?.gpus;
        let (cluster, host) = (cluster.clone(), section.host().clone());
        Ok(Self { cluster, host, gpus, dictionary: section.dictionary_hash() })
    }
}

/// What a process has seen or written of the inventory: a description is written once, and
/// again when it changes.
pub struct Inventory {
    etcd: Etcd,
    known: Mutex<HashMap<String, Option<GpuRecord>>>,
    /// Those that say what `known` says.
    same: Lock<Dictionaries>,
}

impl Inventory {
    /// Reads what is known already.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn open(etcd: Etcd) -> Result<Self, Error> {
        let range = etcd.keyspace().prefix("clusters/");
        let mut known = HashMap::new();
        for entry in etcd.range(&range, RangeRead::default()).await?.entries {
            let record = match etcd.keyspace().parse(&entry.key) {
                Ok(Key::Gpu(..)) => from_json::<GpuRecord>(&entry.key, &entry.value).ok(),
                _ => None,
            };
            known.insert(String::from_utf8_lossy(&entry.key).into_owned(), record);
        }
        Ok(Self { etcd, known: Mutex::new(known), same: Lock::default() })
    }

    /// Whether all that `section` tells of its host is described already. Its dictionary was read
    /// then, and need not be again.
    pub fn is_described(&self, cluster: &ClusterId, section: &Section) -> bool {
        let same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        let of_host = same.get(cluster).and_then(|hosts| hosts.get(section.host()));
        of_host.is_some_and(|known| known.contains(&section.dictionary_hash()))
    }

    /// Makes sure that a host and its GPUs are described so.
    ///
    /// # Errors
    /// When etcd does not answer: nothing of it is then taken for written.
    pub async fn describe(&self, description: &Description) -> Result<(), Error> {
        let Description { cluster, host, gpus, dictionary } = description;
        let now = Timestamp::now();
        let keyspace = self.etcd.keyspace();
        let mut known = self.known.lock().await;
        let parents = [
            (
                keyspace.key(&Key::Cluster(cluster.clone())),
                to_json(&ClusterRecord { created_at: now }),
            ),
            (
                keyspace.key(&Key::Host(cluster.clone(), host.clone())),
                to_json(&HostRecord { created_at: now }),
            ),
        ];
        for parent in parents {
            if let Entry::Vacant(unknown) = known.entry(parent.0.clone()) {
                // Whoever is first says since when; that it exists already is as good.
                self.etcd.create(&[parent]).await?;
                unknown.insert(None);
            }
        }
        // By key, the last description of a GPU: a transaction may put a key only once.
        let mut changed = BTreeMap::new();
        for gpu in gpus {
            let key = keyspace.key(&Key::Gpu(cluster.clone(), host.clone(), gpu.id.clone()));
            changed.insert(key, GpuRecord::of(gpu, now));
        }
        changed.retain(|key, record| {
            known.get(key).and_then(Option::as_ref).is_none_or(|old| !old.describes_as(record))
        });
        let changed: Vec<(String, GpuRecord)> = changed.into_iter().collect();
        for part in changed.chunks(TXN_OPS_MAX) {
            let puts: Vec<_> = part.iter().map(|(k, r)| (k.clone(), to_json(r))).collect();
            self.etcd.describe(&puts).await?;
            known.extend(part.iter().map(|(k, r)| (k.clone(), Some(r.clone()))));
        }
        let mut same = self.same.lock().unwrap_or_else(PoisonError::into_inner);
        let same = same.entry(cluster.clone()).or_default().entry(host.clone()).or_default();
        // What was described before may not be as it says any more.
        if !changed.is_empty() || same.len() >= DICTIONARIES_MAX {
            same.clear();
        }
        if !same.contains(dictionary) {
            same.push(*dictionary);
        }
        Ok(())
    }
}

impl GpuRecord {
    /// Whether two records say the same of the GPU, whenever they were written.
    fn describes_as(&self, other: &GpuRecord) -> bool {
        let mut same_time = other.clone();
        same_time.updated_at = self.updated_at;
        *self == same_time
    }
}
