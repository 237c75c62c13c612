//! Who is asked: which targets a shard has, and when each is due.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use nexus_common::{
    keyspace::live::{Scrape, Target},
    model::HostName,
    sources::series::host_of_address,
};
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::{FetchError, Stamp, read_at_most, stamp};

/// Largest file of targets, in bytes, and most targets of one shard: about a question a
/// millisecond at a usual interval, more than one shard can carry.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 20;
pub(crate) const SHARD_TARGETS_MAX: usize = 10_000;
/// How late a target is still asked, at least and in parts of its interval: what it answers is
/// written down as of the instant that it was due, and the next one follows soon. Later, that
/// instant is missed.
const LATE_MS: u64 = 100;
const LATE_PART: u64 = 4;
/// Files that are remembered: more than a source names at most.
const FILES_MAX: usize = 256;

/// One entry of a file of targets, as Prometheus' `file_sd` has them, in JSON or YAML.
#[derive(Debug, Deserialize)]
struct Group {
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// What is wrong with a file of targets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetsError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("read {0}: not a list of groups with targets")]
    Format(String, #[source] Box<serde_saphyr::Error>),
}

/// Files of targets, each read once for all shards of a process, and again when it changed.
#[derive(Debug, Default)]
pub(crate) struct TargetFiles(Mutex<HashMap<String, Known>>);

/// A file that was read, and what it is told by.
#[derive(Debug)]
struct Known {
    is: Stamp,
    targets: Arc<Vec<Target>>,
}

impl TargetFiles {
    /// The targets of a file: the same ones as long as it does not change. Blocking.
    pub(crate) fn read(&self, path: &str) -> Result<Arc<Vec<Target>>, TargetsError> {
        // Before it is read: what is written meanwhile is another file.
        let is = stamp(path).map_err(|error| FetchError::File(path.to_owned(), error))?;
        // Nothing in here panics half way. Held while it is read: the others wait for it.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(path).filter(|known| known.is == is) {
            return Ok(Arc::clone(&known.targets));
        }
        let targets = Arc::new(read_file(path)?);
        if known.len() >= FILES_MAX {
            known.clear();
        }
        known.insert(path.to_owned(), Known { is, targets: Arc::clone(&targets) });
        Ok(targets)
    }
}

/// The targets of a file; `__scheme__` and `__metrics_path__` are understood, and `host`.
fn read_file(path: &str) -> Result<Vec<Target>, TargetsError> {
    groups(&read_at_most(path, FILE_BYTES_MAX)?, path)
}

/// The targets of a list that stands at `path`.
pub(super) fn groups(bytes: &[u8], path: &str) -> Result<Vec<Target>, TargetsError> {
    // JSON is YAML, and read much faster as what it is.
    let groups: Vec<Group> = match serde_json::from_slice(bytes) {
        Ok(groups) => groups,
        Err(_) => serde_saphyr::from_str(&String::from_utf8_lossy(bytes))
            .map_err(|error| TargetsError::Format(path.to_owned(), Box::new(error)))?,
    };
    let mut targets = Vec::new();
    for group in groups {
        let label =
            |name: &str, or: &str| group.labels.get(name).map_or(or, String::as_str).to_owned();
        let (scheme, path) = (label("__scheme__", "http"), label("__metrics_path__", "/metrics"));
        for address in group.targets {
            let url = format!("{scheme}://{address}{path}");
            let host = group.labels.get("host").cloned();
            targets.push(Target { url, host, interval_ms: None });
        }
    }
    Ok(targets)
}

/// Which shard asks a target: by its URL alone, so that it never has two.
pub(crate) fn shard_of(url: &str, shards: u32) -> u32 {
    // Below `shards`, so it fits.
    (xxh3_64(url.as_bytes()) % u64::from(shards.max(1))) as u32
}

/// One shard's targets, each once.
pub(crate) fn of_shard<'a>(
    all: impl IntoIterator<Item = &'a Target>,
    scrape: &Scrape,
    shard: u32,
) -> Vec<Target> {
    let mine = all.into_iter().filter(|t| shard_of(&t.url, scrape.target_shards) == shard);
    let mine: BTreeMap<&str, &Target> = mine.map(|t| (t.url.as_str(), t)).collect();
    mine.into_values().take(SHARD_TARGETS_MAX).cloned().collect()
}

/// The host whose metrics a target tells if they do not say so themselves.
pub(crate) fn host_of(target: &Target) -> Option<HostName> {
    let address = target.url.split("://").nth(1)?.split('/').next()?;
    HostName::new(target.host.as_deref().unwrap_or(host_of_address(address))).ok()
}

/// The first instant at or after `from` at which a target is asked: on a grid of its interval,
/// moved by its own part of it, so that not all are asked at once.
pub(crate) fn due(url: &str, interval: u64, from: u64) -> u64 {
    let interval = interval.max(1);
    let phase = xxh3_64(url.as_bytes()) / 7 % interval;
    from.saturating_sub(phase).div_ceil(interval).saturating_mul(interval).saturating_add(phase)
}

/// How many instants from `due` on are missed by `now`, and the one to ask at, unless it is too
/// late for the newest one, too. `due` is not after `now`.
pub(crate) fn question_at(due: u64, interval: u64, now: u64) -> (u64, Option<u64>) {
    let interval = interval.max(1);
    let passed = now.saturating_sub(due) / interval;
    let newest = due + passed * interval;
    if now.saturating_sub(newest) > LATE_MS.max(interval / LATE_PART) {
        (passed + 1, None)
    } else {
        (passed, Some(newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, host: Option<&str>) -> Target {
        Target { url: url.to_owned(), host: host.map(str::to_owned), interval_ms: None }
    }

    #[test]
    fn the_host_is_named_or_that_of_the_address() {
        let check = |url: &str, host, expected: Option<&str>| {
            let found = host_of(&target(url, host));
            assert_eq!(found.as_ref().map(HostName::as_str), expected, "{url}");
        };
        check("http://dgx-1:9400/metrics", None, Some("dgx-1"));
        check("http://10.0.0.1/metrics", None, Some("10.0.0.1"));
        check("http://[::1]:9100/metrics", None, Some("::1"));
        check("http://10.0.0.1:9100/metrics", Some("dgx-1"), Some("dgx-1"));
        check("http://10.0.0.1:9100/metrics", Some("dgx/1"), None);
    }

    #[test]
    fn each_target_is_due_once_an_interval_and_not_all_at_once() {
        let mut phases = std::collections::BTreeSet::new();
        for n in 0..100 {
            let url = format!("http://h{n}:9400/metrics");
            let first = due(&url, 1000, 5_000_000);
            assert!((5_000_000..5_001_000).contains(&first));
            assert_eq!(due(&url, 1000, first), first);
            assert_eq!(due(&url, 1000, first + 1), first + 1000);
            phases.insert(first);
        }
        assert!(phases.len() > 80, "{}", phases.len());
        assert!(due("a", 0, 7) >= 7);
    }

    #[test]
    fn a_question_is_late_by_at_most_a_quarter_of_the_interval() {
        let check = |due, interval, now, expected| {
            assert_eq!(
                question_at(due, interval, now),
                expected,
                "{due} every {interval} at {now}"
            );
        };
        check(5000, 1000, 5000, (0, Some(5000)));
        check(5000, 1000, 5250, (0, Some(5000)));
        check(5000, 1000, 5251, (1, None));
        check(5000, 1000, 8000, (3, Some(8000)));
        check(5000, 1000, 8999, (4, None));
        // A short interval is on time as long as it is not the next one's.
        check(5000, 100, 5099, (0, Some(5000)));
        check(5000, 100, 5100, (1, Some(5100)));
        check(7, 0, 9, (2, Some(9)));
    }

    #[test]
    fn files_of_targets_are_read_as_prometheus_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("targets");
        let check = |text: &str, expected: &[(&str, Option<&str>)]| {
            std::fs::write(&path, text).unwrap();
            let found = read_file(path.to_str().unwrap()).unwrap();
            let expected: Vec<_> = expected.iter().map(|(url, host)| target(url, *host)).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(
            r#"[{"targets": ["a:1", "b:2"]}]"#,
            &[("http://a:1/metrics", None), ("http://b:2/metrics", None)],
        );
        check(
            "- targets: [a:1]\n  labels: {host: dgx, __scheme__: https, __metrics_path__: /m, x: y}\n",
            &[("https://a:1/m", Some("dgx"))],
        );
        check("[]", &[]);
        let files = TargetFiles::default();
        let name = path.to_str().unwrap();
        let first = files.read(name).unwrap();
        assert!(Arc::ptr_eq(&first, &files.read(name).unwrap()));
        std::fs::write(&path, "- targets: [a:1, b:2]").unwrap();
        assert_eq!(files.read(name).unwrap().len(), 2, "it changed");
        std::fs::write(&path, "x: 1").unwrap();
        let error = read_file(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("not a list of groups"), "{error}");
    }
}
