//! Several sets of samples of one host become one.

use std::collections::HashMap;

use crate::model::{Gpu, GpuId, HostSamples, Labels, MetricName, SeriesSamples};

type Key = (Option<u32>, MetricName, Labels);

/// Unites `parts`, which are of one host: GPUs by identity (the description in the last part
/// wins) and series by GPU, metric and labels. Every sample is kept, duplicates too; those of a
/// series are sorted by timestamp, equal ones in the order of the parts.
///
/// None when there is no part, or when the parts cannot be united: they are of several hosts, or
/// refer to GPUs they do not have,
/// or have columns of unequal length.
pub fn merge(parts: Vec<HostSamples>) -> Option<HostSamples> {
    let host = parts.first()?.host.clone();
    let mut gpus: Vec<Gpu> = Vec::new();
    let mut gpu_positions: HashMap<GpuId, u32> = HashMap::new();
    let mut series: Vec<SeriesSamples> = Vec::new();
    let mut positions: HashMap<Key, usize> = HashMap::new();
    for part in parts {
        if part.host != host {
            return None;
        }
        let renumbered = unite_gpus(part.gpus, &mut gpus, &mut gpu_positions);
        for mut one in part.series {
            if one.timestamps.len() != one.values.len() {
                return None;
            }
            if let Some(index) = one.gpu {
                one.gpu = Some(*renumbered.get(index as usize)?);
            }
            let key = (one.gpu, one.metric.clone(), one.labels.clone());
            match positions.get(&key).and_then(|&position| series.get_mut(position)) {
                Some(known) => {
                    known.timestamps.append(&mut one.timestamps);
                    known.values.append(&mut one.values);
                }
                None => {
                    positions.insert(key, series.len());
                    series.push(one);
                }
            }
        }
    }
    series.iter_mut().for_each(sort);
    Some(HostSamples { host, gpus, series })
}

/// Adds `part` to `gpus` and says where each now stands.
fn unite_gpus(
    part: Vec<Gpu>,
    gpus: &mut Vec<Gpu>,
    positions: &mut HashMap<GpuId, u32>,
) -> Vec<u32> {
    let mut unite = |gpu: Gpu| {
        let position = *positions.entry(gpu.id.clone()).or_insert(gpus.len() as u32);
        match gpus.get_mut(position as usize) {
            Some(known) => *known = gpu,
            None => gpus.push(gpu),
        }
        position
    };
    part.into_iter().map(&mut unite).collect()
}

fn sort(series: &mut SeriesSamples) {
    if series.timestamps.is_sorted() {
        return;
    }
    let mut samples: Vec<(i64, f64)> =
        series.timestamps.iter().copied().zip(series.values.iter().copied()).collect();
    samples.sort_by_key(|&(at, _)| at);
    (series.timestamps, series.values) = samples.into_iter().unzip();
}
