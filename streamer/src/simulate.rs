//! `nexus-streamer simulate`: asks for a made-up source, then streams it like any other.

use clap::Args as ClapArgs;
use nexus_common::{
    keyspace::{SourceKind, live::Simulate},
    model::{SourceId, Timestamp},
    sources::{Wanted, interval::parse_ms},
};

use crate::{args::Args, run::run_with};

/// What to make up.
#[derive(Debug, Clone, ClapArgs)]
pub struct SimulateArgs {
    /// Hosts, 1 to 10000
    #[arg(long, default_value_t = 4)]
    pub hosts: u32,
    /// GPUs on each host, 1 to 16
    #[arg(long, default_value_t = 8)]
    pub gpus: u32,
    /// From one measurement to the next, 100ms to 24h
    #[arg(long, default_value = "1s", value_parser = parse_ms)]
    pub interval: u64,
    /// Another seed gives other values; the same gives the same at the same time
    #[arg(long, default_value_t = 1)]
    pub seed: u32,
    /// Ends after so long; for ever if not given
    #[arg(long = "for", value_parser = parse_ms)]
    pub length: Option<u64>,
    /// Name of the source; streamers that say the same name share it
    #[arg(long, default_value = "simulated")]
    pub name: SourceId,
    /// Everything else
    #[command(flatten)]
    pub run: Args,
}

/// Streams what `args` asks for until told to stop.
///
/// # Errors
/// When a flag cannot be used or etcd refuses.
pub async fn simulate(args: SimulateArgs) -> anyhow::Result<()> {
    let until = args.length.map(|length| {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        Timestamp::saturating_from_millis(Timestamp::now().as_millis().saturating_add(length))
    });
    let wanted = Wanted::new(SourceKind::Simulate(Simulate {
        cluster: Some(args.run.common.cluster_id.clone()),
        hosts: args.hosts,
        gpus: args.gpus,
        interval_ms: args.interval,
        seed: args.seed,
        until,
        hosts_per_shard: Simulate::plan_hosts_per_shard(args.hosts),
    }))?;
    run_with(args.run, Some((args.name, wanted)), false).await
}
