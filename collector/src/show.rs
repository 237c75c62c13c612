//! Prints a message or block as people read it: the binary values of the keyspace.

use std::io::{self, Write};

use anyhow::Context;
use clap::Args;
use nexus_common::{
    block::Block,
    etcd::Etcd,
    model::{HostSamples, Timestamp},
    runtime::CommonArgs,
};

/// Flags of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Key of a message or block, as `etcdctl get --prefix /telemetry/blocks/ --keys-only` lists it
    pub key: String,
    /// Only tell what is in it, not every sample
    #[arg(long)]
    pub summary: bool,
}

/// Prints what stands at a key.
///
/// # Errors
/// When it is not there, not a block, or standard output is closed.
pub async fn show(args: ShowArgs) -> anyhow::Result<()> {
    let etcd = Etcd::connect(args.common.etcd()).await?;
    let entry = etcd.get(&args.key).await?;
    let entry = entry.with_context(|| format!("there is no key {}", args.key))?;
    let bytes = entry.value.len();
    let block = Block::decode(entry.value).with_context(|| format!("read {}", args.key))?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(
        out,
        "# {bytes} bytes, cluster {}, {} samples, revision {}",
        block.cluster,
        block.samples(),
        entry.mod_revision
    )?;
    for section in &block.sections {
        let (host, start, end) = (section.host(), section.start(), section.end());
        let (samples, bytes) = (section.samples(), section.byte_len());
        writeln!(out, "# host {host}: {samples} samples in {bytes} bytes, {start} to {end}")?;
        if !args.summary {
            print(&mut out, &section.decode()?)?;
        }
    }
    out.flush().context("write to standard output")
}

fn print(out: &mut impl Write, samples: &HostSamples) -> io::Result<()> {
    for series in &samples.series {
        let gpu = series.gpu.and_then(|i| samples.gpus.get(i as usize));
        let gpu = gpu.map_or("-", |gpu| gpu.id.as_str());
        let labels: Vec<String> = series.labels.iter().map(|(n, v)| format!("{n}={v:?}")).collect();
        for (at, value) in series.timestamps.iter().zip(&series.values) {
            let at = Timestamp::saturating_from_millis(*at);
            let labels = labels.join(",");
            writeln!(out, "{at} {} {gpu} {}{{{labels}}} {value}", samples.host, series.metric)?;
        }
    }
    Ok(())
}
