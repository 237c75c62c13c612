//! As many samples as fast as they go, while processes die and wires break.

use std::time::{Duration, Instant};

use nexus_common::{
    model::Role,
    testing::{
        Faults, Fleet, Proxy, TestEtcd, digest,
        truth::{Historian, audited, is_settled},
    },
};
use tokio::time::sleep;

use crate::{Scale, report::Report};

/// Samples of 31 hosts × 8 GPUs × 8 metrics.
const SAMPLES_A_SECOND: u64 = 31 * 8 * 8;
/// Between two faults of processes.
const EVERY: Duration = Duration::from_millis(1500);
/// Slower than this is broken: a hundredth of what a quiet machine does.
const SAMPLES_PER_SECOND_MIN: u64 = 50_000;

pub(crate) async fn volume(scale: Scale, mut report: Report) -> Report {
    let quota = 8_u64 << 30;
    let etcd = TestEtcd::with_flags(&[&format!("--quota-backend-bytes={quota}")]);
    let quota = quota.to_string();
    let env = [
        ("LEASE_TTL_SECONDS", "3"),
        ("ETCD_QUOTA_BYTES", &*quota),
        ("RETENTION_BYTES", "0"),
        // Small enough that lanes last, and that their ends are met in the midst of it.
        ("BATCH_SIZE", "8192"),
        ("COMMIT_AGE_MS", "200"),
    ];
    let mut fleet = Fleet::on(etcd, &env);
    let seconds = scale.samples.div_ceil(SAMPLES_A_SECOND).to_string();
    let shape = ["--layout", "wide", "--hosts", "31", "--seconds", &seconds];
    let file = fleet.generate_with("wide.csv", &shape);
    let historian = Historian::follow(&fleet).await;
    let handle = fleet.connect().await;
    let upstream = fleet.etcd.endpoint();
    let faults = Faults {
        seed: 1,
        lost: 0.0005,
        delayed: 0.05,
        delay_max: Duration::from_millis(50),
        ..Faults::default()
    };
    let names = ["streamer-a", "streamer-b", "collector-a", "collector-b"];
    let wires = names.map(|_| Proxy::faulty(&upstream, faults));
    let start = |fleet: &mut Fleet, nth: usize| {
        let (endpoint, csv) = (wires[nth].endpoint(), file.to_str().unwrap());
        let role = if nth < 2 { Role::Streamer } else { Role::Collector };
        let mut flags = vec!["--etcd-endpoints", &endpoint];
        if role == Role::Streamer {
            flags.extend(["--csv-file", csv]);
        }
        fleet.start(role, names[nth], &flags);
    };
    (0..names.len()).for_each(|nth| start(&mut fleet, nth));
    let mut random = fastrand::Rng::with_seed(1);
    let (begun, mut next, mut audits) = (Instant::now(), Instant::now() + EVERY, 0);
    let longest = Duration::from_secs(60 + scale.samples / SAMPLES_PER_SECOND_MIN);
    loop {
        let law = audited(&handle).await;
        audits += 1;
        if is_settled(&law) {
            break;
        }
        assert!(begun.elapsed() < longest, "not within {longest:?}: {law:#?}");
        if Instant::now() > next {
            let nth = random.usize(..names.len());
            fleet.kill(names[nth]);
            start(&mut fleet, nth);
            report.fault("kill -9 of processes", 1);
            next = Instant::now() + EVERY;
        }
        sleep(Duration::from_millis(200)).await;
    }
    let took = begun.elapsed();
    for wire in &wires {
        report.fault("answers and requests lost with their connections", wire.count().lost);
        report.fault("answers and requests delayed", wire.count().delayed);
    }
    let source = digest::source(&file);
    let stored = digest::stored(&handle).await;
    report.compared(stored.samples, source.samples);
    assert_eq!(stored, source, "samples differ from their source");
    report.audited(audits);
    historian.assert_sound();
    let rate = format!("{:.2} M", source.samples as f64 / took.as_secs_f64() / 1e6);
    report.fact("samples a second, to stored, under these faults", rate, "-", true);
    report
}
