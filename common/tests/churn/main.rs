//! Churn: the real programs on real etcds under every fault there is, and what it costs.
//!
//! `scripts/churn.sh` runs it phase by phase. Every phase writes what it measured to
//! `CHURN_RESULTS`, and fails if a sample is lost or doubled, the law is broken at any revision,
//! or a figure is worse than its bound. No test of `cargo test`: it takes minutes, alone.

#![allow(clippy::unwrap_used)] // a phase that cannot go on fails

mod claims;
mod flow;
mod members;
mod net;
mod report;
mod sessions;
mod volume;
mod wire;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
};

use report::Report;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Faults of the phase `wire`.
    pub(crate) faults: u64,
    /// Samples of the phase `volume`.
    pub(crate) samples: u64,
    /// How often what is measured once a round is done.
    pub(crate) rounds: u32,
    /// How long all of etcd is away.
    pub(crate) outage_seconds: u64,
}

impl Scale {
    fn read() -> Self {
        Self {
            faults: number("CHURN_FAULTS", 300),
            samples: number("CHURN_SAMPLES", 2_000_000),
            rounds: number("CHURN_ROUNDS", 2) as u32,
            outage_seconds: number("CHURN_OUTAGE_SECONDS", 10),
        }
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return otherwise };
    match text.parse() {
        Ok(number @ 1..) => number,
        _ => panic!("{name}={text} must be a whole number from 1"),
    }
}

type Phase = fn(Scale, Report) -> Pin<Box<dyn Future<Output = Report>>>;

/// In the order in which they run.
const PHASES: [(&str, Phase); 13] = [
    ("wire", |s, r| Box::pin(wire::wire(s, r))),
    ("volume", |s, r| Box::pin(volume::volume(s, r))),
    ("takeover", |s, r| Box::pin(claims::takeover(s, r))),
    ("handover", |s, r| Box::pin(claims::handover(s, r))),
    ("scale", |s, r| Box::pin(claims::scale(s, r))),
    ("session", |s, r| Box::pin(sessions::session(s, r))),
    ("zombie", |s, r| Box::pin(sessions::zombie(s, r))),
    ("nospace", |s, r| Box::pin(sessions::nospace(s, r))),
    ("leader", |s, r| Box::pin(members::leader(s, r))),
    ("outage", |s, r| Box::pin(members::outage(s, r))),
    ("replace", |s, r| Box::pin(members::replace(s, r))),
    ("slow", |s, r| Box::pin(net::slow(s, r))),
    ("partition", |s, r| Box::pin(net::partition(s, r))),
];

fn main() -> ExitCode {
    let folder = PathBuf::from(std::env::var("CHURN_RESULTS").unwrap_or_else(|_| ".".to_owned()));
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let names = || PHASES.map(|(name, _)| name).join(", ");
    match &asked[..] {
        [word] if word == "phases" => println!("{}", PHASES.map(|(name, _)| name).join("\n")),
        [word] if word == "table" => return report::table(&folder, &PHASES.map(|(name, _)| name)),
        [word] => match PHASES.iter().find(|(name, _)| name == word) {
            Some((name, phase)) => return run(name, *phase, &folder),
            None => return usage(&names()),
        },
        _ => return usage(&names()),
    }
    ExitCode::SUCCESS
}

fn usage(names: &str) -> ExitCode {
    eprintln!("usage: churn PHASE | phases | table; the phases are {names}");
    ExitCode::from(64)
}

fn run(name: &str, phase: Phase, folder: &std::path::Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let report = Report::new(name);
    // A phase that panics is told as one that failed.
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(phase(Scale::read(), report))));
    match ended {
        Ok(report) => report.finish(folder),
        Err(_) => {
            Report::new(name).failed().finish(folder);
            ExitCode::FAILURE
        }
    }
}
