//! What every process has: configuration, logs, metrics, shutdown, a session's life, and a pool
//! of claimed work.

mod chore;
mod config;
mod endpoint;
mod fill;
mod logging;
mod metrics;
mod pool;
mod process;
mod serve;

pub use chore::{Chore, HealthcheckArgs, version};
pub use config::{CommonArgs, LogFormat, conclude, parse_args};
pub use endpoint::{Health, health_routes};
pub use fill::watch_fill;
pub use metrics::{Figures, METRICS_CONTENT_TYPE, Metrics, OpLabel, ResultLabel};
pub use pool::{Work, work_alone_on, work_on};
pub use process::{Life, Process, run};
pub use serve::{
    Connections, ConnectionsMax, HEAD_WITHIN, ServeOptions, TlsOfNow, serve, serve_with,
};
