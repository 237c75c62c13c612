//! What sources without an end read: telemetry that is made up, and exporters that are asked.
//!
//! Such a source has no file to be cut by bytes. What decides which shard a host or a target
//! belongs to is fixed when the source comes into being; everything else may change while it is
//! read. A shard's position is the first millisecond that nothing was enqueued for yet.

use serde::{Deserialize, Serialize};

use crate::model::{ClusterId, Timestamp};

/// Most hosts of a made-up source: with [`GPUS_MAX`] a hundred times what one etcd carries.
pub const HOSTS_MAX: u32 = 10_000;
/// Most GPUs of a made-up host: no server has more slots.
pub const GPUS_MAX: u32 = 16;
/// Shortest and longest interval, in milliseconds: below it a tick costs etcd more than it tells,
/// above a day nothing is live.
pub const INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;
/// Most hosts of one shard: a tick of it is one small transaction.
const HOSTS_PER_SHARD_MAX: u32 = 64;
/// Shards that even few hosts are spread over, so that several streamers have something to do.
const SHARDS_WANTED: u32 = 8;

/// Telemetry that is made up: the same for the same seed, host and instant, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulate {
    /// The cluster of its hosts; the streamer's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// How many hosts.
    pub hosts: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// From one measurement to the next, on the wall clock's grid.
    pub interval_ms: u64,
    /// Another seed, other values.
    pub seed: u32,
    /// First instant that is not measured any more; none goes on for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Fixed for ever, so that no host changes its shard.
    pub hosts_per_shard: u32,
}

impl Simulate {
    /// How many hosts a shard of a new source shall have.
    pub fn plan_hosts_per_shard(hosts: u32) -> u32 {
        hosts.div_ceil(SHARDS_WANTED).clamp(1, HOSTS_PER_SHARD_MAX)
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.hosts.div_ceil(self.hosts_per_shard.max(1))
    }

    /// The numbers of a shard's hosts.
    pub fn hosts_of(&self, shard: u32) -> std::ops::Range<u32> {
        let at = |shard: u32| shard.saturating_mul(self.hosts_per_shard).min(self.hosts);
        at(shard)..at(shard.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulate(hosts: u32, hosts_per_shard: u32) -> Simulate {
        let (cluster, until) = (None, None);
        Simulate { cluster, hosts, gpus: 8, interval_ms: 1000, seed: 1, until, hosts_per_shard }
    }

    #[test]
    fn every_host_has_one_shard_and_keeps_it_when_there_are_more() {
        for hosts in [1, 7, 8, 9, 64, 1000, HOSTS_MAX] {
            let per_shard = Simulate::plan_hosts_per_shard(hosts);
            let (few, many) = (simulate(hosts, per_shard), simulate(hosts * 2, per_shard));
            let all: Vec<u32> = (0..few.shards()).flat_map(|s| few.hosts_of(s)).collect();
            assert_eq!(all, (0..hosts).collect::<Vec<_>>());
            for shard in 0..few.shards() {
                assert!(few.hosts_of(shard).all(|host| many.hosts_of(shard).contains(&host)));
            }
        }
        assert_eq!(simulate(8, 1).shards(), 8);
        assert!(simulate(8, 1).hosts_of(8).is_empty());
    }
}
