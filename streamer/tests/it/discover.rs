//! Targets that others name: web servers, the DNS, Kubernetes. Each list is asked for again, and
//! stays what it was while nobody answers.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Instant,
};

use nexus_common::testing::{TestEtcd, eventually};
use serde_json::json;

use crate::{
    exporter::Exporter,
    faulty::{Authority, Faulty},
    live::{queued, source},
    process::{Case, SOON},
};

const FLAGS: [&str; 2] = ["--backlog-max", "100000"];

fn apply(case: &Case, scrape: &str) {
    let file = case.write("s.yaml", format!("sources: [{{name: found, scrape: {{{scrape}}}}}]"));
    let (good, said) = source(case, &["apply", "-f", file.to_str().unwrap()]);
    assert!(good, "{said}");
}

/// Waits until an exporter was asked again.
async fn asked(what: &str, exporter: &Exporter) {
    let before = exporter.answers();
    eventually(what, SOON, || async { exporter.answers() > before + 2 }).await;
}

#[tokio::test]
async fn a_web_server_names_targets_and_those_it_named_stay_when_it_fails() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/http_sd").await;
    let exporters = [Exporter::start("dgx-1", None), Exporter::start("dgx-2", None)];
    let [first, second] = [0, 1].map(|n| exporters[n].address.clone());
    let list = Arc::new(Mutex::new(("200 OK", json!([{ "targets": [first] }]).to_string())));
    let told = Arc::clone(&list);
    let server = Faulty::answering(None, move |head| {
        assert!(head.starts_with("GET /targets?rack=7 "), "{head}");
        told.lock().unwrap().clone()
    });
    let url = format!("http://{}/targets?rack=7", server.address);
    let (interval, since) = (200, Instant::now());
    apply(
        &case,
        &format!(
            "interval: {interval}ms, shards: 2, discover: [{{http: {{url: \"{url}\", refresh: 5s}}}}]"
        ),
    );
    assert!(source(&case, &["list"]).1.contains(&format!("those of {url}")));
    let streamers = [case.start(&FLAGS), case.start(&FLAGS)];
    asked("the first is asked", &exporters[0]).await;
    // From now on each streamer hears of another list, until the next time.
    let both = json!([{ "targets": [first] }, { "targets": [second], "labels": { "host": "h" } }]);
    *list.lock().unwrap() = ("200 OK", both.to_string());
    asked("the second is asked", &exporters[1]).await;
    *list.lock().unwrap() = ("500 Internal Server Error", String::new());
    streamers[0].wait_for_log("those known stay").await;
    assert!(streamers[0].log().contains("it answered 500"));
    asked("the first still is", &exporters[0]).await;
    asked("the second still is", &exporters[1]).await;
    let [one, other] = streamers;
    one.kill();
    asked("whoever knows it goes on", &exporters[0]).await;
    other.terminate().await;
    // Whatever list somebody saw: a target's shard is its URL's, and one streamer holds it.
    let intervals = since.elapsed().as_millis() / interval + 1;
    for exporter in &exporters {
        assert!(u128::from(exporter.answers()) <= intervals, "{}", exporter.answers());
    }
    let seen = queued(&case).await;
    assert!(seen.keys().any(|key| key.0 == "h" && key.2.starts_with("up[")));
    assert!(seen.keys().any(|key| key.0 == "dgx-2"), "what it says itself is its own host's");
}

/// A name, a type and what stands there.
type Record = (&'static str, u16, Vec<u8>);

/// A name server on loopback that knows what a test tells it.
struct Dns {
    address: SocketAddr,
    records: Arc<Mutex<Vec<Record>>>,
}

impl Dns {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let records: Arc<Mutex<Vec<Record>>> = Arc::default();
        let known = Arc::downgrade(&records);
        std::thread::spawn(move || {
            let mut asked = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut asked) {
                let Some(known) = known.upgrade() else { return };
                let answer = Self::answer(&asked[..length], &known.lock().unwrap());
                socket.send_to(&answer, from).unwrap();
            }
        });
        Self { address, records }
    }

    /// RFC 1035: the question again, and what is known of its name and type.
    fn answer(asked: &[u8], records: &[Record]) -> Vec<u8> {
        let mut at = 12;
        let mut labels = Vec::new();
        while asked[at] != 0 {
            let end = at + 1 + usize::from(asked[at]);
            labels.push(String::from_utf8_lossy(&asked[at + 1..end]).to_lowercase());
            at = end;
        }
        let (name, kind) = (labels.join("."), u16::from_be_bytes([asked[at + 1], asked[at + 2]]));
        let found: Vec<_> = records.iter().filter(|(n, k, _)| *n == name && *k == kind).collect();
        let no_such_name = u8::from(found.is_empty()) * 3;
        let mut answer = asked[..2].to_vec();
        answer.extend([0x81, 0x80 | no_such_name, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
        answer.extend(&asked[12..at + 5]);
        for (_, kind, data) in found {
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1, 0, 0, 0, 60]);
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        answer
    }

    fn know(&self, records: impl IntoIterator<Item = Record>) {
        *self.records.lock().unwrap() = records.into_iter().collect();
    }
}

/// A host and its port (RFC 2782).
fn srv(host: &str, port: u16) -> Vec<u8> {
    let mut data = vec![0, 1, 0, 1];
    data.extend(port.to_be_bytes());
    for label in host.split('.') {
        data.push(label.len() as u8);
        data.extend(label.as_bytes());
    }
    data.push(0);
    data
}

#[tokio::test]
async fn names_in_the_dns_stand_for_targets_until_nobody_is_there() {
    const SRV: u16 = 33;
    const A: u16 = 1;
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/dns_sd").await;
    let exporters = [Exporter::start("dgx-1", None), Exporter::start("dgx-2", None)];
    let port = |n: usize| exporters[n].address.parse::<SocketAddr>().unwrap().port();
    let dns = Dns::start();
    let address = || ("nodes.lab", A, vec![127, 0, 0, 1]);
    dns.know([("_dcgm._tcp.lab", SRV, srv("localhost", port(0))), address()]);
    let server = dns.address;
    let discover = format!(
        "{{dns: {{name: _dcgm._tcp.lab., server: \"{server}\", refresh: 5s}}}}, \
         {{dns: {{name: nodes.lab., record: a, port: {}, server: \"{server}\", refresh: 5s}}}}",
        port(1)
    );
    apply(&case, &format!("interval: 200ms, discover: [{discover}]"));
    let streamer = case.start(&FLAGS);
    asked("the one of the SRV record is asked", &exporters[0]).await;
    asked("the one of the address is asked", &exporters[1]).await;
    dns.know([address()]);
    streamer.wait_for_log("targets=0").await;
    asked("the other one still is", &exporters[1]).await;
    streamer.terminate().await;
    let seen = queued(&case).await;
    let hosts = |name: &str| seen.keys().any(|key| key.0 == name && key.2.starts_with("up["));
    assert!(hosts("localhost") && hosts("127.0.0.1"));
    let last = |gpu: &str| seen.keys().filter(|key| key.1 == gpu).map(|key| key.3).max();
    assert!(last("GPU-dgx-1") < last("GPU-dgx-2"), "who is not there is not asked");
}

#[tokio::test]
async fn kubernetes_names_ready_endpoints_to_whoever_has_its_token() {
    let etcd = TestEtcd::start();
    let case = Case::new(&etcd, "/kubernetes_sd").await;
    let exporters = [Exporter::start("dgx-1", None), Exporter::start("dgx-2", None)];
    let slice = |n: usize, ready: bool| {
        let port = exporters[n].address.parse::<SocketAddr>().unwrap().port();
        json!({
            "metadata": {
                "name": format!("dcgm-exporter-{n}"), "namespace": "gpu-operator",
                "labels": { "kubernetes.io/service-name": "dcgm-exporter" },
            },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["127.0.0.1"],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": format!("node-{n}"),
                "targetRef": { "kind": "Pod", "name": format!("dcgm-exporter-{n}") },
            }],
            "ports": [
                { "name": "metrics", "port": port, "protocol": "TCP" },
                { "name": "profile", "port": 1, "protocol": "TCP" },
            ],
        })
    };
    let page = |slice: serde_json::Value, next: &str| {
        let metadata = json!({ "resourceVersion": "7", "continue": next });
        let kind = "EndpointSliceList";
        let version = "discovery.k8s.io/v1";
        json!({ "kind": kind, "apiVersion": version, "metadata": metadata, "items": [slice] })
            .to_string()
    };
    let list =
        Arc::new(Mutex::new(("one", [page(slice(0, true), "n/1"), page(slice(1, false), "")])));
    let told = Arc::clone(&list);
    let authority = Authority::new("cluster");
    let api = Faulty::answering(Some(authority.server(None)), move |head| {
        let (token, pages) = told.lock().unwrap().clone();
        if !head.contains(&format!("uthorization: Bearer {token}\r\n")) {
            return ("401 Unauthorized", String::new());
        }
        let all = "GET /apis/discovery.k8s.io/v1/namespaces/gpu-operator/endpointslices?limit=500\
                   &labelSelector=app%3Dnvidia-dcgm-exporter";
        match head.strip_prefix(all) {
            Some(rest) if rest.starts_with(" HTTP") => ("200 OK", pages[0].clone()),
            Some(rest) if rest.starts_with("&continue=n%2F1 ") => ("200 OK", pages[1].clone()),
            _ => ("404 Not Found", String::new()),
        }
    });
    case.write("account/token", "one");
    case.write("account/ca.crt", std::fs::read(authority.path("ca.pem")).unwrap());
    let found = "namespace: gpu-operator, selector: app=nvidia-dcgm-exporter, port: metrics";
    apply(&case, &format!("interval: 200ms, discover: [{{kubernetes: {{{found}, refresh: 5s}}}}]"));
    let (url, account) = (format!("https://{}", api.address), case.path("account"));
    let account = account.display().to_string();
    let own = ["--kubernetes-api", &url, "--kubernetes-account-dir", &account];
    let streamer = case.start(&[&FLAGS[..], &own].concat());
    asked("the ready one is asked", &exporters[0]).await;
    assert_eq!(exporters[1].answers(), 0, "it is not ready");
    // Tokens are renewed: the old one is refused, and the new one is in the file.
    let ready = [page(slice(0, true), "n/1"), page(slice(1, true), "")];
    *list.lock().unwrap() = ("two", ready);
    streamer.wait_for_log("it answered 401").await;
    asked("the ready one still is asked", &exporters[0]).await;
    case.write("account/token", "two");
    asked("the other one is asked", &exporters[1]).await;
    streamer.terminate().await;
    let seen = queued(&case).await;
    let hosts = |name: &str| seen.keys().any(|key| key.0 == name && key.2.starts_with("up["));
    assert!(hosts("node-0") && hosts("node-1"));
    // Without an API nothing is asked, and it is said why.
    let alone = case.start(&FLAGS);
    alone.wait_for_log("no API of Kubernetes is known here").await;
    alone.terminate().await;
}
