//! Room for an etcd that is full: by the janitor at once, by any collector when nobody else does.

use std::time::Duration;

use nexus_common::etcd::Etcd;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often etcd is asked whether its space is used up: the janitor heals within this.
pub(crate) const SPACE_EVERY: Duration = Duration::from_secs(5);
/// How long an alarm may stand before a collector that is not the janitor takes it that there is
/// none. Under the alarm etcd grants no lease, so after a restart there can be no janitor.
const UNATTENDED_AFTER: Duration = Duration::from_secs(12);

/// Makes room in an etcd that has none left. Whether it did.
pub(crate) async fn made_room(etcd: &Etcd) -> bool {
    if !is_full(etcd).await {
        return false;
    }
    tracing::error!("etcd's space is used up: compacting, defragmenting, taking back its alarm");
    match etcd.make_room().await {
        Ok(()) => tracing::warn!("etcd takes writes again"),
        Err(error) => tracing::error!(%error, "could not make room in etcd, trying again"),
    }
    true
}

/// Makes room where an alarm stands and no janitor does, until told to stop. Needs no session.
/// Several at once do no harm: what one freed, another finds free.
pub(crate) async fn stand_in(etcd: Etcd, stop: CancellationToken) {
    let mut tick = interval(SPACE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut full_since = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if !is_full(&etcd).await {
            full_since = None;
        } else if full_since.get_or_insert_with(Instant::now).elapsed() >= UNATTENDED_AFTER {
            made_room(&etcd).await;
            full_since = None;
        }
    }
}

/// One that does not tell (a managed one may not) is not helped.
async fn is_full(etcd: &Etcd) -> bool {
    etcd.is_out_of_space().await.unwrap_or(false)
}
