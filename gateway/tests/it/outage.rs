//! etcd goes and comes back, with or without its history.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use nexus_common::{
    etcd::{Etcd, EtcdConfig},
    testing::{TestEtcd, eventually},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    pipeline::{Pipeline, T0, export, samples},
    serve::Gateway,
};

/// A way to etcd that can be cut.
struct Link {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    cuts: watch::Sender<()>,
}

impl Link {
    async fn to(etcd: &TestEtcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = etcd.endpoint().strip_prefix("http://").unwrap().to_owned();
        let (cut, cuts) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(()));
        let (is_cut, told) = (Arc::clone(&cut), cuts.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                if is_cut.load(Relaxed) {
                    continue;
                }
                let (target, mut ended) = (target.clone(), told.subscribe());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = ended.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, cuts }
    }

    fn cut(&self) {
        self.cut.store(true, Relaxed);
        self.cuts.send_replace(());
    }

    fn mend(&self) {
        self.cut.store(false, Relaxed);
    }

    async fn connect(&self) -> Etcd {
        let config = EtcdConfig {
            endpoints: vec![format!("http://{}", self.address)],
            keyspace: nexus_common::keyspace::Keyspace::default(),
            request_timeout: Duration::from_secs(3),
        };
        Etcd::connect(config).await.unwrap()
    }
}

async fn count(gateway: &Gateway) -> serde_json::Value {
    gateway.ok("/api/v1/telemetry?limit=10000").await["count"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_lost_its_history_to_compaction_loads_again() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    let message = |n: i64| samples("h0", 1, &["temperature"], &[T0 + n * 1000], |_, _| n as f64);
    for n in 0..4 {
        pipeline.enqueue(&lanes[0], &[message(n)]).await;
    }
    let link = Link::to(&etcd).await;
    let gateway = Gateway::through(&etcd, link.connect().await, "gateway-1").await;
    assert_eq!(count(&gateway).await, 4);
    link.cut();
    pipeline.commit(&lanes[0], 3).await;
    pipeline.merge("h0").await;
    pipeline.enqueue(&lanes[0], &[message(4)]).await;
    pipeline.commit(&lanes[0], 1).await;
    pipeline.enqueue(&lanes[0], &[message(5)]).await;
    let newest = pipeline.etcd.revision().await.unwrap();
    etcd.etcdctl(&["compact", &newest.to_string()]);
    assert_eq!(count(&gateway).await, 4, "what it knows, it serves");
    link.mend();
    let reloaded = || async { count(&gateway).await == 6 };
    eventually("everything is there again", Duration::from_secs(15), reloaded).await;
    assert!(gateway.view().meters().reloads.get() >= 1);
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    assert_eq!(latest["data"][0]["temperature"], 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_served_through_and_told() {
    let mut etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("demo", 1).await;
    pipeline.enqueue(&lanes[0], &[export("h0", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    etcd.kill();
    let stale = || async {
        let reply = gateway.get("/api/v1/telemetry").await;
        assert_eq!((reply.status, &reply.json()["count"]), (200, &8.into()));
        reply.headers["x-nexus-staleness-ms"].parse::<u64>().unwrap() > 10_000
    };
    eventually("the answers say that they are old", Duration::from_secs(20), stale).await;
    let ready = gateway.get("/readyz?verbose").await;
    assert!(ready.status == 503 && ready.text.contains("[-] etcd: nothing was heard"), "{ready:?}");
    assert_eq!(gateway.get("/health").await.status, 503);
    assert_eq!(gateway.get("/livez").await.status, 200);
    let stats = gateway.ok("/api/v1/clusters/local-cluster/stats").await;
    assert!(stats["instances"].is_null() && stats["samples"]["accepted"] == 20);
    etcd.restart();
    pipeline.enqueue(&lanes[0], &[export("h1", 2)]).await;
    gateway.caught_up(40).await;
    assert_eq!(count(&gateway).await, 16);
    let ready = || async { gateway.get("/readyz").await.status == 200 };
    eventually("ready again", Duration::from_secs(10), ready).await;
}
