//! The collector's flags.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};
use nexus_common::{
    model::InstanceId,
    runtime::{Chore, CommonArgs, version},
};

use crate::{check::AuditArgs, show::ShowArgs};

/// Takes GPU telemetry from the queue in etcd and commits it into the store in etcd
#[derive(Debug, Parser)]
#[command(name = "nexus-collector", version = version(), args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Collect until told to stop (the default)
    Run(Box<Args>),
    /// Print a message or block: the binary values in etcd
    Show(Box<ShowArgs>),
    /// Check that no sample is lost and none is there twice; fails if one is
    Audit(Box<AuditArgs>),
    #[command(flatten)]
    Chore(Chore),
}

/// Flags of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Name of this instance, unique among collectors [default: collector-{host}-{pid}]
    #[arg(long, env = "COLLECTOR_ID", alias = "collector-id")]
    pub instance_id: Option<InstanceId>,
    /// Address of /metrics, /livez and /readyz; port 0 picks a free one
    #[arg(long, env = "METRICS_LISTEN", default_value = "127.0.0.1:0")]
    pub metrics_listen: SocketAddr,
    /// Commit messages that have waited so many milliseconds
    #[arg(long, env = "COMMIT_AGE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub commit_age_ms: u64,
    /// Commit at once when so many samples wait in a partition
    #[arg(long, env = "COMMIT_SAMPLES", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..))]
    pub commit_samples: u64,
    /// Commit at once when so many messages wait in a partition
    #[arg(long, env = "COMMIT_MESSAGES", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub commit_messages: u64,
    /// Seconds between looks for small blocks to merge
    #[arg(long, env = "MERGE_EVERY_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub merge_every_seconds: u64,
    /// Keep blocks for so many seconds after they were stored; 0 keeps them for ever
    #[arg(long, env = "RETENTION_SECONDS", default_value_t = 7 * 86_400)]
    pub retention_seconds: u64,
    /// Keep at most so many bytes of blocks; 0 is no bound. Half of etcd's space quota leaves room
    /// for the queue and for history
    #[arg(long, env = "RETENTION_BYTES", default_value_t = 1 << 30)]
    pub retention_bytes: u64,
    /// Seconds between looks for blocks to delete
    #[arg(long, env = "RETENTION_EVERY_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub retention_every_seconds: u64,
    /// Seconds between checks of the conservation law, by one collector of all; 0 is never
    #[arg(long, env = "AUDIT_EVERY_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub audit_every_seconds: u64,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Collect.
    Run(Box<Args>),
    /// Print a value.
    Show(Box<ShowArgs>),
    /// Check the conservation law.
    Audit(Box<AuditArgs>),
    /// What every program can do.
    Chore(Chore),
}

impl Cli {
    /// What is asked for; collecting, if nothing is.
    pub fn asked(self) -> Asked {
        match self.command {
            Some(Command::Run(args)) => Asked::Run(args),
            Some(Command::Show(args)) => Asked::Show(args),
            Some(Command::Audit(args)) => Asked::Audit(args),
            Some(Command::Chore(chore)) => Asked::Chore(chore),
            None => Asked::Run(Box::new(self.args)),
        }
    }
}
