//! Follows live telemetry over a gateway's WebSocket and prints a line an update:
//!
//!     cargo run -p nexus-gateway --example follow -- ws://127.0.0.1:8080/ws [GPU-UUID]
//!
//! Comes again when the connection is lost, waiting longer each time, and goes on behind the last
//! revision that came whole: nothing is missed for as long as the gateway still keeps it, and what
//! it no longer has it names as a gap. A token is taken from NEXUS_TOKEN.

use std::{env, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

type Failure = Box<dyn std::error::Error>;

/// Longer than the gateway is ever silent: it pings after five seconds without a word of ours.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// First and longest pause before coming again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How far everything came.
#[derive(Default)]
struct Position {
    /// Revision of the last update.
    last: Option<i64>,
    /// Revision up to which all came: that of the update before the last that was of another one.
    whole: Option<i64>,
}

impl Position {
    fn saw(&mut self, revision: i64) {
        if self.last.is_some_and(|last| last < revision) {
            self.whole = self.last;
        }
        self.last = Some(revision);
    }

    /// Where to go on. What came of the last revision comes again: the rest of it may be missing.
    fn from(&self) -> Value {
        self.whole.map_or(json!("latest"), |revision| json!(revision))
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "ws://127.0.0.1:8080/ws".to_owned());
    let filters = args.next().map_or(json!({}), |uuid| json!({"gpu_uuid": uuid}));
    let mut position = Position::default();
    let mut pause = PAUSE.0;
    loop {
        let before = position.last;
        if let Err(error) = follow(&address, &filters, &mut position).await {
            eprintln!("{address}: {error}");
        }
        // It worked for a while, so it may again at once.
        pause = if position.last == before { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
        eprintln!("coming again in {pause:?}, from {}", position.from());
        sleep(pause).await;
    }
}

/// Prints updates until the connection ends.
async fn follow(address: &str, filters: &Value, position: &mut Position) -> Result<(), Failure> {
    let mut request = address.into_client_request()?;
    if let Ok(token) = env::var("NEXUS_TOKEN") {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}"))?;
        request.headers_mut().insert("authorization", bearer);
    }
    let (mut socket, _) = timeout(SILENT_MAX, connect_async(request)).await??;
    let subscribe = json!({"type": "subscribe", "topic": "telemetry", "filters": filters,
        "from": position.from()});
    socket.send(Message::text(subscribe.to_string())).await?;
    while let Some(message) = timeout(SILENT_MAX, socket.next()).await? {
        match message? {
            // Pings are answered by the library.
            Message::Text(text) => show(&serde_json::from_str(&text)?, position)?,
            Message::Close(frame) => {
                return Err(format!("closed by the gateway: {frame:?}").into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn show(frame: &Value, position: &mut Position) -> Result<(), Failure> {
    let revision = frame["revision"].as_i64();
    match frame["type"].as_str() {
        Some("telemetry_update") => {
            let gpu = frame["gpu_uuid"].as_str().unwrap_or("(host)");
            let (at, host) = (&frame["timestamp"], &frame["hostname"]);
            let kind = if frame["snapshot"] == true { "latest" } else { "new" };
            println!("{at} {host} {gpu} {kind} {}", frame["data"]);
            if let Some(revision) = revision {
                position.saw(revision);
            }
        }
        Some("gap") => println!("gap: {frame}"),
        Some("error") => return Err(frame["error"].to_string().into()),
        _ => {}
    }
    Ok(())
}
