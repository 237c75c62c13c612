//! A fleet of exporters on one address, each of which answers as dcgm-exporter does: to try scrape
//! sources without a GPU, and to load them. It keeps account of who was asked when.
//!
//!   GET /t7/metrics   what exporter 7 tells
//!   GET /targets      all of them, as Prometheus' file_sd has them
//!   GET /report       how regularly they were asked since the last report
//!
//! `cargo run --release -p nexus-streamer --example exporters -- --targets 10000 --interval 15`

mod http;
mod report;

use std::{
    fmt::Write,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::json;

use http::{Answer, Asked};
use report::Account;

#[derive(Parser)]
struct Args {
    /// Where they listen, all of them.
    #[arg(long, default_value = "127.0.0.1:9400")]
    listen: SocketAddr,
    /// How many there are.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    targets: u32,
    /// GPUs of each, with twenty metrics.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    gpus: u32,
    /// Seconds between two questions, by which the report judges.
    #[arg(long, default_value_t = 15.0)]
    interval: f64,
}

/// What a GPU tells, and what its value lies below.
const FIELDS: [(&str, &str, u64); 20] = [
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", 1981),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", 2620),
    ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", 90),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", 85),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", 700),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", u64::MAX),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", 2),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", 101),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", 101),
    ("DCGM_FI_DEV_ENC_UTIL", "gauge", 2),
    ("DCGM_FI_DEV_DEC_UTIL", "gauge", 2),
    ("DCGM_FI_DEV_XID_ERRORS", "gauge", 1),
    ("DCGM_FI_DEV_FB_FREE", "gauge", 81_559),
    ("DCGM_FI_DEV_FB_USED", "gauge", 81_559),
    ("DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", 1),
    ("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", 1),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", 1),
    ("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", u64::MAX),
    ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "gauge", 1),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", 2),
];

/// What exporter `target` tells when it is asked for the `nth` time.
fn text(target: usize, gpus: u32, nth: usize) -> String {
    let mut text = String::with_capacity(FIELDS.len() * (60 + gpus as usize * 200));
    for (place, (field, kind, below)) in FIELDS.iter().enumerate() {
        let _ = writeln!(text, "# HELP {field} As DCGM has it.\n# TYPE {field} {kind}");
        for gpu in 0..gpus {
            let moves = (nth * (place + 1) + target * 7 + gpu as usize) as u64;
            let value = if *kind == "counter" { moves.min(*below) } else { moves % below };
            let _ = writeln!(
                text,
                "{field}{{gpu=\"{gpu}\",UUID=\"GPU-{target:08x}-0000-4000-8000-{gpu:012x}\",\
                 device=\"nvidia{gpu}\",modelName=\"NVIDIA H100 80GB HBM3\",\
                 Hostname=\"node-{target:05}\",DCGM_FI_DRIVER_VERSION=\"535.129.03\"}} {value}"
            );
        }
    }
    text
}

/// The exporters' addresses.
fn targets(args: &Args) -> Vec<u8> {
    let group = |n: u32| {
        let labels =
            json!({ "__metrics_path__": format!("/t{n}/metrics"), "host": format!("node-{n:05}") });
        json!({ "targets": [args.listen.to_string()], "labels": labels })
    };
    serde_json::Value::Array((0..args.targets).map(group).collect()).to_string().into_bytes()
}

fn answer(asked: &Asked, args: &Args, account: &Mutex<Account>, began: Instant) -> Answer {
    let json =
        |body| Answer { status: "200 OK", headers: &["Content-Type: application/json"], body };
    // A thread that panicked has spoilt nothing that is counted here.
    let account = || account.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match asked.path.as_str() {
        "/targets" => json(targets(args)),
        "/report" => json(account().report(began.elapsed()).to_string().into_bytes()),
        path => {
            let number = path.strip_prefix("/t").and_then(|rest| rest.strip_suffix("/metrics"));
            let number = number.and_then(|number| number.parse().ok());
            match number.filter(|&number: &usize| number < args.targets as usize) {
                Some(number) => {
                    let nth = account().asked(number, began.elapsed());
                    let headers = &["Content-Type: text/plain; version=0.0.4; charset=utf-8"];
                    let body = text(number, args.gpus, nth).into_bytes();
                    Answer { status: "200 OK", headers, body }
                }
                None => Answer { status: "404 Not Found", headers: &[], body: Vec::new() },
            }
        }
    }
}

fn main() -> std::io::Result<()> {
    let args = Arc::new(Args::parse());
    let listener = TcpListener::bind(args.listen)?;
    println!("{} exporters on http://{}/targets", args.targets, args.listen);
    let interval = Duration::from_secs_f64(args.interval);
    let account = Arc::new(Mutex::new(Account::new(args.targets as usize, interval)));
    let began = Instant::now();
    for stream in listener.incoming() {
        let (args, account) = (Arc::clone(&args), Arc::clone(&account));
        // A thread a connection: scrapers keep and share theirs. Whoever asks may be killed.
        std::thread::spawn(move || {
            stream.and_then(|stream| {
                http::serve(stream, |asked| answer(asked, &args, &account, began))
            })
        });
    }
    Ok(())
}
