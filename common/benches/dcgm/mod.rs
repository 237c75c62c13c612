//! A host with eight GPUs as DCGM would report it, made up the same way every time.
//!
//! Only numbers, so that tests inside the library can use it, too.

/// Metrics, in the order in which [`Host::second`] gives them.
pub const METRICS: [&str; 10] = [
    "gpu_utilization",
    "memory_utilization",
    "memory_used_mb",
    "memory_free_mb",
    "temperature",
    "power_draw",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "encoder_utilization",
    "decoder_utilization",
];

/// GPUs of a host.
pub const GPUS: usize = 8;

/// splitmix64: no dependency, the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    fn once_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

struct Gpu {
    utilization: i64,
    copy: i64,
    used: i64,
    temperature: i64,
    throttle: i64,
    dip: i64,
}

/// The state of a host.
pub struct Host {
    random: Random,
    gpus: Vec<Gpu>,
}

impl Host {
    /// A host as it starts out.
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut gpu = || Gpu {
            utilization: random.within(20, 100),
            copy: random.within(10, 60),
            used: random.within(2_000, 70_000),
            temperature: random.within(45, 70),
            throttle: 0,
            dip: 0,
        };
        let gpus = (0..GPUS).map(|_| gpu()).collect();
        Self { random, gpus }
    }

    /// UUID of a GPU.
    pub fn uuid(&mut self) -> String {
        let (a, b) = (self.random.next(), self.random.next());
        let (a1, a2, a3) = (a >> 32, a >> 16 & 0xffff, a & 0xffff);
        format!("GPU-{a1:08x}-{a2:04x}-{a3:04x}-{:04x}-{:012x}", b >> 48, b & 0xffff_ffff_ffff)
    }

    /// One second later: for each GPU a value of each metric.
    pub fn second(&mut self) -> Vec<[f64; 10]> {
        let random = &mut self.random;
        self.gpus.iter_mut().map(|gpu| gpu.second(random)).collect()
    }
}

impl Gpu {
    fn second(&mut self, random: &mut Random) -> [f64; 10] {
        self.utilization = (self.utilization + random.within(-4, 4)).clamp(0, 100);
        self.copy = (self.copy + random.within(-3, 3)).clamp(0, 100);
        if random.once_in(60) {
            self.used = (self.used + random.within(-2_000, 2_000)).clamp(500, 80_000);
        }
        if random.once_in(8) {
            let target = 35 + self.utilization * 45 / 100;
            self.temperature += (target - self.temperature).signum();
        }
        if random.once_in(120) {
            (self.throttle, self.dip) = (random.within(1, 6), 15 * random.within(1, 20));
        }
        let clock = if self.throttle > 0 { 1_980 - self.dip } else { 1_980 };
        self.throttle = (self.throttle - 1).max(0);
        let power = 80_000 + self.utilization * 6_000 + random.within(-8_000, 8_000);
        let memory_clock = if random.once_in(2_000) { 1_593 } else { 2_619 };
        [
            self.utilization as f64,
            self.copy as f64,
            self.used as f64,
            (81_079 - self.used) as f64,
            self.temperature as f64,
            power as f64 / 1_000.0,
            clock as f64,
            memory_clock as f64,
            0.0,
            0.0,
        ]
    }
}
