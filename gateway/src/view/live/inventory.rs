//! What changes among the GPUs from one snapshot to the next. Pure.

use std::sync::Arc;

use nexus_common::model::{ClusterId, Gpu, HostName};

use super::super::snapshot::{Cluster, GpuPlace, Host, Snapshot};

/// Changes that wait for one subscriber: more than there are in the seconds after a start.
pub(super) const CHANGES_MAX: usize = 64;

/// GPUs that came, changed or went.
#[derive(Debug, Default)]
pub struct InventoryChange {
    /// The revision at which that became visible.
    pub revision: i64,
    /// Those that came.
    pub added: Vec<(GpuPlace, Gpu)>,
    /// Those that are described otherwise now.
    pub changed: Vec<(GpuPlace, Gpu)>,
    /// Those that went.
    pub removed: Vec<(GpuPlace, Gpu)>,
}

impl InventoryChange {
    /// Everything in a snapshot, as if it had just come.
    pub fn all(snapshot: &Snapshot) -> Self {
        let mut all = Self { revision: snapshot.revision, ..Self::default() };
        let empty = Snapshot::empty(snapshot.revision);
        all.compare(&empty, snapshot);
        all
    }

    /// From one snapshot to the next; none if nothing changed.
    pub(super) fn between(before: &Snapshot, now: &Snapshot) -> Option<Self> {
        // Whatever changes a GPU's description or place touches this index.
        if Arc::ptr_eq(&before.gpus, &now.gpus) {
            return None;
        }
        let mut change = Self { revision: now.revision, ..Self::default() };
        change.compare(before, now);
        let count = change.added.len() + change.changed.len() + change.removed.len();
        (count > 0).then_some(change)
    }

    fn compare(&mut self, before: &Snapshot, now: &Snapshot) {
        let of = |snapshot: &Snapshot, name: &str| snapshot.clusters.get(name).cloned();
        for (id, cluster) in &now.clusters {
            let known = of(before, id.as_str());
            if known.as_ref().is_some_and(|known| Arc::ptr_eq(known, cluster)) {
                continue;
            }
            let nothing = Arc::new(Cluster::default());
            let known = known.unwrap_or(nothing);
            for (name, host) in &cluster.hosts {
                let was = known.hosts.get(name);
                if was.is_some_and(|was| Arc::ptr_eq(was, host)) {
                    continue;
                }
                self.compare_host((id, name), was.map(|was| &**was), host);
            }
        }
        for (id, name, host) in before.hosts() {
            if now.host(id.as_str(), name.as_str()).is_none() {
                self.compare_host((id, name), Some(host), &Host::default());
            }
        }
    }

    fn compare_host(&mut self, place: (&ClusterId, &HostName), was: Option<&Host>, now: &Host) {
        let at = |gpu: &Gpu| {
            let (cluster, host) = (place.0.clone(), place.1.clone());
            (GpuPlace { cluster, host, gpu: gpu.id.clone() }, gpu.clone())
        };
        for (id, state) in &now.gpus {
            match was.and_then(|was| was.gpus.get(id)) {
                None => self.added.push(at(&state.about)),
                Some(was) if was.about != state.about => self.changed.push(at(&state.about)),
                Some(_) => {}
            }
        }
        for (id, state) in was.into_iter().flat_map(|was| &was.gpus) {
            if !now.gpus.contains_key(id) {
                self.removed.push(at(&state.about));
            }
        }
    }
}
