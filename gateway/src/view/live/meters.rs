//! What subscriptions tell about themselves.

use nexus_common::runtime::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::GapReason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counters and gauges of subscriptions.
#[derive(Debug, Default, Clone)]
pub struct LiveMeters {
    /// Open subscriptions.
    pub subscriptions: Gauge,
    /// Points handed to subscribers.
    pub points: Counter,
    /// Updates that subscribers were told they missed.
    pub skipped: Counter,
    gaps: Family<ReasonLabel, Counter>,
}

impl LiveMeters {
    pub(super) fn gap(&self, reason: GapReason) {
        self.gaps.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// Makes `/metrics` show them.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with_registry(|r| {
            let live = r.sub_registry_with_prefix("live");
            let subscriptions = self.subscriptions.clone();
            live.register("subscriptions", "Open subscriptions", subscriptions);
            live.register("points", "Points handed to subscribers", self.points.clone());
            live.register(
                "skipped_updates",
                "Updates that subscribers were told they missed",
                self.skipped.clone(),
            );
            live.register("gaps", "Gaps in subscriptions, by reason", self.gaps.clone());
        });
    }
}
