//! Who is asked: which targets a shard has, and when each is due.

use std::collections::BTreeMap;

use nexus_common::{
    keyspace::live::{Scrape, Target},
    model::HostName,
};
use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::{FetchError, read_at_most};

/// Largest file of targets, in bytes, and most targets of one shard: about a question a
/// millisecond at a usual interval, more than one shard can carry.
const FILE_BYTES_MAX: u64 = 16 << 20;
pub(crate) const SHARD_TARGETS_MAX: usize = 10_000;

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

/// The targets of a file; `__scheme__` and `__metrics_path__` are understood, and `host`.
pub(crate) fn read_file(path: &str) -> Result<Vec<Target>, TargetsError> {
    let bytes = read_at_most(path, FILE_BYTES_MAX)?;
    let groups: Vec<Group> = serde_saphyr::from_str(&String::from_utf8_lossy(&bytes))
        .map_err(|error| TargetsError::Format(path.to_owned(), Box::new(error)))?;
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
pub(crate) fn of_shard(
    all: impl IntoIterator<Item = Target>,
    scrape: &Scrape,
    shard: u32,
) -> Vec<Target> {
    let mine = all.into_iter().filter(|t| shard_of(&t.url, scrape.target_shards) == shard);
    let mine: BTreeMap<String, Target> = mine.map(|t| (t.url.clone(), t)).collect();
    mine.into_values().take(SHARD_TARGETS_MAX).collect()
}

/// The host whose metrics a target tells if they do not say so themselves.
pub(crate) fn host_of(target: &Target) -> Option<HostName> {
    let address = target.url.split("://").nth(1)?.split('/').next()?;
    let host = match address.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => address,
    };
    HostName::new(target.host.as_deref().unwrap_or(host.trim_matches(['[', ']']))).ok()
}

/// The first instant at or after `from` at which a target is asked: on a grid of its interval,
/// moved by its own part of it, so that not all are asked at once.
pub(crate) fn due(url: &str, interval: u64, from: u64) -> u64 {
    let interval = interval.max(1);
    let phase = xxh3_64(url.as_bytes()) / 7 % interval;
    from.saturating_sub(phase).div_ceil(interval).saturating_mul(interval).saturating_add(phase)
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
        std::fs::write(&path, "x: 1").unwrap();
        let error = read_file(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("not a list of groups"), "{error}");
    }
}
