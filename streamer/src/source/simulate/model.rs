//! How a made-up GPU behaves, as a function of time: jobs come and go in slots, temperature
//! follows power, a hot GPU is throttled, now and then one reports an XID, and rarely one falls off
//! the bus.
//!
//! A function of (seed, host, GPU, instant) and nothing else, in integers: whoever measures goes on
//! exactly where somebody else stopped, on any machine.

use crate::generate::SplitMix64;

/// How long a GPU does the same, in milliseconds: long enough to warm up, short enough to watch.
pub(super) const SLOT_MS: i64 = 300_000;
/// Frame buffer of an H100 80 GB, in MiB, as DCGM splits it into used and free.
const FRAME_BUFFER_MIB: i64 = 81_559;
/// SM and memory clock without throttling, in MHz.
const SM_CLOCK_MHZ: i64 = 1980;
const MEMORY_CLOCK_MHZ: i64 = 2619;
/// Half the way of a temperature, and of a load, to where it is going, in milliseconds.
const WARM_MS: i64 = 20_000;
pub(super) const RAMP_MS: i64 = 3_000;
/// What being hot adds in the long run, and from where on it is throttled, in thousandths of a
/// degree.
const HEAT: i64 = 22_000;
const HEAT_MAX: i64 = 12_000;
/// One job in so many loses its cooling, reports an XID of its own making, or its GPU.
const HOT_ONCE_IN: i64 = 12;
const XID_ONCE_IN: i64 = 60;
const LOST_ONCE_IN: i64 = 600;
/// What software does wrong: illegal instruction, memory page fault, engine exception, reset.
const XIDS: [i64; 4] = [13, 31, 43, 45];
/// "GPU has fallen off the bus".
const XID_LOST: i64 = 79;
/// NVML's bits of why a clock is held back: nothing to do; the software, for the temperature.
const THROTTLED_IDLE: i64 = 0x1;
const THROTTLED_WARM: i64 = 0x20;
/// What a job that loads a GPU fully moves over PCIe, in bytes a second and percent of load.
const PCIE_BYTES: i64 = 180_000_000;
/// How long a GPU that falls off the bus still tells its XID, in milliseconds.
const LAST_WORDS_MS: i64 = 10_000;

/// What is measured, by DCGM's names, in the order of [`Readings`].
pub(crate) const FIELDS: [&str; 20] = [
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_MEMORY_TEMP",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_DEC_UTIL",
    "DCGM_FI_DEV_ENC_UTIL",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_DEV_PSTATE",
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_PROF_PCIE_TX_BYTES",
    "DCGM_FI_PROF_PCIE_RX_BYTES",
];

/// One value a field: power in watts, what DCGM profiles as parts of 1, PCIe in bytes a second.
pub(crate) type Readings = [f64; FIELDS.len()];

/// What a GPU does in one slot.
pub(super) struct Slot {
    /// In thousandths of a percent.
    pub(super) load: i64,
    memory_mib: i64,
    decoder: i64,
    /// How much of the load is the tensor cores', in percent.
    tensor: i64,
    /// From when to when it lacks air, from the slot's beginning on; it has cooled by the end.
    hot: Option<(i64, i64)>,
    /// An XID, and when.
    xid: Option<(i64, i64)>,
}

impl Slot {
    pub(super) fn of(stream: u64, number: i64) -> Self {
        let mut random = SplitMix64::new(stream, number as u64);
        let busy = !random.once_in(4);
        let at = random.between(60_000, 150_000);
        let (hot, xid, lost) = (
            busy && random.once_in(HOT_ONCE_IN),
            random.once_in(XID_ONCE_IN),
            random.once_in(LOST_ONCE_IN),
        );
        let code = usize::try_from(random.between(0, 3)).unwrap_or(0);
        let code = if lost { XID_LOST } else { XIDS.get(code).copied().unwrap_or(XID_LOST) };
        Self {
            load: if busy { random.between(55_000, 100_000) } else { 0 },
            memory_mib: if busy { random.between(8, 77) * 1024 } else { random.between(0, 4) },
            decoder: if busy && random.once_in(10) { random.between(1, 12) } else { 0 },
            tensor: if busy { random.between(10, 70) } else { 0 },
            hot: hot.then(|| (at, at + random.between(30_000, 60_000))),
            xid: (xid || lost).then_some((at, code)),
        }
    }

    /// Without noise and at this load.
    pub(super) fn power_mw(&self, load: i64) -> i64 {
        68_000 + load * 6
    }

    /// From when to when it is throttled.
    pub(super) fn throttled(&self) -> Option<(i64, i64)> {
        let (from, to) = self.hot?;
        // As long as it takes to get there and back, by halves; both are less than two of them.
        let missing = HEAT - HEAT_MAX;
        let first = WARM_MS + (HEAT / 2 - missing) * WARM_MS * 4 / HEAT + 1;
        let gained = gained(to - from);
        let cooled = (gained - HEAT_MAX) * WARM_MS * 2 / gained.max(1);
        (gained > HEAT_MAX).then_some((from + first, to + cooled))
    }

    /// In thousandths of a degree, in the long run.
    fn warmth(&self) -> i64 {
        27_000 + self.power_mw(self.load) * 60 / 1000
    }

    fn is_lost(&self, into: i64) -> bool {
        self.xid.is_some_and(|(at, code)| code == XID_LOST && into >= at + LAST_WORDS_MS)
    }
}

/// What is left of `distance` after `ms`, halved every `half` of them.
pub(super) fn left(distance: i64, ms: i64, half: i64) -> i64 {
    let (whole, part) = (ms / half, ms % half);
    if whole >= 40 {
        return 0;
    }
    let there = distance / (1 << whole);
    there - there * part / (2 * half)
}

/// How warm it got after so long without air.
fn gained(ms: i64) -> i64 {
    HEAT - left(HEAT, ms, WARM_MS)
}

/// Which slot an instant lies in, and how far.
pub(super) fn slot_at(stream: u64, now: i64) -> (i64, i64) {
    // Each GPU has its own beginning, so that not all jobs start at once.
    let shifted = now.saturating_add((stream % SLOT_MS as u64) as i64);
    (shifted.div_euclid(SLOT_MS), shifted.rem_euclid(SLOT_MS))
}

/// What GPU `stream` shows at `now`, in milliseconds since the epoch. Nothing while it is off the
/// bus.
pub(crate) fn readings(stream: u64, now: i64) -> Option<Readings> {
    let (number, into) = slot_at(stream, now);
    let (slot, before) = (Slot::of(stream, number), Slot::of(stream, number - 1));
    if slot.is_lost(into) {
        return None;
    }
    let mut noise = SplitMix64::new(!stream, now as u64);
    let heat = slot.hot.map_or(0, |(from, to)| match into {
        _ if into < from => 0,
        _ if into < to => gained(into - from),
        _ => left(gained(to - from), into - to, WARM_MS),
    });
    let throttled = heat > HEAT_MAX;
    let wobble = if slot.load > 0 { noise.between(-4_000, 4_000) } else { 0 };
    let ramp = slot.load + left(before.load - slot.load, into, RAMP_MS);
    let load = (ramp + wobble).clamp(0, 100_000);
    let power = (slot.power_mw(load) + noise.between(-3_000, 3_000)).clamp(60_000, 700_000);
    let power = if throttled { power * 7 / 10 } else { power };
    let warmth = slot.warmth() + left(before.warmth() - slot.warmth(), into, WARM_MS) + heat;
    let temperature = (warmth + noise.between(-300, 300)) / 1000;
    let utilisation = load / 1000;
    let copy = if utilisation == 0 { 0 } else { utilisation * 2 / 5 + noise.between(-2, 2) };
    let copy = copy.clamp(0, 100);
    let clock = SM_CLOCK_MHZ - if throttled { 15 * noise.between(8, 30) } else { 0 };
    let (state, reasons) = match (utilisation, throttled) {
        (0, _) => (8, THROTTLED_IDLE),
        (_, true) => (0, THROTTLED_WARM),
        (_, false) => (0, 0),
    };
    // The last one stays until a job later: then the driver is loaded anew.
    let xid = slot.xid.filter(|(at, _)| into >= *at).or(before.xid).map_or(0, |(_, code)| code);
    Some([
        utilisation as f64,
        copy as f64,
        power as f64 / 1000.0,
        temperature as f64,
        (temperature + 8) as f64,
        slot.memory_mib as f64,
        (FRAME_BUFFER_MIB - slot.memory_mib) as f64,
        slot.decoder as f64,
        0.0,
        clock as f64,
        MEMORY_CLOCK_MHZ as f64,
        xid as f64,
        state as f64,
        reasons as f64,
        (stream % 3) as f64,
        utilisation as f64 / 100.0,
        (utilisation * slot.tensor / 100) as f64 / 100.0,
        copy as f64 / 100.0,
        (utilisation * slot.tensor / 100 * PCIE_BYTES) as f64,
        (utilisation * PCIE_BYTES) as f64,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    /// A day of one GPU, a reading every ten seconds.
    fn days(gpus: u64) -> impl Iterator<Item = Option<Readings>> {
        (0..gpus).flat_map(|gpu| {
            let stream = SplitMix64::new(7, gpu).next();
            (0..8640).map(move |tick| readings(stream, NOW + tick * 10_000))
        })
    }

    #[test]
    fn readings_stay_in_the_range_of_the_card_and_hang_together() {
        for reading in days(50).flatten() {
            let [
                load,
                copy,
                power,
                warm,
                memory_warm,
                used,
                free,
                decoder,
                encoder,
                sm,
                mem,
                xid,
                state,
                reasons,
                replays,
                active,
                tensor,
                dram,
                sent,
                received,
            ] = reading;
            assert!((0.0..=100.0).contains(&load) && (0.0..=100.0).contains(&copy));
            assert!((40.0..=700.0).contains(&power), "{power}");
            assert!((25.0..=95.0).contains(&warm) && memory_warm > warm, "{warm}");
            assert!(used >= 0.0 && used + free == FRAME_BUFFER_MIB as f64);
            assert!((0.0..=12.0).contains(&decoder) && encoder == 0.0);
            assert!((1500.0..=1980.0).contains(&sm) && mem == 2619.0);
            assert!(xid == 0.0 || xid == 79.0 || XIDS.contains(&(xid as i64)));
            assert_eq!(
                (state, reasons == 1.0),
                if load == 0.0 { (8.0, true) } else { (0.0, false) }
            );
            assert!(replays < 3.0 && active == load / 100.0 && tensor <= active && dram <= 1.0);
            assert!(
                sent <= received && received <= 32e9,
                "{received}: more than 16 lanes of PCIe 4"
            );
        }
    }

    #[test]
    fn everything_that_may_happen_happens_and_most_of_the_time_nothing_does() {
        let all: Vec<_> = days(50).collect();
        let share = |hit: fn(&Option<Readings>) -> bool| {
            all.iter().filter(|r| hit(r)).count() as f64 / all.len() as f64
        };
        let check = |what: &str, hit: fn(&Option<Readings>) -> bool, low: f64, high: f64| {
            let is = share(hit);
            assert!((low..high).contains(&is), "{what}: {is}");
        };
        check("idle", |r| r.is_some_and(|r| r[0] == 0.0), 0.1, 0.4);
        check("busy", |r| r.is_some_and(|r| r[0] > 40.0), 0.5, 0.9);
        check("throttled", |r| r.is_some_and(|r| r[9] < 1980.0), 0.002, 0.05);
        check("an XID", |r| r.is_some_and(|r| r[11] > 0.0), 0.005, 0.1);
        check("off the bus", Option::is_none, 0.0001, 0.01);
    }

    #[test]
    fn a_new_job_warms_the_card_slowly() {
        let mut last: Option<f64> = None;
        for tick in 0..86_400 {
            let now = readings(SplitMix64::new(7, 3).next(), NOW + tick * 1000).map(|r| r[3]);
            if let Some((last, now)) = last.zip(now) {
                assert!((now - last).abs() <= 3.0, "{last} to {now} within a second");
            }
            last = now;
        }
    }

    #[test]
    fn what_is_left_halves_and_ends() {
        let check = |ms, expected| assert_eq!(left(1000, ms, 100), expected, "{ms}");
        check(0, 1000);
        check(50, 750);
        check(100, 500);
        check(200, 250);
        check(100_000, 0);
        assert_eq!(left(-1000, 100, 100), -500);
    }
}
