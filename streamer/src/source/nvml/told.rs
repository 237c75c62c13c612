//! What one GPU told, while it is put together.

use std::collections::BTreeSet;

use nexus_common::model::{Gpu, Labels, MetricName, SeriesSamples, Timestamp, metric_by_dcgm};
use nvml_wrapper::{enums::device::SampleValue, error::NvmlError};

use super::names::{Unit, number};

/// Why a GPU told nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It, or the whole driver, cannot be asked any more.
    #[error(transparent)]
    Lost(NvmlError),
    /// Its identity cannot be stored.
    #[error("name it: {0}")]
    Name(#[from] nexus_common::model::IdError),
}

/// Whether nothing more can be had from a GPU that answers so, until it or the driver is back.
fn is_lost(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
    )
}

/// What was asked for and not told, each once.
#[derive(Debug, Default)]
pub(super) struct Silent {
    known: BTreeSet<&'static str>,
    fresh: Vec<String>,
}

impl Silent {
    /// What was asked for as `field`, if it was told. What is not told is noted.
    pub(super) fn hear<T>(
        &mut self,
        field: &'static str,
        asked: Result<T, NvmlError>,
    ) -> Result<Option<T>, Trouble> {
        match asked {
            Ok(told) => Ok(Some(told)),
            Err(error) if is_lost(&error) => Err(Trouble::Lost(error)),
            Err(error) => {
                if self.known.insert(field) {
                    self.fresh.push(format!("{field} ({error})"));
                }
                Ok(None)
            }
        }
    }

    /// What was not told for the first time, to be logged.
    pub(super) fn take(&mut self) -> Option<String> {
        let fresh = std::mem::take(&mut self.fresh);
        (!fresh.is_empty()).then(|| fresh.join(", "))
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Value {
    pub(super) metric: &'static str,
    pub(super) label: Option<(&'static str, &'static str)>,
    pub(super) value: f64,
}

/// What a GPU or an instance of one told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) gpu: Gpu,
    pub(super) values: Vec<Value>,
    /// Fields that told they were not measured.
    pub(super) absent: u64,
}

impl Told {
    pub(super) fn of(gpu: Gpu) -> Self {
        Self { gpu, values: Vec::new(), absent: 0 }
    }

    /// Takes what was asked for as `field`, DCGM's name. A field that is not told is left out.
    pub(super) fn take(
        &mut self,
        silent: &mut Silent,
        field: &'static str,
        unit: Unit,
        asked: Result<SampleValue, NvmlError>,
    ) -> Result<(), Trouble> {
        if let Some(raw) = silent.hear(field, asked)? {
            self.put(field, unit, &raw);
        }
        Ok(())
    }

    /// Takes what is counted in 32 bits, as most of it is.
    pub(super) fn count(
        &mut self,
        silent: &mut Silent,
        field: &'static str,
        unit: Unit,
        asked: Result<u32, NvmlError>,
    ) -> Result<(), Trouble> {
        self.take(silent, field, unit, asked.map(SampleValue::U32))
    }

    /// A value by DCGM's name of its field.
    pub(super) fn put(&mut self, field: &'static str, unit: Unit, raw: &SampleValue) {
        let known = metric_by_dcgm(field);
        // Cards without the sensor report 0; no memory in use is at 0 degrees.
        let zero_is_absent = field == "DCGM_FI_DEV_MEMORY_TEMP";
        match number(raw).filter(|value| !(zero_is_absent && *value == 0.0)) {
            Some(value) => {
                let metric = known.map_or(field, |metric| metric.name);
                self.values.push(Value { metric, label: None, value: unit.of(value) });
            }
            None => self.absent += 1,
        }
    }

    /// A value of ours, told apart by a label.
    pub(super) fn put_labelled(
        &mut self,
        metric: &'static str,
        label: (&'static str, &'static str),
        value: f64,
    ) {
        self.values.push(Value { metric, label: Some(label), value });
    }

    /// It as series of the instant `at`, of the GPU at `nth`.
    pub(super) fn series(&self, nth: u32, at: i64) -> impl Iterator<Item = SeriesSamples> {
        self.values.iter().filter_map(move |told| series(nth, told, vec![at], vec![told.value]))
    }
}

/// A series of one metric of the GPU at `nth`.
pub(super) fn series(
    nth: u32,
    of: &Value,
    timestamps: Vec<i64>,
    values: Vec<f64>,
) -> Option<SeriesSamples> {
    // Names and labels of ours always can be stored; a test says so.
    let metric = MetricName::new(of.metric).ok()?;
    let labels = Labels::new(of.label).ok()?;
    Some(SeriesSamples { gpu: Some(nth), metric, labels, timestamps, values })
}

/// Milliseconds since the epoch, by the wall clock.
pub(super) fn now() -> i64 {
    Timestamp::now().as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let text = String::new;
        Told::of(Gpu {
            id: "GPU-a".parse().unwrap(),
            uuid: text(),
            index: text(),
            device: text(),
            model: text(),
            driver: text(),
            mig_profile: text(),
        })
    }

    #[test]
    fn what_is_not_told_is_left_out_and_noted_once() {
        let (mut told, mut silent) = (told(), Silent::default());
        for _ in 0..2 {
            told.count(
                &mut silent,
                "DCGM_FI_DEV_FAN_SPEED",
                Unit::Same,
                Err(NvmlError::NotSupported),
            )
            .unwrap();
        }
        assert!(silent.take().is_some_and(|said| said.starts_with("DCGM_FI_DEV_FAN_SPEED (")));
        assert_eq!(silent.take(), None);
        assert!(told.values.is_empty() && told.absent == 0);
        let lost = told.count(&mut silent, "a", Unit::Same, Err(NvmlError::GpuLost));
        assert!(matches!(lost, Err(Trouble::Lost(NvmlError::GpuLost))));
    }

    #[test]
    fn a_field_has_the_name_that_csv_files_give_it_and_blanks_are_counted() {
        let (mut told, mut silent) = (told(), Silent::default());
        let mut take = |field, unit, raw| told.count(&mut silent, field, unit, Ok(raw)).unwrap();
        take("DCGM_FI_DEV_POWER_USAGE", Unit::Milli, 350_500);
        take("DCGM_FI_DEV_PSTATE", Unit::Same, 2);
        take("DCGM_FI_DEV_GPU_TEMP", Unit::Same, 0);
        take("DCGM_FI_DEV_MEMORY_TEMP", Unit::Same, 0);
        take("DCGM_FI_DEV_FAN_SPEED", Unit::Same, 2_147_483_632);
        let seen: Vec<_> = told.values.iter().map(|value| (value.metric, value.value)).collect();
        assert_eq!(
            seen,
            [("power_draw", 350.5), ("DCGM_FI_DEV_PSTATE", 2.0), ("temperature", 0.0)]
        );
        assert_eq!(told.absent, 2);
        assert_eq!(told.series(0, 7).count(), 3);
    }
}
