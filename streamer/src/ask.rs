//! `nexus-streamer source ...`: what shall be read, written into etcd; streamers follow it live.

mod yaml;

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use nexus_common::{
    etcd::Etcd,
    keyspace::{LastError, Source, SourceKind, discover::Discover},
    model::{InstanceId, SourceId, Timestamp},
    runtime::CommonArgs,
    sources::{Applied, SourceDesk, Standing, Wanted, interval::show_ms},
};

/// What `source list` tells of each.
const HEAD: [&str; 11] = [
    "NAME",
    "KIND",
    "STATE",
    "DONE",
    "SAMPLES",
    "PER SECOND",
    "REFUSED",
    "MISSED",
    "LAST",
    "OWNERS",
    "READS",
];

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
        Ask::Apply { file, .. } => yaml::read(file)?,
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

/// A line each, and one more for what went wrong last.
async fn list(desk: &SourceDesk) -> anyhow::Result<()> {
    let sources = desk.standings().await?;
    let owners = desk.owners(None).await?;
    let now = Timestamp::now();
    let mut rows = vec![HEAD.map(str::to_owned)];
    let mut errors = vec![None];
    for (id, source, standing) in &sources {
        let owners = owners.get(id).into_iter().flatten();
        let owners: Vec<&str> = owners.map(InstanceId::as_str).collect();
        let last = standing.last_enqueued_at.map_or("-".to_owned(), |at| ago(now, at));
        rows.push([
            id.to_string(),
            source.kind.as_str().to_owned(),
            standing.state.as_str().to_owned(),
            format!("{}/{}", standing.shards_done, source.shards),
            standing.samples.to_string(),
            format!("{:.1}", standing.samples_per_second),
            standing.rejected().to_string(),
            standing.missed.to_string(),
            last,
            if owners.is_empty() { "-".to_owned() } else { owners.join(",") },
            reads(source, standing),
        ]);
        let told = |error: &LastError| format!("  {}: {}", ago(now, error.at), error.told);
        errors.push(standing.last_error.as_ref().map(told));
    }
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: [usize; HEAD.len()] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for (row, error) in rows.iter().zip(errors) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        say(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        error.as_deref().map_or(Ok(()), say)?;
    }
    Ok(())
}

/// How long ago it was, in the largest unit that tells it.
fn ago(now: Timestamp, at: Timestamp) -> String {
    let seconds = (now.as_millis() - at.as_millis()).max(0) as f64 / 1000.0;
    match seconds {
        s if s < 60.0 => format!("{s:.1}s ago"),
        s if s < 3600.0 => format!("{:.0}m ago", s / 60.0),
        s if s < 86_400.0 => format!("{:.0}h ago", s / 3600.0),
        s => format!("{:.0}d ago", s / 86_400.0),
    }
}

/// What it reads, and how far it is in it.
fn reads(source: &Source, standing: &Standing) -> String {
    let of = describe(source);
    match source.kind {
        SourceKind::Csv { bytes, .. } if bytes > 0 => {
            let part = standing.bytes_read as f64 / bytes as f64 * 100.0;
            // Of a packed file more is read than lies there.
            if part > 100.0 { of } else { format!("{of}, {part:.0} %") }
        }
        _ => of,
    }
}

fn describe(source: &Source) -> String {
    match &source.kind {
        SourceKind::Csv { path, .. } | SourceKind::Declared { path, .. } => path.clone(),
        SourceKind::Follow(follow) => format!("{}, as it grows", follow.path),
        SourceKind::Simulate(simulate) => {
            let (hosts, gpus) = (simulate.hosts, simulate.gpus);
            format!("{hosts} hosts x {gpus} GPUs every {}", show_ms(simulate.interval_ms))
        }
        SourceKind::Scrape(scrape) => {
            let (targets, files) = (scrape.targets.len(), scrape.files.len());
            let every = show_ms(scrape.interval_ms);
            let mut reads = format!("{targets} targets, {files} files of targets");
            for one in &scrape.discover {
                reads += &format!(", {}", show(one));
            }
            format!("{reads}, every {every}")
        }
        SourceKind::Nvml(nvml) => {
            format!("GPUs of {} every {}", nvml.host, show_ms(nvml.interval_ms))
        }
        SourceKind::Push => "what is sent to gateways".to_owned(),
    }
}

/// In a word or two, for a list.
fn show(discover: &Discover) -> String {
    match discover {
        Discover::Http(lists) => format!("those of {}", lists.url),
        Discover::Dns(names) => format!("those of {} in the DNS", names.name),
        Discover::Kubernetes(endpoints) => {
            let selector = endpoints.selector.as_deref().unwrap_or("all");
            format!("those of {} ({selector}) in Kubernetes", endpoints.namespace)
        }
    }
}

/// One line to standard output. A reader that has left ends it.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_the_largest_unit() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000).unwrap();
        let check = |seconds: i64, expected: &str| {
            assert_eq!(ago(at(1_000_000), at(1_000_000 - seconds)), expected);
        };
        check(0, "0.0s ago");
        check(-5, "0.0s ago"); // clocks differ
        check(59, "59.0s ago");
        check(150, "2m ago");
        check(7200, "2h ago");
        check(200_000, "2d ago");
    }
}
