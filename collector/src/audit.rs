//! The conservation law in production: whichever collector holds the janitor's claim checks it
//! again and again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexus_common::{
    audit::{AuditReport, audit},
    etcd::{Error, Etcd},
    runtime::Metrics,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::time::sleep;

/// An audit lists every key, and etcd reads the values to do so: it rests so many times as long
/// as the last one took, whatever is asked for.
const REST_FACTOR: u32 = 19;
/// Changes of the violations are told at most so often: a broken keyspace may change with every
/// commit.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How often an audit is begun again at once because its revision was compacted under it.
const TRIES: u32 = 3;

/// What `/metrics` shows of it. Only the janitor's are other than 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct AuditMeters {
    delta: Gauge,
    violations: Gauge,
    done: Counter,
}

impl AuditMeters {
    /// Meters that `/metrics` shows.
    pub(crate) fn register(metrics: &Metrics) -> Arc<Self> {
        let meters = Arc::new(Self::default());
        metrics.with_registry(|r| {
            let (delta, violations) = (meters.delta.clone(), meters.violations.clone());
            r.register("audit_delta", "Samples missing or too many at the last audit", delta);
            r.register("audit_violations", "Invariants broken at the last audit", violations);
            r.register("audits", "Audits done", meters.done.clone());
        });
        meters
    }

    fn show(&self, report: &AuditReport) {
        self.delta.set(i64::try_from(report.delta).unwrap_or(i64::MAX));
        self.violations.set(i64::try_from(report.violation_count).unwrap_or(i64::MAX));
    }
}

struct Watching<'a> {
    meters: &'a AuditMeters,
    told: Told,
}

impl Drop for Watching<'_> {
    /// From now on another collector's audits count.
    fn drop(&mut self) {
        self.meters.show(&AuditReport::default());
    }
}

/// Audits every `every` (or less often, if one takes long) for as long as it is polled. Zero is
/// never.
pub(crate) async fn watch(etcd: &Etcd, meters: &AuditMeters, every: Duration) {
    if every.is_zero() {
        return std::future::pending().await;
    }
    let mut watching = Watching { meters, told: Told::default() };
    loop {
        let began = Instant::now();
        match audited(etcd).await {
            Ok(report) => {
                meters.done.inc();
                meters.show(&report);
                watching.told.tell(&report, began);
            }
            Err(error) => tracing::debug!(%error, "could not audit, trying again later"),
        }
        sleep(every.max(began.elapsed() * REST_FACTOR)).await;
    }
}

/// One audit. A revision that was compacted while it was read is no fault of anybody.
async fn audited(etcd: &Etcd) -> Result<AuditReport, Error> {
    let mut tries = 1;
    loop {
        match audit(etcd).await {
            Err(Error::Compacted { .. }) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

/// What the log knows.
#[derive(Debug, Default)]
struct Told {
    violations: Vec<String>,
    count: u64,
    at: Option<Instant>,
}

impl Told {
    fn tell(&mut self, report: &AuditReport, now: Instant) {
        if !self.due(report, now) {
            return;
        }
        self.violations.clone_from(&report.violations);
        self.count = report.violation_count;
        self.at = Some(now);
        let AuditReport { revision, delta, violation_count, .. } = report;
        if report.clean {
            tracing::warn!(revision, "the audit is clean again");
            return;
        }
        let first = report.violations.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        tracing::error!(
            revision,
            delta,
            violations = violation_count,
            first,
            "the audit found broken invariants: see /audit"
        );
    }

    /// Whether something changed, and nothing was told just now.
    fn due(&self, report: &AuditReport, now: Instant) -> bool {
        let same = self.count == report.violation_count && self.violations == report.violations;
        !same && self.at.is_none_or(|at| now.duration_since(at) >= TELL_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(violations: &[&str]) -> AuditReport {
        let violations: Vec<String> = violations.iter().map(|v| (*v).to_owned()).collect();
        let violation_count = violations.len() as u64;
        let clean = violations.is_empty();
        AuditReport { clean, violation_count, violations, ..AuditReport::default() }
    }

    #[test]
    fn violations_are_told_once_for_each_change_and_not_too_often() {
        let (mut told, begin) = (Told::default(), Instant::now());
        let mut check = |second: u64, violations: &[&str], expected: bool| {
            let (report, now) = (report(violations), begin + Duration::from_secs(second));
            assert_eq!(told.due(&report, now), expected, "{second} s: {violations:?}");
            told.tell(&report, now);
        };
        check(0, &[], false);
        check(1, &["a"], true);
        check(2, &["a"], false);
        check(3, &["a", "b"], false);
        check(11, &["a", "b"], true);
        check(60, &["a", "b"], false);
        check(61, &[], true);
        check(99, &[], false);
    }
}
