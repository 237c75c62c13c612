//! Block bytes that were fetched, the least recently used ones first to go.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use nexus_common::keyspace::BlockName;

/// What one entry costs beyond its bytes: name, map nodes.
const ENTRY_OVERHEAD: usize = 256;

/// Bounded in bytes. A block never changes, so nothing is ever stale.
#[derive(Debug)]
pub(super) struct Cache {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    blocks: HashMap<Arc<BlockName>, (Bytes, u64)>,
    ages: BTreeMap<u64, Arc<BlockName>>,
}

impl Cache {
    /// An empty one; with 0 bytes nothing is kept.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, blocks: HashMap::new(), ages: BTreeMap::new() }
    }

    /// A block's bytes, if they are here.
    pub(super) fn get(&mut self, name: &BlockName) -> Option<Bytes> {
        self.clock += 1;
        let (bytes, age) = self.blocks.get_mut(name)?;
        if let Some(name) = self.ages.remove(age) {
            self.ages.insert(self.clock, name);
        }
        *age = self.clock;
        Some(bytes.clone())
    }

    /// Keeps a block's bytes, at the cost of those not asked for the longest.
    pub(super) fn put(&mut self, name: &Arc<BlockName>, bytes: Bytes) {
        let size = bytes.len() + ENTRY_OVERHEAD;
        if size > self.bytes_max || self.blocks.contains_key(name) {
            return;
        }
        while self.bytes + size > self.bytes_max {
            let Some((_, oldest)) = self.ages.pop_first() else { break };
            if let Some((gone, _)) = self.blocks.remove(&oldest) {
                self.bytes -= gone.len() + ENTRY_OVERHEAD;
            }
        }
        self.clock += 1;
        self.bytes += size;
        self.ages.insert(self.clock, Arc::clone(name));
        self.blocks.insert(Arc::clone(name), (bytes, self.clock));
    }

    /// Bytes kept now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(commit: u64) -> Arc<BlockName> {
        let text = format!("20260101T000000Z/c/h/0000000000000-0000000000009-0001.{commit}.0-10-5");
        Arc::new(text.parse().unwrap())
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let mut cache = Cache::new(2 * (1000 + ENTRY_OVERHEAD));
        let bytes = Bytes::from(vec![0; 1000]);
        cache.put(&name(1), bytes.clone());
        cache.put(&name(2), bytes.clone());
        assert!(cache.get(&name(1)).is_some());
        cache.put(&name(3), bytes.clone());
        assert!(cache.get(&name(2)).is_none());
        assert!(cache.get(&name(1)).is_some() && cache.get(&name(3)).is_some());
        assert_eq!(cache.bytes(), 2 * (1000 + ENTRY_OVERHEAD));
        cache.put(&name(4), Bytes::from(vec![0; 4000]));
        assert!(cache.get(&name(4)).is_none(), "larger than all of it");
    }
}
