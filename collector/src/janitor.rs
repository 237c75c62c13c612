//! Retention and the audit, by whichever collector holds the janitor's claim.

use std::{sync::Arc, time::Duration};

use nexus_common::{
    etcd::Error,
    model::Timestamp,
    runtime::{Life, Work},
    store::{Policy, Retention},
};
use tokio::time::interval;

use crate::{
    args::Args,
    audit::{self, AuditMeters},
    space::{SPACE_EVERY, made_room},
};

/// Sweeps and audits every now and then until asked to leave or fenced.
pub(crate) async fn serve(life: Life, args: Arc<Args>, meters: Arc<AuditMeters>, work: Work) {
    let every = Duration::from_secs(args.audit_every_seconds);
    let etcd = life.process.etcd.clone();
    tokio::select! {
        () = sweep(life, args, work) => {}
        () = audit::watch(&etcd, &meters, every) => {}
    }
}

async fn sweep(life: Life, args: Arc<Args>, work: Work) {
    let policy = Policy { age_seconds: args.retention_seconds, bytes: args.retention_bytes };
    let retention = Retention::new(&life, work.claim.clone(), policy);
    let mut tick = interval(Duration::from_secs(args.retention_every_seconds));
    let mut space = interval(SPACE_EVERY);
    loop {
        tokio::select! {
            () = work.leave.cancelled() => return,
            () = life.session.lost().cancelled() => return,
            _ = tick.tick() => {}
            // Retention comes at once when there is room again: its own writes need some.
            _ = space.tick() => if !made_room(&life.process.etcd).await { continue },
        }
        match retention.sweep(Timestamp::now()).await {
            Ok(Some(swept)) if swept.blocks > 0 => {
                tracing::info!(blocks = swept.blocks, samples = swept.samples, "retired");
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(Error::SessionLost { .. }) => return,
            Err(error) => tracing::warn!(%error, "retention was interrupted, going on later"),
        }
    }
}
