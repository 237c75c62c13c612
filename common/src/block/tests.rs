//! The block as a whole. Its parts have tests of their own.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::limits::SECTION_SAMPLES_MAX;
use crate::model::{
    Gpu, GpuId, HostName, HostSamples, Labels, MetricName, SeriesSamples, Timestamp,
};

#[path = "../../benches/dcgm/mod.rs"]
#[allow(unreachable_pub)] // it is a bench's module, too
mod dcgm;

fn gpu(index: u32, id: &str) -> Gpu {
    Gpu {
        id: GpuId::new(id).unwrap(),
        uuid: id.to_owned(),
        index: index.to_string(),
        device: format!("nvidia{index}"),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        driver: "535.129.03".to_owned(),
        mig_profile: String::new(),
    }
}

fn series(gpu: Option<u32>, metric: &str, labels: Labels, samples: &[(i64, f64)]) -> SeriesSamples {
    let (timestamps, values) = samples.iter().copied().unzip();
    SeriesSamples { gpu, metric: MetricName::new(metric).unwrap(), labels, timestamps, values }
}

fn host(gpus: Vec<Gpu>, series: Vec<SeriesSamples>) -> HostSamples {
    HostSamples { host: HostName::new("host-1").unwrap(), gpus, series }
}

fn block(sections: Vec<Section>) -> Block {
    Block { cluster: ClusterId::new("c").unwrap(), sections }
}

/// What a series is, whatever its position and that of its GPU, with its samples bit by bit.
type Canonical = (String, Option<String>, Labels, Vec<(i64, u64)>);

fn canonical(samples: &HostSamples) -> Vec<Canonical> {
    let canonical = |s: &SeriesSamples| {
        let bits = s.timestamps.iter().copied().zip(s.values.iter().map(|v| v.to_bits()));
        let gpu = s.gpu.map(|gpu| format!("{:?}", samples.gpus[gpu as usize]));
        (s.metric.as_str().to_owned(), gpu, s.labels.clone(), bits.collect())
    };
    let written = samples.series.iter().filter(|s| !s.timestamps.is_empty());
    let mut all: Vec<_> = written.map(canonical).collect();
    all.sort();
    all
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => (0..=100_i32).prop_map(f64::from),
        2 => (0..=700_000_i32).prop_map(|v| f64::from(v) / 1000.0),
        1 => any::<u64>().prop_map(f64::from_bits),
        1 => prop_oneof![
            Just(-0.0), Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY),
            Just(f64::from_bits(0xfff0_0000_dead_beef)), Just(f64::MIN_POSITIVE / 8.0),
            Just(f64::MAX), Just(9_007_199_254_740_993.0), Just(9_223_372_036_854_775_808.0),
        ],
    ]
}

/// Values as columns have them: all of one kind, or anything.
fn any_values(n: usize) -> impl Strategy<Value = Vec<f64>> {
    prop_oneof![
        vec((0..=100_i32).prop_map(f64::from), n),
        vec((-700_000..=700_000_i32).prop_map(|v| f64::from(v) / 1000.0), n),
        vec(prop_oneof![20 => Just(1980.0), 1 => Just(1500.0)], n),
        vec(any::<f32>().prop_map(f64::from), n),
        vec(any::<i64>().prop_map(|v| v as f64), n),
        vec(any_value(), n),
    ]
}

fn any_timestamps(n: usize) -> impl Strategy<Value = Vec<i64>> {
    let all = Timestamp::MIN.as_millis()..=Timestamp::MAX.as_millis();
    let near = 1_752_871_354_000..1_752_871_364_000_i64;
    prop_oneof![
        (near.clone(), 0..5000_i64)
            .prop_map(move |(t, step)| { (0..n as i64).map(|i| t + i * step).collect() }),
        vec(near, n),
        vec(all, n),
        vec(Just(Timestamp::MAX.as_millis()), n),
    ]
}

fn any_labels() -> impl Strategy<Value = Labels> {
    let text = prop_oneof![Just("cpu"), Just("mode"), Just("0"), Just("é")];
    let labels = vec((text.clone(), text), 0..3).prop_map(|pairs| Labels::new(pairs).ok());
    labels.prop_map(Option::unwrap_or_default)
}

fn any_series(gpus: u32) -> impl Strategy<Value = SeriesSamples> {
    let gpu = if gpus == 0 { Just(None).boxed() } else { proptest::option::of(0..gpus).boxed() };
    let metric = prop_oneof![
        Just("power_draw"),
        Just("temperature"),
        Just("node_load1"),
        Just("gpu_utilization"),
    ];
    let length = prop_oneof![Just(1_usize), 2..20_usize, 250..600_usize];
    (gpu, metric, any_labels(), length).prop_flat_map(|(gpu, metric, labels, n)| {
        (any_timestamps(n), any_values(n)).prop_map(move |(timestamps, values)| SeriesSamples {
            gpu,
            metric: MetricName::new(metric).unwrap(),
            labels: labels.clone(),
            timestamps,
            values,
        })
    })
}

fn any_gpus() -> impl Strategy<Value = Vec<Gpu>> {
    let text = "[A-Za-z0-9 é-]{0,12}";
    let id = prop_oneof!["[a-z0-9:]{1,8}", "GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"];
    vec((id, text, text, any::<bool>()), 0..5).prop_map(|gpus| {
        let gpu = |(i, (id, uuid, model, same)): (u32, (String, String, String, bool))| Gpu {
            uuid: if same { id.clone() } else { uuid },
            model,
            ..gpu(i, &id)
        };
        (0..).zip(gpus).map(gpu).collect()
    })
}

fn any_host() -> impl Strategy<Value = HostSamples> {
    any_gpus().prop_flat_map(|gpus| {
        vec(any_series(gpus.len() as u32), 1..8).prop_map(move |series| host(gpus.clone(), series))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn samples_come_back_bit_by_bit(samples in any_host()) {
        let section = Section::encode(&samples).unwrap();
        let bytes = block(vec![section.clone(), section]).encode().unwrap();
        let read = Block::decode(bytes).unwrap();
        prop_assert_eq!(read.samples(), 2 * samples.samples() as u64);
        for section in &read.sections {
            let back = section.decode().unwrap();
            prop_assert_eq!(canonical(&back), canonical(&samples));
            let at: Vec<i64> = samples.series.iter().flat_map(|s| s.timestamps.clone()).collect();
            prop_assert_eq!(Some(section.start().as_millis()), at.iter().min().copied());
            prop_assert_eq!(Some(section.end().as_millis()), at.iter().max().copied());
        }
    }

    #[test]
    fn a_part_is_what_the_whole_holds_of_it(samples in any_host()) {
        let section = Section::encode(&samples).unwrap();
        let keep = |gpu: Option<&Gpu>, metric: &MetricName| {
            gpu.is_none_or(|gpu| gpu.index == "1") && metric.as_str() != "temperature"
        };
        let mut whole = section.decode().unwrap();
        let dictionary = section.dictionary().unwrap();
        prop_assert_eq!(&dictionary.gpus, &whole.gpus);
        let identities = whole.series.iter().map(|s| (s.gpu, &s.metric, &s.labels));
        prop_assert!(identities.eq(dictionary.series.iter().map(|s| (s.gpu, &s.metric, &s.labels))));
        let gpus = whole.gpus.clone();
        whole.series.retain(|s| keep(s.gpu.map(|gpu| &gpus[gpu as usize]), &s.metric));
        let part = section.decode_matching(keep).unwrap();
        prop_assert_eq!(canonical(&part), canonical(&whole));
    }

    #[test]
    fn merging_keeps_every_sample_and_sorts(parts in vec(any_host(), 1..4)) {
        let merged = merge(parts.clone()).unwrap();
        prop_assert!(merged.series.iter().all(|s| s.timestamps.is_sorted()));
        let all = |hosts: &[HostSamples]| {
            let samples = |host: &HostSamples| {
                let gpus = host.gpus.clone();
                host.series.clone().into_iter().flat_map(move |s| {
                    let gpu = s.gpu.map(|gpu| gpus[gpu as usize].id.clone());
                    let identity = (gpu, s.metric, s.labels);
                    let bits = s.values.into_iter().map(f64::to_bits);
                    s.timestamps.into_iter().zip(bits).map(move |sample| (identity.clone(), sample))
                })
            };
            let mut all: Vec<_> = hosts.iter().flat_map(samples).collect();
            all.sort();
            all
        };
        prop_assert_eq!(all(std::slice::from_ref(&merged)), all(&parts));
    }

    #[test]
    fn corrupt_sections_whose_checksum_agrees_are_errors_or_samples(
        samples in any_host(),
        spots in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let section = Section::encode(&samples).unwrap();
        let mut bytes = section.bytes().to_vec();
        for (spot, byte) in spots {
            let spot = spot.index(bytes.len());
            bytes[spot] = byte;
        }
        open(with_checksum(bytes));
    }

    #[test]
    fn noise_is_no_block(noise in vec(any::<u8>(), 0..200)) {
        prop_assert!(Block::decode(Bytes::from(noise.clone())).is_err());
        let mut bytes = b"NXB\x01".to_vec();
        bytes.extend(noise);
        prop_assert!(Block::decode(Bytes::from(bytes)).is_err());
    }
}

fn with_checksum(mut section: Vec<u8>) -> Bytes {
    let checksum = crc32c::crc32c(&section[4..]);
    section[..4].copy_from_slice(&checksum.to_le_bytes());
    Bytes::from(section)
}

/// Reads all there is to read. It may fail, or be other samples, but only such as it says.
fn open(bytes: Bytes) {
    let Ok(section) = Section::parse(bytes) else { return };
    let _ = section.dictionary();
    let Ok(samples) = section.decode() else { return };
    assert_eq!(samples.samples() as u64, section.samples());
    let span = section.start().as_millis()..=section.end().as_millis();
    for series in &samples.series {
        assert_eq!(series.timestamps.len(), series.values.len());
        assert!(series.timestamps.iter().all(|at| span.contains(at)));
        assert!(series.gpu.is_none_or(|gpu| (gpu as usize) < samples.gpus.len()));
    }
}

fn small() -> Block {
    let labels = Labels::new([("mode", "idle")]).unwrap();
    let at = |i: i64| 1_752_871_354_000 + 1000 * i;
    let samples = host(
        vec![gpu(0, "GPU-01234567-89ab-cdef-0123-456789abcdef"), gpu(1, "h:1")],
        vec![
            series(Some(0), "temperature", Labels::default(), &[(at(0), 61.0), (at(1), 62.0)]),
            series(Some(1), "temperature", Labels::default(), &[(at(0), 40.0), (at(1), 40.0)]),
            series(None, "node_cpu", labels, &[(at(5), f64::NAN), (at(3), -0.0)]),
        ],
    );
    block(vec![Section::encode(&samples).unwrap()])
}

#[test]
fn a_block_cut_anywhere_is_an_error() {
    let bytes = small().encode().unwrap();
    assert!(Block::decode(bytes.clone()).is_ok());
    for n in 0..bytes.len() {
        assert!(Block::decode(bytes.slice(..n)).is_err(), "cut to {n}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(Block::decode(Bytes::from(longer)).is_err());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = small().encode().unwrap();
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Block::decode(Bytes::from(flipped)).is_err(), "bit {bit}");
    }
}

#[test]
fn every_flipped_bit_under_a_right_checksum_is_survived() {
    let samples = dcgm_host(40);
    for bytes in [small().sections.remove(0), Section::encode(&samples).unwrap()] {
        let bytes = bytes.bytes().clone();
        for bit in 32..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            open(with_checksum(flipped));
        }
    }
}

#[test]
fn later_versions_are_told_from_damage() {
    let mut bytes = small().encode().unwrap().to_vec();
    bytes[3] = 2;
    assert_eq!(Block::decode(Bytes::from(bytes.clone())), Err(BlockError::Version(2)));
    bytes[0] = b'n';
    assert_eq!(Block::decode(Bytes::from(bytes)), Err(BlockError::NotABlock));
    let mut section = small().sections[0].bytes().to_vec();
    section[4] = 9;
    assert_eq!(Section::parse(with_checksum(section)), Err(BlockError::Version(9)));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let none = Labels::default;
    let check = |samples: HostSamples, expected: EncodeError| {
        assert_eq!(Section::encode(&samples), Err(expected));
    };
    let metric = MetricName::new("m").unwrap();
    check(host(vec![], vec![]), EncodeError::Empty);
    check(host(vec![], vec![series(None, "m", none(), &[])]), EncodeError::Empty);
    let mut uneven = host(vec![], vec![series(None, "m", none(), &[(0, 1.0)])]);
    uneven.series[0].timestamps.push(1);
    check(uneven, EncodeError::Lengths { metric: metric.clone(), timestamps: 2, values: 1 });
    check(
        host(vec![gpu(0, "g")], vec![series(Some(1), "m", none(), &[(0, 1.0)])]),
        EncodeError::Gpu { metric, index: 1, count: 1 },
    );
    for at in [i64::MIN, Timestamp::MIN.as_millis() - 1, Timestamp::MAX.as_millis() + 1, i64::MAX] {
        check(
            host(vec![], vec![series(None, "m", none(), &[(0, 1.0), (at, 1.0)])]),
            EncodeError::Timestamp(at),
        );
    }
    let mut wordy = host(vec![gpu(0, "g")], vec![series(None, "m", none(), &[(0, 1.0)])]);
    wordy.gpus[0].model = "x".repeat(257);
    check(wordy, EncodeError::Text { field: "model", bytes: 257 });
    let crowd = vec![(0, 1.0); SECTION_SAMPLES_MAX + 1];
    let error = Section::encode(&host(vec![], vec![series(None, "m", none(), &crowd)]));
    assert!(matches!(error, Err(EncodeError::TooMany { what: "samples of a section", .. })));
}

#[test]
fn equal_gpus_and_series_in_any_order_have_equal_dictionaries() {
    let mut samples = dcgm_host(3);
    let hash = Section::encode(&samples).unwrap().dictionary_hash();
    samples.series.reverse();
    samples.gpus.reverse();
    samples.series.iter_mut().for_each(|s| s.gpu = s.gpu.map(|gpu| 7 - gpu));
    samples.series.iter_mut().for_each(|s| s.values.reverse());
    assert_eq!(Section::encode(&samples).unwrap().dictionary_hash(), hash);
    samples.gpus[0].driver = "550.1".to_owned();
    assert_ne!(Section::encode(&samples).unwrap().dictionary_hash(), hash);
}

#[test]
fn merging_unites_by_identity_and_believes_the_last_description() {
    let one = |at: i64, index: u32, driver: &str| {
        let mut gpus = vec![gpu(0, "a"), gpu(1, "b")];
        gpus.rotate_left(index as usize);
        gpus[index as usize].driver = driver.to_owned();
        host(gpus, vec![series(Some(index), "m", Labels::default(), &[(at, at as f64)])])
    };
    let merged = merge(vec![one(5, 0, "1"), one(3, 1, "2"), one(5, 1, "3")]).unwrap();
    assert_eq!(merged.gpus.len(), 2);
    assert_eq!(merged.gpus[0].driver, "3");
    let expected = series(Some(0), "m", Labels::default(), &[(3, 3.0), (5, 5.0), (5, 5.0)]);
    assert_eq!(merged.series, [expected]);
    assert_eq!(merge(vec![]), None);
    let mut stranger = one(1, 0, "1");
    stranger.host = HostName::new("host-2").unwrap();
    assert_eq!(merge(vec![one(1, 0, "1"), stranger]), None);
}

#[test]
fn merging_keeps_equal_timestamps_in_the_order_of_the_parts() {
    let part = |n: i32| {
        let samples: Vec<_> = (0..60).map(|i| (i64::from((i * 7) % 2), f64::from(n + i))).collect();
        host(vec![], vec![series(None, "m", Labels::default(), &samples)])
    };
    let merged = merge(vec![part(0), part(100)]).unwrap();
    assert_eq!(merged.samples(), 120);
    let (zeros, ones) = merged.series[0].values.split_at(60);
    assert!(zeros.is_sorted() && ones.is_sorted());
}

/// Samples that make use of most of what the format has: packed UUIDs and a MIG instance, label
/// sets in a compressed dictionary, columns of each kind and scale, each kind of integers.
fn golden() -> HostSamples {
    let uuid = "GPU-01234567-89ab-cdef-0123-456789abcdef";
    let mut mig = gpu(0, &format!("{uuid}:1"));
    mig.uuid = uuid.to_owned();
    mig.mig_profile = "1g.10gb".to_owned();
    let labels = Labels::new([("device", "sda"), ("path", &"/disk".repeat(50))]).unwrap();
    let none = Labels::default;
    let at = |i: i64| 1_752_871_354_000 + 1000 * i;
    let regular = |value: &dyn Fn(i64) -> f64| -> Vec<(i64, f64)> {
        (0..300).map(|i| (at(i), value(i))).collect()
    };
    let few: Vec<_> = (0..4).map(|i| (at(i * i), 61.5 + 0.001 * i as f64)).collect();
    let bits: Vec<_> = [f64::NAN, -0.0, f64::INFINITY, -1.0 / 3.0]
        .into_iter()
        .enumerate()
        .map(|(i, v)| (at(9 - i as i64), v))
        .collect();
    host(
        vec![gpu(0, uuid), mig],
        vec![
            series(Some(0), "gpu_utilization", none(), &regular(&|i| (i * i % 11) as f64)),
            series(Some(1), "gpu_utilization", none(), &few),
            series(Some(0), "memory_used_mb", none(), &regular(&|i| (100 + i / 200) as f64)),
            series(Some(0), "sm_clock_mhz", none(), &regular(&|_| 1980.0)),
            series(Some(0), "total_energy_mj", none(), &regular(&|i| (i * 250_000 + i % 3) as f64)),
            series(None, "node_disk_io", labels, &bits),
            series(None, "node_load1", none(), &[(at(0), 0.1), (at(1), 0.25), (at(1), 0.1)]),
        ],
    )
}

#[test]
fn what_version_1_wrote_is_read_for_ever() {
    let digits: Vec<u8> = include_str!("golden_v1.hex").bytes().filter(|b| *b != b'\n').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    let block = Block::decode(digits.chunks(2).map(byte).collect()).unwrap();
    assert_eq!(block.cluster.as_str(), "c");
    assert_eq!(block.sections.len(), 1);
    assert_eq!(canonical(&block.sections[0].decode().unwrap()), canonical(&golden()));
}

/// `seconds` of a made-up host at 1 Hz.
fn dcgm_host(seconds: usize) -> HostSamples {
    let mut made = dcgm::Host::new(7);
    let gpus = (0..dcgm::GPUS as u32).map(|index| gpu(index, &made.uuid())).collect();
    let rows: Vec<_> = (0..seconds).map(|_| made.second()).collect();
    let one = |position: usize| {
        let (gpu, metric) = (position / 10, position % 10);
        let at = |i: usize| 1_752_871_354_000 + 1000 * i as i64;
        let samples: Vec<_> = (0..).zip(&rows).map(|(i, row)| (at(i), row[gpu][metric])).collect();
        series(Some(gpu as u32), dcgm::METRICS[metric], Labels::default(), &samples)
    };
    host(gpus, (0..10 * dcgm::GPUS).map(one).collect())
}

#[test]
fn dcgm_telemetry_takes_no_more_bytes_than_promised() {
    let check = |seconds: usize, bytes_a_sample: f64| {
        let samples = dcgm_host(seconds);
        let block = block(vec![Section::encode(&samples).unwrap()]);
        let bytes = block.encode().unwrap();
        let each = bytes.len() as f64 / samples.samples() as f64;
        assert!(each <= bytes_a_sample, "{seconds} s take {each} bytes a sample");
        assert_eq!(canonical(&block.sections[0].decode().unwrap()), canonical(&samples));
    };
    check(10, 1.0);
    check(3600, 0.5);
}
