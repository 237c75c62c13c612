//! How a GPU behaves: jobs come and go, power follows utilisation, temperature follows power.
//!
//! All in integers, so that every machine writes the same bytes.

use super::random::SplitMix64;

/// Frame buffer of an H100 80 GB, in MiB, as DCGM splits it into used and free.
pub(super) const FRAME_BUFFER_MIB: i64 = 81_559;
/// SM clock without throttling, in MHz.
const SM_CLOCK_MHZ: i64 = 1980;
/// Memory clock, in MHz.
const MEMORY_CLOCK_MHZ: i64 = 2619;

/// What is measured, in the order rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// DCGM's name.
    pub(super) dcgm: &'static str,
    /// The wide layout's column; none if it has no such column.
    pub(super) column: Option<usize>,
    /// Second of the sample at which this family was exported.
    pub(super) family: u64,
    /// Whether the reading is in thousandths.
    pub(super) milli: bool,
}

const fn field(dcgm: &'static str, column: Option<usize>, family: u64) -> Field {
    Field { dcgm, column, family, milli: false }
}

/// The fields, in the order of [`Readings`].
pub(super) const FIELDS: [Field; 10] = [
    field("DCGM_FI_DEV_GPU_UTIL", Some(0), 0),
    field("DCGM_FI_DEV_MEM_COPY_UTIL", Some(1), 0),
    Field { dcgm: "DCGM_FI_DEV_POWER_USAGE", column: Some(5), family: 0, milli: true },
    field("DCGM_FI_DEV_GPU_TEMP", Some(4), 1),
    field("DCGM_FI_DEV_FB_USED", Some(2), 1),
    field("DCGM_FI_DEV_FB_FREE", Some(3), 1),
    field("DCGM_FI_DEV_DEC_UTIL", None, 2),
    field("DCGM_FI_DEV_ENC_UTIL", None, 3),
    field("DCGM_FI_DEV_SM_CLOCK", Some(6), 3),
    field("DCGM_FI_DEV_MEM_CLOCK", Some(7), 3),
];

/// One value a field, in the units of [`FIELDS`].
pub(super) type Readings = [i64; FIELDS.len()];

/// One GPU's state, advanced a second at a time.
#[derive(Debug, Clone)]
pub(super) struct GpuState {
    random: SplitMix64,
    busy: bool,
    /// Seconds until the phase ends.
    phase_left: i64,
    /// What the job's utilisation hovers about, in thousandths of a percent.
    load_goal: i64,
    load: i64,
    memory_goal: i64,
    memory: i64,
    /// In thousandths of a degree.
    temperature: i64,
    clock: i64,
    throttled_left: i64,
    decoder: i64,
    decoder_left: i64,
}

impl GpuState {
    /// GPU `number` of the run with this seed, somewhere in the middle of its day.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut random = SplitMix64::new(seed, number);
        let busy = !random.once_in(4);
        let mut gpu = Self {
            random,
            busy: !busy,
            phase_left: 0,
            load_goal: 0,
            load: 0,
            memory_goal: 0,
            memory: 0,
            temperature: 30_000,
            clock: SM_CLOCK_MHZ,
            throttled_left: 0,
            decoder: 0,
            decoder_left: 0,
        };
        gpu.next_phase();
        gpu.phase_left = gpu.random.between(1, gpu.phase_left);
        (gpu.load, gpu.memory) = (gpu.load_goal, gpu.memory_goal);
        gpu.temperature = 27_000 + gpu.power() * 60 / 1000;
        gpu
    }

    fn next_phase(&mut self) {
        self.busy = !self.busy;
        if self.busy {
            self.phase_left = self.random.between(60, 1800);
            self.load_goal = self.random.between(55_000, 100_000);
            self.memory_goal = self.random.between(8, 77) * 1024;
        } else {
            self.phase_left = self.random.between(10, 300);
            self.load_goal = 0;
            self.memory_goal = self.random.between(0, 4);
        }
    }

    /// In milliwatts: 68 W idle, 700 W at most.
    fn power(&mut self) -> i64 {
        let noise = self.random.between(-4_000, 4_000);
        (68_000 + self.load * 6 + noise).clamp(60_000, 700_000)
    }

    /// One second passes; what is measured then.
    pub(super) fn step(&mut self) -> Readings {
        if self.phase_left == 0 {
            self.next_phase();
        }
        self.phase_left -= 1;
        self.walk();
        self.glitch();
        let power = self.power();
        self.temperature += (27_000 + power * 60 / 1000 - self.temperature) / 30;
        let utilisation = self.load / 1000;
        let copy = self.random.between(-2, 2) + utilisation * 2 / 5;
        [
            utilisation,
            if utilisation == 0 { 0 } else { copy.clamp(0, 100) },
            power,
            self.temperature / 1000,
            self.memory,
            FRAME_BUFFER_MIB - self.memory,
            self.decoder,
            0,
            self.clock,
            MEMORY_CLOCK_MHZ,
        ]
    }

    fn walk(&mut self) {
        let noise = if self.busy { self.random.between(-6_000, 6_000) } else { 0 };
        self.load = (self.load + (self.load_goal - self.load) / 4 + noise).clamp(0, 100_000);
        // Memory is taken and given back in big allocations, not every second.
        if self.memory != self.memory_goal && self.random.once_in(3) {
            let step = (self.memory_goal - self.memory).clamp(-16_384, 8_192);
            self.memory += step;
        }
    }

    fn glitch(&mut self) {
        if self.throttled_left > 0 {
            self.throttled_left -= 1;
        } else if self.load > 90_000 && self.random.once_in(200) {
            self.throttled_left = self.random.between(3, 15);
            self.clock = SM_CLOCK_MHZ - 15 * self.random.between(1, 20);
        } else {
            self.clock = SM_CLOCK_MHZ;
        }
        if self.decoder_left > 0 {
            self.decoder_left -= 1;
        } else if self.busy && self.random.once_in(1000) {
            self.decoder_left = self.random.between(5, 60);
            self.decoder = self.random.between(1, 12);
        } else {
            self.decoder = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_stay_in_the_range_of_the_card_and_hang_together() {
        for number in 0..50 {
            let mut gpu = GpuState::new(7, number);
            for _ in 0..2000 {
                let [load, copy, power, temperature, used, free, decoder, encoder, sm, memory] =
                    gpu.step();
                assert!((0..=100).contains(&load) && (0..=100).contains(&copy));
                assert!((60_000..=700_000).contains(&power));
                assert!((20..=90).contains(&temperature), "{temperature}");
                assert!(used >= 0 && free >= 0 && used + free == FRAME_BUFFER_MIB);
                assert!((0..=12).contains(&decoder) && encoder == 0);
                assert!((1680..=1980).contains(&sm) && memory == 2619);
            }
        }
    }

    #[test]
    fn gpus_work_and_rest_and_throttle_now_and_then() {
        let mut gpu = GpuState::new(7, 1);
        let day: Vec<Readings> = (0..20_000).map(|_| gpu.step()).collect();
        let share =
            |hit: fn(&Readings) -> bool| day.iter().filter(|r| hit(r)).count() * 100 / day.len();
        let (idle, busy) = (share(|r| r[0] == 0), share(|r| r[0] > 40));
        assert!(idle > 2 && busy > 40, "{idle} {busy}");
        assert!(day.iter().any(|r| r[8] < 1980) && share(|r| r[8] == 1980) > 80);
        assert!(day.iter().any(|r| r[6] > 0) && share(|r| r[6] == 0) > 80);
    }
}
