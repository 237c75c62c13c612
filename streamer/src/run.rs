//! Source to queue: registers what the flags name, claims shards, streams them.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context;
use nexus_common::{
    model::{Role, SourceId},
    runtime::{
        Life, Process, health_routes, run as run_process, serve, watch_fill, work_alone_on, work_on,
    },
    sources::{SourceDesk, Wanted},
};
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, interval_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    askers::Askers,
    cut::cut_declared,
    register::Registration,
    shard::{Shards, Told},
    source::{fetched::Fetched, scrape::discover::Discovered},
    sources::Sources,
};

/// When it is first looked for files that nobody reads any more: sources are known by then.
const CLEAR_FIRST: Duration = Duration::from_secs(3);
/// How often from then on: files lie there for an hour at least.
const CLEAR_EVERY: Duration = Duration::from_secs(600);

/// Runs a streamer until it is told to stop.
///
/// # Errors
/// When the file cannot be read, a flag not be used, or an address not be bound.
pub async fn run(args: Args) -> anyhow::Result<()> {
    run_with(args, None, false).await
}

/// Runs a streamer that first makes sure that a source is wanted; `apart`, if it shall work on
/// nothing but what is of its host.
pub(crate) async fn run_with(
    args: Args,
    wanted: Option<(SourceId, Wanted)>,
    apart: bool,
) -> anyhow::Result<()> {
    let given = args.instance_id.clone();
    let process = Process::start(Role::Streamer, args.common.clone(), given.as_ref()).await?;
    let process = Process { apart, ..process };
    let mut wanted: Vec<_> = wanted.into_iter().collect();
    wanted.extend(Registration::followed(&args)?);
    let fetched = Arc::new(args.fetched(&process.stop)?);
    let Some(registrations) = registrations(&process, &args, &fetched).await? else {
        return Ok(());
    };
    let routes = health_routes(Arc::clone(&process.metrics), Arc::clone(&process.health));
    // Served to the very end: draining can be watched, too.
    let (address, _server) = serve(args.metrics_listen, routes, CancellationToken::new()).await?;
    let discovered = Discovered::new(args.scrape_secrets_dir.clone(), args.kubernetes());
    let askers = Arc::new(Askers::new().context("prepare to ask targets")?);
    let kept = Kept { fetched, discovered: Arc::new(discovered), askers };
    let args = Arc::new(args);
    run_process(process, address, |life| {
        let given = (registrations.clone(), wanted.clone());
        stream(life, Arc::clone(&args), kept.clone(), given)
    })
    .await
}

/// The files that the flags name, opened in a thread: standard input may take its time. None when
/// the process was told to stop meanwhile.
async fn registrations(
    process: &Process,
    args: &Args,
    fetched: &Arc<Fetched>,
) -> anyhow::Result<Option<Vec<Registration>>> {
    let (args, fetched) = (args.clone(), Arc::clone(fetched));
    let opening = spawn_blocking(move || Registration::of(&args, &fetched));
    tokio::select! {
        () = process.stop.cancelled() => Ok(None),
        opened = opening => opened?.map(Some),
    }
}

/// What outlives a session: it took time to get, or who told it may be silent now.
#[derive(Clone)]
struct Kept {
    fetched: Arc<Fetched>,
    discovered: Arc<Discovered>,
    askers: Arc<Askers>,
}

/// One session's work.
async fn stream(
    life: Life,
    args: Arc<Args>,
    Kept { fetched, discovered, askers }: Kept,
    (registrations, wanted): (Vec<Registration>, Vec<(SourceId, Wanted)>),
) -> anyhow::Result<()> {
    for registration in registrations {
        registration.put(&life).await?;
    }
    for (id, wanted) in wanted {
        let applied = SourceDesk::new(life.process.etcd.clone()).apply(&id, &wanted).await?;
        tracing::info!(source = %id, ?applied, "source applied");
    }
    let host = args.host();
    let sources = Sources::follow(&life, host.clone());
    let full = Arc::new(AtomicBool::new(false));
    let shards = Arc::new(Shards {
        life: life.clone(),
        sources: Arc::clone(&sources),
        host,
        permits: Arc::new(Semaphore::new(args.parallel_shards as usize)),
        cache: Arc::new(Mutex::new(None)),
        target_files: Arc::default(),
        fetched: Arc::clone(&fetched),
        discovered,
        askers,
        full: Arc::clone(&full),
        told: Arc::new(Mutex::new(Told::default())),
        args: Arc::clone(&args),
    });
    let work = |work| Arc::clone(&shards).serve(work);
    tokio::select! {
        // Until the session's end or the process': both pools give everything back then.
        _ = async {
            tokio::join!(
                work_on(&life, "claims/shards/", sources.items(), &work),
                work_alone_on(&life, "claims/shards/", sources.own_items(), &work),
            )
        } => {}
        () = watch_fill(&life, args.etcd_quota_bytes, &full) => {}
        () = cut_declared(&life, &sources, &fetched) => {}
        () = clear_away(&sources, &fetched) => {}
    }
    Ok(())
}

/// Removes what was kept of files that nobody reads any more, for as long as it is polled.
async fn clear_away(sources: &Sources, fetched: &Arc<Fetched>) {
    let mut look = interval_at(Instant::now() + CLEAR_FIRST, CLEAR_EVERY);
    loop {
        look.tick().await;
        let (read, unread) = sources.read_and_unread();
        let fetched = Arc::clone(fetched);
        let clearing = spawn_blocking(move || fetched.clear_away(&read, &unread));
        let _ = clearing.await; // one that panicked is tried again
    }
}
