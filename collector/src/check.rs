//! Checks the conservation law once, out of etcd itself: what `GET /audit` of a gateway tells,
//! for those who have no gateway at hand.

use std::io::{self, Write};

use anyhow::{Context, ensure};
use clap::Args;
use nexus_common::{audit, etcd::Etcd, runtime::CommonArgs};

/// Flags of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Flags of every role.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Prints the report as JSON.
///
/// # Errors
/// When the law does not hold, etcd does not answer, or standard output is closed.
pub async fn check(args: AuditArgs) -> anyhow::Result<()> {
    let etcd = Etcd::connect(args.common.etcd()).await?;
    let report = audit::audit(&etcd).await?;
    let mut text = serde_json::to_string_pretty(&report)?;
    text.push('\n');
    io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
    ensure!(report.clean, "the conservation law does not hold: {}", report.violations.join("; "));
    Ok(())
}
