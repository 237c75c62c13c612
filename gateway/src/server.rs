//! From flags to a running gateway.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use clap::{ArgAction, Args, Parser, Subcommand};
use nexus_common::{
    model::{InstanceId, Role},
    runtime::{
        self, Chore, CommonArgs, Connections, ConnectionsMax, Life, Process, ServeOptions, version,
    },
    sources::SourceDesk,
};
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};

use crate::{
    auth::{self, Auth, AuthError, Scope, TokenHash, TokenLine},
    descriptors,
    rest::{Instances, UploadArgs, Uploads},
    tls::{Tls, TlsError, TlsFiles},
    view::View,
    web::{self, Answers, App, AppParts, HttpMeters, Origin, Origins, StreamArgs, Streams},
    write::{self, WriteArgs, WriteDesk},
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
    Openapi {
        /// As YAML instead
        #[arg(long)]
        yaml: bool,
    },
    /// Print the GraphQL schema
    Schema,
    /// Make tokens for --auth-tokens-file
    #[command(subcommand)]
    Token(TokenCommand),
    /// What every program can do.
    #[command(flatten)]
    Chore(Chore),
}

/// What can be done about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token: it is shown once; the line goes into the file
    New {
        /// Who it is for
        name: InstanceId,
        /// What it is good for: read, write, admin, separated by commas; each includes the ones
        /// before it
        #[arg(long, default_value = "read", value_parser = auth::highest)]
        scopes: Scope,
    },
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
    /// File of tokens, a line each: name, scopes, hash (make them with `token new`). Without it
    /// everything is allowed to everybody who reaches the port
    #[arg(long, env = "AUTH_TOKENS_FILE", value_name = "FILE")]
    pub auth_tokens_file: Option<PathBuf>,
    /// Requests a second that one token is good for, twice as many at once; 0 for any number
    #[arg(long, env = "RATE_LIMIT_PER_SECOND", default_value_t = 1000)]
    pub rate_limit_per_second: u32,
    /// Whether to serve /graphql, its playground and /graphql/ws
    #[arg(long, env = "ENABLE_GRAPHQL", num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    pub enable_graphql: bool,
    /// PEM of the certificate to serve TLS with, and of those that lead to its authority. Read
    /// again when it changes
    #[arg(long, env = "TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM of that certificate's key
    #[arg(long, env = "TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// PEM of the authorities that clients' certificates are checked with; without it clients
    /// need none
    #[arg(long, env = "TLS_CLIENT_CA_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Let pages of other origins ask
    #[arg(long, env = "ENABLE_CORS", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub enable_cors: bool,
    /// Those origins, separated by commas; all if none is given
    #[arg(long, env = "CORS_ALLOWED_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_allowed_origins: Vec<Origin>,
    /// Connections at once, WebSockets too
    #[arg(long, env = "CONNECTIONS_MAX", default_value_t = 10_000, value_parser = count)]
    pub connections_max: usize,
    /// Connections at once from one address; this machine's own is not bounded
    #[arg(long, env = "CONNECTIONS_PER_ADDRESS_MAX", default_value_t = 1_000, value_parser = count)]
    pub connections_per_address_max: usize,
    /// Bytes of fetched blocks to keep in memory
    #[arg(long, env = "CACHE_BYTES", default_value_t = 64 << 20)]
    pub cache_bytes: usize,
    /// Bytes of answers to keep in memory while what they were made of does not change; 0 for none
    #[arg(long, env = "ANSWER_CACHE_BYTES", default_value_t = 32 << 20)]
    pub answer_cache_bytes: usize,
    /// Seconds behind the newest sample of its cluster within which a GPU counts as active
    #[arg(long, env = "ACTIVE_WINDOW_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub active_window_seconds: u32,
    /// Flags of uploads.
    #[command(flatten)]
    pub uploads: UploadArgs,
    /// Flags of remote write.
    #[command(flatten)]
    pub writes: WriteArgs,
    /// Flags of live streams.
    #[command(flatten)]
    pub streams: StreamArgs,
}

fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=1_000_000).contains(n));
    number.ok_or_else(|| "must be a number from 1 to 1000000".to_owned())
}

impl GatewayArgs {
    /// TLS, if it is to be spoken.
    fn tls(&self) -> Result<Option<Tls>, TlsError> {
        let pair = self.tls_cert_file.clone().zip(self.tls_key_file.clone());
        let files =
            |(cert, key)| TlsFiles { cert, key, client_ca: self.tls_client_ca_file.clone() };
        pair.map(|pair| Tls::new(files(pair))).transpose()
    }

    /// Pages of which other origins may ask.
    fn origins(&self) -> Origins {
        match (self.enable_cors, self.cors_allowed_origins.clone()) {
            (false, _) => Origins::Own,
            (true, none) if none.is_empty() => Origins::All,
            (true, listed) => Origins::Listed(listed),
        }
    }

    /// Who may ask.
    fn auth(&self) -> Result<Auth, AuthError> {
        match &self.auth_tokens_file {
            Some(path) => Auth::from_file(path, self.rate_limit_per_second),
            None => Ok(Auth::open()),
        }
    }

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
    /// What enqueues what is sent to it, while there is a session.
    pub writes: Arc<WriteDesk>,
    served: JoinHandle<()>,
    followed: JoinHandle<()>,
    files_followed: JoinHandle<()>,
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
        let _ = timeout(Duration::from_secs(1), self.files_followed).await;
    }
}

/// Begins to serve and to follow etcd, whether it is there or not.
///
/// # Errors
/// When a file that is named is not as it must be, or the address cannot be bound.
pub async fn start(process: &Process, args: &GatewayArgs) -> anyhow::Result<Serving> {
    let (auth, tls) = (args.auth()?, args.tls()?);
    let view = View::new(process.etcd.clone(), args.cache_bytes);
    view.meters().register(&process.metrics);
    let connections = Connections::new(ConnectionsMax {
        all: args.connections_max,
        of_one: args.connections_per_address_max,
    });
    connections.register(&process.metrics);
    let (writes, desk) = write::desk(&args.writes, &process.args.cluster_id, &process.metrics);
    let app = App::from(AppParts {
        view: view.clone(),
        metrics: Arc::clone(&process.metrics),
        health: Arc::clone(&process.health),
        auth: auth.clone(),
        origins: Arc::new(args.origins()),
        http: HttpMeters::register(&process.metrics),
        answers: Arc::new(Answers::new(args.answer_cache_bytes)),
        exports: Arc::new(Semaphore::new(web::EXPORTS_MAX)),
        turns: Arc::new(Semaphore::new(web::REQUESTS_MAX)),
        cluster_id: process.args.cluster_id.clone(),
        active_window_ms: i64::from(args.active_window_seconds) * 1000,
        instances: Arc::new(Instances::default()),
        graphql: args.enable_graphql,
        streams: Arc::new(Streams::new(&args.streams, &process.metrics)),
        uploads: Uploads::new(&args.uploads)?,
        writes,
        stop: process.stop.clone(),
    });
    descriptors::raise_for(args.connections_max);
    let (sent, sources) = (app.clone(), SourceDesk::new(view.etcd().clone()));
    let stop = process.stop.clone();
    let options = ServeOptions { tls: tls.as_ref().map(Tls::of_now), connections };
    let router = web::router(app);
    let (address, served) =
        runtime::serve_with(args.address(), router, stop.clone(), options).await?;
    tell(address, &auth, tls.is_some());
    let (follow, until) = (view.clone(), stop.clone());
    let followed = tokio::spawn(async move { follow.run(until).await });
    let files_followed = tokio::spawn(async move {
        let certificates = async {
            if let Some(tls) = tls {
                tls.follow(stop.clone()).await;
            }
        };
        let cleared = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sent.uploads.clear_away(&sources) => {}
            }
        };
        tokio::join!(auth.follow(stop.clone()), certificates, cleared);
    });
    let writes = Arc::new(desk);
    Ok(Serving { address, view, writes, served, followed, files_followed })
}

/// Says where is served, and what that leaves open.
fn tell(address: SocketAddr, auth: &Auth, tls: bool) {
    let scheme = if tls { "https" } else { "http" };
    match (address.ip().is_loopback(), auth.is_open()) {
        (true, _) => {
            tracing::info!(%address, scheme, "serving this machine only; --listen tells otherwise");
        }
        (false, true) => {
            tracing::warn!(%address, scheme, "serving beyond this machine, without authentication");
        }
        (false, false) if !tls => {
            tracing::warn!(%address, "serving beyond this machine: tokens travel readable, without TLS");
        }
        (false, false) => tracing::info!(%address, scheme, "serving"),
    }
}

/// Runs a gateway until it is told to stop.
///
/// # Errors
/// When it cannot begin, or going on is pointless.
pub async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    let process =
        Process::start(Role::Gateway, args.common.clone(), args.gateway_id.as_ref()).await?;
    let serving = start(&process, &args).await.context("start serving")?;
    let (view, writes) = (serving.view.clone(), Arc::clone(&serving.writes));
    let lived = runtime::run(process.clone(), serving.address, |life| {
        live(life, view.clone(), Arc::clone(&writes))
    })
    .await;
    process.stop.cancel();
    serving.finish().await;
    lived
}

/// One session: enqueues what is sent, and tells how old the view is. Serving goes on whatever
/// becomes of the session.
async fn live(life: Life, view: View, writes: Arc<WriteDesk>) -> anyhow::Result<()> {
    tokio::join!(tell_figures(&life, view), writes.serve(&life));
    Ok(())
}

async fn tell_figures(life: &Life, view: View) {
    let figures = &life.process.metrics.figures;
    let mut tick = tokio::time::interval(FIGURES_EVERY);
    loop {
        tokio::select! {
            () = life.process.stop.cancelled() => return,
            () = life.session.lost().cancelled() => return,
            _ = tick.tick() => {
                let staleness = view.staleness().map_or(0, |s| s.as_millis());
                figures.lag_ms.store(u64::try_from(staleness).unwrap_or(u64::MAX), Relaxed);
                let queued = view.snapshot().map_or(0, |s| s.queue.messages);
                figures.backlog.store(queued, Relaxed);
            }
        }
    }
}

/// Makes a token, prints it and the line that stands for it.
///
/// # Errors
/// When the system has no randomness to give.
pub fn new_token(name: InstanceId, scope: Scope) -> anyhow::Result<()> {
    let token = auth::generate().ok().context("the system has no randomness to give")?;
    let line = TokenLine { name, scope, hash: TokenHash::of(&token) };
    println!("token, shown only now: {token}");
    println!("line for the file of tokens: {line}");
    Ok(())
}
