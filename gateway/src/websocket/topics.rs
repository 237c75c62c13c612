//! The subscriptions of one connection.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::view::{InventoryChange, LiveFilter, Snapshot, Subscription, View};

/// How often subscribers of the pipeline are told.
pub(super) const PIPELINE_EVERY: Duration = Duration::from_secs(1);

/// A subscription to telemetry.
pub(super) struct Telemetry {
    pub(super) id: String,
    pub(super) subscription: Subscription,
}

/// Ready with the position of a subscription that has something, beginning behind the one that
/// came last: none is always first.
pub(super) fn poll_telemetry(
    all: &mut [Telemetry],
    last: usize,
    cx: &mut Context<'_>,
) -> Poll<usize> {
    let count = all.len();
    for step in 1..=count {
        let index = (last + step) % count;
        if let Some(one) = all.get_mut(index)
            && one.subscription.poll_ready(cx).is_ready()
        {
            return Poll::Ready(index);
        }
    }
    Poll::Pending
}

/// Subscriptions to the inventory; all are fed from one channel.
#[derive(Default)]
pub(super) struct Inventory {
    pub(super) subscribed: Vec<(String, LiveFilter)>,
    changes: Option<Receiver<Arc<InventoryChange>>>,
}

/// What comes of it.
pub(super) enum InventoryNews {
    Change(Arc<InventoryChange>),
    /// As many changes were missed; this is what there is now.
    Missed(u64, Arc<Snapshot>),
}

impl Inventory {
    /// Adds a subscription and says what there is now; none before the view is loaded.
    pub(super) fn add(
        &mut self,
        id: String,
        filter: LiveFilter,
        view: &View,
    ) -> Option<Arc<Snapshot>> {
        let (snapshot, changes) = view.inventory()?;
        // An older channel may still hold what is in the snapshot, and the others need that.
        self.changes.get_or_insert(changes);
        self.subscribed.push((id, filter));
        Some(snapshot)
    }

    /// Waits for what comes next; for ever without a subscription.
    pub(super) async fn next(&mut self, view: &View) -> InventoryNews {
        if self.subscribed.is_empty() {
            self.changes = None;
        }
        if let Some(changes) = &mut self.changes {
            match changes.recv().await {
                Ok(change) => return InventoryNews::Change(change),
                Err(RecvError::Lagged(missed)) => {
                    if let Some((snapshot, changes)) = view.inventory() {
                        self.changes = Some(changes);
                        return InventoryNews::Missed(missed, snapshot);
                    }
                }
                Err(RecvError::Closed) => {}
            }
        }
        std::future::pending().await
    }
}
