//! A process from start to exit: reach etcd, open a session, work, drain.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    chore::version,
    config::{CommonArgs, instance_id},
    endpoint::Health,
    logging,
    metrics::Metrics,
};
use crate::{
    etcd::{Error, Etcd, Fate, Session},
    keyspace::{Config, Floor, Instance, InstanceState, Key, from_json, to_json},
    model::{BucketId, InstanceId, Role, Timestamp},
};

/// Version of the keyspace layout that this program reads and writes.
const LAYOUT_VERSION: u32 = 1;
/// How often the instance's key is renewed with fresh figures.
const FIGURES_EVERY: Duration = Duration::from_secs(2);
/// How often progress is logged where nobody watches.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How long draining may take before the process leaves anyway: a crash is safe, too.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What lasts as long as the process.
#[derive(Clone)]
pub struct Process {
    /// Flags that every role has.
    pub args: Arc<CommonArgs>,
    /// Which kind of process this is.
    pub role: Role,
    /// Its name.
    pub instance: InstanceId,
    /// Whether it takes no share of what others of its role work on.
    pub apart: bool,
    /// etcd.
    pub etcd: Etcd,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Its readiness.
    pub health: Arc<Health>,
    /// Cancelled when the process shall end.
    pub stop: CancellationToken,
}

/// What lasts as long as one session. When it ends, every claim, revision and buffer that was
/// made under it is dropped.
#[derive(Clone)]
pub struct Life {
    /// The process that lives it.
    pub process: Process,
    /// What was fixed when the keyspace was created.
    pub config: Config,
    /// The session.
    pub session: Arc<Session>,
}

impl Process {
    /// Starts logging and opens the channels to etcd.
    ///
    /// # Errors
    /// When a flag cannot be used.
    pub async fn start(
        role: Role,
        args: CommonArgs,
        given: Option<&InstanceId>,
    ) -> anyhow::Result<Self> {
        logging::start(&args)?;
        let instance = instance_id(role, given);
        let etcd = Etcd::connect(args.etcd()).await?;
        Ok(Self {
            metrics: Arc::new(Metrics::new(role, &instance)),
            health: Arc::new(Health::default()),
            args: Arc::new(args),
            role,
            instance,
            apart: false,
            etcd,
            stop: stop_on_signals()?,
        })
    }

    /// Waits for etcd (and says so), then reads the keyspace's configuration, creating it first
    /// if this is a new keyspace. `None` when the process shall end.
    ///
    /// # Errors
    /// When the keyspace was made by a newer layout.
    pub async fn enter_keyspace(&self) -> anyhow::Result<Option<Config>> {
        let endpoints = self.args.etcd_endpoints.join(",");
        let mut told: Option<Instant> = None;
        let waiting = |error: &Error| {
            if told.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                tracing::warn!(endpoints, %error, "waiting for etcd");
                told = Some(Instant::now());
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => return Ok(None),
            () = self.etcd.wait_until_reachable(waiting) => {}
        }
        self.read_config().await.map(Some)
    }

    async fn read_config(&self) -> anyhow::Result<Config> {
        let keyspace = self.etcd.keyspace();
        let key = keyspace.key(&Key::Config);
        let fresh = Config {
            version: LAYOUT_VERSION,
            partitions: self.args.partitions,
            bucket_seconds: self.args.bucket_seconds,
            created_at: Timestamp::now(),
        };
        // The singletons are created together: a compare on a missing floor would refuse all.
        let floor = Floor(BucketId::first());
        let singletons = [
            (key.clone(), to_json(&fresh)),
            (keyspace.key(&Key::Floor), floor.0.as_str().as_bytes().to_vec()),
        ];
        self.etcd.create(&singletons).await?;
        let entry = self.etcd.get(&key).await?.with_context(|| format!("{key} is missing"))?;
        let config: Config = from_json(&entry.key, &entry.value)?;
        anyhow::ensure!(
            config.version == LAYOUT_VERSION,
            "{key} says layout version {}, this program knows {LAYOUT_VERSION}",
            config.version
        );
        Ok(config)
    }
}

/// Runs one role until it is told to stop: session after session, `work` in each.
///
/// `work` returns when the life's session is lost or the process shall stop, after it has given
/// back what it could. `address` is where the instance can be asked.
///
/// # Errors
/// Only what makes going on pointless.
pub async fn run<F>(
    process: Process,
    address: SocketAddr,
    work: impl Fn(Life) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    tokio::select! {
        ended = lives(&process, address, work) => ended,
        // Everything in hand is dropped where it stands, as a crash would.
        () = process.etcd.regressed().cancelled() => {
            let error = process.etcd.check_same();
            if let Err(error) = &error {
                tracing::error!(%error, "stopping at once");
            }
            Ok(error?)
        }
    }
}

/// Session after session.
async fn lives<F>(
    process: &Process,
    address: SocketAddr,
    work: impl Fn(Life) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let started_at = Timestamp::now();
    tracing::info!(
        role = %process.role,
        instance = %process.instance,
        version = version(),
        %address,
        etcd = process.args.etcd_endpoints.join(","),
        root = process.args.root.root(),
        "starting"
    );
    while !process.stop.is_cancelled() {
        let config = match process.enter_keyspace().await {
            Ok(Some(config)) => config,
            Ok(None) => break,
            Err(error) => {
                pause_after(error).await?;
                continue;
            }
        };
        let opened = Session::open(
            &process.etcd,
            process.role,
            process.instance.clone(),
            process.args.lease_ttl_seconds,
        );
        let session = match opened.await {
            Ok(session) => Arc::new(session),
            Err(error) => {
                pause_after(error.into()).await?;
                continue;
            }
        };
        let life = Life { process: process.clone(), config, session };
        live(&life, started_at, address, &work).await?;
    }
    tracing::info!(role = %process.role, instance = %process.instance, "stopped");
    Ok(())
}

async fn live<F>(
    life: &Life,
    started_at: Timestamp,
    address: SocketAddr,
    work: &impl Fn(Life) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Process { metrics, health, .. } = &life.process;
    let mut presence = Presence::new(life, started_at, address);
    if let Err(error) = presence.register().await {
        return pause_after(error.into()).await;
    }
    tracing::info!(lease = format!("{:x}", life.session.lease()), "session opened");
    health.set_ready(true);
    // Both are polled all the time: an etcd that hangs over a figure must not hold up the work.
    let ended = tokio::select! {
        ended = work(life.clone()) => ended,
        () = presence.keep_telling() => {
            tracing::warn!("draining took too long, leaving: others take over");
            Ok(())
        }
    };
    health.set_ready(false);
    metrics.figures.claims.store(0, Relaxed);
    if life.session.lost().is_cancelled() {
        metrics.sessions_lost.inc();
        tracing::warn!("session lost: everything claimed under it is dropped, opening another");
    }
    presence.leave().await;
    match ended {
        Ok(()) => Ok(()),
        Err(error) => pause_after(error).await,
    }
}

/// What etcd could not do now it may do in a moment; anything else ends the process.
async fn pause_after(error: anyhow::Error) -> anyhow::Result<()> {
    let passes = |e: &Error| e.fate() != Fate::Refused || matches!(e, Error::Compacted { .. });
    if !error.chain().filter_map(|cause| cause.downcast_ref()).any(passes) {
        return Err(error);
    }
    tracing::warn!(error = format!("{error:#}"), "interrupted, beginning again with a new session");
    sleep(Duration::from_millis(500)).await;
    Ok(())
}

/// The instance's key.
struct Presence<'a> {
    life: &'a Life,
    key: String,
    value: Instance,
    last: (Instant, u64, u64),
    told: Option<Instant>,
}

impl<'a> Presence<'a> {
    fn new(life: &'a Life, started_at: Timestamp, address: SocketAddr) -> Self {
        let Process { role, instance, apart, etcd, metrics, .. } = &life.process;
        let figures = &metrics.figures;
        Self {
            life,
            key: etcd.keyspace().key(&Key::Instance(*role, instance.clone())),
            value: Instance {
                role: *role,
                instance: instance.clone(),
                pid: std::process::id(),
                address: address.to_string(),
                version: version().to_owned(),
                state: InstanceState::Active,
                apart: *apart,
                started_at,
                claims: 0,
                rows_per_second: 0.0,
                samples_per_second: 0.0,
                backlog: 0,
                lag_ms: 0,
            },
            last: (Instant::now(), figures.rows.load(Relaxed), figures.samples.load(Relaxed)),
            told: None,
        }
    }

    async fn register(&self) -> Result<(), Error> {
        let etcd = &self.life.process.etcd;
        etcd.put_leased(&self.key, to_json(&self.value), self.life.session.lease()).await
    }

    /// Renews the key until the process shall stop, then tells that it drains. Returns when
    /// draining has taken too long.
    async fn keep_telling(&mut self) {
        let Process { stop, health, .. } = self.life.process.clone();
        let mut tick = interval(FIGURES_EVERY);
        let told = async {
            loop {
                tick.tick().await;
                self.tell(InstanceState::Active).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = told => {}
        }
        health.set_ready(false);
        tracing::info!("draining: finishing what is in flight, giving back claims");
        let deadline = Instant::now() + DRAIN_MAX;
        // Told at most until the deadline; then the lease tells.
        let _ = timeout_at(deadline, self.tell(InstanceState::Draining)).await;
        sleep_until(deadline).await;
    }

    /// Renews the key with the figures of the period since the last time. A failure is only
    /// logged: the next tick tells again, and the lease tells whether we live.
    async fn tell(&mut self, state: InstanceState) {
        let figures = &self.life.process.metrics.figures;
        let (rows, samples) = (figures.rows.load(Relaxed), figures.samples.load(Relaxed));
        let seconds = self.last.0.elapsed().as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| {
            ((now.saturating_sub(before)) as f64 / seconds * 10.0).round() / 10.0
        };
        self.value.state = state;
        self.value.claims = figures.claims.load(Relaxed).unsigned_abs();
        self.value.rows_per_second = rate(rows, self.last.1);
        self.value.samples_per_second = rate(samples, self.last.2);
        self.value.backlog = figures.backlog.load(Relaxed);
        self.value.lag_ms = figures.lag_ms.load(Relaxed);
        if samples != self.last.2 || rows != self.last.1 {
            self.log_progress(rows, samples);
        }
        self.last = (Instant::now(), rows, samples);
        let renewed = self.life.process.etcd.renew(&self.key, to_json(&self.value));
        if let Err(error) = renewed.await {
            tracing::debug!(%error, "could not renew the instance's figures");
        }
    }

    /// Tells how work goes while it goes: every two seconds to a person, every ten to a file.
    fn log_progress(&mut self, rows: u64, samples: u64) {
        let watched = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let every = if watched { FIGURES_EVERY } else { PROGRESS_EVERY };
        if self.told.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        self.told = Some(Instant::now());
        let Instance { samples_per_second, claims, backlog, lag_ms, .. } = self.value;
        tracing::info!(rows, samples, samples_per_second, claims, backlog, lag_ms, "progress");
    }

    /// Revokes the lease when nothing else holds the session any more; else it expires.
    async fn leave(self) {
        let session = Arc::clone(&self.life.session);
        session.revoke().await;
    }
}

/// The first SIGTERM or SIGINT cancels; the second ends the process at once, which is safe.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let told = stop.clone();
    tokio::spawn(async move {
        for count in 1.. {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            if count > 1 {
                std::process::exit(130);
            }
            told.cancel();
        }
    });
    Ok(stop)
}
