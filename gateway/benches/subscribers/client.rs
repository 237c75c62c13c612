//! WebSocket clients that cost as little as possible: thousands of them share two cores with what
//! they measure.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nexus_common::model::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// What latencies are measured by.
#[derive(Clone)]
pub(crate) struct Clock {
    begin: Instant,
    /// The updates' own timestamps tell when, not their values.
    timestamps: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self { begin: Instant::now(), timestamps: false }
    }
}

impl Clock {
    pub(crate) fn of_timestamps() -> Self {
        Self { timestamps: true, ..Self::default() }
    }

    /// Now, as a value.
    pub(crate) fn micros(&self) -> f64 {
        self.begin.elapsed().as_micros() as f64
    }

    /// Microseconds since what an update tells.
    fn since(&self, text: &str) -> Option<u32> {
        let behind = |name: &str| text.split(name).nth(1);
        let micros = if self.timestamps {
            let at = behind("\"timestamp\":\"")?.split('"').next()?;
            let at: Timestamp = at.parse().ok()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
            now as f64 - at.as_millis() as f64 * 1000.0
        } else {
            let sent = behind("\"gpu_utilization\":")?.split([',', '}']).next()?;
            self.micros() - sent.parse::<f64>().ok()?
        };
        Some(micros.max(0.0) as u32)
    }
}

/// Whether the gateway says it is ready.
pub(crate) async fn is_ready(address: SocketAddr) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text.starts_with("HTTP/1.1 200"))
    };
    asked.await.unwrap_or(false)
}

async fn open(address: SocketAddr, receive_buffer: Option<u32>, frame: &str) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).ok()?;
    }
    let mut stream = socket.connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(&masked(0x81, frame.as_bytes())).await.ok()?;
    Some(stream)
}

/// A frame of a client. All zeros is a mask, too.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend((long as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Subscribes and, from when `begin` tells until it is dropped, notes how late updates are, in
/// microseconds.
pub(crate) async fn subscriber(
    address: SocketAddr,
    frame: String,
    clock: Clock,
    mut begin: watch::Receiver<bool>,
) -> Vec<u32> {
    let mut late = Vec::new();
    let mut tries = 0;
    loop {
        let Some(mut stream) = open(address, None, &frame).await else {
            tries += 1;
            assert!(tries < 10, "a subscriber was not let in");
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        let mut buffer = Vec::with_capacity(4096);
        loop {
            tokio::select! {
                read = stream.read_buf(&mut buffer) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                changed = begin.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return late,
                },
            }
            let noting = *begin.borrow();
            let mut at = 0;
            while let Some((first, payload, end)) = next(&buffer, at) {
                at = end;
                match first {
                    0x81 => {
                        let text = std::str::from_utf8(&buffer[payload..end]).unwrap();
                        assert!(!text.contains("\"type\":\"error\""), "{text}");
                        if text.contains("\"type\":\"gap\"") {
                            eprintln!("{text}");
                        }
                        if noting && let Some(micros) = clock.since(text) {
                            late.push(micros);
                        }
                    }
                    0x89 => {
                        let pong = masked(0x8a, &buffer[payload..end]);
                        stream.write_all(&pong).await.unwrap();
                    }
                    0x88 => eprintln!("closed: {:?}", &buffer[payload..end]),
                    _ => {}
                }
            }
            buffer.drain(..at);
        }
        eprintln!("a subscriber was cut off");
        sleep(Duration::from_millis(100)).await;
    }
}

/// The frame at `at`: its first byte, where its payload begins, and its end.
fn next(buffer: &[u8], at: usize) -> Option<(u8, usize, usize)> {
    let (first, length) = (*buffer.get(at)?, *buffer.get(at + 1)?);
    let (payload, length) = match length {
        126 => {
            let bytes = buffer.get(at + 2..at + 4)?;
            (at + 4, usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
        }
        127 => panic!("no frame is that long"),
        short => (at + 2, usize::from(short)),
    };
    let end = payload + length;
    (end <= buffer.len()).then_some((first, payload, end))
}

/// Subscribes and reads nothing; comes again whenever it must have been cut off. Ends when `end`
/// is dropped.
pub(crate) async fn stuck(
    address: SocketAddr,
    index: usize,
    frame: String,
    mut end: watch::Receiver<bool>,
) {
    // Not all at once.
    sleep(Duration::from_millis(index as u64 * 3)).await;
    loop {
        let stream = open(address, Some(4096), &frame).await;
        if timeout(Duration::from_secs(9), end.changed()).await.is_ok() {
            return;
        }
        drop(stream);
    }
}

/// Latencies in milliseconds.
pub(crate) struct Figures {
    count: usize,
    expected: usize,
    p50: f64,
    pub(crate) p99: f64,
    max: f64,
    worst: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, expected, p50, p99, max, worst } = self;
        write!(f, "{count} updates ({:.1} %), ", *count as f64 * 100.0 / *expected as f64)?;
        write!(f, "p50 {p50:.1} ms, p99 {p99:.1} ms, longest {max:.1} ms, ")?;
        write!(f, "highest p99 of any client {worst:.1} ms")
    }
}

pub(crate) fn figures(lists: &[Vec<u32>], expected: usize) -> Figures {
    let at = |sorted: &[u32], share: f64| {
        let index = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    };
    let mut all: Vec<u32> = lists.concat();
    all.sort_unstable();
    let p99_of = |list: &Vec<u32>| {
        let mut sorted = list.clone();
        sorted.sort_unstable();
        at(&sorted, 0.99)
    };
    Figures {
        count: all.len(),
        expected,
        p50: at(&all, 0.5),
        p99: at(&all, 0.99),
        max: at(&all, 1.0),
        worst: lists.iter().map(p99_of).fold(0.0, f64::max),
    }
}
