//! What changed from one snapshot to the next, for whoever follows it. Pure.
//!
//! A follower keeps no queue, only what it was told last: one that comes late finds the newest
//! values, and what lay in between is passed over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nexus_common::model::{ClusterId, Gpu, GpuId, HostName, Labels, MetricName};

use crate::{
    rest::Row,
    view::{GpuState, Host, Latest, Snapshot},
};

/// What a follower wants to know.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub(super) cluster: Option<String>,
    pub(super) host: Option<String>,
    /// UUID or id.
    pub(super) gpu: Option<String>,
    /// Names of metrics; all if none is given.
    pub(super) metrics: Option<BTreeSet<String>>,
}

/// What a follower was told: the values themselves, which later snapshots mostly share.
#[derive(Debug, Default)]
pub(super) struct Told {
    gpus: BTreeMap<(ClusterId, HostName, GpuId), Arc<GpuState>>,
    hosts: BTreeMap<(ClusterId, HostName), Arc<Latest>>,
}

impl Told {
    /// Values that are in `now` and were not told yet, as rows of one GPU (or host) and instant.
    pub(super) fn news(&mut self, now: &Snapshot, wanted: &Wanted) -> Vec<Row> {
        let mut rows = Vec::new();
        match &wanted.gpu {
            Some(gpu) => {
                for place in now.places_of(gpu) {
                    let host =
                        now.clusters.get(&place.cluster).and_then(|c| c.hosts.get(&place.host));
                    let state = host.and_then(|host| host.gpus.get(&place.gpu));
                    if let Some(state) = state.filter(|_| wanted.takes(&place.cluster, &place.host))
                    {
                        self.of_gpu((&place.cluster, &place.host), state, wanted, &mut rows);
                    }
                }
            }
            None => {
                for (cluster, name, host) in now.hosts() {
                    if wanted.takes(cluster, name) {
                        self.of_host((cluster, name), host, wanted, &mut rows);
                    }
                }
            }
        }
        rows.sort_by_key(|row| row.timestamp);
        rows
    }

    fn of_host(
        &mut self,
        place: (&ClusterId, &HostName),
        host: &Host,
        wanted: &Wanted,
        rows: &mut Vec<Row>,
    ) {
        for state in host.gpus.values() {
            self.of_gpu(place, state, wanted, rows);
        }
        let key = (place.0.clone(), place.1.clone());
        let before = self.hosts.insert(key, Arc::clone(&host.own));
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &host.own)) {
            changes(place, None, before.as_deref(), &host.own, wanted, rows);
        }
    }

    fn of_gpu(
        &mut self,
        place: (&ClusterId, &HostName),
        state: &Arc<GpuState>,
        wanted: &Wanted,
        rows: &mut Vec<Row>,
    ) {
        let key = (place.0.clone(), place.1.clone(), state.about.id.clone());
        let before = self.gpus.insert(key, Arc::clone(state));
        if before.as_ref().is_none_or(|before| !Arc::ptr_eq(before, state)) {
            let before = before.as_ref().map(|before| &before.latest);
            changes(place, Some(&state.about), before, &state.latest, wanted, rows);
        }
    }
}

impl Wanted {
    fn takes(&self, cluster: &ClusterId, host: &HostName) -> bool {
        self.cluster.as_ref().is_none_or(|wanted| wanted == cluster.as_str())
            && self.host.as_ref().is_none_or(|wanted| wanted == host.as_str())
    }

    fn takes_metric(&self, metric: &MetricName) -> bool {
        self.metrics.as_ref().is_none_or(|wanted| wanted.contains(metric.as_str()))
    }
}

/// Series whose newest value is another than before, instant by instant.
fn changes(
    (cluster, host): (&ClusterId, &HostName),
    gpu: Option<&Gpu>,
    before: Option<&Latest>,
    now: &Latest,
    wanted: &Wanted,
    rows: &mut Vec<Row>,
) {
    let told: BTreeMap<(&MetricName, &Labels), (i64, f64)> =
        before.into_iter().flat_map(Latest::iter).map(|(m, l, at, v)| ((m, l), (at, v))).collect();
    let mut instants: BTreeMap<i64, Vec<(&MetricName, &Labels, f64)>> = BTreeMap::new();
    for (metric, labels, at, value) in now.iter() {
        let known = told.get(&(metric, labels)) == Some(&(at, value));
        if !known && wanted.takes_metric(metric) {
            instants.entry(at).or_default().push((metric, labels, value));
        }
    }
    for (at, values) in instants {
        let gpu = gpu.map(|gpu| (gpu.index.clone(), Some(gpu)));
        rows.push(Row::new((cluster.as_str(), host.as_str()), gpu, at, values.into_iter()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Cluster;

    fn gpu(id: &str) -> Gpu {
        Gpu {
            id: id.parse().unwrap(),
            uuid: id.to_owned(),
            index: "0".to_owned(),
            device: String::new(),
            model: String::new(),
            driver: String::new(),
            mig_profile: String::new(),
        }
    }

    fn put(snapshot: &mut Snapshot, id: &str, metric: &str, at: i64, value: f64) {
        let about = gpu(id);
        let cluster = Arc::make_mut(snapshot.clusters.entry("c".parse().unwrap()).or_default());
        let cluster: &mut Cluster = cluster;
        let host = Arc::make_mut(cluster.hosts.entry("h".parse().unwrap()).or_default());
        let new = || Arc::new(GpuState { about: about.clone(), latest: Latest::default() });
        let state = Arc::make_mut(host.gpus.entry(about.id.clone()).or_insert_with(new));
        state.latest.put(&metric.parse().unwrap(), &Labels::default(), at, value);
    }

    fn told(rows: &[Row]) -> Vec<(i64, String, Option<f64>, Option<f64>)> {
        let row = |r: &Row| {
            (r.timestamp.as_millis(), r.uuid.clone().unwrap(), r.temperature, r.power_draw)
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn everything_is_told_once_and_then_what_changed_alone() {
        let (mut follower, wanted) = (Told::default(), Wanted::default());
        let mut now = Snapshot::empty(1);
        put(&mut now, "a", "temperature", 1000, 60.0);
        put(&mut now, "a", "power_draw", 2000, 300.0);
        let rows = follower.news(&now, &wanted);
        let a = || "a".to_owned();
        assert_eq!(told(&rows), [(1000, a(), Some(60.0), None), (2000, a(), None, Some(300.0))]);
        assert_eq!(follower.news(&now, &wanted), []);
        put(&mut now, "a", "temperature", 3000, 61.0);
        put(&mut now, "b", "temperature", 2500, 50.0);
        let rows = follower.news(&now, &wanted);
        let b = (2500, "b".to_owned(), Some(50.0), None);
        assert_eq!(told(&rows), [b, (3000, a(), Some(61.0), None)]);
    }

    #[test]
    fn only_what_is_wanted_is_told() {
        let mut now = Snapshot::empty(1);
        put(&mut now, "a", "temperature", 1000, 60.0);
        put(&mut now, "a", "power_draw", 1000, 300.0);
        put(&mut now, "b", "temperature", 1000, 50.0);
        let check = |wanted: Wanted, expected: usize| {
            assert_eq!(Told::default().news(&now, &wanted).len(), expected, "{wanted:?}");
        };
        let some = |text: &str| Some(text.to_owned());
        check(Wanted::default(), 2);
        check(Wanted { cluster: some("other"), ..Wanted::default() }, 0);
        check(Wanted { host: some("other"), ..Wanted::default() }, 0);
        let metrics = Some(BTreeSet::from(["power_draw".to_owned()]));
        check(Wanted { metrics: metrics.clone(), ..Wanted::default() }, 1);
        let rows = Told::default().news(&now, &Wanted { metrics, ..Wanted::default() });
        assert_eq!((rows[0].temperature, rows[0].power_draw), (None, Some(300.0)));
    }
}
