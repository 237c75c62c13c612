//! What is true: the audit at one revision, and every row, decoded.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    audit::{AuditReport, audit},
    block::Block,
    etcd::{Change, Entry, Etcd, Event, RangeRead, follow},
    keyspace::{ClaimItem, Claimant, CommitSummary, Cursor, Key, Progress, from_json},
    model::{Timestamp, metric_by_dcgm},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Server,
    fleet::{Fleet, LOOK},
};

/// One sample: host, GPU, metric, time and the value's bits.
pub type Row = (String, String, String, i64, u64);

/// All samples below `path` (`blocks/` or `queue/`), sorted; keys that hold no block fail.
pub async fn stored_rows(etcd: &Etcd, path: &str) -> Vec<Row> {
    let how = RangeRead { page: 64, ..RangeRead::default() };
    let listing = etcd.range(&etcd.keyspace().prefix(path), how).await.unwrap();
    let mut rows: Vec<Row> = listing.entries.into_iter().flat_map(|e| rows_of(e.value)).collect();
    rows.sort_unstable();
    rows
}

/// The samples of one block.
pub fn rows_of(bytes: bytes::Bytes) -> Vec<Row> {
    let mut rows = Vec::new();
    for section in Block::decode(bytes).unwrap().sections {
        let host = section.decode().unwrap();
        for series in &host.series {
            let gpu = series.gpu.map_or("", |gpu| host.gpus[gpu as usize].id.as_str());
            for (at, value) in series.timestamps.iter().zip(&series.values) {
                let (host, metric) = (host.host.to_string(), series.metric.to_string());
                rows.push((host, gpu.to_owned(), metric, *at, value.to_bits()));
            }
        }
    }
    rows
}

/// The samples of a generated file, sorted: read here in another way than the streamer does.
pub fn source_rows(file: &Path) -> Vec<Row> {
    let lines = BufReader::new(std::fs::File::open(file).unwrap()).lines().skip(1);
    let mut rows: Vec<Row> = lines
        .map(|line| {
            let line = line.unwrap();
            // Every field is quoted, and only the last, which is not looked at, holds quotes.
            let fields: Vec<&str> = line[1..].splitn(12, "\",\"").collect();
            let [time, field, _, _, uuid, _, host, _, _, _, value, _] = fields[..] else {
                panic!("{line}");
            };
            let metric = metric_by_dcgm(field).map_or(field, |metric| metric.name);
            let at = time.parse::<Timestamp>().unwrap().as_millis();
            let value: f64 = value.parse().unwrap();
            (host.to_owned(), uuid.to_owned(), metric.to_owned(), at, value.to_bits())
        })
        .collect();
    rows.sort_unstable();
    rows
}

/// Fails with the first rows that are missing or too many.
pub fn assert_same_rows(found: &[Row], expected: &[Row]) {
    if found == expected {
        return;
    }
    let mut counts: BTreeMap<&Row, i64> = BTreeMap::new();
    expected.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    found.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    let wrong: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).collect();
    let shown = &wrong[..wrong.len().min(10)];
    panic!("{} rows differ (-1 is lost, 1 is doubled): {shown:?}", wrong.len());
}

/// Audits, and fails unless every invariant holds.
pub async fn audited(etcd: &Etcd) -> AuditReport {
    let report = audit(etcd).await.unwrap();
    assert!(report.clean, "{report:#?}");
    assert_eq!(report.delta, 0);
    report
}

/// Whether everything there is was read and committed.
pub fn is_settled(report: &AuditReport) -> bool {
    report.lanes > 0 && report.lanes == report.lanes_done && report.messages == 0
}

/// Audits again and again until `condition` holds of a report; every one must be clean.
pub async fn audited_until(
    etcd: &Etcd,
    what: &str,
    within: Duration,
    mut condition: impl FnMut(&AuditReport) -> bool,
) -> AuditReport {
    let since = Instant::now();
    loop {
        let report = audited(etcd).await;
        if condition(&report) {
            return report;
        }
        assert!(since.elapsed() < within, "not within {within:?}: {what}: {report:#?}");
        sleep(LOOK).await;
    }
}

/// Waits until all is read and committed, then compares every row with the file.
pub async fn assert_settles_to<S: Server>(fleet: &mut Fleet<S>, file: &Path, within: Duration) {
    let etcd = fleet.connect().await;
    let report = audited_until(&etcd, "all is committed", within, is_settled).await;
    fleet.assert_alive();
    let expected = source_rows(file);
    let rows = expected.len() as u64;
    assert_eq!((report.rows.offered, report.rows.accepted), (rows, rows));
    assert_eq!((report.samples.accepted, report.samples.stored), (rows, rows));
    assert_same_rows(&stored_rows(&etcd, "blocks/").await, &expected);
}

/// Who holds what below `claims/{kind}`.
pub async fn owners(etcd: &Etcd, kind: &str) -> BTreeMap<ClaimItem, String> {
    let range = etcd.keyspace().prefix(&format!("claims/{kind}"));
    let listing = etcd.range(&range, RangeRead::default()).await.unwrap();
    let owner = |entry: &Entry| {
        let Ok(Key::Claim(item)) = etcd.keyspace().parse(&entry.key) else { panic!("{entry:?}") };
        let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
        (item, claimant.instance.to_string())
    };
    listing.entries.iter().map(owner).collect()
}

/// How many items of `owners` `name` holds.
pub fn held(owners: &BTreeMap<ClaimItem, String>, name: &str) -> usize {
    owners.values().filter(|owner| *owner == name).count()
}

/// Watches all positions: none may go back, and none may be written under an older claim than
/// before. That is what fencing promises.
pub struct Historian {
    seen: Arc<Mutex<History>>,
    stop: CancellationToken,
}

#[derive(Default)]
struct History {
    /// Claim, count and revision of each position's last write.
    last: BTreeMap<Vec<u8>, (i64, u64, i64)>,
    writes: u64,
    breaches: Vec<String>,
}

impl Historian {
    /// Begins to watch.
    pub async fn follow<S: Server>(fleet: &Fleet<S>) -> Self {
        let etcd = fleet.connect().await;
        let seen = Arc::new(Mutex::new(History::default()));
        let stop = CancellationToken::new();
        for path in ["shards/", "cursors/", "commits/"] {
            let (tell, mut events) = mpsc::channel(64);
            let range = etcd.keyspace().prefix(path);
            tokio::spawn(follow(etcd.clone(), range, tell, stop.clone()));
            let (seen, etcd) = (Arc::clone(&seen), etcd.clone());
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    let entries = match event {
                        Event::Snapshot { entries, .. } => entries,
                        Event::Changes { changes, .. } => {
                            changes.into_iter().filter_map(put).collect()
                        }
                        Event::Alive => continue,
                    };
                    let mut seen = seen.lock().unwrap();
                    entries.iter().for_each(|entry| seen.note(&etcd, entry));
                }
            });
        }
        Self { seen, stop }
    }

    /// How many writes were seen, none of which broke the rule.
    pub fn assert_sound(&self) -> u64 {
        let seen = self.seen.lock().unwrap();
        assert!(seen.breaches.is_empty(), "{:#?}", seen.breaches);
        assert!(seen.writes > 0, "nothing was written");
        seen.writes
    }
}

impl Drop for Historian {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl History {
    fn note(&mut self, etcd: &Etcd, entry: &Entry) {
        let (claim, count) = position(etcd, entry);
        let (old_claim, old_count, revision) =
            self.last.get(&entry.key).copied().unwrap_or_default();
        if entry.mod_revision <= revision {
            return; // listed again
        }
        self.writes += 1;
        if claim < old_claim || count < old_count {
            let key = String::from_utf8_lossy(&entry.key);
            self.breaches.push(format!(
                "{key}: claim {old_claim}, count {old_count} at revision {revision}, then claim \
                 {claim}, count {count} at {}",
                entry.mod_revision
            ));
        }
        self.last.insert(entry.key.clone(), (claim, count, entry.mod_revision));
    }
}

/// The claim that wrote a position, and what it counts.
fn position(etcd: &Etcd, entry: &Entry) -> (i64, u64) {
    let (key, value) = (&entry.key, &entry.value);
    match etcd.keyspace().parse(key).unwrap() {
        Key::Shard(_) => {
            let progress: Progress = from_json(key, value).unwrap();
            (progress.claim, progress.next)
        }
        Key::Cursor(..) => {
            let cursor: Cursor = from_json(key, value).unwrap();
            (cursor.claim, cursor.next)
        }
        Key::Commit(_) => {
            let summary: CommitSummary = from_json(key, value).unwrap();
            (summary.claim, summary.number)
        }
        other => panic!("{other:?} is no position"),
    }
}

fn put(change: Change) -> Option<Entry> {
    match change {
        Change::Put(entry) => Some(entry),
        Change::Delete(..) => None,
    }
}
