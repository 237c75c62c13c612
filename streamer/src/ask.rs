//! `nexus-streamer source ...`: what shall be read, written into etcd; streamers follow it live.

mod discover;
mod file;

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use nexus_common::{
    etcd::Etcd,
    keyspace::{Source, SourceKind},
    model::SourceId,
    runtime::CommonArgs,
    sources::{Applied, SourceDesk, Wanted},
};

use crate::interval::show_ms;

/// What to do with sources.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Flags of every role
    #[command(flatten)]
    pub common: CommonArgs,
    /// What to do
    #[command(subcommand)]
    pub ask: Ask,
}

/// What may be asked about sources.
#[derive(Debug, Clone, Subcommand)]
pub enum Ask {
    /// Make sources what a file says: create them, or change them while they are read
    Apply {
        /// YAML file; - for standard input
        #[arg(long, short)]
        file: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show all sources
    List,
    /// Stop reading a source after the message in hand
    Pause {
        /// The source
        name: SourceId,
    },
    /// Read a paused source on from where it was left
    Resume {
        /// The source
        name: SourceId,
    },
    /// End a source; what was read of it stays
    Withdraw {
        /// The source
        name: SourceId,
    },
}

/// Does what `args` asks for, once.
///
/// # Errors
/// When the file or a name is wrong, or etcd does not answer.
pub async fn ask(args: SourceArgs) -> anyhow::Result<()> {
    // A file that is wrong is told before etcd is asked.
    let wanted = match &args.ask {
        Ask::Apply { file, .. } => file::read(file)?,
        _ => Vec::new(),
    };
    let desk = SourceDesk::new(Etcd::connect(args.common.etcd()).await?);
    match args.ask {
        Ask::Apply { dry_run, .. } => apply(&desk, wanted, dry_run).await,
        Ask::List => list(&desk).await,
        Ask::Pause { name } => {
            desk.set_paused(&name, true).await?;
            say(&format!("{name} paused"))
        }
        Ask::Resume { name } => {
            desk.set_paused(&name, false).await?;
            say(&format!("{name} resumed"))
        }
        Ask::Withdraw { name } => {
            desk.withdraw(&name).await?;
            say(&format!("{name} withdrawn"))
        }
    }
}

/// All are planned before the first is written: a file that cannot be applied changes nothing.
async fn apply(
    desk: &SourceDesk,
    wanted: Vec<(SourceId, Wanted)>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let mut plans = Vec::with_capacity(wanted.len());
    for (id, wanted) in &wanted {
        plans.push(desk.plan(id, wanted).await.with_context(|| format!("source {id}"))?);
    }
    for ((id, wanted), plan) in wanted.iter().zip(plans) {
        let applied = if dry_run { plan } else { desk.apply(id, wanted).await? };
        let done = match (applied, dry_run) {
            (Applied::Created, false) => "created",
            (Applied::Changed, false) => "changed",
            (Applied::Created, true) => "would be created",
            (Applied::Changed, true) => "would be changed",
            (Applied::Unchanged, _) => "unchanged",
        };
        say(&format!("{id} {done}"))?;
    }
    Ok(())
}

async fn list(desk: &SourceDesk) -> anyhow::Result<()> {
    let sources = desk.list().await?;
    let width = sources.iter().map(|(id, _)| id.as_str().len()).max().unwrap_or(0).max(4);
    say(&format!("{:width$}  {:8}  {:7}  {:>6}  READS", "NAME", "KIND", "STATE", "SHARDS"))?;
    for (id, source) in sources {
        let (kind, reads) = describe(&source);
        let state = if source.paused { "paused" } else { "wanted" };
        let (name, shards) = (id.as_str(), source.shards);
        say(&format!("{name:width$}  {kind:8}  {state:7}  {shards:>6}  {reads}"))?;
    }
    Ok(())
}

fn describe(source: &Source) -> (&'static str, String) {
    match &source.kind {
        SourceKind::Csv { path, .. } | SourceKind::Declared { path, .. } => ("csv", path.clone()),
        SourceKind::Follow(follow) => ("csv", format!("{}, as it grows", follow.path)),
        SourceKind::Simulate(simulate) => {
            let (hosts, gpus) = (simulate.hosts, simulate.gpus);
            let every = show_ms(simulate.interval_ms);
            ("simulate", format!("{hosts} hosts x {gpus} GPUs every {every}"))
        }
        SourceKind::Scrape(scrape) => {
            let (targets, files) = (scrape.targets.len(), scrape.files.len());
            let every = show_ms(scrape.interval_ms);
            let mut reads = format!("{targets} targets, {files} files of targets");
            for one in &scrape.discover {
                reads += &format!(", {}", discover::show(one));
            }
            ("scrape", format!("{reads}, every {every}"))
        }
        SourceKind::Nvml(nvml) => {
            let (host, every) = (&nvml.host, show_ms(nvml.interval_ms));
            ("nvml", format!("GPUs of {host} every {every}"))
        }
    }
}

/// One line to standard output. A reader that has left ends it.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}
