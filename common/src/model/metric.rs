//! The metrics everybody knows: DCGM field, wire name, unit, help, blanks.
//!
//! The set of metrics is open: one that is not here keeps the name its source gave it.
//! Fields, units and blanks are those of NVIDIA's `dcgm_fields.h` and dcgm-exporter's
//! `default-counters.csv`.

/// How DCGM says "not measured" in a field of this type (`dcgm_fields.h`, `DCGM_*_BLANK`: the
/// blank, not found, not supported, not permitted).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blank {
    /// 32-bit integer: 2147483632 to 2147483635.
    Int32,
    /// 64-bit integer: 9223372036854775792 to ...795. As a double all are 2^63.
    Int64,
    /// Double: 140737488355328 to 140737488355331.
    Fp64,
    /// Not known: all of the above.
    Any,
}

impl Blank {
    /// Whether `value` means that nothing was measured.
    pub fn is_blank(self, value: f64) -> bool {
        let int32 = (2_147_483_632.0..=2_147_483_635.0).contains(&value);
        let int64 = (9_223_372_036_854_775_000.0..=9_223_372_036_854_775_808.0).contains(&value);
        let fp64 = (140_737_488_355_328.0..=140_737_488_355_331.0).contains(&value);
        match self {
            Blank::Int32 => int32,
            Blank::Int64 => int64,
            Blank::Fp64 => fp64,
            Blank::Any => int32 || int64 || fp64,
        }
    }
}

/// One well-known metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// DCGM's field name.
    pub dcgm: &'static str,
    /// Name in answers and in the store.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// How DCGM marks it as not measured.
    pub blank: Blank,
}

macro_rules! metrics {
    ($($dcgm:literal $name:literal $unit:literal $blank:ident $help:literal;)*) => {
        &[$(Metric { dcgm: $dcgm, name: $name, unit: $unit, help: $help, blank: Blank::$blank }),*]
    };
}

/// The registry.
pub const METRICS: &[Metric] = metrics! {
    "DCGM_FI_DEV_GPU_UTIL" "gpu_utilization" "%" Int32 "Time during which a kernel ran";
    "DCGM_FI_DEV_MEM_COPY_UTIL" "memory_utilization" "%" Int32 "Time during which the copy engine was busy (not used over total)";
    "DCGM_FI_DEV_FB_USED" "memory_used_mb" "MiB" Int32 "Frame buffer in use";
    "DCGM_FI_DEV_FB_FREE" "memory_free_mb" "MiB" Int32 "Frame buffer free";
    "DCGM_FI_DEV_GPU_TEMP" "temperature" "C" Int32 "GPU temperature";
    "DCGM_FI_DEV_POWER_USAGE" "power_draw" "W" Fp64 "Power drawn by the device";
    "DCGM_FI_DEV_SM_CLOCK" "sm_clock_mhz" "MHz" Int32 "SM clock";
    "DCGM_FI_DEV_MEM_CLOCK" "memory_clock_mhz" "MHz" Int32 "Memory clock";
    "DCGM_FI_DEV_ENC_UTIL" "encoder_utilization" "%" Int32 "Encoder utilisation";
    "DCGM_FI_DEV_DEC_UTIL" "decoder_utilization" "%" Int32 "Decoder utilisation";
    "DCGM_FI_DEV_MEMORY_TEMP" "memory_temperature" "C" Int32 "Memory temperature";
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION" "total_energy_mj" "mJ" Int64 "Energy since boot";
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER" "pcie_replay_count" "1" Int64 "PCIe retries";
    "DCGM_FI_DEV_XID_ERRORS" "xid_error" "1" Int64 "Last XID error; stays until the next";
};

/// The metric that DCGM calls `field`.
pub fn metric_by_dcgm(field: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|m| m.dcgm == field)
}

/// The metric that answers call `name`.
pub fn metric_by_name(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|m| m.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_not_values() {
        assert!(Blank::Int32.is_blank(2_147_483_632.0));
        assert!(!Blank::Int64.is_blank(2_147_483_632.0));
        assert!(Blank::Int64.is_blank("9223372036854775794".parse().unwrap()));
        assert!(Blank::Fp64.is_blank(140_737_488_355_328.0));
        assert!(Blank::Any.is_blank(2_147_483_635.0));
        assert!(!Blank::Any.is_blank(0.0) && !Blank::Any.is_blank(100.0));
    }

    #[test]
    fn names_are_unique() {
        for (i, a) in METRICS.iter().enumerate() {
            assert!(METRICS[..i].iter().all(|b| a.name != b.name && a.dcgm != b.dcgm));
            assert!(crate::model::MetricName::new(a.name).is_ok());
        }
    }
}
