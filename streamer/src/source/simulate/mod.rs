//! Telemetry that is made up, of one instant of some hosts: to try, to load and to show the
//! pipeline without a GPU.

mod model;

use nexus_common::{
    keyspace::live::Simulate,
    model::{
        Gpu, GpuId, HostName, HostSamples, IdError, Labels, MetricName, SeriesSamples, SourceId,
        metric_by_dcgm,
    },
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::model::{FIELDS, readings};
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
    for (field, value) in FIELDS.iter().zip(readings) {
        let name = metric_by_dcgm(field).map_or(*field, |metric| metric.name);
        samples.series.push(SeriesSamples {
            gpu: Some(nth),
            metric: MetricName::new(name)?,
            labels: Labels::default(),
            timestamps: vec![now],
            values: vec![value],
        });
    }
    Ok(true)
}
