//! nexus-streamer: reads telemetry from sources and enqueues it.

use clap::{Parser, Subcommand};
use nexus_common::runtime::parse_args;
use nexus_streamer::args::Args;

/// Streams GPU telemetry from sources into the queue in etcd
#[derive(Debug, Parser)]
#[command(name = "nexus-streamer", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stream until told to stop (the default)
    Run(Box<Args>),
}

fn main() -> anyhow::Result<()> {
    let cli: Cli = parse_args(std::env::args_os());
    match cli.command {
        Some(Command::Run(args)) => stream(*args),
        None => stream(cli.args),
    }
}

fn stream(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(nexus_streamer::run(args))
}
