//! What a process tells about itself, in Prometheus' terms.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::chore::version;
use crate::{
    etcd::{Error, Fate, Outcome},
    model::{InstanceId, Role},
};

/// Content type of [`Metrics::encode`]: OpenMetrics text.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which kind of transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OpLabel {
    /// enqueue, commit, merge, retire.
    pub op: &'static str,
}

/// Which kind of transaction, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// enqueue, commit, merge, retire.
    pub op: &'static str,
    /// ok, fenced, stale, undecided, refused.
    pub result: &'static str,
}

/// Rows by what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RowLabel {
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    role: &'static str,
    instance: String,
    version: &'static str,
}

/// Figures that the instance's key shows, and metrics that `/metrics` shows.
#[derive(Debug, Default)]
pub struct Figures {
    /// Claims held now.
    pub claims: AtomicI64,
    /// Rows handled since the start.
    pub rows: AtomicU64,
    /// Samples handled since the start.
    pub samples: AtomicU64,
    /// Messages known to be waiting.
    pub backlog: AtomicU64,
    /// Age of the oldest of them, in milliseconds.
    pub lag_ms: AtomicU64,
}

/// All metrics of a process.
pub struct Metrics {
    registry: Mutex<Registry>,
    /// What the instance's key shows.
    pub figures: Figures,
    rows: Family<RowLabel, Counter>,
    samples: Counter,
    bytes: Counter,
    txns: Family<ResultLabel, Counter>,
    txn_seconds: Family<OpLabel, Histogram>,
    claims: Gauge,
    backlog: Gauge,
    lag: Gauge<f64, AtomicU64>,
    /// Sessions that ended before they were closed.
    pub sessions_lost: Counter,
    /// Seconds spent waiting because the queue was too deep or etcd too full.
    pub backpressure_seconds: Counter<f64, AtomicU64>,
    /// Part of etcd's space quota in use, 0 to 1.
    pub database_fill: Gauge<f64, AtomicU64>,
    /// Messages set aside as undecodable.
    pub dead_letters: Counter,
}

impl Metrics {
    /// The metrics of one process.
    pub fn new(role: Role, instance: &InstanceId) -> Self {
        let mut registry = Registry::with_prefix("nexus");
        let build = Family::<BuildLabel, Gauge>::default();
        let label =
            BuildLabel { role: role.as_str(), instance: instance.to_string(), version: version() };
        build.get_or_create(&label).set(1);
        registry.register("build_info", "The running program", build);
        let metrics = Self {
            figures: Figures::default(),
            rows: Family::default(),
            samples: Counter::default(),
            bytes: Counter::default(),
            txns: Family::default(),
            // 0.5 ms to 16 s: from etcd's best put to a request's time-out and its repetition.
            txn_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.0005, 2.0, 16))
            }),
            claims: Gauge::default(),
            backlog: Gauge::default(),
            lag: Gauge::default(),
            sessions_lost: Counter::default(),
            backpressure_seconds: Counter::default(),
            database_fill: Gauge::default(),
            dead_letters: Counter::default(),
            registry: Mutex::new(registry),
        };
        metrics.register(role);
        metrics
    }

    /// Only what the role can tell: a metric that always says 0 would be invented.
    fn register(&self, role: Role) {
        // Not asked yet is not empty.
        self.database_fill.set(f64::NAN);
        let moves = role != Role::Gateway;
        if moves {
            self.register_moves();
        }
        self.with_registry(|r| {
            r.register("session_lost", "Sessions lost", self.sessions_lost.clone());
            if moves {
                r.register("claims", "Claims held", self.claims.clone());
                let help = "Messages known to be waiting";
                r.register("backlog_messages", help, self.backlog.clone());
                let help = "Age of the oldest waiting message, or time a streamer has waited";
                r.register("lag_seconds", help, self.lag.clone());
            }
            if role == Role::Streamer {
                r.register("rows", "Rows read from sources, by result", self.rows.clone());
            }
            if role == Role::Collector {
                let help = "Messages set aside as undecodable";
                r.register("dead_letters", help, self.dead_letters.clone());
            }
        });
        if role == Role::Streamer {
            self.register_room();
        }
    }

    /// Tells of samples that are moved: also of a gateway that takes what is sent to it.
    pub fn register_moves(&self) {
        self.with_registry(|r| {
            r.register("samples", "Samples moved", self.samples.clone());
            r.register("bytes", "Bytes of messages or blocks written", self.bytes.clone());
            let help = "Transactions by kind and result";
            r.register("txn", help, self.txns.clone());
            let help = "Time until a transaction was decided";
            r.register("txn_seconds", help, self.txn_seconds.clone());
        });
    }

    /// Tells of the room that whoever enqueues needs: also of such a gateway.
    pub fn register_room(&self) {
        self.with_registry(|r| {
            let help = "Time spent waiting for room";
            r.register("backpressure_seconds", help, self.backpressure_seconds.clone());
            let help = "Part of etcd's space quota in use; NaN while unknown";
            r.register("db_fill_ratio", help, self.database_fill.clone());
        });
    }

    /// Adds metrics of one role.
    pub fn with_registry(&self, add: impl FnOnce(&mut Registry)) {
        if let Ok(mut registry) = self.registry.lock() {
            add(&mut registry);
        }
    }

    /// Counts rows; `result` is `accepted` or the reason of a rejection.
    pub fn count_rows(&self, result: &str, rows: u64) {
        self.figures.rows.fetch_add(rows, Relaxed);
        self.rows.get_or_create(&RowLabel { result: result.to_owned() }).inc_by(rows);
    }

    /// Counts samples moved and the bytes written for them.
    pub fn count_samples(&self, samples: u64, bytes: u64) {
        self.figures.samples.fetch_add(samples, Relaxed);
        self.samples.inc_by(samples);
        self.bytes.inc_by(bytes);
    }

    /// Counts a transaction that began at `started`.
    pub fn count_txn(&self, op: &'static str, started: Instant, result: Result<&Outcome, &Error>) {
        let word = match result {
            Ok(Outcome::Committed { .. }) => "ok",
            Ok(Outcome::Fenced) => "fenced",
            Ok(Outcome::Stale) => "stale",
            Err(error) if error.fate() == Fate::Unknown => "undecided",
            Err(_) => "refused",
        };
        self.txns.get_or_create(&ResultLabel { op, result: word }).inc();
        self.txn_seconds.get_or_create(&OpLabel { op }).observe(started.elapsed().as_secs_f64());
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        self.claims.set(self.figures.claims.load(Relaxed));
        self.backlog.set(i64::try_from(self.figures.backlog.load(Relaxed)).unwrap_or(i64::MAX));
        self.lag.set(self.figures.lag_ms.load(Relaxed) as f64 / 1000.0);
        let mut text = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a String cannot fail.
            let _ = encode(&mut text, &registry);
        }
        text
    }
}
