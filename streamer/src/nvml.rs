//! `nexus-streamer nvml`: asks for this host's GPUs, then streams them, and nothing else: where GPUs
//! are, files of others may not be.

use anyhow::{Context, bail};
use clap::Args as ClapArgs;
use nexus_common::{
    keyspace::{SourceKind, live::Nvml},
    model::SourceId,
    sources::{Wanted, interval::parse_ms},
};

use crate::{args::Args, run::run_with, source::nvml::probe};

/// What `main` returns when there is no driver: `EX_UNAVAILABLE` of `sysexits.h`.
pub const NO_DRIVER: u8 = 69;

/// There is nothing to measure here.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; install NVIDIA's driver, say where the library is with --nvml-library, or give --wait"
)]
pub struct NoDriver(String);

/// How this host's GPUs are measured.
#[derive(Debug, Clone, ClapArgs)]
pub struct NvmlArgs {
    /// From one measurement to the next, 100ms to 24h
    #[arg(long, env = "NVML_INTERVAL", default_value = "1s", value_parser = parse_ms)]
    pub interval: u64,
    /// Wait for NVIDIA's driver where there is none, instead of ending with 69
    #[arg(long, env = "NVML_WAIT", num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Name of the source [default: nvml-{host}]
    #[arg(long)]
    pub name: Option<SourceId>,
    /// Everything else
    #[command(flatten)]
    pub run: Args,
}

/// Streams this host's GPUs until told to stop.
///
/// # Errors
/// When a flag cannot be used, there is no driver, or etcd refuses.
pub async fn nvml(args: NvmlArgs) -> anyhow::Result<()> {
    let host =
        args.run.host().context("this host's name is none that can be stored; give --host-name")?;
    if args.run.csv_file.is_some() {
        bail!("--csv-file: files are read by nexus-streamer run");
    }
    let name = match args.name {
        Some(name) => name,
        None => SourceId::new(&format!("nvml-{host}")).context("give the source a --name")?,
    };
    let wanted = Wanted::new(SourceKind::Nvml(Nvml {
        cluster: Some(args.run.common.cluster_id.clone()),
        host,
        interval_ms: args.interval,
    }))?;
    if !args.wait {
        let found = probe(&name, args.run.nvml_library.clone()).await;
        found.map_err(|error| NoDriver(error.to_string()))?;
    }
    run_with(args.run, Some((name, wanted)), true).await
}
