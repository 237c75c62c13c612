//! What a source shall be, checked before etcd is asked.

use std::collections::BTreeSet;

use super::{SourceError, discover};
use crate::{
    keyspace::{
        Mapping, Source, SourceKind,
        live::{
            BODY_BYTES, DISCOVER_MAX, GPUS_MAX, HOSTS_MAX, INTERVAL_MS, LISTED_MAX, Login, Nvml,
            PUSH_SHARDS, SCRAPE_SHARDS_MAX, Scrape, Simulate, TARGETS_MAX,
        },
    },
    limits::SECTION_SERIES_MAX,
    model::{HostName, MetricName, SourceId, Timestamp},
};

/// Longest path of a file, in bytes: Linux takes none that is longer.
const PATH_BYTES_MAX: usize = 4096;
/// Longest URL of a target, in bytes: with [`TARGETS_MAX`] of them a value still fits in etcd.
const URL_BYTES_MAX: usize = 512;
/// Zones of the world, in seconds east of UTC.
const EAST_SECONDS: std::ops::RangeInclusive<i32> = -12 * 3600..=14 * 3600;
/// Most columns that a mapping names of a kind: a value in etcd stays small.
const COLUMNS_MAX: usize = 256;
/// Slowest and fastest replay, in thousandths of real time.
const SPEED_MILLI: std::ops::RangeInclusive<u64> = 1..=100_000_000;

/// What applying a source does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It reads something else from now on.
    Changed,
    /// It was so already.
    Unchanged,
}

/// A source as somebody wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    kind: SourceKind,
}

impl Wanted {
    /// Checks what is wanted.
    ///
    /// # Errors
    /// Names what was given wrong and what is allowed.
    pub fn new(kind: SourceKind) -> Result<Self, SourceError> {
        match &kind {
            SourceKind::Declared { path, speed_milli, mapping, .. } => {
                if !path.starts_with('/') && path.contains("://") {
                    check_web(path)?
                } else {
                    check_path(path)?
                }
                mapping.iter().try_for_each(|mapping| check_mapping(mapping))?;
                if let Some(speed) = speed_milli.filter(|speed| !SPEED_MILLI.contains(speed)) {
                    let reason = format!("{} is not from 0.001 to 100000", speed as f64 / 1000.0);
                    return Err(SourceError::Field { field: "replaySpeed", reason });
                }
            }
            SourceKind::Csv { .. } => {}
            SourceKind::Follow(follow) => {
                check_path(&follow.path)?;
                follow.mapping.iter().try_for_each(|mapping| check_mapping(mapping))?;
            }
            SourceKind::Simulate(simulate) => check_simulate(simulate)?,
            SourceKind::Scrape(scrape) => check_scrape(scrape)?,
            SourceKind::Nvml(nvml) => {
                check_range("interval, in milliseconds,", nvml.interval_ms, INTERVAL_MS)?;
            }
            SourceKind::Push => {}
        }
        Ok(Self { kind })
    }

    /// As it comes into being.
    pub(super) fn source(&self) -> Source {
        let shards = shards(&self.kind);
        let kind = self.kind.clone();
        Source { kind, shards, created_at: Timestamp::now(), paused: false }
    }

    /// What stands in `is`'s place when it becomes what is wanted; none if nothing changes. What
    /// hosts and targets were dealt to shards by stays, and so does the end: a shard that was read to it is done.
    pub(super) fn in_place_of(
        &self,
        id: &SourceId,
        is: &Source,
    ) -> Result<Option<Source>, SourceError> {
        let kind = match (&self.kind, &is.kind) {
            (SourceKind::Simulate(wanted), SourceKind::Simulate(old)) => {
                let (hosts_per_shard, until) = (old.hosts_per_shard, old.until);
                SourceKind::Simulate(Simulate { hosts_per_shard, until, ..wanted.clone() })
            }
            (SourceKind::Scrape(wanted), SourceKind::Scrape(old)) => {
                let target_shards = old.target_shards;
                SourceKind::Scrape(Box::new(Scrape { target_shards, ..(**wanted).clone() }))
            }
            (SourceKind::Nvml(wanted), SourceKind::Nvml(old)) => same_host(id, wanted, old)?,
            (SourceKind::Push, SourceKind::Push) => return Ok(None),
            (wanted, old) if same_file(wanted, old) => return Ok(None),
            (SourceKind::Declared { .. }, SourceKind::Declared { .. } | SourceKind::Csv { .. })
            | (SourceKind::Follow(_), SourceKind::Follow(_)) => {
                let reason = format!(
                    "{id} reads another file, or the same in another way; choose a new name"
                );
                return Err(SourceError::Field { field: "path", reason });
            }
            (wanted, old) => {
                let (is, wanted) = (name(old), name(wanted));
                let reason =
                    format!("{id} is of kind {is} and cannot become {wanted}; choose a new name");
                return Err(SourceError::Field { field: "kind", reason });
            }
        };
        let source = Source { shards: shards(&kind), kind, ..is.clone() };
        Ok((source != *is).then_some(source))
    }
}

fn name(kind: &SourceKind) -> &'static str {
    match kind {
        SourceKind::Follow(_) => "csv with follow",
        kind => kind.as_str(),
    }
}

/// Of a file nobody knows before it was opened.
fn shards(kind: &SourceKind) -> u32 {
    match kind {
        SourceKind::Declared { .. } | SourceKind::Csv { .. } => 0,
        // Its rows come one after the other.
        SourceKind::Follow(_) => 1,
        SourceKind::Simulate(simulate) => simulate.shards(),
        SourceKind::Scrape(scrape) => scrape.target_shards,
        SourceKind::Nvml(_) => 1,
        SourceKind::Push => PUSH_SHARDS,
    }
}

fn same_file(wanted: &SourceKind, is: &SourceKind) -> bool {
    let SourceKind::Declared { path, speed_milli, looped, mapping } = wanted else {
        return matches!(wanted, SourceKind::Follow(_)) && wanted == is;
    };
    match is {
        SourceKind::Declared { .. } => wanted == is,
        SourceKind::Csv { path: is, replay, mapping: mapped, .. } => {
            let speed = speed_milli.or(looped.then_some(1000));
            path == is
                && mapping == mapped
                && speed == replay.as_ref().map(|replay| replay.speed_milli)
                && *looped == replay.as_ref().is_some_and(|replay| replay.looped)
        }
        _ => false,
    }
}

/// Whether it can be used at all; which columns there are only the file says.
pub(super) fn check_mapping(mapping: &Mapping) -> Result<(), SourceError> {
    let bad = |reason: String| Err(SourceError::Field { field: "mapping", reason });
    check_range("utc_offset, in seconds,", mapping.utc_offset_seconds, EAST_SECONDS)?;
    let listed = mapping.metrics.len().max(mapping.labels.len());
    check_range("columns of the mapping, their number,", listed, 0..=COLUMNS_MAX)?;
    for (column, one) in [("host", &mapping.host_is), ("gpu", &mapping.gpu_is)] {
        let other = if column == "host" { &mapping.host } else { &mapping.gpu };
        if one.is_some() && other.is_some() {
            return bad(format!("it has both {column} and {column}_is; give one"));
        }
    }
    if let Some(host) = &mapping.host_is {
        HostName::new(host)
            .map_err(|e| SourceError::Field { field: "host_is", reason: e.to_string() })?;
    }
    if mapping.metric.is_some() != mapping.value.is_some() {
        return bad("metric and value go together: where a row is a sample".to_owned());
    }
    if mapping.metric.is_some() && !mapping.metrics.is_empty() {
        return bad("it has both metric and metrics; a row is a sample or a point".to_owned());
    }
    for name in mapping.metrics.values() {
        MetricName::new(name)
            .map_err(|e| SourceError::Field { field: "metrics", reason: e.to_string() })?;
    }
    Ok(())
}

/// What was told of one host goes on being told of that one.
fn same_host(id: &SourceId, wanted: &Nvml, old: &Nvml) -> Result<SourceKind, SourceError> {
    if wanted.host == old.host {
        return Ok(SourceKind::Nvml(wanted.clone()));
    }
    let reason = format!("{id} reads the GPUs of {}; choose a new name", old.host);
    Err(SourceError::Field { field: "host", reason })
}

fn check_simulate(simulate: &Simulate) -> Result<(), SourceError> {
    check_range("hosts", simulate.hosts, 1..=HOSTS_MAX)?;
    check_range("gpus", simulate.gpus, 1..=GPUS_MAX)?;
    check_range("interval, in milliseconds,", simulate.interval_ms, INTERVAL_MS)?;
    check_range("hosts_per_shard", simulate.hosts_per_shard, 1..=HOSTS_MAX)
}

fn check_scrape(scrape: &Scrape) -> Result<(), SourceError> {
    check_range("targets, their number,", scrape.targets.len(), 0..=TARGETS_MAX)?;
    check_range("files, their number,", scrape.files.len(), 0..=LISTED_MAX)?;
    check_range("discover, their number,", scrape.discover.len(), 0..=DISCOVER_MAX)?;
    let secured = scrape.ca_file.is_some();
    scrape.discover.iter().try_for_each(|one| discover::check(one, secured))?;
    if scrape.targets.is_empty() && scrape.files.is_empty() && scrape.discover.is_empty() {
        let reason = "there are neither targets nor files or discover that name any".to_owned();
        return Err(SourceError::Field { field: "targets", reason });
    }
    let rules = &scrape.rules;
    for listed in [rules.keep.len(), rules.drop.len(), rules.rename.len()] {
        check_range("rules, the number of one kind,", listed, 0..=LISTED_MAX)?;
    }
    for name in rules.rename.values() {
        MetricName::new(name)
            .map_err(|e| SourceError::Field { field: "rename", reason: e.to_string() })?;
    }
    check_range("interval, in milliseconds,", scrape.interval_ms, INTERVAL_MS)?;
    check_range("timeout, in milliseconds,", scrape.timeout_ms, 10..=scrape.interval_ms)?;
    check_range("body_bytes_max", scrape.body_bytes_max, BODY_BYTES)?;
    check_range("series_max", scrape.series_max, 1..=SECTION_SERIES_MAX as u64)?;
    check_range("shards", scrape.target_shards, 1..=SCRAPE_SHARDS_MAX)?;
    let login = match &scrape.login {
        Login::None => None,
        Login::Bearer { token_file } => Some(token_file),
        Login::Basic { password_file, .. } => Some(password_file),
    };
    if scrape.cert_file.is_some() != scrape.key_file.is_some() {
        let reason = "cert_file and key_file go together: a certificate and its key".to_owned();
        return Err(SourceError::Field { field: "cert_file", reason });
    }
    let shown = scrape.cert_file.iter().chain(&scrape.key_file);
    let paths = scrape.files.iter().chain(&scrape.ca_file).chain(login).chain(shown);
    paths.map(String::as_str).try_for_each(check_path)?;
    let mut urls = BTreeSet::new();
    for target in &scrape.targets {
        check_url(&target.url, secured)?;
        if let Some(host) = &target.host {
            HostName::new(host)
                .map_err(|e| SourceError::Field { field: "host", reason: e.to_string() })?;
        }
        if let Some(interval) = target.interval_ms {
            check_range("interval, in milliseconds,", interval, INTERVAL_MS)?;
        }
        if !urls.insert(&target.url) {
            let reason = format!("{} stands there twice", target.url);
            return Err(SourceError::Field { field: "targets", reason });
        }
    }
    Ok(())
}

/// Whether it names a server and no user, in characters that stand in a URL.
fn is_url(url: &str, bytes_max: usize) -> bool {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let address = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let plain = url.chars().all(|c| c.is_ascii_graphic());
    !address.is_empty() && !address.contains('@') && plain && url.len() <= bytes_max
}

/// Whether a streamer could fetch it.
fn check_web(url: &str) -> Result<(), SourceError> {
    if is_url(url, PATH_BYTES_MAX) {
        return Ok(());
    }
    let reason = format!("{url:?} is not like https://data.example.org/export.csv, without a user");
    Err(SourceError::Field { field: "path", reason })
}

/// Whether a streamer could ask there.
pub(super) fn check_url(url: &str, secured: bool) -> Result<(), SourceError> {
    let bad = |reason: String| Err(SourceError::Field { field: "url", reason });
    if !is_url(url, URL_BYTES_MAX) {
        return bad(format!("{url:?} is not like http://node:9100/metrics"));
    }
    if url.starts_with("https://") && !secured {
        return bad(format!("{url} needs ca_file: the authorities it is checked with"));
    }
    Ok(())
}

pub(super) fn check_range<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
) -> Result<(), SourceError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let reason = format!("{value} is not from {} to {}", allowed.start(), allowed.end());
    Err(SourceError::Field { field, reason })
}

/// Whether a streamer could open it, wherever it runs.
fn check_path(path: &str) -> Result<(), SourceError> {
    let bad = |reason: String| Err(SourceError::Field { field: "path", reason });
    if path.len() > PATH_BYTES_MAX {
        return bad(format!("it has {} bytes, at most {PATH_BYTES_MAX} are allowed", path.len()));
    }
    if !path.starts_with('/') {
        return bad(format!("{path:?} is not absolute, such as /data/export.csv"));
    }
    if path.chars().any(char::is_control) {
        return bad(format!("{path:?} has control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_streamer_could_open_is_refused() {
        let check = |path: &str, expected: Option<&str>| {
            let said = check_path(path).err().map(|error| error.to_string());
            assert_eq!(said.as_deref(), expected, "{path:?}");
        };
        check("/data/export.csv", None);
        check("export.csv", Some("path: \"export.csv\" is not absolute, such as /data/export.csv"));
        check("", Some("path: \"\" is not absolute, such as /data/export.csv"));
        check("/a\n", Some("path: \"/a\\n\" has control characters"));
        check(&format!("/{}", "a".repeat(4095)), None);
        let told = "path: it has 4097 bytes, at most 4096 are allowed";
        check(&format!("/{}", "a".repeat(4096)), Some(told));
    }

    #[test]
    fn a_csv_may_lie_on_a_web_server() {
        let check = |path: &str, expected: bool| {
            let (path, speed_milli, mapping) = (path.to_owned(), None, None);
            let told =
                Wanted::new(SourceKind::Declared { path, speed_milli, looped: false, mapping });
            assert_eq!(told.is_ok(), expected, "{told:?}");
        };
        check("https://data.example.org/export.csv?day=7", true);
        check("http://[::1]:8080/a.csv", true);
        check("/a://b", true);
        for bad in ["ftp://a/b", "https://", "https:///a", "http://me:pw@a/b", "http://a/b c"] {
            check(bad, false);
        }
    }
}
