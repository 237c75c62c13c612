//! What one GPU is asked for. Everything here may take long, or never come back.

use std::collections::BTreeMap;

use nexus_common::model::{Gpu, GpuId, HostName};
use nvml_wrapper::{
    Device, GpmSample, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, PcieUtilCounter, TemperatureSensor, TemperatureThreshold},
    enums::{
        device::{SampleValue, UsedGpuMemory},
        gpm::GpmMetricId,
    },
    error::NvmlError,
    gpm::gpm_metrics_get,
    struct_wrappers::device::ProcessInfo,
    structs::device::FieldId,
};

use super::{
    names::{BETWEEN, FIELDS, RANKS, REASONS, Unit},
    told::{Silent, Told, Trouble},
};

/// Most fans asked: no card has as many.
const FANS_MAX: u32 = 16;
/// Most instances of a GPU asked: the library knows of at most seven slices.
const INSTANCES_MAX: u32 = 16;
/// `NVML_DEVICE_MIG_ENABLE`.
const MIG_ENABLED: u32 = 1;

/// A GPU as it is asked from one question to the next.
pub(super) struct Asked<'n> {
    nvml: &'n Nvml,
    device: Device<'n>,
    gpu: Gpu,
    /// Where the time began that is told of next, on GPUs that tell of times.
    before: Option<GpmSample<'n>>,
}

impl<'n> Asked<'n> {
    /// Finds the GPU at `index`, and who it is.
    pub(super) fn find(
        nvml: &'n Nvml,
        index: u32,
        host: &HostName,
        driver: &str,
    ) -> Result<Self, Trouble> {
        let device = nvml.device_by_index(index).map_err(Trouble::Lost)?;
        let gpu = describe(&device, index, host, driver)?;
        Ok(Self { nvml, device, gpu, before: None })
    }

    /// Everything that it tells now, and its instances.
    pub(super) fn tell(&mut self, silent: &mut [Silent; 2]) -> Result<Vec<Told>, Trouble> {
        let [own, instances] = silent;
        let mut told = Told::of(self.gpu.clone());
        tell_load(&self.device, &mut told, own)?;
        tell_power_and_clocks(&self.device, &mut told, own)?;
        tell_links(&self.device, &mut told, own)?;
        tell_fields(&self.device, &mut told, own)?;
        tell_processes(&self.device, &mut told, own)?;
        self.tell_between(&mut told, own)?;
        let mut all = vec![told];
        tell_instances(&self.device, &self.gpu, &mut all, instances)?;
        Ok(all)
    }

    /// What can be told of the time since the last question.
    fn tell_between(&mut self, told: &mut Told, silent: &mut Silent) -> Result<(), Trouble> {
        const FIELD: &str = "DCGM_FI_PROF_*";
        let before = self.before.take();
        if silent.hear(FIELD, self.device.gpm_support())? != Some(true) {
            return Ok(());
        }
        self.before = silent.hear(FIELD, self.device.gpm_sample())?;
        let Some((before, now)) = before.as_ref().zip(self.before.as_ref()) else { return Ok(()) };
        let ids: Vec<GpmMetricId> = BETWEEN.iter().map(|(id, _, _)| *id).collect();
        let asked = gpm_metrics_get(self.nvml, before, now, &ids);
        let Some(values) = silent.hear(FIELD, asked)? else { return Ok(()) };
        for ((_, field, unit), value) in BETWEEN.iter().zip(values) {
            let value = value.map(|metric| SampleValue::F64(metric.value));
            told.take(silent, field, *unit, value)?;
        }
        Ok(())
    }
}

fn describe(
    device: &Device<'_>,
    index: u32,
    host: &HostName,
    driver: &str,
) -> Result<Gpu, Trouble> {
    let uuid = device.uuid().map_err(Trouble::Lost)?;
    let id = if uuid.is_empty() { format!("{host}:{index}") } else { uuid.clone() };
    // What a GPU cannot tell of these is not known: texts that are not known are empty.
    let minor = device.minor_number().unwrap_or(index);
    Ok(Gpu {
        id: GpuId::new(&id)?,
        uuid,
        index: index.to_string(),
        device: format!("nvidia{minor}"),
        model: device.name().unwrap_or_default(),
        driver: driver.to_owned(),
        mig_profile: String::new(),
    })
}

fn tell_load(device: &Device<'_>, told: &mut Told, silent: &mut Silent) -> Result<(), Trouble> {
    if let Some(rates) = silent.hear("DCGM_FI_DEV_GPU_UTIL", device.utilization_rates())? {
        told.put("DCGM_FI_DEV_GPU_UTIL", Unit::Same, &SampleValue::U32(rates.gpu));
        told.put("DCGM_FI_DEV_MEM_COPY_UTIL", Unit::Same, &SampleValue::U32(rates.memory));
    }
    let encoder = device.encoder_utilization().map(|coder| coder.utilization);
    told.count(silent, "DCGM_FI_DEV_ENC_UTIL", Unit::Same, encoder)?;
    let decoder = device.decoder_utilization().map(|coder| coder.utilization);
    told.count(silent, "DCGM_FI_DEV_DEC_UTIL", Unit::Same, decoder)?;
    tell_memory(device, told, silent)
}

fn tell_memory(device: &Device<'_>, told: &mut Told, silent: &mut Silent) -> Result<(), Trouble> {
    if let Some(memory) = silent.hear("DCGM_FI_DEV_FB_USED", device.memory_info())? {
        told.put("DCGM_FI_DEV_FB_TOTAL", Unit::Mib, &SampleValue::U64(memory.total));
        told.put("DCGM_FI_DEV_FB_USED", Unit::Mib, &SampleValue::U64(memory.used));
        told.put("DCGM_FI_DEV_FB_FREE", Unit::Mib, &SampleValue::U64(memory.free));
        told.put("DCGM_FI_DEV_FB_RESERVED", Unit::Mib, &SampleValue::U64(memory.reserved));
    }
    Ok(())
}

fn tell_power_and_clocks(
    device: &Device<'_>,
    told: &mut Told,
    silent: &mut Silent,
) -> Result<(), Trouble> {
    let mut count = |field, unit, asked| told.count(silent, field, unit, asked);
    let clock = |kind| device.clock_info(kind);
    let limit = |kind| device.temperature_threshold(kind);
    count("DCGM_FI_DEV_GPU_TEMP", Unit::Same, device.temperature(TemperatureSensor::Gpu))?;
    count("DCGM_FI_DEV_SLOWDOWN_TEMP", Unit::Same, limit(TemperatureThreshold::Slowdown))?;
    count("DCGM_FI_DEV_SHUTDOWN_TEMP", Unit::Same, limit(TemperatureThreshold::Shutdown))?;
    count("DCGM_FI_DEV_POWER_USAGE", Unit::Milli, device.power_usage())?;
    count("DCGM_FI_DEV_POWER_MGMT_LIMIT", Unit::Milli, device.power_management_limit())?;
    count("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", Unit::Milli, device.enforced_power_limit())?;
    count("DCGM_FI_DEV_SM_CLOCK", Unit::Same, clock(Clock::SM))?;
    count("DCGM_FI_DEV_MEM_CLOCK", Unit::Same, clock(Clock::Memory))?;
    count("DCGM_FI_DEV_VIDEO_CLOCK", Unit::Same, clock(Clock::Video))?;
    count("DCGM_FI_DEV_FAN_SPEED", Unit::Same, fastest_fan(device))?;
    // 32 is "not known".
    let state = device.performance_state().map(|state| state.as_c()).and_then(|state| {
        if state < 16 { Ok(state) } else { Err(NvmlError::UnexpectedVariant(state)) }
    });
    count("DCGM_FI_DEV_PSTATE", Unit::Same, state)?;
    const FIELD: &str = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS";
    if let Some(reasons) = silent.hear(FIELD, device.current_throttle_reasons())? {
        tell_reasons(told, reasons);
    }
    Ok(())
}

/// DCGM tells of one fan, too.
fn fastest_fan(device: &Device<'_>) -> Result<u32, NvmlError> {
    let fans = device.num_fans()?.min(FANS_MAX);
    let speeds: Result<Vec<u32>, _> = (0..fans).map(|fan| device.fan_speed(fan)).collect();
    speeds?.into_iter().max().ok_or(NvmlError::NotSupported)
}

fn tell_reasons(told: &mut Told, reasons: ThrottleReasons) {
    let bits = SampleValue::U64(reasons.bits());
    told.put("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", Unit::Same, &bits);
    for (reason, name) in REASONS {
        let holds = f64::from(u8::from(reasons.contains(reason)));
        told.put_labelled("throttle_reason", ("reason", name), holds);
    }
}

fn tell_links(device: &Device<'_>, told: &mut Told, silent: &mut Silent) -> Result<(), Trouble> {
    let mut count = |field, asked| told.count(silent, field, Unit::Same, asked);
    let sent = device.pcie_throughput(PcieUtilCounter::Send);
    count("DCGM_FI_DEV_PCIE_TX_THROUGHPUT", sent)?;
    let received = device.pcie_throughput(PcieUtilCounter::Receive);
    count("DCGM_FI_DEV_PCIE_RX_THROUGHPUT", received)?;
    count("DCGM_FI_DEV_PCIE_LINK_GEN", device.current_pcie_link_gen())?;
    count("DCGM_FI_DEV_PCIE_LINK_WIDTH", device.current_pcie_link_width())
}

fn tell_fields(device: &Device<'_>, told: &mut Told, silent: &mut Silent) -> Result<(), Trouble> {
    let ids: Vec<FieldId> = FIELDS.iter().map(|(id, _, _)| FieldId(*id)).collect();
    let asked = device.field_values_for(&ids);
    let Some(values) = silent.hear("fields", asked)? else { return Ok(()) };
    for ((_, field, unit), value) in FIELDS.iter().zip(values) {
        told.take(silent, field, *unit, value.and_then(|sample| sample.value))?;
    }
    Ok(())
}

/// How many processes there are, and how much memory the largest ones hold.
fn tell_processes(
    device: &Device<'_>,
    told: &mut Told,
    silent: &mut Silent,
) -> Result<(), Trouble> {
    let mut memory: BTreeMap<u32, u64> = BTreeMap::new();
    for (metric, asked) in [
        ("compute_processes", device.running_compute_processes()),
        ("graphics_processes", device.running_graphics_processes()),
    ] {
        let Some(processes) = silent.hear(metric, asked)? else { continue };
        let count = u32::try_from(processes.len()).unwrap_or(u32::MAX);
        told.put(metric, Unit::Same, &SampleValue::U32(count));
        for ProcessInfo { pid, used_gpu_memory, .. } in processes {
            if let UsedGpuMemory::Used(bytes) = used_gpu_memory {
                let most = memory.entry(pid).or_default();
                *most = bytes.max(*most);
            }
        }
    }
    for (rank, (pid, bytes)) in RANKS.iter().zip(largest(memory)) {
        let bytes = Unit::Mib.of(bytes as f64);
        told.put_labelled("process_memory_mb", ("rank", rank), bytes);
        told.put_labelled("process_pid", ("rank", rank), f64::from(pid));
    }
    Ok(())
}

/// Who holds most first; of those that hold as much, who was there first.
fn largest(memory: BTreeMap<u32, u64>) -> Vec<(u32, u64)> {
    let mut all: Vec<(u32, u64)> = memory.into_iter().collect();
    all.sort_by_key(|(pid, bytes)| (std::cmp::Reverse(*bytes), *pid));
    all
}

/// The instances that a GPU is cut into, each as a GPU of its own.
fn tell_instances(
    device: &Device<'_>,
    gpu: &Gpu,
    all: &mut Vec<Told>,
    silent: &mut Silent,
) -> Result<(), Trouble> {
    let mode = silent.hear("MIG", device.mig_mode())?;
    if mode.is_none_or(|mode| mode.current != MIG_ENABLED) {
        return Ok(());
    }
    let count = silent.hear("MIG", device.mig_device_count())?.unwrap_or(0);
    for nth in 0..count.min(INSTANCES_MAX) {
        // A place without an instance is told as an error, and nothing is wrong with it.
        let Ok(instance) = device.mig_device_by_index(nth) else { continue };
        let Some(uuid) = silent.hear("MIG", instance.uuid())? else { continue };
        let name = instance.name().unwrap_or_default();
        let id = GpuId::new(&format!("{}:{}", gpu.id, instance_id(&uuid)))?;
        let mut told = Told::of(Gpu { id, mig_profile: profile(&name).to_owned(), ..gpu.clone() });
        tell_memory(&instance, &mut told, silent)?;
        tell_processes(&instance, &mut told, silent)?;
        all.push(told);
    }
    Ok(())
}

/// What tells the instance apart: its number where the UUID is of the old form,
/// `MIG-GPU-{uuid}/{number}/{part}`, which is DCGM's `GPU_I_ID`; else the UUID.
fn instance_id(uuid: &str) -> String {
    let mut parts = uuid.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some(number), None | Some("0")) => number.to_owned(),
        (Some(number), Some(part)) => format!("{number}.{part}"),
        _ => uuid.to_owned(),
    }
}

/// `NVIDIA H100 80GB HBM3 MIG 1g.10gb` is of profile `1g.10gb`.
fn profile(name: &str) -> &str {
    name.rsplit_once("MIG ").map_or("", |(_, profile)| profile.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_told_apart_by_its_number_or_its_uuid() {
        let check = |uuid: &str, expected: &str| assert_eq!(instance_id(uuid), expected);
        check("MIG-GPU-a/3/0", "3");
        check("MIG-GPU-a/3/1", "3.1");
        check("MIG-GPU-a/3", "3");
        check("MIG-c3a9", "MIG-c3a9");
    }

    #[test]
    fn the_profile_stands_at_the_end_of_the_name() {
        let check = |name: &str, expected: &str| assert_eq!(profile(name), expected);
        check("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "1g.10gb");
        check("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb ", "1c.3g.20gb");
        check("NVIDIA H100", "");
    }

    #[test]
    fn the_largest_processes_come_first() {
        let all = largest([(7, 5), (3, 9), (5, 5)].into());
        assert_eq!(all, [(3, 9), (5, 5), (7, 5)]);
    }
}
