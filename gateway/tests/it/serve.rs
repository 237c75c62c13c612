//! A gateway of our own, and a client.

use std::{collections::BTreeMap, time::Duration};

use clap::Parser;
use nexus_common::{
    etcd::Etcd,
    model::Role,
    runtime::Process,
    testing::{TestEtcd, eventually},
};
use nexus_gateway::{
    server::{GatewayArgs, Serving, start},
    view::View,
};
use serde_json::Value;

/// Serves until dropped.
pub(crate) struct Gateway {
    pub(crate) serving: Serving,
    pub(crate) process: Process,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.process.stop.cancel();
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }
}

impl Gateway {
    /// Serves and waits until its view is loaded.
    pub(crate) async fn start(etcd: &TestEtcd, name: &str) -> Self {
        Self::start_unloaded(etcd, name).await.loaded().await
    }

    /// Waits until its view is loaded.
    pub(crate) async fn loaded(self) -> Self {
        let loaded = || async { self.view().snapshot().is_some() };
        eventually("the view is loaded", Duration::from_secs(10), loaded).await;
        self
    }

    pub(crate) async fn start_unloaded(etcd: &TestEtcd, name: &str) -> Self {
        let process = etcd.process(Role::Gateway, name, 10).await;
        Self::of(process).await
    }

    /// Like [`Gateway::start`], reaching etcd another way.
    pub(crate) async fn through(etcd: &TestEtcd, way: Etcd, name: &str) -> Self {
        let process = Process { etcd: way, ..etcd.process(Role::Gateway, name, 10).await };
        Self::of(process).await.loaded().await
    }

    async fn of(process: Process) -> Self {
        Self::with(process, |_| {}).await
    }

    /// With other flags than usual.
    pub(crate) async fn with(process: Process, change: impl FnOnce(&mut GatewayArgs)) -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: GatewayArgs,
        }
        let mut args = Line::parse_from(["gateway", "--listen", "127.0.0.1:0"]).args;
        args.common = (*process.args).clone();
        (args.cache_bytes, args.port) = (1 << 20, None);
        change(&mut args);
        let serving = start(&process, &args).await.unwrap();
        Self { serving, process }
    }

    pub(crate) fn view(&self) -> &View {
        &self.serving.view
    }

    /// GET, whatever the status.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], None).await
    }

    /// GET that must be 200.
    pub(crate) async fn ok(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text);
        reply.json()
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Reply {
        let body = body.unwrap_or_default().as_bytes().to_vec();
        self.send_bytes(method, path, headers, body).await
    }

    pub(crate) async fn send_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Reply {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.serving.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let call = move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .allow_non_standard_methods(true)
                .max_redirects(0)
                .timeout_global(Some(Duration::from_secs(20)))
                .build()
                .into();
            let mut response = agent.run(request).unwrap();
            let headers = response.headers().iter();
            Reply {
                status: response.status().as_u16(),
                headers: headers
                    .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
                    .collect(),
                text: String::from_utf8_lossy(&response.body_mut().read_to_vec().unwrap())
                    .into_owned(),
            }
        };
        tokio::task::spawn_blocking(call).await.unwrap()
    }

    /// Waits until the view has everything up to `revision` that says which samples exist.
    pub(crate) async fn caught_up(&self, samples: u64) {
        let has_all = || async {
            let snapshot = self.view().snapshot().unwrap();
            snapshot.lanes.values().map(|p| p.samples).sum::<u64>() >= samples
        };
        eventually("the view has all samples", Duration::from_secs(10), has_all).await;
    }
}
