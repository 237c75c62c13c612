//! What the view tells about itself.

use std::sync::atomic::AtomicU64;

use nexus_common::runtime::Metrics;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::live::LiveMeters;

/// Counters and gauges of a view.
#[derive(Debug, Default, Clone)]
pub struct Meters {
    /// Loads after the first one.
    pub reloads: Counter,
    /// Blocks found in the cache.
    pub hits: Counter,
    /// Blocks fetched from etcd.
    pub misses: Counter,
    /// Bytes of blocks kept.
    pub cache_bytes: Gauge,
    /// Revision of the published snapshot.
    pub revision: Gauge,
    /// Age of what the view last heard.
    pub staleness_seconds: Gauge<f64, AtomicU64>,
    /// Blocks in the index.
    pub blocks: Gauge,
    /// Messages in hand.
    pub queued_messages: Gauge,
    /// Their bytes.
    pub queued_bytes: Gauge,
    /// Subscriptions.
    pub live: LiveMeters,
}

impl Meters {
    /// Makes `/metrics` show them.
    pub fn register(&self, metrics: &Metrics) {
        self.live.register(metrics);
        metrics.with_registry(|r| {
            let view = r.sub_registry_with_prefix("view");
            view.register("reloads", "Loads of the view after the first", self.reloads.clone());
            view.register("cache_hits", "Blocks found in the cache", self.hits.clone());
            view.register("cache_misses", "Blocks fetched from etcd", self.misses.clone());
            view.register("cache_bytes", "Bytes of blocks kept", self.cache_bytes.clone());
            view.register("revision", "Revision that is served", self.revision.clone());
            view.register(
                "staleness_seconds",
                "Age of what the view last heard from etcd",
                self.staleness_seconds.clone(),
            );
            view.register("index_blocks", "Blocks in the index", self.blocks.clone());
            view.register("queued_messages", "Messages in hand", self.queued_messages.clone());
            view.register("queued_bytes", "Bytes of messages in hand", self.queued_bytes.clone());
        });
    }
}
