//! A tiny exporter as DCGM's, for tests: each answer counts one up, so that an answer that was
//! enqueued twice can be told.

#[path = "../../examples/exporters/http.rs"]
mod http;

use std::{
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use http::{Answer, Asked};

/// Listens until it is dropped.
pub(crate) struct Exporter {
    pub(crate) address: String,
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Exporter {
    /// An exporter of one GPU on `host`. With `token` it only answers who knows it; packed if the
    /// other side can unpack.
    pub(crate) fn start(host: &str, token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (answers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counts, ends, host) = (Arc::clone(&answers), Arc::clone(&stop), host.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Relaxed) {
                    return;
                }
                let (counts, host) = (Arc::clone(&counts), host.clone());
                // Whoever asked may be killed while it is answered.
                std::thread::spawn(move || {
                    http::serve(stream?, |asked| answer(asked, &host, token, &counts))
                });
            }
        });
        Self { address, answers, stop }
    }

    /// How often it answered.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = TcpStream::connect(&self.address); // wakes the listener
    }
}

fn answer(asked: &Asked, host: &str, token: Option<&str>, answers: &AtomicU64) -> Answer {
    let login = token.map(|token| format!("authorization: bearer {token}"));
    if login.is_some_and(|login| !asked.headers.contains(&login)) {
        return Answer { status: "401 Unauthorized", headers: &[], body: Vec::new() };
    }
    let count = answers.fetch_add(1, Relaxed) + 1;
    let headers = &["Content-Type: text/plain; version=0.0.4", "Content-Encoding: gzip"];
    Answer { status: "200 OK", headers, body: packed(&text(host, count)) }
}

fn text(host: &str, count: u64) -> String {
    let labels = format!(
        "gpu=\"0\",UUID=\"GPU-{host}\",device=\"nvidia0\",modelName=\"NVIDIA H100\",\
         Hostname=\"{host}\",DCGM_FI_DRIVER_VERSION=\"535.129.03\""
    );
    format!(
        "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Energy since boot (in mJ).\n\
         # TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n\
         DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{labels}}} {count}\n\
         DCGM_FI_DEV_GPU_TEMP{{{labels}}} 40\n\
         exporter_build 1\n"
    )
}

/// As gzip (RFC 1952), stored and not compressed (RFC 1951, 3.2.4).
fn packed(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    bytes.extend(length.to_le_bytes());
    bytes.extend((!length).to_le_bytes());
    bytes.extend(text.as_bytes());
    let crc = text.bytes().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    bytes.extend((!crc).to_le_bytes());
    bytes.extend(u32::from(length).to_le_bytes());
    bytes
}
