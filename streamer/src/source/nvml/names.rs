//! How what a GPU tells is called, and in which unit: DCGM's fields (`dcgm_fields.h`), so that a
//! dashboard of exporters or CSV files is one of this source.

use nvml_wrapper::{
    bitmasks::device::ThrottleReasons, enums::device::SampleValue, enums::gpm::GpmMetricId,
    sys_exports::field_id as fi,
};

/// What a value of the library becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// What it is.
    Same,
    /// Thousandths: milliwatts to watts.
    Milli,
    /// Bytes to whole MiB, as DCGM tells memory.
    Mib,
    /// Percent to a ratio, as DCGM tells what it profiles.
    Percent,
    /// MiB to bytes.
    Bytes,
}

impl Unit {
    pub(super) fn of(self, value: f64) -> f64 {
        const MIB: f64 = 1_048_576.0;
        match self {
            Self::Same => value,
            Self::Milli => value / 1000.0,
            Self::Mib => (value / MIB).floor(),
            Self::Percent => value / 100.0,
            Self::Bytes => value * MIB,
        }
    }
}

/// Fields that are asked for together, by the library's number.
pub(super) const FIELDS: [(u32, &str, Unit); 20] = [
    (fi::NVML_FI_DEV_MEMORY_TEMP, "DCGM_FI_DEV_MEMORY_TEMP", Unit::Same),
    (fi::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", Unit::Same),
    (fi::NVML_FI_DEV_POWER_INSTANT, "DCGM_FI_DEV_POWER_USAGE_INSTANT", Unit::Milli),
    (fi::NVML_FI_DEV_PCIE_REPLAY_COUNTER, "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", Unit::Same),
    (fi::NVML_FI_DEV_ECC_CURRENT, "DCGM_FI_DEV_ECC_CURRENT", Unit::Same),
    (fi::NVML_FI_DEV_ECC_SBE_VOL_TOTAL, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", Unit::Same),
    (fi::NVML_FI_DEV_ECC_DBE_VOL_TOTAL, "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", Unit::Same),
    (fi::NVML_FI_DEV_ECC_SBE_AGG_TOTAL, "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", Unit::Same),
    (fi::NVML_FI_DEV_ECC_DBE_AGG_TOTAL, "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", Unit::Same),
    (fi::NVML_FI_DEV_RETIRED_SBE, "DCGM_FI_DEV_RETIRED_SBE", Unit::Same),
    (fi::NVML_FI_DEV_RETIRED_DBE, "DCGM_FI_DEV_RETIRED_DBE", Unit::Same),
    (fi::NVML_FI_DEV_RETIRED_PENDING, "DCGM_FI_DEV_RETIRED_PENDING", Unit::Same),
    (fi::NVML_FI_DEV_REMAPPED_COR, "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", Unit::Same),
    (fi::NVML_FI_DEV_REMAPPED_UNC, "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", Unit::Same),
    (fi::NVML_FI_DEV_REMAPPED_PENDING, "DCGM_FI_DEV_ROW_REMAP_PENDING", Unit::Same),
    (fi::NVML_FI_DEV_REMAPPED_FAILURE, "DCGM_FI_DEV_ROW_REMAP_FAILURE", Unit::Same),
    (
        fi::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
        "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
        Unit::Same,
    ),
    (
        fi::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
        "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
        Unit::Same,
    ),
    (
        fi::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
        "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
        Unit::Same,
    ),
    (
        fi::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
        "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
        Unit::Same,
    ),
];

/// What is known of the time between two questions (GPM; Hopper and newer).
pub(super) const BETWEEN: [(GpmMetricId, &str, Unit); 12] = [
    (GpmMetricId::GraphicsUtil, "DCGM_FI_PROF_GR_ENGINE_ACTIVE", Unit::Percent),
    (GpmMetricId::SmUtil, "DCGM_FI_PROF_SM_ACTIVE", Unit::Percent),
    (GpmMetricId::SmOccupancy, "DCGM_FI_PROF_SM_OCCUPANCY", Unit::Percent),
    (GpmMetricId::AnyTensorUtil, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", Unit::Percent),
    (GpmMetricId::Fp64Util, "DCGM_FI_PROF_PIPE_FP64_ACTIVE", Unit::Percent),
    (GpmMetricId::Fp32Util, "DCGM_FI_PROF_PIPE_FP32_ACTIVE", Unit::Percent),
    (GpmMetricId::Fp16Util, "DCGM_FI_PROF_PIPE_FP16_ACTIVE", Unit::Percent),
    (GpmMetricId::DramBwUtil, "DCGM_FI_PROF_DRAM_ACTIVE", Unit::Percent),
    (GpmMetricId::PcieTxPerSec, "DCGM_FI_PROF_PCIE_TX_BYTES", Unit::Bytes),
    (GpmMetricId::PcieRxPerSec, "DCGM_FI_PROF_PCIE_RX_BYTES", Unit::Bytes),
    (GpmMetricId::NvlinkTotalTxPerSec, "DCGM_FI_PROF_NVLINK_TX_BYTES", Unit::Bytes),
    (GpmMetricId::NvlinkTotalRxPerSec, "DCGM_FI_PROF_NVLINK_RX_BYTES", Unit::Bytes),
];

/// Why clocks are lower than they could be: one series a reason, 1 while it holds. DCGM has them
/// as the bits of `DCGM_FI_DEV_CLOCK_THROTTLE_REASONS`.
pub(super) const REASONS: [(ThrottleReasons, &str); 9] = [
    (ThrottleReasons::GPU_IDLE, "gpu_idle"),
    (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "applications_clocks_setting"),
    (ThrottleReasons::SW_POWER_CAP, "sw_power_cap"),
    (ThrottleReasons::HW_SLOWDOWN, "hw_slowdown"),
    (ThrottleReasons::SYNC_BOOST, "sync_boost"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "sw_thermal_slowdown"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hw_thermal_slowdown"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hw_power_brake_slowdown"),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clock_setting"),
];

/// Places of the processes that hold most memory: process ids as labels would be series without
/// end, so a place has two series, the memory and the process id that it is of.
pub(super) const RANKS: [&str; 8] = ["1", "2", "3", "4", "5", "6", "7", "8"];

/// The value as a number; none if it says that nothing was measured.
pub(super) fn number(raw: &SampleValue) -> Option<f64> {
    use nexus_common::model::Blank;
    let (value, blank, none) = match *raw {
        SampleValue::U32(v) => (f64::from(v), Blank::Int32, v == u32::MAX),
        SampleValue::U64(v) => (v as f64, Blank::Int64, v == u64::MAX),
        SampleValue::I64(v) => (v as f64, Blank::Int64, v == -1),
        SampleValue::F64(v) => (v, Blank::Fp64, !v.is_finite()),
    };
    (!none && !blank.is_blank(value)).then_some(value)
}

#[cfg(test)]
mod tests {
    use nexus_common::model::MetricName;

    use super::*;

    #[test]
    fn a_blank_is_no_value_and_neither_is_not_available() {
        let check = |raw: SampleValue, expected: Option<f64>| {
            assert_eq!(number(&raw), expected, "{raw:?}");
        };
        check(SampleValue::U32(0), Some(0.0));
        check(SampleValue::U32(2_147_483_631), Some(2_147_483_631.0));
        check(SampleValue::U32(2_147_483_632), None);
        check(SampleValue::U32(u32::MAX), None);
        check(SampleValue::U64(2_147_483_632), Some(2_147_483_632.0));
        check(SampleValue::U64(9_223_372_036_854_775_794), None);
        check(SampleValue::U64(u64::MAX), None);
        check(SampleValue::I64(-1), None);
        check(SampleValue::I64(-2), Some(-2.0));
        check(SampleValue::F64(140_737_488_355_328.0), None);
        check(SampleValue::F64(f64::NAN), None);
        check(SampleValue::F64(0.5), Some(0.5));
    }

    #[test]
    fn units_are_those_of_dcgm() {
        let check = |unit: Unit, value: f64, expected: f64| assert_eq!(unit.of(value), expected);
        check(Unit::Same, 7.0, 7.0);
        check(Unit::Milli, 350_250.0, 350.25);
        check(Unit::Mib, 1_048_575.0, 0.0);
        check(Unit::Mib, 85_899_345_920.0, 81_920.0);
        check(Unit::Percent, 25.0, 0.25);
        check(Unit::Bytes, 2.0, 2_097_152.0);
    }

    #[test]
    fn every_name_can_be_stored_and_stands_once() {
        let fields = FIELDS.iter().map(|(_, name, _)| *name);
        let mut names: Vec<&str> = fields.chain(BETWEEN.iter().map(|(_, name, _)| *name)).collect();
        assert!(names.iter().all(|name| MetricName::new(name).is_ok()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
