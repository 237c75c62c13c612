//! A load of remote write: senders that each tell of GPUs of their own, as fast as they are
//! answered. Prints requests and samples a second, and how long answers took.
//!
//! `cargo run -p nexus-gateway --example push -- http://127.0.0.1:8080 8 250 100`: 8 senders, 250
//! GPUs of ten metrics in each request, 100 requests each. All of them are made beforehand.

// Measures; stops at the first surprise.
#![allow(clippy::unwrap_used)]

#[path = "../tests/it/sent.rs"]
mod sent;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sent::{TimeSeries, packed, series};

const METRICS: [&str; 10] = [
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_DEV_MEM_COPY_UTIL",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_POWER_USAGE",
    "DCGM_FI_DEV_SM_CLOCK",
    "DCGM_FI_DEV_MEM_CLOCK",
    "DCGM_FI_DEV_ENC_UTIL",
    "DCGM_FI_DEV_DEC_UTIL",
];
/// Longest wait after a 429 or 503.
const AGAIN: Duration = Duration::from_millis(200);

/// What one sender did: seconds of each answer that said 204, and how often it had to wait.
type Sent = (Vec<f64>, u64);

/// All metrics of a sender's GPUs at one instant, values as restless as real ones.
fn request(sender: usize, gpus: usize, at: i64, nth: u64) -> Vec<TimeSeries> {
    let gpu = |gpu: usize| {
        let (host, index) = (format!("push-{sender:02}-{:03}", gpu / 8), (gpu % 8).to_string());
        let uuid = format!("GPU-{sender:04}-{gpu:08}");
        let instance = format!("{host}:9400");
        METRICS.map(|metric| {
            let labels = [
                ("Hostname", &*host),
                ("UUID", &uuid),
                ("__name__", metric),
                ("gpu", &index),
                ("instance", &instance),
                ("job", "dcgm"),
                ("modelName", "NVIDIA H100 80GB HBM3"),
            ];
            let value = (nth * 7 + gpu as u64 * 13 + metric.len() as u64 * 31) % 100;
            series(&labels, &[(at, value as f64)])
        })
    };
    (0..gpus).flat_map(gpu).collect()
}

fn send(url: &str, bodies: &[Vec<u8>]) -> Sent {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let (mut answered, mut waited) = (Vec::new(), 0);
    for body in bodies {
        loop {
            let asked = Instant::now();
            let reply = agent
                .post(url)
                .header("content-type", "application/x-protobuf")
                .header("content-encoding", "snappy")
                .send(body)
                .unwrap();
            match reply.status().as_u16() {
                204 => {
                    answered.push(asked.elapsed().as_secs_f64());
                    break;
                }
                429 | 503 => {
                    waited += 1;
                    std::thread::sleep(AGAIN);
                }
                other => panic!("{url} answers {other}"),
            }
        }
    }
    (answered, waited)
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [base, senders, gpus, count] = &words[..] else {
        panic!("usage: push URL SENDERS GPUS_A_REQUEST REQUESTS_OF_EACH");
    };
    let url = format!("{base}/api/v1/write");
    let (senders, gpus): (usize, usize) = (senders.parse().unwrap(), gpus.parse().unwrap());
    let count: u64 = count.parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    // A second apart, up to now.
    let at = |nth: u64| now - (count - nth) as i64 * 1000;
    let made: Vec<Vec<Vec<u8>>> = (0..senders)
        .map(|sender| (0..count).map(|n| packed(&request(sender, gpus, at(n), n))).collect())
        .collect();
    let began = Instant::now();
    let threads: Vec<_> = made
        .into_iter()
        .map(|bodies| {
            let url = url.clone();
            std::thread::spawn(move || send(&url, &bodies))
        })
        .collect();
    let sent: Vec<Sent> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let seconds = began.elapsed().as_secs_f64();
    let mut answered: Vec<f64> = sent.iter().flat_map(|(times, _)| times).copied().collect();
    answered.sort_by(f64::total_cmp);
    let at = |part: f64| answered[((answered.len() - 1) as f64 * part) as usize] * 1000.0;
    let (requests, waited) = (answered.len(), sent.iter().map(|(_, waited)| waited).sum::<u64>());
    let samples = requests * gpus * METRICS.len();
    println!(
        "{requests} requests, {:.0}/s; {samples} samples, {:.0}/s; answers p50 {:.1} ms, p99 {:.1} ms, \
         longest {:.0} ms; {waited} times told to wait",
        requests as f64 / seconds,
        samples as f64 / seconds,
        at(0.5),
        at(0.99),
        at(1.0),
    );
}
