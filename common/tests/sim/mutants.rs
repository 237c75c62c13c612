//! Guards taken out one by one: each has to be missed.

use nexus_common::testing::mutation::{Mutation, leave_out};

use crate::schedule::run;

/// Schedules tried before a guard counts as not missed.
const SCHEDULES: u64 = 600;

/// Some schedule must fail without the guard and pass with it; what is wrong then has to be what
/// the guard is there for.
fn missed(guard: Mutation, because: &[&str]) {
    for seed in 0..SCHEDULES {
        leave_out(Some(guard));
        let without = run(seed, false).verdict;
        leave_out(None);
        let Err(what) = without else { continue };
        assert!(because.iter().any(|b| what.contains(b)), "schedule {seed} fails for {what}");
        println!("{guard:?}: schedule {seed}: {what}");
        run(seed, false).verdict.expect("with the guard the schedule passes");
        return;
    }
    panic!("{SCHEDULES} schedules pass with {guard:?}");
}

#[test]
fn without_the_claim_in_a_commit_who_lost_it_writes() {
    missed(Mutation::NoClaim, &["which did not stand"]);
}

#[test]
fn without_the_position_in_a_commit_samples_are_doubled_or_lost() {
    missed(Mutation::NoPosition, &["conservation", "went back", "the queue should hold"]);
}

#[test]
fn without_contiguity_a_stale_read_is_taken_again() {
    missed(Mutation::NoContiguity, &["conservation", "went back", "the queue should hold"]);
}

#[test]
fn without_the_floor_a_block_is_put_where_history_has_ended() {
    missed(Mutation::NoFloor, &["below the floor"]);
}
