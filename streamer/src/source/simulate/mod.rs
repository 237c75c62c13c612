//! Telemetry that is made up, of one instant of some hosts: to try, to load and to show the
//! pipeline without a GPU.

mod history;
mod model;

use nexus_common::{
    keyspace::live::Simulate,
    model::{
        Gpu, GpuId, HostName, HostSamples, IdError, Labels, MetricName, SeriesSamples, SourceId,
        metric_by_dcgm,
    },
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::{
    history::{energy_mj, job},
    model::{FIELDS, readings},
};
use crate::generate::uuid;

/// What the hosts of a source show at `now`, in milliseconds since the epoch, and how many GPUs
/// answered. The same for the same source, seed and instant, whoever asks.
///
/// # Errors
/// When the source's name is too long to begin a host's.
pub(crate) fn hosts_at(
    source: &SourceId,
    simulate: &Simulate,
    hosts: std::ops::Range<u32>,
    now: i64,
) -> Result<(Vec<HostSamples>, u64), IdError> {
    let mut answered = 0;
    let mut all = Vec::with_capacity(hosts.len());
    for number in hosts {
        let host = HostName::new(&format!("{source}-{:04}", number + 1))?;
        // By name, so that two sources with one seed are two clusters' worth of GPUs.
        let stream = xxh3_64_with_seed(host.as_str().as_bytes(), simulate.seed.into());
        let mut samples = HostSamples { host, gpus: Vec::new(), series: Vec::new() };
        for index in 0..simulate.gpus {
            if add_gpu(&mut samples, stream, index, now)? {
                answered += 1;
            }
        }
        all.push(samples);
    }
    Ok((all, answered))
}

/// Adds one GPU; false if it is off the bus.
fn add_gpu(samples: &mut HostSamples, stream: u64, index: u32, now: i64) -> Result<bool, IdError> {
    let own = stream.wrapping_add(u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let Some(readings) = readings(own, now) else { return Ok(false) };
    let uuid = uuid(own, 0);
    let nth = samples.gpus.len() as u32;
    samples.gpus.push(Gpu {
        id: GpuId::new(&uuid)?,
        uuid,
        index: index.to_string(),
        device: format!("nvidia{index}"),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        driver: "535.129.03".to_owned(),
        mig_profile: String::new(),
    });
    let mut add = |name: &str, labels: Labels, value: f64| {
        let (timestamps, values) = (vec![now], vec![value]);
        let metric = MetricName::new(name)?;
        samples.series.push(SeriesSamples { gpu: Some(nth), metric, labels, timestamps, values });
        Ok(())
    };
    for (field, value) in FIELDS.iter().zip(readings) {
        let name = metric_by_dcgm(field).map_or(*field, |metric| metric.name);
        add(name, Labels::default(), value)?;
    }
    add("total_energy_mj", Labels::default(), energy_mj(own, now) as f64)?;
    // Its number is a value: as a label each job would be a series more, for ever.
    if let Some((id, user)) = job(own, now) {
        add("job_id", Labels::new([("user", user)]).unwrap_or_default(), id as f64)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nexus_common::block::Section;

    use super::*;

    /// A quarter of an hour of a host with eight GPUs, one measurement a second, as it is merged.
    fn quarter_of_an_hour() -> HostSamples {
        let id: SourceId = "lab".parse().unwrap();
        let simulate = Simulate {
            cluster: None,
            hosts: 1,
            gpus: 8,
            interval_ms: 1000,
            seed: 7,
            until: None,
            hosts_per_shard: 1,
        };
        let mut gpus: Vec<Gpu> = Vec::new();
        let mut series: BTreeMap<(GpuId, MetricName, Labels), SeriesSamples> = BTreeMap::new();
        let mut host = None;
        for second in 0..900 {
            let now = 1_800_000_000_000 + second * 1000;
            let mut hosts = hosts_at(&id, &simulate, 0..1, now).unwrap().0;
            let told = hosts.pop().unwrap();
            for mut one in told.series {
                let gpu = &told.gpus[one.gpu.unwrap() as usize];
                let nth = gpus.iter().position(|g| g.id == gpu.id).unwrap_or_else(|| {
                    gpus.push(gpu.clone());
                    gpus.len() - 1
                });
                one.gpu = Some(nth as u32);
                let key = (gpu.id.clone(), one.metric.clone(), one.labels.clone());
                let (at, value) = (one.timestamps[0], one.values[0]);
                let known = series.entry(key).or_insert_with(|| {
                    (one.timestamps, one.values) = (Vec::new(), Vec::new());
                    one
                });
                known.timestamps.push(at);
                known.values.push(value);
            }
            host = Some(told.host);
        }
        HostSamples { host: host.unwrap(), gpus, series: series.into_values().collect() }
    }

    #[test]
    fn energy_and_jobs_take_little_room_beside_what_else_is_measured() {
        let all = quarter_of_an_hour();
        let mut without = all.clone();
        without.series.retain(|s| !["total_energy_mj", "job_id"].contains(&s.metric.as_str()));
        let room = |host: &HostSamples| {
            Section::encode(host).unwrap().byte_len() as f64 / host.samples() as f64
        };
        let (with, without) = (room(&all), room(&without));
        println!("{with:.3} bytes a sample, {without:.3} without energy and jobs");
        // 0.365 is what blocks of live fleets are calculated with.
        assert!(with < 0.33 && with < without * 1.15, "{with} bytes a sample, {without} without");
    }
}
