//! Flags that every process has. A flag, its environment variable and its Helm value are the
//! same word.

use std::{
    ffi::OsString,
    path::PathBuf,
    process::{ExitCode, exit},
    time::Duration,
};

use clap::{Args, Parser, ValueEnum, error::ErrorKind};
use tracing_subscriber::EnvFilter;

use crate::{
    etcd::{EtcdConfig, Security},
    keyspace::Keyspace,
    limits::{LEASE_TTL_SECONDS_MAX, LEASE_TTL_SECONDS_MIN, PARTITIONS_DEFAULT, PARTITIONS_MAX},
    model::{ClusterId, InstanceId, Role},
};

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Flags of every role.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// URLs of etcd's members, separated by commas
    #[arg(long, env = "ETCD_ENDPOINTS", value_delimiter = ',', default_value = "http://127.0.0.1:2379", value_parser = endpoint)]
    pub etcd_endpoints: Vec<String>,
    /// PEM of the authorities that etcd's certificates are checked with; for https:// endpoints
    #[arg(long, env = "ETCD_CA_FILE", value_name = "FILE")]
    pub etcd_ca_file: Option<PathBuf>,
    /// PEM of this process' certificate, for an etcd that asks for one
    #[arg(
        long,
        env = "ETCD_CERT_FILE",
        value_name = "FILE",
        requires = "etcd_key_file",
        requires = "etcd_ca_file"
    )]
    pub etcd_cert_file: Option<PathBuf>,
    /// PEM of that certificate's key
    #[arg(long, env = "ETCD_KEY_FILE", value_name = "FILE", requires = "etcd_cert_file")]
    pub etcd_key_file: Option<PathBuf>,
    /// Name at etcd's own authentication; certificates are the better way
    #[arg(long, env = "ETCD_USERNAME", value_name = "NAME", requires = "etcd_password_file")]
    pub etcd_username: Option<String>,
    /// File that holds the password
    #[arg(long, env = "ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_username")]
    pub etcd_password_file: Option<PathBuf>,
    /// Where Nexus keeps its keys in etcd
    #[arg(long, env = "NEXUS_ROOT", default_value = "/telemetry")]
    pub root: Keyspace,
    /// The cluster whose telemetry this is
    #[arg(long, env = "CLUSTER_ID", default_value = "local-cluster")]
    pub cluster_id: ClusterId,
    /// Seconds after which a silent process loses its work to the others
    #[arg(long, env = "LEASE_TTL_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(i64).range(LEASE_TTL_SECONDS_MIN..=LEASE_TTL_SECONDS_MAX))]
    pub lease_ttl_seconds: i64,
    /// Partitions of a new keyspace; an existing one keeps what it has
    #[arg(long, env = "PARTITIONS", default_value_t = PARTITIONS_DEFAULT, value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_MAX)))]
    pub partitions: u16,
    /// Seconds of ingest time in one bucket of a new keyspace: the unit of retention
    #[arg(long, env = "BUCKET_SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=86_400 * 7))]
    pub bucket_seconds: u32,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: String,
    /// How logs are written
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

fn log_level(text: &str) -> Result<String, String> {
    let reason = |e| format!("{e}; a filter looks like info or nexus_common=debug,info");
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(reason)
}

fn endpoint(text: &str) -> Result<String, String> {
    let text = text.trim();
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or("must begin with http:// or https://")?;
    let (host, port) =
        rest.rsplit_once(':').ok_or("must end in a port, as in http://127.0.0.1:2379")?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("must look like http://127.0.0.1:2379".to_owned());
    }
    Ok(url)
}

impl CommonArgs {
    /// How etcd is reached.
    pub fn etcd(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.etcd_endpoints.clone(),
            keyspace: self.root.clone(),
            request_timeout: Duration::from_secs(5),
            security: Security {
                ca_file: self.etcd_ca_file.clone(),
                cert_file: self.etcd_cert_file.clone(),
                key_file: self.etcd_key_file.clone(),
                user: self.etcd_username.clone().zip(self.etcd_password_file.clone()),
            },
        }
    }
}

/// The instance's name: as given, or `{role}-{host}-{pid}`, unique where pids are.
pub(super) fn instance_id(role: Role, given: Option<&InstanceId>) -> InstanceId {
    if let Some(id) = given {
        return id.clone();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let pid = std::process::id();
    let named = format!("{role}-{}-{pid}", host.trim());
    InstanceId::new(&named)
        .or_else(|_| InstanceId::new(&format!("{role}-{pid}")))
        .unwrap_or_else(|_| unreachable!("a role and a number make a valid id"))
}

/// Parses the command line and the environment, before any socket is opened. A bad value is
/// told with the allowed ones, and the process exits with 64 (`EX_USAGE` of `sysexits.h`).
pub fn parse_args<T: Parser>(args: impl IntoIterator<Item = OsString>) -> T {
    T::try_parse_from(args).unwrap_or_else(|error| {
        let told = error.print();
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        exit(if asked && told.is_ok() { 0 } else { 64 })
    })
}

/// Ends `main`: an error is told in one line, and a reader of standard output that has left
/// (`| head`) is none.
pub fn conclude(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let left = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(left) {
        return ExitCode::SUCCESS;
    }
    eprintln!("{program}: {error:#}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_with_a_port() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(endpoint(text).ok().as_deref(), expected, "{text}");
        };
        check("http://127.0.0.1:2379", Some("http://127.0.0.1:2379"));
        check("etcd-0.etcd:2379", Some("http://etcd-0.etcd:2379"));
        check("https://etcd-0.etcd:2379", Some("https://etcd-0.etcd:2379"));
        check("http://127.0.0.1", None);
        check("ftp://127.0.0.1:1", None);
        check("", None);
    }
}
