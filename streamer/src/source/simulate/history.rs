//! What a made-up GPU has behind it: the energy it took, and whose job it runs. As all of it a
//! function of time, so the energy is a sum that anybody can make anew.

use super::model::{RAMP_MS, SLOT_MS, Slot, left, slot_at};
use crate::generate::SplitMix64;

/// Hosts start anew once a day, each GPU at a moment of its own: the energy is counted since then.
/// It also bounds what is added up for it.
const SLOTS_PER_BOOT: i64 = 86_400_000 / SLOT_MS;
/// Who runs jobs: few, so that there are few series.
const USERS: [&str; 8] = ["ada", "alan", "barbara", "edsger", "grace", "john", "katherine", "tony"];
/// Largest number of a job in SLURM; after it comes 1.
const JOB_ID_MAX: i64 = 67_108_862;
/// Numbers that pass from one slot to the next: other GPUs' jobs.
const JOBS_PER_SLOT: i64 = 9973;

/// Energy since the host started, in mJ: power over time, without its noise.
pub(super) fn energy_mj(stream: u64, now: i64) -> i64 {
    let (number, into) = slot_at(stream, now);
    let first = number.div_euclid(SLOTS_PER_BOOT) * SLOTS_PER_BOOT;
    let mut before = Slot::of(stream, first - 1);
    let mut sum = 0;
    for nth in first..=number {
        let slot = Slot::of(stream, nth);
        let lasted = if nth == number { into } else { SLOT_MS };
        sum += energy_uj(&slot, &before, lasted);
        before = slot;
    }
    sum / 1000
}

/// Energy of a slot's first `into` milliseconds, in µJ (mW times ms): that of its load, that of
/// the way to it, and less while it is throttled.
fn energy_uj(slot: &Slot, before: &Slot, into: i64) -> i64 {
    let power = slot.power_mw(slot.load);
    let ramp = 6 * area(before.load - slot.load, into, RAMP_MS);
    // A job gets hot long after it reached its load.
    let throttled = slot.throttled().map_or(0, |(from, to)| (into.min(to) - from).max(0));
    power * into + ramp - power * throttled * 3 / 10
}

/// What lies under [`left`] in the first `ms`.
fn area(distance: i64, ms: i64, half: i64) -> i64 {
    let (whole, part) = (ms / half, ms % half);
    let halved = |times: i64| if times >= 40 { 0 } else { distance / (1 << times) };
    let full = (distance - halved(whole)) * half * 3 / 2;
    let there = halved(whole);
    full + (there + left(distance, ms, half)) * part / 2
}

/// The job that runs, and whose it is.
pub(super) fn job(stream: u64, now: i64) -> Option<(i64, &'static str)> {
    let (number, _) = slot_at(stream, now);
    if Slot::of(stream, number).load == 0 {
        return None;
    }
    let own = (stream % JOBS_PER_SLOT as u64) as i64;
    let id = 1 + number.wrapping_mul(JOBS_PER_SLOT).wrapping_add(own).rem_euclid(JOB_ID_MAX);
    // A user goes on with one job after the other, for an hour or so.
    let whose = SplitMix64::new(stream, (number / 12) as u64 ^ 0x10b).between(0, 7);
    Some((id, USERS.get(usize::try_from(whose).unwrap_or(0)).copied().unwrap_or(USERS[0])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::simulate::model::readings;

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn energy_is_power_over_time_and_begins_anew_with_the_host() {
        for gpu in 0..10 {
            let stream = SplitMix64::new(7, gpu).next();
            let day = SLOTS_PER_BOOT * SLOT_MS;
            let (number, into) = slot_at(stream, NOW);
            let begin = NOW - number.rem_euclid(SLOTS_PER_BOOT) * SLOT_MS - into;
            // What is off the bus draws power, too.
            let all: Vec<f64> = (0..day / 5000)
                .filter_map(|tick| readings(stream, begin + tick * 5000))
                .map(|readings| readings[2])
                .collect();
            let drawn = all.iter().sum::<f64>() / all.len() as f64 * (day / 1000) as f64;
            let told = energy_mj(stream, begin + day - 1) as f64 / 1000.0;
            assert!((told / drawn - 1.0).abs() < 0.01, "{told} J told, {drawn} J drawn");
            assert_eq!((energy_mj(stream, begin), energy_mj(stream, begin + day)), (0, 0));
        }
    }

    #[test]
    fn the_energy_of_a_second_is_its_power() {
        for gpu in 0..20 {
            let stream = SplitMix64::new(7, gpu).next();
            for second in 0..900 {
                let at = |ms: i64| NOW + second * 1000 + ms;
                let told = energy_mj(stream, at(1000)) - energy_mj(stream, at(0));
                let shown = [0, 500, 1000].map(|ms| readings(stream, at(ms)));
                let [Some(first), Some(middle), Some(last)] = shown else { continue };
                if (first[9] < 1980.0) != (last[9] < 1980.0) {
                    continue; // it begins or ends to be throttled within
                }
                // Within the noise of the power and of the load.
                let (joules, watts) = (told as f64 / 1000.0, middle[2]);
                assert!((joules - watts).abs() < 40.0, "{joules} J at {watts} W");
            }
        }
    }

    #[test]
    fn jobs_run_as_long_as_there_is_load_and_end() {
        let stream = SplitMix64::new(7, 3).next();
        let mut jobs = std::collections::BTreeMap::new();
        let (mut idle, mut users) = (0, std::collections::BTreeSet::new());
        for second in 0..86_400 {
            match job(stream, NOW + second * 1000) {
                Some((id, user)) => {
                    assert!((1..=JOB_ID_MAX).contains(&id));
                    assert_eq!(*jobs.entry(id).or_insert(user), user, "one job, one user");
                    users.insert(user);
                }
                None => idle += 1,
            }
        }
        assert!((180..290).contains(&jobs.len()), "{} jobs a day", jobs.len());
        assert!(idle > 10_000 && users.len() > 4, "{idle} s idle, {users:?}");
    }

    #[test]
    fn the_area_is_what_lies_under_the_curve() {
        for ms in [0, 1, 50, 100, 150, 999, 100_000] {
            let sum: i64 = (0..ms).map(|at| left(80_000, at, 100)).sum();
            let is = area(80_000, ms, 100);
            assert!((is - sum).abs() <= 80_000, "{ms}: {is}, {sum}");
        }
    }

    #[test]
    fn what_warms_up_is_throttled_when_the_clock_says_so() {
        let (mut agreed, mut throttled) = (0, 0);
        for gpu in 0..20 {
            let stream = SplitMix64::new(7, gpu).next();
            for tick in 0..8640 {
                let now = NOW + tick * 10_000;
                let Some(readings) = readings(stream, now) else { continue };
                let (number, into) = slot_at(stream, now);
                let window = Slot::of(stream, number).throttled();
                let is = window.is_some_and(|(from, to)| (from..to).contains(&into));
                throttled += u32::from(readings[9] < 1980.0);
                agreed += u32::from(is && readings[9] < 1980.0);
                assert!(!is || readings[9] < 1980.0, "{window:?} {into}");
            }
        }
        assert!(agreed > 100 && agreed == throttled, "{agreed} of {throttled}");
    }
}
