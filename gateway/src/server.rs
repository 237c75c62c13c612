//! From flags to a running gateway.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use nexus_common::{
    model::{InstanceId, Role},
    runtime::{self, Chore, CommonArgs, Life, Process, version},
};
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    rest::Instances,
    view::View,
    web::{self, App, HttpMeters},
};

/// How long running requests may take to end once the process is told to: a little longer than
/// any may take at all.
const FINISH_WITHIN: Duration = Duration::from_secs(web::REQUEST_SECONDS_MAX + 2);
/// How often the instance's figures are brought up to date: as often as they are told.
const FIGURES_EVERY: Duration = Duration::from_secs(1);

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "nexus-gateway", version = version(), about = "Serves GPU telemetry out of etcd")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; without it: run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `run`.
    #[command(flatten)]
    pub run: GatewayArgs,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the APIs (the default)
    Run(Box<GatewayArgs>),
    /// Print the OpenAPI document as JSON
    Openapi,
    #[command(flatten)]
    Chore(Chore),
}

/// Flags of the gateway.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Name of this instance; made from host and process id if not given
    #[arg(long, alias = "instance-id", env = "GATEWAY_ID")]
    pub gateway_id: Option<InstanceId>,
    /// Address and port to serve on
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Port to serve on, at 127.0.0.1; goes before --listen
    #[arg(long, env = "PORT")]
    pub port: Option<u16>,
    /// Bytes of fetched blocks to keep in memory
    #[arg(long, env = "CACHE_BYTES", default_value_t = 64 << 20)]
    pub cache_bytes: usize,
    /// Seconds behind the newest sample of its cluster within which a GPU counts as active
    #[arg(long, env = "ACTIVE_WINDOW_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub active_window_seconds: u32,
}

impl GatewayArgs {
    /// Where to serve.
    pub fn address(&self) -> SocketAddr {
        match self.port {
            Some(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            None => self.listen,
        }
    }
}

/// A gateway that serves, without a session yet.
pub struct Serving {
    /// Where.
    pub address: SocketAddr,
    /// What it serves from.
    pub view: View,
    served: JoinHandle<()>,
    followed: JoinHandle<()>,
}

impl Serving {
    /// Waits until running requests have ended and the view stopped. Call once the process'
    /// `stop` is cancelled.
    pub async fn finish(self) {
        if timeout(FINISH_WITHIN, self.served).await.is_err() {
            tracing::warn!("requests did not end in time, leaving anyway");
        }
        // It was told to stop together with the server.
        let _ = timeout(Duration::from_secs(1), self.followed).await;
    }
}

/// Begins to serve and to follow etcd, whether it is there or not.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(process: &Process, args: &GatewayArgs) -> anyhow::Result<Serving> {
    let view = View::new(process.etcd.clone(), args.cache_bytes);
    view.meters().register(&process.metrics);
    let app = App {
        view: view.clone(),
        metrics: Arc::clone(&process.metrics),
        health: Arc::clone(&process.health),
        http: HttpMeters::register(&process.metrics),
        cluster_id: process.args.cluster_id.clone(),
        active_window_ms: i64::from(args.active_window_seconds) * 1000,
        instances: Arc::new(Instances::default()),
        stop: process.stop.clone(),
    };
    let stop = process.stop.clone();
    let (address, served) = runtime::serve(args.address(), web::router(app), stop.clone()).await?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "serving beyond this machine, without authentication");
    }
    tracing::info!(%address, "serving");
    let follow = view.clone();
    let followed = tokio::spawn(async move { follow.run(stop).await });
    Ok(Serving { address, view, served, followed })
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// When it cannot begin, or going on is pointless.
pub async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let process =
        Process::start(Role::Gateway, args.common.clone(), args.gateway_id.as_ref()).await?;
    let serving = start(&process, &args).await.context("start serving")?;
    let view = serving.view.clone();
    let lived =
        runtime::run(process.clone(), serving.address, |life| live(life, view.clone())).await;
    process.stop.cancel();
    serving.finish().await;
    lived
}

/// One session: tells how old the view is. Serving goes on whatever becomes of the session.
async fn live(life: Life, view: View) -> anyhow::Result<()> {
    let figures = &life.process.metrics.figures;
    let mut tick = tokio::time::interval(FIGURES_EVERY);
    loop {
        tokio::select! {
            () = life.process.stop.cancelled() => return Ok(()),
            () = life.session.lost().cancelled() => return Ok(()),
            _ = tick.tick() => {
                let staleness = view.staleness().map_or(0, |s| s.as_millis());
                figures.lag_ms.store(u64::try_from(staleness).unwrap_or(u64::MAX), Relaxed);
                let queued = view.snapshot().map_or(0, |s| s.queue.messages);
                figures.backlog.store(queued, Relaxed);
            }
        }
    }
}
