//! A file replayed for ever, at a speed.

use nexus_common::{block::Block, etcd::RangeRead, model::Timestamp, testing::TestEtcd};

use crate::process::{Case, Streamer};

/// Seconds of telemetry in the file.
const SECONDS: i64 = 100;
/// How much faster than recorded it is replayed: a round takes two seconds.
const SPEED: i64 = 50;
const GPUS: [&str; 3] = ["GPU-0", "GPU-1", "GPU-2"];

/// Samples of one GPU in the queue: time and value.
async fn queued(case: &Case, gpu: &str) -> Vec<(i64, f64)> {
    let range = case.etcd.keyspace().prefix("queue/");
    let how = RangeRead { page: 64, ..RangeRead::default() };
    let mut samples = Vec::new();
    for entry in case.etcd.range(&range, how).await.unwrap().entries {
        for section in Block::decode(entry.value).unwrap().sections {
            let host = section.decode().unwrap();
            for series in &host.series {
                if host.gpus[series.gpu.unwrap() as usize].id.as_str() == gpu {
                    let times = series.timestamps.iter().copied();
                    samples.extend(times.zip(series.values.iter().copied()));
                }
            }
        }
    }
    samples.sort_by_key(|(at, _)| *at);
    samples
}

fn now() -> i64 {
    Timestamp::now().as_millis()
}

#[tokio::test]
async fn a_looped_replay_is_near_now_and_goes_on_without_gap_or_double() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/replay").await;
    let mut text = "timestamp,hostname,uuid,temperature\n".to_owned();
    for second in 0..SECONDS {
        let at = Timestamp::from_millis(1_600_000_000_000 + second * 1000).unwrap();
        for gpu in GPUS {
            text += &format!("{at},dgx-001,{gpu},{second}\n");
        }
    }
    let file = case.write("rows.csv", text);
    let speed = SPEED.to_string();
    let flags =
        ["--csv-file", file.to_str().unwrap(), "--loop", "--replay-speed", &speed, "--backlog-max"];
    let start = || -> Streamer { case.start(&[&flags[..], &["100000"]].concat()) };
    let round = GPUS.len() as u64 * SECONDS as u64;
    let begun = now();

    let streamer = start();
    case.audited_until("the second round begins", |r| r.samples.queued > round + 50).await;
    streamer.kill();
    let streamer = start();
    let killed = case.audited_until("it stands", |_| true).await.samples.queued;
    case.audited_until("it goes on", |r| r.samples.queued > killed + round).await;
    streamer.terminate().await;
    let streamer = start();
    let stopped = case.audited_until("it stands", |_| true).await.samples.queued;
    // Caught up: what is queued is what is due, but for the last two seconds.
    let due = |at: i64| (at - begun) * SPEED / 1000 * GPUS.len() as i64;
    let caught_up = |queued: u64| queued as i64 > due(now()) - 100 * GPUS.len() as i64;
    case.audited_until("it catches up", |r| {
        r.samples.queued > stopped + round && caught_up(r.samples.queued)
    })
    .await;
    streamer.terminate().await;
    let ended = now();

    for gpu in GPUS {
        let samples = queued(&case, gpu).await;
        let (first, last) = (samples[0].0, samples[samples.len() - 1].0);
        assert!(first >= begun && first < begun + 5000, "it began at {first}, not at {begun}");
        assert!(last <= ended, "{last} is not yet, it is {ended}");
        // A second of the file is 20 ms of the wall: no step is missing, none is there twice.
        for (n, (at, value)) in (0..).zip(&samples) {
            let expected = (first + n * 1000 / SPEED, (n % SECONDS) as f64);
            assert_eq!((*at, *value), expected, "sample {n} of {gpu}");
        }
    }
}
