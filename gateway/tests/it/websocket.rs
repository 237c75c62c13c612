//! /ws as users know it, and as those who mean ill do.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use nexus_common::{
    model::Role,
    testing::{TestEtcd, eventually},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use crate::{
    live::tick,
    pipeline::{Pipeline, export, uuid},
    serve::Gateway,
};

const SOON: Duration = Duration::from_secs(10);

/// A client.
struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(gateway: &Gateway) -> Self {
        Self::with(gateway, &[]).await.unwrap()
    }

    async fn with(gateway: &Gateway, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let address = gateway.serving.address;
        let mut request = format!("ws://{address}/ws").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((stream, _)) => Ok(Self(stream)),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn say(&mut self, frame: &Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame that is text.
    async fn hear(&mut self) -> Value {
        loop {
            let message = timeout(SOON, self.0.next()).await.expect("a frame in time");
            match message.expect("a frame").unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    async fn ask(&mut self, frame: Value) -> Value {
        self.say(&frame).await;
        self.hear().await
    }

    /// The close code; whatever comes before it is passed over. None if the connection broke.
    async fn closed(&mut self) -> Option<u16> {
        loop {
            match timeout(SOON, self.0.next()).await.expect("an end in time") {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }
}

async fn one_gpu() -> (TestEtcd, Pipeline, nexus_common::model::Lane, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 2, 0).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, pipeline, lane, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exchange_users_know_works_and_each_update_comes_once() {
    let (_etcd, mut pipeline, lane, gateway) = one_gpu().await;
    let mut client = Client::connect(&gateway).await;
    let filters = json!({"gpu_uuid": uuid("a", 1), "metrics": ["gpu_utilization", "power_draw"]});
    let subscribe = json!({"type": "subscribe", "topic": "telemetry", "filters": filters});
    let subscribed = client.ask(subscribe).await;
    let filters = json!({"gpu_uuid": uuid("a", 1), "metrics": ["gpu_utilization", "power_draw"]});
    assert_eq!((&subscribed["type"], &subscribed["filters"]), (&json!("subscribed"), &filters));
    for second in 1..=3 {
        tick(&mut pipeline, &lane, "a", 2, second).await;
        pipeline.commit(&lane, 100).await;
    }
    for second in 1..=3 {
        let update = client.hear().await;
        let revision = update["revision"].as_i64().unwrap();
        let timestamp = format!("2025-07-18T20:42:{}Z", 34 + second);
        let expected = json!({"type": "telemetry_update", "subscription": "1",
            "timestamp": timestamp, "cluster_id": "local-cluster", "hostname": "a",
            "gpu_uuid": uuid("a", 1), "gpu_id": "1", "revision": revision,
            "data": {"gpu_utilization": second as f64 * 1000.0 + 1.0}});
        assert_eq!(update, expected);
    }
    let pong = client.ask(json!({"type": "ping", "id": "x"})).await;
    assert_eq!((&pong["type"], &pong["id"]), (&json!("pong"), &json!("x")));
    let gone = client.ask(json!({"type": "unsubscribe", "topic": "telemetry"})).await;
    assert_eq!(gone, json!({"type": "unsubscribed", "subscriptions": ["1"]}));
    tick(&mut pipeline, &lane, "a", 2, 4).await;
    gateway.caught_up(20).await;
    assert_eq!(client.ask(json!({"type": "ping"})).await["type"], "pong", "and no update");
    let metrics = gateway.get("/metrics").await.text;
    for name in [
        "nexus_streams_open{protocol=\"websocket\"} 1",
        "nexus_live_points_total 3",
        "nexus_live_subscriptions 0",
        "nexus_streams_sent_total{protocol=\"websocket\"} 7",
    ] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_begins_with_the_latest_or_behind_a_revision() {
    let (_etcd, mut pipeline, lane, gateway) = one_gpu().await;
    let mut client = Client::connect(&gateway).await;
    let of = |id: &str, from: Value| {
        json!({"type": "subscribe", "id": id, "topic": "telemetry", "from": from,
            "filters": {"host": "a", "cluster": "local-cluster"}})
    };
    let begun = client.ask(of("a", json!("latest"))).await["revision"].as_i64().unwrap();
    for gpu in 0..2 {
        let update = client.hear().await;
        assert_eq!(
            (&update["snapshot"], &update["gpu_uuid"]),
            (&json!(true), &json!(uuid("a", gpu)))
        );
        assert_eq!(
            update["data"],
            json!({"gpu_utilization": gpu as f64, "temperature": gpu as f64})
        );
    }
    tick(&mut pipeline, &lane, "a", 2, 1).await;
    let first = client.hear().await;
    let second = client.hear().await;
    assert_eq!((&first["gpu_id"], &second["gpu_id"]), (&json!("0"), &json!("1")));
    assert_eq!(client.ask(of("b", json!(begun))).await["subscription"], "b");
    for expected in [first, second] {
        let mut again = client.hear().await;
        again["subscription"] = json!("a");
        assert_eq!(again, expected);
    }
    assert_eq!(client.ask(of("c", json!(begun - 1))).await["subscription"], "c");
    let gap = client.hear().await;
    assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("window")));
    assert_eq!((&gap["from_revision"], &gap["subscription"]), (&json!(begun), &json!("c")));
    assert_eq!(client.hear().await["snapshot"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_and_pipeline_can_be_followed() {
    let (_etcd, mut pipeline, lane, gateway) = one_gpu().await;
    let mut client = Client::connect(&gateway).await;
    let subscribe = json!({"type": "subscribe", "topic": "inventory", "from": "latest"});
    assert_eq!(client.ask(subscribe).await["type"], "subscribed");
    let all = client.hear().await;
    assert_eq!((&all["type"], &all["snapshot"]), (&json!("inventory_update"), &json!(true)));
    assert_eq!(all["added"].as_array().unwrap().len(), 2);
    pipeline.enqueue(&lane, &[export("b", 1)]).await;
    let change = client.hear().await;
    assert_eq!(change["added"][0]["uuid"], uuid("b", 0));
    assert_eq!((&change["added"][0]["hostname"], &change["changed"]), (&json!("b"), &Value::Null));
    client.ask(json!({"type": "unsubscribe"})).await;
    let subscribe = json!({"type": "subscribe", "topic": "pipeline"});
    assert_eq!(client.ask(subscribe).await["type"], "subscribed");
    for _ in 0..2 {
        let update = client.hear().await;
        assert_eq!(update["type"], "pipeline_update");
        assert_eq!(update["data"]["samples"]["accepted"], 14);
        assert_eq!(update["data"]["gpus"], 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_named_and_the_connection_lives_on() {
    let (_etcd, _pipeline, _lane, gateway) = one_gpu().await;
    let mut client = Client::connect(&gateway).await;
    let error = client.ask(json!({"type": "shout"})).await;
    let expected = json!({"type": "error", "code": "unknown-type", "field": "type",
        "error": "type: \"shout\" is not one of subscribe, unsubscribe, ping, auth"});
    assert_eq!(error, expected);
    client.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(client.hear().await["code"], "binary");
    for index in 0..65 {
        let subscribe = json!({"type": "subscribe", "topic": "telemetry", "id": index});
        let answer = client.ask(subscribe).await;
        let (kind, code) = if index < 64 {
            ("subscribed", Value::Null)
        } else {
            ("error", json!("too-many-subscriptions"))
        };
        assert_eq!((&answer["type"], &answer["code"]), (&json!(kind), &code));
    }
    client.ask(json!({"type": "unsubscribe", "id": "63"})).await;
    let twice = client.ask(json!({"type": "subscribe", "topic": "pipeline", "id": 5})).await;
    assert_eq!((&twice["type"], &twice["field"]), (&json!("error"), &json!("id")));
    assert_eq!(client.ask(json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_ours_may_connect_and_whoever_floods_or_shouts_is_closed() {
    let (_etcd, _pipeline, _lane, gateway) = one_gpu().await;
    let own = format!("http://{}", gateway.serving.address);
    for (origin, expected) in
        [(own.as_str(), None), ("https://evil.example", Some(403)), ("null", Some(403))]
    {
        let status = Client::with(&gateway, &[("origin", origin)]).await.err();
        assert_eq!(status, expected, "{origin}");
    }
    let mut flood = Client::connect(&gateway).await;
    for _ in 0..1000 {
        // The gateway may be quicker to close than we are to send.
        if flood.0.send(Message::Ping(vec![7; 100].into())).await.is_err() {
            break;
        }
    }
    assert_eq!(flood.closed().await, Some(1008));
    let mut loud = Client::connect(&gateway).await;
    loud.0.send(Message::text("x".repeat(65 * 1024))).await.unwrap();
    assert_eq!(loud.closed().await, Some(1009));
    let plain = gateway.get("/ws").await;
    assert_eq!((plain.status, &plain.json()["code"]), (426, &json!("upgrade-required")));
}

/// Opens a WebSocket by hand.
async fn by_hand(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_says_it_has_64_mib_is_refused_at_its_head() {
    let (_etcd, _pipeline, _lane, gateway) = one_gpu().await;
    let mut stream = by_hand(gateway.serving.address).await;
    let mut head = vec![0x81, 0x80 | 127];
    head.extend((64_u64 << 20).to_be_bytes());
    head.extend([0; 4]);
    stream.write_all(&head).await.unwrap();
    let mut answer = [0; 4];
    timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!((answer[0], u16::from_be_bytes([answer[2], answer[3]])), (0x88, 1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_reads_nothing_is_cut_off_within_twelve_seconds() {
    let (_etcd, _pipeline, _lane, gateway) = one_gpu().await;
    let mut silent = by_hand(gateway.serving.address).await;
    let mut received = Vec::new();
    let read = timeout(Duration::from_secs(12), silent.read_to_end(&mut received)).await;
    read.expect("it is closed in time").unwrap();
    // A ping, then a close frame.
    assert_eq!(received[0], 0x89);
    let close = received.iter().position(|byte| *byte == 0x88).unwrap();
    assert_eq!(u16::from_be_bytes([received[close + 2], received[close + 3]]), 4408);
}

/// The value of a counter or gauge of the gateway.
async fn meter(gateway: &Gateway, name: &str) -> u64 {
    let text = gateway.get("/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_sent_little_and_told_of_the_gap_when_it_does() {
    let (_etcd, mut pipeline, lane, gateway) = one_gpu().await;
    let subscribe = json!({"type": "subscribe", "topic": "telemetry"});
    let mut reader = Client::connect(&gateway).await;
    assert_eq!(reader.ask(subscribe.clone()).await["type"], "subscribed");
    let mut client = Client::connect(&gateway).await;
    assert_eq!(client.ask(subscribe.clone()).await["type"], "subscribed");
    let mut never = Vec::new();
    for _ in 0..2 {
        let (mut stream, frame) = (by_hand(gateway.serving.address).await, subscribe.to_string());
        let head = [0x81, 0x80 | frame.len() as u8, 0, 0, 0, 0];
        stream.write_all(&[&head, frame.as_bytes()].concat()).await.unwrap();
        never.push(stream);
    }
    let subscribed = || async { meter(&gateway, "nexus_live_subscriptions").await == 4 };
    eventually("all are subscribed", SOON, subscribed).await;
    let frames = "nexus_streams_sent_total{protocol=\"websocket\"}";
    let gaps = "nexus_live_gaps_total{reason=\"slow\"}";
    let (gpus, begun) = (64, std::time::Instant::now());
    let (mut second, mut read) = (0, 0);
    while meter(&gateway, gaps).await < 3 {
        assert!(begun.elapsed() < SOON, "nobody lost anything");
        second += 1;
        tick(&mut pipeline, &lane, "a", gpus, second).await;
        for _ in 0..gpus {
            assert_eq!(reader.hear().await["type"], "telemetry_update", "who reads gets all");
            read += 1;
        }
    }
    // Each of those frames has more than 200 bytes; all of them were subscribed, too.
    let sent = meter(&gateway, frames).await;
    let others = sent - read - 4;
    assert!(
        read > 3 * 80 && others <= 3 * (16 * 1024 / 200 + 1),
        "{read} to one, {others} to three"
    );
    let (mut before, mut last) = (0, 0);
    let gap = loop {
        let frame = client.hear().await;
        if frame["type"] == "gap" {
            break frame;
        }
        (before, last) = (before + 1, frame["revision"].as_i64().unwrap());
    };
    // What went out before, and the rest of that revision.
    assert!((1..=80 + gpus).contains(&before), "{before}");
    assert_eq!((&gap["reason"], &gap["subscription"]), (&json!("slow"), &json!("1")));
    assert!(gap["from_revision"].as_i64().unwrap() > last, "{gap} after {last}");
    for _ in 0..gpus {
        let frame = client.hear().await;
        assert_eq!(
            (&frame["snapshot"], &frame["data"]["gpu_utilization"].is_f64()),
            (&json!(true), &true)
        );
    }
    // The others never read again.
    let ended = "nexus_streams_ended_total{protocol=\"websocket\",reason=\"slow\"}";
    let cut = || async { meter(&gateway, ended).await == 2 };
    eventually("they are cut off", SOON, cut).await;
    assert_eq!(client.ask(json!({"type": "ping"})).await["type"], "pong");
    // They were told why: it stands behind all they were sent.
    let mut received = Vec::new();
    timeout(SOON, never[0].read_to_end(&mut received)).await.unwrap().unwrap();
    let reason = b"nothing was read for 5 s";
    assert!(received.ends_with(reason) && received.len() < 3 * 16 * 1024, "{}", received.len());
    let code = &received[received.len() - reason.len() - 2..][..2];
    assert_eq!(code, 1013_u16.to_be_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_in_a_header_a_subprotocol_or_the_first_frame_and_may_be_taken_away() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 1, 0).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = |name: &str, token: &str| {
        format!("{name} read {}\n", nexus_gateway::auth::TokenHash::of(token))
    };
    std::fs::write(file.path(), line("a", "good") + &line("b", "other")).unwrap();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let path = file.path().to_owned();
    let gateway = Gateway::with(process, |args| args.auth_tokens_file = Some(path)).await;
    let gateway = gateway.loaded().await;
    let ping = json!({"type": "ping"});

    let bad = Client::with(&gateway, &[("authorization", "Bearer bad")]).await.err();
    assert_eq!(bad, Some(401));
    let mut first = Client::with(&gateway, &[("authorization", "Bearer good")]).await.unwrap();
    assert_eq!(first.ask(ping.clone()).await["type"], "pong");
    let offered = ("sec-websocket-protocol", "nexus, bearer.good");
    let mut second = Client::with(&gateway, &[offered]).await.unwrap();
    assert_eq!(second.ask(ping.clone()).await["type"], "pong");
    let mut third = Client::connect(&gateway).await;
    let answer = third.ask(json!({"type": "auth", "token": "other"})).await;
    assert_eq!(answer["type"], "authenticated");
    let mut wrong = Client::connect(&gateway).await;
    wrong.say(&json!({"type": "auth", "token": "bad"})).await;
    assert_eq!(wrong.closed().await, Some(4401));
    let mut early = Client::connect(&gateway).await;
    early.say(&json!({"type": "subscribe", "topic": "telemetry"})).await;
    assert_eq!(early.closed().await, Some(4401));
    let mut mute = Client::connect(&gateway).await;
    assert_eq!(mute.closed().await, Some(4401), "within five seconds");

    std::fs::write(file.path(), line("b", "other")).unwrap();
    assert_eq!(first.closed().await, Some(4401));
    assert_eq!(second.closed().await, Some(4401));
    assert_eq!(third.ask(ping).await["type"], "pong");
    gateway.process.stop.cancel();
    assert_eq!(third.closed().await, Some(1001));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_tell_the_same_and_go_on_where_they_were_cut() {
    let (_etcd, mut pipeline, lane, gateway) = one_gpu().await;
    let path = format!("/api/v1/telemetry/stream?gpu_uuid={}&metrics=temperature", uuid("a", 0));
    let read = |path: String, last: Option<String>, count: usize| {
        let address = gateway.serving.address;
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
            let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{last}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            let mut some = [0; 4096];
            while text.matches("event: ").count() < count || !text.ends_with("\n\n\r\n") {
                let n = timeout(SOON, stream.read(&mut some)).await.unwrap().unwrap();
                assert!(n > 0, "{text}");
                text += std::str::from_utf8(&some[..n]).unwrap();
            }
            text
        }
    };
    let latest = read(format!("{path}&from=latest"), None, 1).await;
    assert!(latest.contains("content-type: text/event-stream"), "{latest}");
    assert!(latest.contains(r#""snapshot":true,"data":{"temperature":0.0}}"#), "{latest}");
    let revision = gateway.view().snapshot().unwrap().revision;
    for second in 1..=2 {
        tick(&mut pipeline, &lane, "a", 1, second).await;
    }
    let both = read(format!("{path}&from={revision}"), None, 2).await;
    assert!(both.contains(r#""data":{"temperature":1000.0}}"#), "{both}");
    let id = both.split("\nid: ").nth(1).unwrap().split('\n').next().unwrap().to_owned();
    let second = read(path.clone(), Some(id), 1).await;
    assert!(second.contains(r#""data":{"temperature":2000.0}}"#), "{second}");
    assert!(!second.contains("1000.0"), "{second}");
    let old = read(path.clone(), Some((revision - 1).to_string()), 2).await;
    assert!(old.contains("event: gap") && old.contains(r#""reason":"window""#), "{old}");
    for bad in ["metrics=a%20b", "from=now", "gpu=1"] {
        let reply = gateway.get(&format!("/api/v1/telemetry/stream?{bad}")).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
}
