//! The streamer's flags.

use std::{net::SocketAddr, path::PathBuf, sync::Mutex};

use anyhow::Context;
use clap::Parser;
use nexus_common::{
    limits::MESSAGE_SAMPLES_MAX,
    model::{GpuId, HostName, InstanceId},
    runtime::CommonArgs,
    sources::interval::parse_offset,
};
use tokio_util::sync::CancellationToken;

use crate::source::{fetched::Fetched, scrape::discover::Kubernetes};

/// Flags of `run`.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Name of this instance, unique among streamers [default: streamer-{host}-{pid}]
    #[arg(long, env = "STREAMER_ID", alias = "streamer-id")]
    pub instance_id: Option<InstanceId>,
    /// Address of /metrics, /livez and /readyz; port 0 picks a free one
    #[arg(long, env = "METRICS_LISTEN", default_value = "127.0.0.1:0")]
    pub metrics_listen: SocketAddr,
    /// DCGM CSV file to register as a source; all streamers share its shards. May be packed with
    /// gzip or zstd. A pattern such as '/data/*.csv' makes each file a source; - is standard
    /// input, kept in --spool-dir first, and so is what an http:// or https:// URL names. Without it this streamer works on the sources that
    /// others registered
    #[arg(long, env = "CSV_FILE")]
    pub csv_file: Option<PathBuf>,
    /// The host that a CSV file is of which does not say it, such as a log of GPU-Z
    #[arg(long, env = "CSV_HOST")]
    pub csv_host: Option<HostName>,
    /// The GPU that it is of: an index, or a UUID
    #[arg(long, env = "CSV_GPU")]
    pub csv_gpu: Option<GpuId>,
    /// The zone of its times where they do not say it, such as +02:00
    #[arg(long, env = "CSV_UTC_OFFSET", default_value = "+00:00", value_parser = parse_offset, allow_hyphen_values = true)]
    pub csv_utc_offset: i32,
    /// Read the files of --csv-file while they grow, for ever; rotation is followed
    #[arg(long, env = "FOLLOW", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub follow: bool,
    /// Where standard input, and what is fetched, is kept as a file, from which it is read, again if
    /// need be
    #[arg(long, env = "SPOOL_DIR", default_value = "/var/tmp")]
    pub spool_dir: PathBuf,
    /// Largest file that is fetched, in bytes
    #[arg(long, env = "FETCH_BYTES_MAX", default_value_t = 2 << 30, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub fetch_bytes_max: u64,
    /// Authorities by which https:// URLs of CSV files are checked, in PEM
    #[arg(long, env = "FETCH_CA_FILE", default_value = "/etc/ssl/certs/ca-certificates.crt")]
    pub fetch_ca_file: PathBuf,
    /// Most rows in one message
    #[arg(long, env = "BATCH_SIZE", default_value_t = 131_072, value_parser = clap::value_parser!(u64).range(1..=MESSAGE_SAMPLES_MAX as u64))]
    pub batch_size: u64,
    /// Replay the file in time: 1 as it was recorded, 10 ten times as fast; as fast as possible
    /// if not given
    #[arg(long, env = "REPLAY_SPEED", value_parser = speed)]
    pub replay_speed: Option<u64>,
    /// Begin again at the end of the file, for ever, with time moving on (at --replay-speed 1 if
    /// none is given)
    #[arg(long = "loop", env = "LOOP_MODE", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub looped: bool,
    /// Shards read at the same time
    #[arg(long, env = "PARALLEL_SHARDS", default_value_t = default_parallel(), value_parser = clap::value_parser!(u64).range(1..=64))]
    pub parallel_shards: u64,
    /// Pause a lane when so many of its messages wait for a collector
    #[arg(long, env = "BACKLOG_MAX", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub backlog_max: u64,
    /// Where the tokens and passwords lie that sources may have sent to their targets
    #[arg(long, env = "SCRAPE_SECRETS_DIR", default_value = "/etc/nexus/secrets")]
    pub scrape_secrets_dir: PathBuf,
    /// API of Kubernetes, where sources discover targets by it [default: that of the cluster whose
    /// pod this is]
    #[arg(long, env = "KUBERNETES_API")]
    pub kubernetes_api: Option<String>,
    /// Folder with the token and ca.crt of the account that asks it
    #[arg(
        long,
        env = "KUBERNETES_ACCOUNT_DIR",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    pub kubernetes_account_dir: PathBuf,
    /// Name of this host, as sources of kind nvml name it [default: the kernel's host name]
    #[arg(long, env = "HOST_NAME")]
    pub host_name: Option<HostName>,
    /// NVIDIA's management library, for sources of kind nvml [default: libnvidia-ml.so.1, where
    /// the system finds it]
    #[arg(long, env = "NVML_LIBRARY")]
    pub nvml_library: Option<PathBuf>,
    /// etcd's --quota-backend-bytes: streamers pause when 80 % of it is in use
    #[arg(long, env = "ETCD_QUOTA_BYTES", default_value_t = 2 << 30, value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub etcd_quota_bytes: u64,
}

impl Args {
    /// Where files of web servers go.
    ///
    /// # Errors
    /// When there is no working directory.
    pub(crate) fn fetched(&self, stop: &CancellationToken) -> anyhow::Result<Fetched> {
        let folder = std::path::absolute(&self.spool_dir).context("find the working directory")?;
        let (ca_file, bytes_max) = (self.fetch_ca_file.clone(), self.fetch_bytes_max);
        Ok(Fetched { folder, ca_file, bytes_max, stop: stop.clone(), busy: Mutex::default() })
    }

    /// The API of Kubernetes: as given, or as every pod finds it in its environment.
    pub(crate) fn kubernetes(&self) -> Option<Kubernetes> {
        let own = || {
            let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
            Some(format!("https://{host}:{port}"))
        };
        let api = self.kubernetes_api.clone().or_else(own)?;
        Some(Kubernetes::new(&api, &self.kubernetes_account_dir))
    }

    /// The host that this process runs on: as given, or as the kernel calls it, if that can be a
    /// host's name.
    pub(crate) fn host(&self) -> Option<HostName> {
        self.host_name.clone().or_else(|| {
            let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
            HostName::new(text.trim()).ok()
        })
    }
}

/// Half the cores: collectors and etcd need the others.
fn default_parallel() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| (n.get() as u64 / 2).clamp(1, 64))
}

/// Thousandths, so that the speed is an exact number in etcd.
fn speed(text: &str) -> Result<u64, String> {
    let speed: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if (0.001..=100_000.0).contains(&speed) {
        Ok((speed * 1000.0).round() as u64)
    } else {
        Err("must be from 0.001 to 100000".to_owned())
    }
}
