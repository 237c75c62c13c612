//! Clients that mean harm, or are broken: each is ended within its bounds, and nobody else notices.

use std::time::{Duration, Instant};

use nexus_common::{
    model::Role,
    testing::{TestEtcd, eventually},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{pipeline::Pipeline, serve::Gateway};

async fn connect(gateway: &Gateway) -> TcpStream {
    TcpStream::connect(gateway.serving.address).await.unwrap()
}

/// Everything until the other side closes, or nothing comes for a while.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // An end by reset is an end.
    let _ = timeout(Duration::from_secs(15), stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_ended_and_others_are_served_meanwhile() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let mut slow = Vec::new();
    for n in 0..500 {
        let mut stream = connect(&gateway).await;
        // Nothing at all; what may become HTTP/2; half a head.
        let begun = ["", "PRI * HTT", "GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: "][n % 3];
        stream.write_all(begun.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert_eq!(gateway.get("/livez").await.status, 200);
        slowest = slowest.max(asked.elapsed());
        for stream in slow.iter_mut().skip(2).step_by(3) {
            let _ = stream.write_all(b"x").await;
        }
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    for stream in &mut slow {
        let said = rest(stream).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let open = || async { gateway.get("/metrics").await.text.contains("http_connections 1\n") };
    eventually("their places are free", Duration::from_secs(5), open).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_bodies_that_are_too_large_are_refused_before_they_are_read() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let check = async |head: String, status: &str| {
        let mut stream = connect(&gateway).await;
        // The other side may stop listening in the middle.
        let _ = stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await;
        let said = rest(&mut stream).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    };
    let get = "GET /livez HTTP/1.1\r\nhost: x\r\n";
    let headers: String = (0..10_000).map(|n| format!("x-{n}: y\r\n")).collect();
    check(format!("{get}{headers}"), "431").await;
    check(format!("{get}x-long: {}\r\n", "y".repeat(100_000)), "431").await;
    check(format!("GET /{} HTTP/1.1\r\nhost: x\r\n", "y".repeat(100_000)), "431").await;
    check(format!("{get}content-length: 100000000\r\n"), "413").await;
    check("POST /api/v1/gpus HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n".into(), "413")
        .await;
    let few: String = (0..50).map(|n| format!("x-{n}: y\r\n")).collect();
    check(format!("{get}{few}"), "200").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_a_length_is_not_read_on() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let mut stream = connect(&gateway).await;
    let head = "POST /api/v1/gpus HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "y".repeat(65_536));
    let mut taken = 0;
    for _ in 0..1_600 {
        match timeout(Duration::from_secs(2), stream.write_all(chunk.as_bytes())).await {
            Ok(Ok(())) => taken += 65_536,
            _ => break,
        }
    }
    assert!(taken < 20 << 20, "{taken} of 100 MB were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_go_are_answered_in_order() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let mut stream = connect(&gateway).await;
    let mut all: String = (0..200)
        .map(|n| format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-request-id: r-{n}\r\n\r\n"))
        .collect();
    all.push_str("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(all.as_bytes()).await.unwrap();
    let said = rest(&mut stream).await;
    let ids = said.lines().filter_map(|line| line.strip_prefix("x-request-id: r-"));
    let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(ids.collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_closed_at_once() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| args.connections_max = 3).await;
    let held = [connect(&gateway).await, connect(&gateway).await, connect(&gateway).await];
    let mut refused = connect(&gateway).await;
    assert_eq!(rest(&mut refused).await, "");
    drop(held);
    let served = || async {
        let mut stream = connect(&gateway).await;
        let asked = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(asked.as_bytes()).await;
        rest(&mut stream).await.starts_with("HTTP/1.1 200")
    };
    eventually("there is a place again", Duration::from_secs(5), served).await;
}
