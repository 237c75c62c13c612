//! graphql-transport-ws, case by case, with a plain WebSocket client.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nexus_common::{
    model::{Lane, Role},
    testing::TestEtcd,
};
use nexus_gateway::auth::TokenHash;
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};

use crate::{
    live::tick,
    outage::wired,
    pipeline::{Pipeline, uuid},
    serve::Gateway,
};

const SOON: Duration = Duration::from_secs(10);
const PROTOCOL: (&str, &str) = ("sec-websocket-protocol", "graphql-transport-ws");

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn with(gateway: &Gateway, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let address = gateway.serving.address;
        let mut request = format!("ws://{address}/graphql/ws").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((stream, _)) => Ok(Self(stream)),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn connect(gateway: &Gateway) -> Self {
        Self::with(gateway, &[PROTOCOL]).await.unwrap()
    }

    /// Connected and acknowledged.
    async fn ready(gateway: &Gateway) -> Self {
        let mut client = Self::connect(gateway).await;
        client.say(json!({"type": "connection_init"})).await;
        assert_eq!(client.hear().await, json!({"type": "connection_ack"}));
        client
    }

    async fn say(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    async fn subscribe(&mut self, id: &str, query: &str) {
        self.say(json!({"type": "subscribe", "id": id, "payload": {"query": query}})).await;
    }

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

    async fn closed(&mut self) -> (u16, String) {
        loop {
            match timeout(SOON, self.0.next()).await.expect("an end in time") {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(_)) => {}
                end => panic!("no close frame: {end:?}"),
            }
        }
    }
}

/// A value of the gateway's metrics.
async fn meter(gateway: &Gateway, name: &str) -> u64 {
    let text = gateway.get("/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

async fn one_host() -> (TestEtcd, Pipeline, Lane, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 2, 0).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, pipeline, lane, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_begins_with_the_latest_and_goes_on_with_each_point_once() {
    let (_etcd, mut pipeline, lane, gateway) = one_host().await;
    let mut client = Client::ready(&gateway).await;
    let query = format!(
        "subscription{{telemetryUpdates(gpuUuid:\"{}\",metrics:[\"gpu_utilization\"])\
         {{timestamp hostname gpuId gpuUtilization temperature}}}}",
        uuid("a", 1)
    );
    client.subscribe("1", &query).await;
    for second in 0..4 {
        if second > 0 {
            tick(&mut pipeline, &lane, "a", 2, second).await;
            pipeline.commit(&lane, 10).await;
        }
        let next = client.hear().await;
        assert_eq!((&next["type"], &next["id"]), (&json!("next"), &json!("1")));
        let expected = json!({"timestamp": format!("2025-07-18T20:42:{}Z", 34 + second),
            "hostname": "a", "gpuId": "1", "gpuUtilization": second as f64 * 1000.0 + 1.0,
            "temperature": null});
        assert_eq!(next["payload"]["data"]["telemetryUpdates"], expected);
        assert!(next["payload"]["extensions"]["revision"].as_i64().unwrap() > 0, "{next}");
    }
    // Ended by the client, its id is free again, and nothing more of it comes.
    client.say(json!({"type": "complete", "id": "1"})).await;
    tick(&mut pipeline, &lane, "a", 2, 5).await;
    client.subscribe("1", "subscription{pipelineUpdates{samplesAccepted}}").await;
    let next = client.hear().await;
    assert!(next["payload"]["data"]["pipelineUpdates"]["samplesAccepted"].is_u64(), "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_skipped_is_told_with_the_update_behind_it() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lane = pipeline.source("live", 1).await.remove(0);
    tick(&mut pipeline, &lane, "a", 1, 0).await;
    let (wire, gateway) = wired(&etcd).await;
    let mut client = Client::ready(&gateway).await;
    let query = "subscription{telemetryUpdates{gpuUtilization revision snapshot \
                 gap{reason fromRevision toRevision skippedUpdates}}}";
    client.subscribe("1", query).await;
    let update = |mut next: Value| -> Value { next["payload"]["data"]["telemetryUpdates"].take() };
    let first = update(client.hear().await);
    assert_eq!((&first["snapshot"], &first["gap"]), (&json!(true), &Value::Null), "{first}");
    // The gateway loses its watch, and what came meanwhile is compacted away.
    wire.hold_requests();
    wire.hold_answers();
    for second in 1..=3 {
        tick(&mut pipeline, &lane, "a", 1, second).await;
    }
    let newest = pipeline.etcd.revision().await.unwrap();
    etcd.etcdctl(&["compact", &newest.to_string()]);
    wire.cut();
    let behind = update(client.hear().await);
    let value = (&behind["snapshot"], &behind["gpuUtilization"]);
    assert_eq!(value, (&json!(true), &json!(3000.0)), "{behind}");
    let gap = &behind["gap"];
    assert_eq!((&gap["reason"], &gap["skippedUpdates"]), (&json!("RELOAD"), &Value::Null));
    let revision = |value: &Value| value.as_i64().unwrap();
    assert!(revision(&gap["fromRevision"]) > revision(&first["revision"]), "{first} {behind}");
    assert!(revision(&gap["toRevision"]) <= revision(&behind["revision"]), "{behind}");
    tick(&mut pipeline, &lane, "a", 1, 4).await;
    let next = update(client.hear().await);
    let plain = (&next["gpuUtilization"], &next["snapshot"], &next["gap"]);
    assert_eq!(plain, (&json!(4000.0), &json!(false), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_come_this_way_too_and_what_is_wrong_is_an_error_message() {
    let (_etcd, _pipeline, _lane, gateway) = one_host().await;
    let mut client = Client::ready(&gateway).await;
    client.subscribe("q", "{gpus{hostname id}}").await;
    let next = client.hear().await;
    let gpus = json!([{"hostname": "a", "id": "0"}, {"hostname": "a", "id": "1"}]);
    assert_eq!(next["payload"]["data"]["gpus"], gpus, "{next}");
    assert_eq!(client.hear().await, json!({"type": "complete", "id": "q"}));
    for query in ["{nope}", "subscription{nope}", "{", "{telemetry(limit:1000000000){timestamp}}"] {
        client.subscribe("e", query).await;
        let error = client.hear().await;
        assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("e")), "{query}");
        assert!(error["payload"][0]["message"].is_string(), "{query}: {error}");
    }
    client.say(json!({"type": "ping", "payload": {"a": 1}})).await;
    assert_eq!(client.hear().await, json!({"type": "pong", "payload": {"a": 1}}));
    client.say(json!({"type": "pong"})).await;
    client.say(json!({"type": "complete", "id": "unknown"})).await;
    // Too many at once are refused one by one.
    for n in 0..33 {
        client
            .subscribe(&format!("{n}"), "subscription{telemetryUpdates(host:\"none\"){timestamp}}")
            .await;
    }
    let error = client.hear().await;
    assert_eq!((&error["type"], &error["id"]), (&json!("error"), &json!("32")), "{error}");
    let said = error["payload"][0]["message"].as_str().unwrap();
    assert_eq!(said, "operations of this socket: 32 run, which is the maximum");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_breach_of_the_protocol_has_its_close_code() {
    let (_etcd, _pipeline, _lane, gateway) = one_host().await;
    let init = || json!({"type": "connection_init"});
    let live = "subscription{telemetryUpdates{timestamp}}";
    let subscribe = || json!({"type": "subscribe", "id": "1", "payload": {"query": live}});
    let check = async |said: Vec<Value>, code: u16, reason: &str| {
        let mut client = Client::connect(&gateway).await;
        for message in &said {
            client.say(message.clone()).await;
        }
        let (found, why) = client.closed().await;
        assert_eq!(found, code, "{said:?}: {why}");
        assert!(why.starts_with(reason), "{said:?}: {why}");
    };
    check(vec![subscribe()], 4401, "Unauthorized").await;
    check(vec![init(), init()], 4429, "Too many initialisation requests").await;
    check(vec![init(), subscribe(), subscribe()], 4409, "Subscriber for 1 already exists").await;
    check(vec![json!({"type": "nope"})], 4400, "Invalid message").await;
    check(vec![json!({"type": "x".repeat(1000)})], 4400, "Invalid message").await;
    check(vec![init(), json!({"type": "subscribe", "id": "1"})], 4400, "Invalid message").await;
    check(
        vec![init(), json!({"type": "subscribe", "id": "", "payload": {"query": "{a}"}})],
        4400,
        "Invalid",
    )
    .await;
    check(vec![json!([1])], 4400, "Invalid message").await;
    // Nothing is said at all.
    check(vec![], 4408, "Connection initialisation timeout").await;
    let mut client = Client::ready(&gateway).await;
    client.0.send(Message::text("{")).await.unwrap();
    assert_eq!(client.closed().await.0, 4400);
    let mut client = Client::ready(&gateway).await;
    client.0.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(client.closed().await.0, 4400);
    let mut client = Client::with(&gateway, &[]).await.unwrap();
    assert_eq!(client.closed().await.0, 4406);
    let evil = Client::with(&gateway, &[PROTOCOL, ("origin", "https://evil.example")]).await;
    assert_eq!(evil.err(), Some(403));
    let own = format!("http://{}", gateway.serving.address);
    assert!(Client::with(&gateway, &[PROTOCOL, ("origin", &own)]).await.is_ok());
    // A gateway that ends says so.
    let mut client = Client::ready(&gateway).await;
    gateway.process.stop.cancel();
    assert_eq!(client.closed().await.0, 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_is_let_in_by_its_first_message_and_out_when_its_token_goes() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = |name: &str, token: &str| format!("{name} read {}\n", TokenHash::of(token));
    std::fs::write(file.path(), line("a", "A") + &line("b", "B")).unwrap();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let path = file.path().to_owned();
    let gateway =
        Gateway::with(process, |args| args.auth_tokens_file = Some(path)).await.loaded().await;
    for payload in [json!(null), json!({"token": "X"}), json!({"Authorization": "Bearer X"})] {
        let mut client = Client::connect(&gateway).await;
        client.say(json!({"type": "connection_init", "payload": payload})).await;
        assert_eq!(client.closed().await.0, 4403, "{payload}");
    }
    let mut client =
        Client::with(&gateway, &[PROTOCOL, ("authorization", "Bearer B")]).await.unwrap();
    client.say(json!({"type": "connection_init"})).await;
    assert_eq!(client.hear().await["type"], "connection_ack");
    let mut client = Client::connect(&gateway).await;
    client.say(json!({"type": "connection_init", "payload": {"Authorization": "Bearer A"}})).await;
    assert_eq!(client.hear().await["type"], "connection_ack");
    client.subscribe("m", "mutation{withdrawSource(id:\"x\"){id}}").await;
    let answer = client.hear().await;
    assert_eq!(answer["payload"]["errors"][0]["extensions"]["code"], "forbidden", "{answer}");
    std::fs::write(file.path(), line("b", "B")).unwrap();
    assert_eq!(client.closed().await.0, 4403);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_sent_little_and_let_go_while_others_get_everything() {
    let (_etcd, mut pipeline, lane, gateway) = one_host().await;
    let query = "subscription{telemetryUpdates{timestamp hostname gpuId gpuUtilization}}";
    let (mut reader, mut stuck) = (Client::ready(&gateway).await, Client::ready(&gateway).await);
    reader.subscribe("1", query).await;
    stuck.subscribe("1", query).await;
    let slow = "nexus_streams_ended_total{protocol=\"graphql\",reason=\"slow\"}";
    let (gpus, begun) = (64, std::time::Instant::now());
    let (mut second, mut read) = (0, 0);
    while meter(&gateway, slow).await == 0 {
        assert!(begun.elapsed() < 2 * SOON, "nobody was let go");
        second += 1;
        tick(&mut pipeline, &lane, "a", gpus, second).await;
        for _ in 0..gpus {
            assert_eq!(reader.hear().await["type"], "next", "who reads gets all");
            read += 1;
        }
    }
    // Each frame has more than 100 bytes.
    let sent = meter(&gateway, "nexus_streams_sent_total{protocol=\"graphql\"}").await;
    let little = sent - read - 2;
    assert!(read > 1000 && little <= 16 * 1024 / 100, "{read} to one, {little} to the other");
    // It was told why: it stands behind all it was sent, for which nobody waits to hear more.
    let (mut received, reason) = (Vec::new(), b"nothing was read for 5 s");
    let MaybeTlsStream::Plain(stream) = stuck.0.get_mut() else { panic!("no TLS here") };
    timeout(SOON, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received.ends_with(reason) && received.len() < 3 * 16 * 1024, "{}", received.len());
    let code = &received[received.len() - reason.len() - 2..][..2];
    assert_eq!(code, 1013_u16.to_be_bytes());
}
