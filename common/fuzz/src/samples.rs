//! Samples as they leave and come back: encoded, decoded, damaged on the way, merged.

use bytes::Bytes;
use nexus_common::{
    block::{Block, BlockError, Section, merge},
    model::{
        ClusterId, Gpu, GpuId, HostName, HostSamples, Labels, MetricName, SeriesSamples, Timestamp,
    },
};

use super::feed::Feed;

/// One sample: GPU, metric, labels, instant and the bits of the value.
type Sample = (Option<GpuId>, MetricName, Labels, i64, u64);

/// Every sample, whatever the order of series.
fn all(samples: &HostSamples) -> Vec<Sample> {
    let mut all = Vec::with_capacity(samples.samples());
    for series in &samples.series {
        let gpu = series.gpu.map(|gpu| samples.gpus[gpu as usize].id.clone());
        for (at, value) in series.timestamps.iter().zip(&series.values) {
            let (metric, labels) = (series.metric.clone(), series.labels.clone());
            all.push((gpu.clone(), metric, labels, *at, value.to_bits()));
        }
    }
    all.sort();
    all
}

/// The bytes choose samples of a host, and what then happens to them.
pub(crate) fn run(bytes: &[u8]) {
    let feed = &mut Feed::new(bytes);
    let (at, flip) = (feed.number(), feed.below(8));
    let split = usize::from(feed.below(u8::MAX));
    let samples = host(feed);
    let Ok(section) = Section::encode(&samples) else { return };
    assert_eq!(section.samples(), samples.samples() as u64);
    let Ok(cluster) = ClusterId::new("c") else { return };
    let block = Block { cluster, sections: vec![section] };
    // More than a block may hold: the streamer halves it.
    let Ok(encoded) = block.encode() else { return };
    let decoded = Block::decode(encoded.clone());
    assert_eq!(decoded.as_ref(), Ok(&block));
    let Ok(decoded) = decoded else { return };
    let back = decoded.sections[0].decode();
    assert_eq!(back.as_ref().map(all), Ok(all(&samples)));

    let mut damaged = encoded.to_vec();
    damaged[at as usize % encoded.len()] ^= 1 << flip;
    let refused = Block::decode(Bytes::from(damaged));
    assert!(refused.is_err(), "bit {flip} of byte {at} may turn unseen");

    let (left, right) = halves(&samples, split);
    let expected = all(&samples);
    let united = merge(vec![left, right]);
    assert_eq!(united.as_ref().map(all), Some(expected.clone()));
    // Two series of the same identity are one after it, so bounds hold all the more.
    let again: Option<Result<_, BlockError>> =
        united.and_then(|united| Section::encode(&united).ok()).map(|section| section.decode());
    assert_eq!(again.map(|samples| samples.as_ref().map(all).ok()), Some(Some(expected)));
}

/// The samples of each series before and from the position `at`.
fn halves(samples: &HostSamples, at: usize) -> (HostSamples, HostSamples) {
    let (mut left, mut right) = (samples.clone(), samples.clone());
    for (left, right) in left.series.iter_mut().zip(&mut right.series) {
        let at = at.min(left.values.len());
        left.values.truncate(at);
        left.timestamps.truncate(at);
        right.values.drain(..at);
        right.timestamps.drain(..at);
    }
    (left, right)
}

fn host(feed: &mut Feed<'_>) -> HostSamples {
    let gpus: Vec<Gpu> = (0..feed.below(6)).filter_map(|_| gpu(feed)).collect();
    let series = (0..feed.below(9)).filter_map(|_| series(feed, gpus.len() as u8)).collect();
    let host = HostName::new(&feed.word());
    let host = host.or_else(|_| HostName::new("h")).ok();
    HostSamples { host: host.unwrap_or_else(|| unreachable!("h is a name")), gpus, series }
}

fn gpu(feed: &mut Feed<'_>) -> Option<Gpu> {
    const UUIDS: [&str; 4] = [
        "GPU-01234567-89ab-cdef-0123-456789abcdef",
        "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff",
        "MIG-1",
        "",
    ];
    let uuid = match feed.below(5) {
        4 => feed.word(),
        known => UUIDS[usize::from(known)].to_owned(),
    };
    let id = format!("{uuid}{}", feed.word());
    let index = if feed.below(2) == 0 { feed.number().to_string() } else { feed.word() };
    Some(Gpu {
        id: GpuId::new(&id).ok()?,
        device: format!("nvidia{index}"),
        uuid,
        index,
        model: feed.word(),
        driver: "535.129.03".repeat(usize::from(feed.below(3))),
        mig_profile: feed.word(),
    })
}

fn series(feed: &mut Feed<'_>, gpus: u8) -> Option<SeriesSamples> {
    const METRICS: [&str; 4] = ["gpu_utilization", "power_draw", "xid_error", "node_load1"];
    let metric = match feed.below(5) {
        4 => feed.word(),
        known => METRICS[usize::from(known)].to_owned(),
    };
    let gpu = feed.below(gpus + 1).checked_sub(1).map(u32::from);
    let pairs: Vec<_> = (0..feed.below(4)).map(|_| (feed.word(), feed.word())).collect();
    let labels = Labels::new(pairs.iter().map(|(name, value)| (&**name, &**value))).ok()?;
    // From 256 on columns are packed in another way.
    let length = match feed.below(3) {
        0 => usize::from(feed.below(4)),
        1 => usize::from(feed.below(64)),
        _ => 200 + 2 * usize::from(feed.below(u8::MAX)),
    };
    let timestamps = timestamps(feed, length);
    let values = values(feed, length);
    Some(SeriesSamples { gpu, metric: MetricName::new(&metric).ok()?, labels, timestamps, values })
}

fn timestamps(feed: &mut Feed<'_>, length: usize) -> Vec<i64> {
    let clamped = |at: i64| Timestamp::saturating_from_millis(at).as_millis();
    let (start, step) = (feed.number() as i64, feed.number() as i64);
    let regular = feed.below(3) > 0;
    let at = |n: usize| clamped(start.saturating_add(step.saturating_mul(n as i64)));
    (0..length).map(|n| if regular { at(n) } else { clamped(feed.number() as i64) }).collect()
}

fn values(feed: &mut Feed<'_>, length: usize) -> Vec<f64> {
    let (kind, first, step) = (feed.below(6), feed.number(), feed.number());
    let mut before = first;
    let mut value = || match kind {
        0 => first as f64,
        1 => f64::from(feed.below(101)),
        2 => feed.number() as i64 as f64 / 1000.0,
        3 => {
            before = before.wrapping_add(step);
            f64::from_bits(before)
        }
        4 => {
            before = before.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            (before >> 40) as f64 / 100.0
        }
        _ => f64::from_bits(feed.number()),
    };
    (0..length).map(|_| value()).collect()
}
