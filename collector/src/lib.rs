//! Queue to store: claims partitions, follows their lanes, commits messages into per-host
//! blocks, merges small blocks of closed buckets, and (one collector at a time) ends history.

pub mod args;
mod audit;
mod backlog;
pub mod check;
mod janitor;
mod merge;
mod partition;
mod plan;
pub mod show;
mod space;

use std::{collections::BTreeSet, sync::Arc};

use nexus_common::{
    keyspace::ClaimItem,
    model::{PartitionId, Role},
    runtime::{Life, Process, health_routes, run as run_process, serve, work_on},
    store::Inventory,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use args::Args;
use audit::AuditMeters;
use backlog::Backlog;
use merge::MergeJobs;
use partition::Partition;

/// Runs a collector until it is told to stop.
///
/// # Errors
/// When a flag cannot be used or an address not be bound.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let given = args.instance_id.clone();
    let process = Process::start(Role::Collector, args.common.clone(), given.as_ref()).await?;
    let routes = health_routes(Arc::clone(&process.metrics), Arc::clone(&process.health));
    // Served to the very end: draining can be watched, too.
    let (address, _server) = serve(args.metrics_listen, routes, CancellationToken::new()).await?;
    let args = Arc::new(args);
    let meters = AuditMeters::register(&process.metrics);
    tokio::spawn(space::stand_in(process.etcd.clone(), process.stop.clone()));
    run_process(process, address, |life| collect(life, Arc::clone(&args), Arc::clone(&meters)))
        .await
}

/// One session's work.
async fn collect(life: Life, args: Arc<Args>, meters: Arc<AuditMeters>) -> anyhow::Result<()> {
    let inventory = Arc::new(Inventory::open(life.process.etcd.clone()).await?);
    let backlog = Backlog::follow(&life);
    let merges = MergeJobs::scout(&life, &args);
    let partitions = (0..life.config.partitions).map(|p| ClaimItem::Partition(PartitionId(p)));
    let (_, partitions) = watch::channel(partitions.collect::<BTreeSet<_>>());
    let (_, janitor) = watch::channel(BTreeSet::from([ClaimItem::Janitor]));
    let serve_partition = |work: nexus_common::runtime::Work| {
        let partition = Partition {
            life: life.clone(),
            args: Arc::clone(&args),
            inventory: Arc::clone(&inventory),
            backlog: Arc::clone(&backlog),
            merges: Arc::clone(&merges),
        };
        partition.serve(work)
    };
    let tidy = |work| janitor::serve(life.clone(), Arc::clone(&args), Arc::clone(&meters), work);
    tokio::join!(
        work_on(&life, "claims/partitions/", partitions, serve_partition),
        work_on(&life, "claims/janitor", janitor, tidy),
    );
    Ok(())
}
