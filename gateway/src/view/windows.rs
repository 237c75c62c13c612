//! Points put together by windows of time: one value a series and window. Pure.

use std::collections::BTreeMap;

use nexus_common::model::{ClusterId, HostSamples, Labels, MetricName};

use super::points::{Bounds, Point, PointKey};

/// Most samples that wait for their window to be complete, 32 bytes each: an hour of 25 metrics
/// of ten GPUs, at one a second.
const SAMPLES_OPEN_MAX: usize = 1 << 20;

/// What becomes of the values of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agg {
    /// Their mean.
    Avg,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The smallest that at least 95 in 100 do not exceed (nearest rank).
    P95,
    /// The one at the latest instant.
    Last,
}

/// How points are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// Length of a window, in milliseconds, at least 1. Windows begin at its multiples since the
    /// epoch, and a point stands at the first instant of its window.
    pub millis: i64,
    /// What becomes of its values.
    pub agg: Agg,
}

impl Step {
    /// First instant of the window that holds `at`.
    pub fn window(self, at: i64) -> i64 {
        at.div_euclid(self.millis).saturating_mul(self.millis)
    }
}

/// A sample: instant, rank of where it was read, value.
type Sample = (i64, u32, f64);

/// Windows whose samples are still coming, and those that are complete.
#[derive(Debug)]
pub(super) struct Windows {
    bounds: Bounds,
    step: Step,
    open: BTreeMap<PointKey, BTreeMap<(MetricName, Labels), Vec<Sample>>>,
    samples: usize,
    /// In the direction of reading.
    done: Vec<Point>,
}

impl Windows {
    pub(super) fn new(bounds: Bounds, step: Step) -> Self {
        Self { bounds, step, open: BTreeMap::new(), samples: 0, done: Vec::new() }
    }

    /// Takes samples of a host that were read as the `rank`-th.
    pub(super) fn add(&mut self, cluster: &ClusterId, rank: u32, samples: &HostSamples) {
        for series in &samples.series {
            let gpu = match series.gpu {
                None => None,
                Some(index) => match samples.gpus.get(index as usize) {
                    Some(gpu) => Some(gpu.id.clone()),
                    None => continue,
                },
            };
            let name = (series.metric.clone(), series.labels.clone());
            let timed: Vec<(i64, f64)> =
                series.timestamps.iter().copied().zip(series.values.iter().copied()).collect();
            // Neighbours mostly share a window.
            for run in timed.chunk_by(|a, b| self.step.window(a.0) == self.step.window(b.0)) {
                let Some((first, _)) = run.first() else { continue };
                let (cluster, host) = (cluster.clone(), samples.host.clone());
                let key =
                    PointKey { at: self.step.window(*first), cluster, host, gpu: gpu.clone() };
                if !self.bounds.is_behind_cursor(&key) {
                    continue;
                }
                let (start, end) = (self.bounds.start, self.bounds.end);
                let wanted = run.iter().filter(|(at, _)| (start..=end).contains(at));
                let wanted: Vec<Sample> = wanted.map(|&(at, value)| (at, rank, value)).collect();
                if !wanted.is_empty() {
                    self.samples += wanted.len();
                    let series = self.open.entry(key).or_default();
                    series.entry(name.clone()).or_default().extend(wanted);
                }
            }
        }
    }

    /// Completes the windows to which neither a part between these instants nor one behind it
    /// adds.
    pub(super) fn settle(&mut self, first: i64, last: i64) {
        if self.bounds.newest {
            // Windows that begin behind the last instant.
            while self.open.last_key_value().is_some_and(|(key, _)| key.at > last)
                && let Some((key, series)) = self.open.pop_last()
            {
                self.complete(key, series);
            }
        } else {
            // Windows that end before the first.
            let begin = self.step.window(first);
            while self.open.first_key_value().is_some_and(|(key, _)| key.at < begin)
                && let Some((key, series)) = self.open.pop_first()
            {
                self.complete(key, series);
            }
        }
    }

    /// Whether there are as many as asked for.
    pub(super) fn is_full(&self) -> bool {
        self.done.len() >= self.bounds.limit
    }

    /// Whether more samples wait than may.
    pub(super) fn is_too_wide(&self) -> bool {
        self.samples > SAMPLES_OPEN_MAX
    }

    /// Forgets the windows that are not complete.
    pub(super) fn cut(&mut self) {
        self.open.clear();
    }

    /// The points, in the order of time.
    pub(super) fn finish(mut self) -> Vec<Point> {
        let open = std::mem::take(&mut self.open);
        if self.bounds.newest {
            open.into_iter().rev().for_each(|(key, series)| self.complete(key, series));
        } else {
            open.into_iter().for_each(|(key, series)| self.complete(key, series));
        }
        self.done.truncate(self.bounds.limit);
        if self.bounds.newest {
            self.done.reverse();
        }
        self.done
    }

    fn complete(&mut self, key: PointKey, series: BTreeMap<(MetricName, Labels), Vec<Sample>>) {
        let agg = self.step.agg;
        let mut values = Vec::with_capacity(series.len());
        for ((metric, labels), samples) in series {
            self.samples = self.samples.saturating_sub(samples.len());
            values.extend(one_of(agg, samples).map(|value| (metric, labels, value)));
        }
        self.done.push(Point { key, values });
    }
}

/// The value of a window; none without a sample. Of samples at one instant the latest read counts.
fn one_of(agg: Agg, mut samples: Vec<Sample>) -> Option<f64> {
    samples.sort_by_key(|(at, rank, _)| (*at, std::cmp::Reverse(*rank)));
    samples.dedup_by_key(|(at, ..)| *at);
    let values = || samples.iter().map(|(.., value)| *value);
    match agg {
        Agg::Avg => {
            let count = samples.len() as f64;
            (count > 0.0).then(|| values().sum::<f64>() / count)
        }
        Agg::Min => values().reduce(f64::min),
        Agg::Max => values().reduce(f64::max),
        Agg::Last => values().next_back(),
        Agg::P95 => {
            let mut sorted: Vec<f64> = values().collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied()
        }
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::model::SeriesSamples;

    use super::*;

    fn samples(timed: &[(i64, f64)]) -> HostSamples {
        let series = SeriesSamples {
            gpu: None,
            metric: "temperature".parse().unwrap(),
            labels: Labels::default(),
            timestamps: timed.iter().map(|(at, _)| *at).collect(),
            values: timed.iter().map(|(_, value)| *value).collect(),
        };
        HostSamples { host: "h".parse().unwrap(), gpus: vec![], series: vec![series] }
    }

    fn windows(newest: bool, limit: usize, agg: Agg) -> Windows {
        let bounds = Bounds { start: 0, end: i64::MAX, after: None, newest, limit };
        Windows::new(bounds, Step { millis: 10, agg })
    }

    fn told(windows: Windows) -> Vec<(i64, f64)> {
        windows.finish().iter().map(|p| (p.key.at, p.values[0].2)).collect()
    }

    #[test]
    fn each_window_has_one_value_and_stands_at_its_first_instant() {
        let check = |agg: Agg, expected: f64| {
            let mut windows = windows(false, 9, agg);
            let timed: Vec<_> = (0..20).map(|n| (20 + n / 2, f64::from(n as i32))).collect();
            // Two at each instant: the ranks decide, not the order.
            let even: Vec<_> = timed.iter().copied().filter(|(_, v)| v % 2.0 == 0.0).collect();
            let odd: Vec<_> = timed.iter().copied().filter(|(_, v)| v % 2.0 == 1.0).collect();
            let cluster = "c".parse().unwrap();
            windows.add(&cluster, 2, &samples(&even));
            windows.add(&cluster, 1, &samples(&odd));
            windows.add(&cluster, 1, &samples(&[(30, 7.0)]));
            assert_eq!(told(windows), [(20, expected), (30, 7.0)], "{agg:?}");
        };
        check(Agg::Avg, 9.0);
        check(Agg::Min, 0.0);
        check(Agg::Max, 18.0);
        check(Agg::P95, 18.0);
        check(Agg::Last, 18.0);
    }

    #[test]
    fn the_95th_percentile_is_the_nearest_rank() {
        let check = |count: u32, expected: f64| {
            let samples = (1..=count).map(|n| (i64::from(n), 0, f64::from(n))).collect();
            assert_eq!(one_of(Agg::P95, samples), Some(expected), "{count}");
        };
        check(1, 1.0);
        check(19, 19.0);
        check(20, 19.0);
        check(100, 95.0);
        assert_eq!(one_of(Agg::P95, vec![]), None);
        assert_eq!(one_of(Agg::Avg, vec![]), None);
    }

    #[test]
    fn a_window_is_complete_when_no_further_part_reaches_it() {
        let cluster = "c".parse().unwrap();
        let timed: Vec<(i64, f64)> = (0..40).map(|at| (at, 1.0)).collect();
        let mut oldest = windows(false, 2, Agg::Max);
        oldest.add(&cluster, 1, &samples(&timed));
        oldest.settle(19, 99);
        assert_eq!((oldest.done.len(), oldest.is_full()), (1, false));
        oldest.settle(20, 99);
        assert!(oldest.is_full());
        assert_eq!((oldest.samples, told(oldest)), (20, vec![(0, 1.0), (10, 1.0)]));
        let mut newest = windows(true, 2, Agg::Max);
        newest.add(&cluster, 1, &samples(&timed));
        newest.settle(0, 30);
        assert!(newest.done.is_empty());
        newest.settle(0, 19);
        assert_eq!(told(newest), [(20, 1.0), (30, 1.0)]);
    }

    #[test]
    fn instants_before_the_epoch_have_windows_too() {
        let step = Step { millis: 10, agg: Agg::Max };
        let found: Vec<i64> = [-11, -10, -1, 0, 9, 10].map(|at| step.window(at)).to_vec();
        assert_eq!(found, [-20, -10, -10, 0, 0, 10]);
        assert_eq!(step.window(i64::MIN), i64::MIN);
    }
}
