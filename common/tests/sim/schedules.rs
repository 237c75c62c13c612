//! Thousands of schedules.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use nexus_common::testing::chaos::Fault;

use crate::schedule::run;

/// How many there are unless NEXUS_SIM_SCHEDULES says otherwise.
const SCHEDULES: u64 = 10_000;

fn wanted() -> u64 {
    std::env::var("NEXUS_SIM_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(SCHEDULES)
}

#[test]
fn no_schedule_loses_or_doubles_a_sample() {
    let (began, next) = (Instant::now(), AtomicU64::new(0));
    let failed: Mutex<Option<(u64, String)>> = Mutex::default();
    let faults: Mutex<BTreeMap<Fault, u64>> = Mutex::default();
    let [requests, revisions, audits, samples, retired] =
        std::array::from_fn(|_| AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= wanted() || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let told = run(seed, false);
                    requests.fetch_add(told.requests, Relaxed);
                    for (fault, times) in told.faults {
                        *faults.lock().unwrap().entry(fault).or_default() += times;
                    }
                    match told.verdict {
                        Ok(verdict) => {
                            revisions.fetch_add(verdict.revisions, Relaxed);
                            audits.fetch_add(verdict.audits, Relaxed);
                            samples.fetch_add(verdict.samples, Relaxed);
                            retired.fetch_add(verdict.retired, Relaxed);
                        }
                        Err(what) => {
                            failed.lock().unwrap().get_or_insert((seed, what));
                        }
                    }
                }
            });
        }
    });
    if let Some((seed, what)) = failed.into_inner().unwrap() {
        let story = run(seed, true).story.join("\n");
        panic!("schedule {seed}: {what}\nIts story:\n{story}\nschedule {seed}: {what}");
    }
    let faults = faults.into_inner().unwrap();
    let [requests, revisions, audits, samples, retired] =
        [requests, revisions, audits, samples, retired].map(AtomicU64::into_inner);
    println!(
        "{} schedules in {:.1} s: {requests} requests, {} faults ({faults:?}), {revisions} \
         revisions, {audits} audits, {samples} samples each in one place, {retired} of them retired",
        wanted(),
        began.elapsed().as_secs_f64(),
        faults.values().sum::<u64>(),
    );
    assert!(retired > 0, "history has to end in some");
    assert_eq!(faults.len(), 6, "every kind of fault has to occur");
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..20 {
        assert_eq!(run(seed, true).story, run(seed, true).story, "seed {seed}");
    }
}
