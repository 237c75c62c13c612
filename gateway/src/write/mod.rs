//! Samples that are sent to a gateway: Prometheus remote write, version 1.0.
//!
//! `wire` reads a body, `known` what labels mean, `samples` what is told; a `Writer` enqueues, under a claim on one shard
//! of the source, as a streamer does. A sender is told that its samples are stored only once they
//! are durable, and what it sends again is stored once.

mod known;
pub(crate) mod limits;
mod meters;
mod samples;
mod seat;
mod wire;
mod writer;

use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Args;
use nexus_common::{
    model::{ClusterId, IdError, SourceId},
    runtime::{Life, Metrics, watch_fill},
};
use tokio::{
    sync::{Mutex, Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::{Instant, timeout},
};

use known::KnownSeries;
use limits::{READ_AT_ONCE, WAITING_MAX};
use meters::WriteMeters;
pub(crate) use samples::{Tally, ToldError};
use samples::{Told, told};
pub(crate) use wire::WireError;
use writer::{Pending, Setup, Stored, Writer};

/// How long a request may wait to be durable: less than any request may take, so that its sender
/// is told.
const DURABLE_WITHIN: Duration = Duration::from_secs(8);
/// How long a request may wait for room in the queue. Senders that wait send less; those that are
/// refused send the same again, or drop it.
const ROOM_WITHIN: Duration = Duration::from_secs(5);
/// How long a request may wait to be read.
const TURN_WITHIN: Duration = Duration::from_secs(2);

/// Flags of remote write.
#[derive(Debug, Clone, Args)]
pub struct WriteArgs {
    /// Name of the source that samples sent to /api/v1/write are of, the same for all gateways;
    /// empty takes none
    #[arg(long, env = "WRITE_SOURCE", default_value = "remote-write", value_name = "SOURCE")]
    pub write_source: WriteSource,
    /// Let senders wait, then refuse them, while so many messages of this gateway wait for a
    /// collector: some times what makes a collector commit at once
    #[arg(long, env = "WRITE_BACKLOG_MAX", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub write_backlog_max: u64,
    /// etcd's --quota-backend-bytes: what is sent is refused while 80 % of it is in use
    #[arg(long, env = "ETCD_QUOTA_BYTES", default_value_t = 2 << 30, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub etcd_quota_bytes: u64,
}

/// A source's name, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSource(Option<SourceId>);

impl FromStr for WriteSource {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Ok(Self((!text.is_empty()).then(|| text.parse()).transpose()?))
    }
}

/// Why a request that could be stored is not, now. Sending it again may help, but for `Withdrawn`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Collectors are behind.
    #[error("{waiting} messages of this gateway wait for a collector, more are taken below {max}")]
    Backlog {
        /// Messages that wait.
        waiting: u64,
        /// From how many on nothing more is taken.
        max: u64,
    },
    /// There is no room.
    #[error("etcd is 80 % full, more is taken once retention has made room")]
    Full,
    /// More is sent at once than can be handled.
    #[error("too many requests wait already")]
    Busy,
    /// Somebody wants nothing to be taken.
    #[error("source {id} is paused")]
    Paused {
        /// Which.
        id: SourceId,
    },
    /// The name is used up.
    #[error(
        "source {id} was withdrawn, or its name is another source's: start gateways with a \
         new name for --write-source"
    )]
    Withdrawn {
        /// Which.
        id: SourceId,
    },
    /// Every shard has a gateway.
    #[error("all {shards} shards of source {id} are claimed by other gateways; send it there")]
    NoShard {
        /// Of which source.
        id: SourceId,
        /// How many there are.
        shards: u32,
    },
    /// Whether it is stored is not known.
    #[error("etcd does not answer in time: it may be stored; sent again, it is stored once")]
    Etcd,
    /// The process drains.
    #[error("this gateway is stopping")]
    Stopping,
    /// Something of ours failed.
    #[error("the gateway failed at this request; its log says more")]
    Internal,
}

impl Refusal {
    /// The word for it in metrics and problems.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Backlog { .. } => "backlog",
            Self::Full => "etcd-full",
            Self::Busy => "busy",
            Self::Paused { .. } => "paused",
            Self::Withdrawn { .. } => "withdrawn",
            Self::NoShard { .. } => "no-shard",
            Self::Etcd => "etcd",
            Self::Stopping => "stopping",
            Self::Internal => "internal",
        }
    }
}

/// Why a request is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// It never can be.
    #[error(transparent)]
    Told(#[from] ToldError),
    /// Not now.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What handlers send to: the writer, if there is one.
pub struct Writes {
    to: Option<mpsc::Sender<Pending>>,
    turns: Semaphore,
    known: Arc<KnownSeries>,
    /// The last request that waited was not answered in time: etcd is away, not only busy.
    etcd_is_away: AtomicBool,
    meters: WriteMeters,
}

/// The writing half: it works while the process has a session.
pub struct WriteDesk {
    writer: Option<Mutex<Writer>>,
    full: Arc<AtomicBool>,
    quota_bytes: u64,
}

/// Both halves, as the flags say.
pub fn desk(args: &WriteArgs, cluster: &ClusterId, metrics: &Metrics) -> (Writes, WriteDesk) {
    let full = Arc::new(AtomicBool::new(false));
    let meters = WriteMeters::default();
    let halves = args.write_source.0.clone().map(|source| {
        metrics.register_moves();
        metrics.register_room();
        meters.register(metrics);
        let (to, from) = mpsc::channel(WAITING_MAX);
        let setup = Setup { source, backlog_max: args.write_backlog_max, full: Arc::clone(&full) };
        (to, Mutex::new(Writer::new(setup, from)))
    });
    let (to, writer) = halves.unzip();
    let turns = Semaphore::new(READ_AT_ONCE);
    let etcd_is_away = AtomicBool::new(false);
    let known = Arc::new(KnownSeries::new(cluster.clone()));
    let writes = Writes { to, turns, known, etcd_is_away, meters };
    (writes, WriteDesk { writer, full, quota_bytes: args.etcd_quota_bytes })
}

impl WriteDesk {
    /// Enqueues what is sent, until the session ends or, once the process stops, everything that
    /// came before is answered.
    pub async fn serve(&self, life: &Life) {
        let Some(writer) = &self.writer else {
            // There is nothing to wait for but the end.
            tokio::select! {
                () = life.process.stop.cancelled() => {}
                () = life.session.lost().cancelled() => {}
            }
            return;
        };
        let mut writer = writer.lock().await;
        tokio::select! {
            () = writer.run(life) => {}
            () = watch_fill(life, self.quota_bytes, &self.full) => {}
        }
    }
}

impl Writes {
    /// Whether anything is taken at all.
    pub(crate) fn are_taken(&self) -> bool {
        self.to.is_some()
    }

    /// A turn to take a body in and read it.
    pub(crate) async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        match timeout(TURN_WITHIN, self.turns.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Refusal::Busy),
        }
    }

    /// Reads a body and stores what it tells. Durable when this returns, but for what the tally
    /// says is refused.
    ///
    /// # Errors
    /// When nothing of it is stored, or that is not known.
    pub(crate) async fn store(
        &self,
        packed: bytes::Bytes,
        turn: tokio::sync::SemaphorePermit<'_>,
    ) -> Result<Tally, WriteError> {
        let stored = self.try_store(packed, turn).await;
        self.meters.count(&stored);
        stored.map(|(tally, _)| tally)
    }

    async fn try_store(
        &self,
        packed: bytes::Bytes,
        turn: tokio::sync::SemaphorePermit<'_>,
    ) -> Result<(Tally, Stored), WriteError> {
        let to = self.to.as_ref().ok_or(Refusal::Stopping)?;
        // Before it is read: what is refused then was read in vain.
        let place = match timeout(TURN_WITHIN, to.reserve()).await {
            Ok(place) => place.map_err(|_| Refusal::Stopping)?,
            // Not every sender tries again after 429, which says that it sends too much.
            Err(_) if self.etcd_is_away.load(Relaxed) => return Err(Refusal::Etcd.into()),
            Err(_) => return Err(Refusal::Busy.into()),
        };
        let known = Arc::clone(&self.known);
        let read = spawn_blocking(move || told(&packed, &known)).await;
        let told: Told = read.map_err(|_| Refusal::Internal)??;
        drop(turn);
        let tally = told.tally.clone();
        if told.sections.is_empty() {
            // Nothing of it can be stored, so nothing has to be remembered.
            return Ok((tally, Stored::Now));
        }
        let (answer, answered) = oneshot::channel();
        place.send(Pending { told, since: Instant::now(), answer });
        let answered = timeout(DURABLE_WITHIN, answered).await;
        self.etcd_is_away.store(answered.is_err(), Relaxed);
        match answered {
            Ok(Ok(answer)) => Ok((tally, answer?)),
            Ok(Err(_)) => Err(Refusal::Stopping.into()),
            Err(_) => Err(Refusal::Etcd.into()),
        }
    }
}
