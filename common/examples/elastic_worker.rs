//! A worker of one's own: claims items, does fenced work on them, survives being killed.
//!
//!     cargo run -p nexus-common --example elastic_worker -- --root /jobs --items 8 --target 1000
//!
//! Start as many as you like, kill any of them in any way: each item counts to its target, and
//! no step is lost or done twice. Each step is one transaction, applied only if the claim on the
//! item still stands and its counter is as this worker last saw it.

use std::{collections::BTreeSet, env::args_os};

use anyhow::Context;
use clap::Parser;
use nexus_common::{
    etcd::{Commit, Outcome, Position},
    keyspace::{ClaimItem, Keyspace},
    model::{InstanceId, PartitionId, Role},
    runtime::{CommonArgs, Life, Process, Work, parse_args, run, work_on},
};
use tokio::sync::watch;

/// Counts items to a target, together with all others that are started like it
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// Name of this instance, unique among the workers
    #[arg(long)]
    instance_id: Option<InstanceId>,
    /// How many items there are
    #[arg(long, default_value_t = 8)]
    items: u16,
    /// How far each is counted
    #[arg(long, default_value_t = 1000)]
    target: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = parse_args(args_os());
    let shared = args.common.root == Keyspace::default();
    anyhow::ensure!(!shared, "/telemetry has workers of its own: give --root another value");
    let process = Process::start(Role::Collector, args.common, args.instance_id.as_ref()).await?;
    let items: BTreeSet<_> =
        (0..args.items).map(|n| ClaimItem::Partition(PartitionId(n))).collect();
    let address = "127.0.0.1:0".parse().context("an address for the instance's key")?;
    // Once for each session; a session that is lost is followed by another.
    run(process, address, |life| {
        let (_, items) = watch::channel(items.clone());
        async move {
            let work = |work| count(life.clone(), work, args.target);
            work_on(&life, "claims/partitions/", items, work).await;
            Ok(())
        }
    })
    .await
}

/// Works on one item until it is wanted back, or somebody else has it.
async fn count(life: Life, work: Work, target: u64) {
    match steps(&life, &work, target).await {
        // Finished or wanted back. A finished item stays claimed: nobody need look at it again.
        Ok(()) => work.leave.cancelled().await,
        // Returning gives it back. Whoever claims it next goes on from where its counter is.
        Err(error) => eprintln!("{}: {error:#}", work.claim.item()),
    }
}

async fn steps(life: &Life, work: &Work, target: u64) -> anyhow::Result<()> {
    let (etcd, item) = (&life.process.etcd, work.claim.item());
    let key = format!("{}jobs/{item}", etcd.keyspace().root());
    let seen = etcd.get(&key).await?;
    let done = seen.as_ref().map(|entry| std::str::from_utf8(&entry.value)).transpose()?;
    let mut done: u64 = done.map_or(Ok(0), str::parse)?;
    let mut position = Position::seen(key.clone(), seen.as_ref());
    println!("{item}: from {done} of {target}");
    while done < target && !work.leave.is_cancelled() {
        done += 1;
        let mut commit = Commit::new(&work.claim, &position, done.to_string().into_bytes());
        // The effect of the work, in the same transaction: who did this step.
        commit.put(&format!("{key}/{done:06}"), life.process.instance.as_str());
        match commit.run(etcd).await? {
            Outcome::Committed { revision, .. } => position.mod_revision = revision,
            Outcome::Fenced => anyhow::bail!("somebody else has it now"),
            Outcome::Stale => anyhow::bail!("its counter is not where it was left"),
        }
    }
    println!("{item}: left at {done} of {target}");
    Ok(())
}
