//! Who was asked when.

use std::time::Duration;

use serde_json::{Value, json};

/// Most questions to one exporter that are kept for one report: an hour of one a second.
const KEPT_MAX: usize = 3600;

/// When each exporter was asked.
pub(crate) struct Account {
    interval: Duration,
    targets: Vec<Target>,
    since: Duration,
}

#[derive(Default, Clone)]
struct Target {
    times: usize,
    /// The last question before this report's time, if there was one, then those in it.
    at: Vec<Duration>,
}

impl Account {
    pub(crate) fn new(targets: usize, interval: Duration) -> Self {
        Self { interval, targets: vec![Target::default(); targets], since: Duration::ZERO }
    }

    /// Notes a question; how many there were before.
    pub(crate) fn asked(&mut self, target: usize, now: Duration) -> usize {
        let Some(target) = self.targets.get_mut(target) else { return 0 };
        if target.at.len() < KEPT_MAX {
            target.at.push(now);
        }
        target.times += 1;
        target.times - 1
    }

    /// How regularly they were asked since the last report. Jitter is how far the time between two
    /// questions is from the interval; one that follows within half of it asks twice.
    pub(crate) fn report(&mut self, now: Duration) -> Value {
        let gaps: Vec<Duration> = self
            .targets
            .iter()
            .flat_map(|target| target.at.windows(2).map(|pair| pair[1] - pair[0]))
            .collect();
        let mut jitter: Vec<Duration> =
            gaps.iter().map(|gap| gap.abs_diff(self.interval)).collect();
        jitter.sort_unstable();
        let part = |part: f64| {
            let nth = (jitter.len().saturating_sub(1) as f64 * part) as usize;
            jitter.get(nth).map(Duration::as_secs_f64)
        };
        // One that is not asked any more shows in the time that it has waited.
        let waited = |target: &Target| target.at.last().map(|last| now.saturating_sub(*last));
        let longest = gaps.iter().copied().chain(self.targets.iter().filter_map(waited)).max();
        let asked = self.targets.iter().filter(|t| t.at.iter().any(|at| *at >= self.since));
        let questions = self.targets.iter().flat_map(|t| &t.at).filter(|at| **at >= self.since);
        let report = json!({
            "seconds": (now - self.since).as_secs_f64(),
            "targets": self.targets.len(),
            "asked": asked.count(),
            "questions": questions.count(),
            "asked_twice": gaps.iter().filter(|gap| **gap < self.interval / 2).count(),
            "jitter_seconds": { "p50": part(0.5), "p99": part(0.99), "max": part(1.0) },
            "longest_gap_seconds": longest.map(|gap| gap.as_secs_f64()),
        });
        for target in &mut self.targets {
            target.at = target.at.last().copied().into_iter().collect();
        }
        self.since = now;
        report
    }
}
