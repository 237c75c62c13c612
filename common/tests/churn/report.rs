//! What a phase measured: told, kept as JSON, and put together into one table.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use nexus_common::testing::etcd_version;
use serde::{Deserialize, Serialize};

/// What one phase did and found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    phase: String,
    etcd: String,
    passed: bool,
    seconds: f64,
    /// Faults by kind.
    faults: BTreeMap<String, u64>,
    samples: u64,
    lost: u64,
    doubled: u64,
    audits: u64,
    figures: Vec<Figure>,
    /// What this machine does not allow, and why.
    skipped: Vec<String>,
    #[serde(skip, default = "Instant::now")]
    begun: Instant,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figure {
    what: String,
    measured: String,
    bound: String,
    kept: bool,
}

impl Report {
    pub(crate) fn new(phase: &str) -> Self {
        Self {
            phase: phase.to_owned(),
            etcd: etcd_version(),
            passed: true,
            seconds: 0.0,
            faults: BTreeMap::new(),
            samples: 0,
            lost: 0,
            doubled: 0,
            audits: 0,
            figures: Vec::new(),
            skipped: Vec::new(),
            begun: Instant::now(),
        }
    }

    /// Counts faults of a kind.
    pub(crate) fn fault(&mut self, kind: &str, count: u64) {
        *self.faults.entry(kind.to_owned()).or_default() += count;
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Samples whose every row was compared with the source.
    pub(crate) fn compared(&mut self, stored: u64, source: u64) {
        self.samples += source;
        self.lost += source.saturating_sub(stored);
        self.doubled += stored.saturating_sub(source);
    }

    pub(crate) fn audited(&mut self, audits: u64) {
        self.audits += audits;
    }

    /// A figure that is a time: its 99th percentile must be within `bound`.
    pub(crate) fn times(&mut self, what: &str, mut times: Vec<Duration>, bound: Option<Duration>) {
        assert!(!times.is_empty(), "{what}: nothing was measured");
        times.sort();
        let at = |part: f64| times[((times.len() as f64 * part).ceil() as usize).max(1) - 1];
        let (half, p99, max) = (at(0.5), at(0.99), at(1.0));
        let told = format!(
            "p50 {}, p99 {}, max {} (of {})",
            brief(half),
            brief(p99),
            brief(max),
            times.len()
        );
        let kept = bound.is_none_or(|bound| p99 <= bound);
        if !kept && times_are_only_told() {
            println!("  {what}: {told}: late, which is told and fails nothing here");
            return;
        }
        let bound = bound.map_or_else(|| "-".to_owned(), |bound| format!("p99 {}", brief(bound)));
        self.figure(what, told, bound, kept);
    }

    /// Any other figure.
    pub(crate) fn fact(&mut self, what: &str, measured: impl ToString, bound: &str, kept: bool) {
        self.figure(what, measured.to_string(), bound.to_owned(), kept);
    }

    fn figure(&mut self, what: &str, measured: String, bound: String, kept: bool) {
        let word = if kept { "" } else { "  WORSE THAN ITS BOUND" };
        println!("  {what}: {measured}; bound: {bound}{word}");
        self.passed &= kept;
        self.figures.push(Figure { what: what.to_owned(), measured, bound, kept });
    }

    pub(crate) fn skipped(&mut self, what: &str, why: &str) {
        println!("  not possible here: {what} ({why})");
        self.skipped.push(format!("{what} ({why})"));
    }

    pub(crate) fn failed(mut self) -> Self {
        self.passed = false;
        self
    }

    /// Writes it down.
    pub(crate) fn finish(mut self, folder: &Path) -> ExitCode {
        self.seconds = self.begun.elapsed().as_secs_f64();
        self.passed &= self.lost + self.doubled == 0;
        let word = if self.passed { "passed" } else { "FAILED" };
        println!(
            "{}: {word}: {} faults {:?}, {} samples, {} lost, {} doubled, {} audits, {:.0} s, etcd {}",
            self.phase,
            self.faults(),
            self.faults,
            self.samples,
            self.lost,
            self.doubled,
            self.audits,
            self.seconds,
            self.etcd
        );
        std::fs::create_dir_all(folder).unwrap();
        let path = folder.join(format!("{}.json", self.phase));
        std::fs::write(&path, serde_json::to_vec_pretty(&self).unwrap()).unwrap();
        if self.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Whether times beyond their bounds fail nothing: on a machine that does other work meanwhile.
fn times_are_only_told() -> bool {
    std::env::var("CHURN_TIMES").is_ok_and(|word| word == "told")
}

fn brief(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds => format!("{:.0} ms", seconds * 1000.0),
    }
}

/// Prints all phases that left a result, as Markdown.
pub(crate) fn table(folder: &Path, phases: &[&str]) -> ExitCode {
    let read = |phase: &&str| {
        let bytes = std::fs::read(folder.join(format!("{phase}.json"))).ok()?;
        Some(serde_json::from_slice::<Report>(&bytes).unwrap())
    };
    let reports: Vec<Report> = phases.iter().filter_map(read).collect();
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    println!("| what | measured | bound |\n| --- | --- | --- |");
    println!("| faults injected | {} | |", sum(Report::faults));
    println!("| samples, each compared with its source | {} | |", sum(|r| r.samples));
    println!("| lost | {} | 0 |", sum(|r| r.lost));
    println!("| doubled | {} | 0 |", sum(|r| r.doubled));
    println!("| audits, each at one revision, all clean | {} | |", sum(|r| r.audits));
    for report in &reports {
        for Figure { what, measured, bound, kept } in &report.figures {
            let word = if *kept { "" } else { " **not kept**" };
            println!("| {}: {what} | {measured} | {bound}{word} |", report.phase);
        }
    }
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, count) in reports.iter().flat_map(|r| &r.faults) {
        *kinds.entry(kind).or_default() += count;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("\nfaults: {}", kinds.join(", "));
    for skipped in reports.iter().flat_map(|r| &r.skipped) {
        println!("not possible here: {skipped}");
    }
    let missing: Vec<&&str> =
        phases.iter().filter(|p| reports.iter().all(|r| r.phase != ***p)).collect();
    let failed: Vec<&str> =
        reports.iter().filter(|r| !r.passed).map(|r| r.phase.as_str()).collect();
    let seconds: f64 = reports.iter().map(|r| r.seconds).sum();
    let versions: std::collections::BTreeSet<&str> =
        reports.iter().map(|r| r.etcd.as_str()).collect();
    println!("{} phases in {seconds:.0} s on etcd {versions:?}", reports.len());
    if !missing.is_empty() {
        println!("not run: {missing:?}");
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("FAILED: {}", failed.join(", "));
    ExitCode::FAILURE
}
