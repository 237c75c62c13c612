//! The file that says which sources there shall be.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
};

use anyhow::{Context, bail};
use nexus_common::{
    keyspace::{
        Follow, Mapping, SourceKind,
        live::{Login, Nvml, Rules, SCRAPE_SHARDS, Scrape, Simulate, Target},
    },
    model::{ClusterId, HostName, SourceId, Timestamp},
    sources::Wanted,
};
use serde::Deserialize;

use super::discover::Discovered;
use crate::{interval::parse_ms, mapping::parse_offset};

/// Largest file, in bytes: thousands of sources. Bounds what a wrong path makes us read.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sources: Vec<Entry>,
}

/// One source: a name, and one kind with what it takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: SourceId,
    csv: Option<Csv>,
    simulate: Option<Simulated>,
    scrape: Option<Scraped>,
    nvml: Option<Local>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Csv {
    path: String,
    speed: Option<f64>,
    #[serde(default, rename = "loop")]
    looped: bool,
    #[serde(default)]
    follow: bool,
    mapping: Option<Mapped>,
}

/// Columns by their names in the header, and what holds for all rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapped {
    time: Option<String>,
    #[serde(default)]
    utc_offset: Offset,
    host: Option<String>,
    host_is: Option<String>,
    gpu: Option<String>,
    gpu_is: Option<String>,
    metric: Option<String>,
    value: Option<String>,
    #[serde(default)]
    metrics: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// How far east of UTC, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Offset(i32);

impl TryFrom<String> for Offset {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_offset(&text).map(Self)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Simulated {
    hosts: u32,
    gpus: u32,
    #[serde(default = "second")]
    interval: Length,
    #[serde(default = "one")]
    seed: u32,
    cluster: Option<ClusterId>,
    until: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scraped {
    #[serde(default)]
    targets: Vec<Asked>,
    #[serde(default)]
    files: Vec<String>,
    #[serde(default)]
    discover: Vec<Discovered>,
    #[serde(default = "ten_seconds")]
    interval: Length,
    timeout: Option<Length>,
    #[serde(default = "body_bytes_max")]
    body_bytes_max: u64,
    #[serde(default = "series_max")]
    series_max: u64,
    #[serde(default)]
    honour_times: bool,
    bearer: Option<Bearer>,
    basic: Option<Basic>,
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    rename: BTreeMap<String, String>,
    cluster: Option<ClusterId>,
    #[serde(default = "shards")]
    shards: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Local {
    host: HostName,
    #[serde(default = "second")]
    interval: Length,
    cluster: Option<ClusterId>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    url: String,
    host: Option<String>,
    interval: Option<Length>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bearer {
    token_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Basic {
    user: String,
    password_file: String,
}

/// A length of time, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Length(pub(super) u64);

impl TryFrom<String> for Length {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        parse_ms(&text).map(Self)
    }
}

fn second() -> Length {
    Length(1000)
}

fn ten_seconds() -> Length {
    Length(10_000)
}

/// Sixteen MiB: ten times what a node exporter tells.
fn body_bytes_max() -> u64 {
    16 << 20
}

/// Several times what an exporter of sixteen GPUs tells.
fn series_max() -> u64 {
    10_000
}

fn shards() -> u32 {
    SCRAPE_SHARDS
}

fn one() -> u32 {
    1
}

/// Reads the sources a file asks for; `-` is standard input.
///
/// # Errors
/// Names the file, and the line or the source, and what is allowed there.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<(SourceId, Wanted)>> {
    let mut text = String::new();
    let limited = |from: &mut dyn Read, text: &mut String| {
        from.take(BYTES_MAX + 1).read_to_string(text).map(drop)
    };
    let read = if path == Path::new("-") {
        limited(&mut std::io::stdin().lock(), &mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| limited(&mut file, &mut text))
    };
    let path = path.display();
    read.with_context(|| format!("read {path}"))?;
    if text.len() as u64 > BYTES_MAX {
        bail!("read {path}: it has more than {BYTES_MAX} bytes");
    }
    parse(&text).with_context(|| format!("read {path}"))
}

fn parse(text: &str) -> anyhow::Result<Vec<(SourceId, Wanted)>> {
    let file: File = serde_saphyr::from_str(text)?;
    let mut names = BTreeSet::new();
    let mut sources = Vec::with_capacity(file.sources.len());
    for entry in file.sources {
        let name = entry.name.clone();
        if !names.insert(name.clone()) {
            bail!("source {name} stands there twice");
        }
        let wanted = wanted(entry).with_context(|| format!("source {name}"))?;
        sources.push((name, wanted));
    }
    Ok(sources)
}

fn wanted(entry: Entry) -> anyhow::Result<Wanted> {
    let scraped = entry.scrape.map(scrape).transpose()?;
    let local = entry.nvml.map(nvml);
    let kinds = [entry.csv.map(csv).transpose()?, entry.simulate.map(simulate), scraped, local];
    let mut kinds = kinds.into_iter().flatten();
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) => Ok(Wanted::new(kind)?),
        _ => bail!("it must have exactly one of csv, simulate, scrape and nvml"),
    }
}

fn mapping(mapped: Mapped) -> Mapping {
    let Mapped { time, utc_offset, host, host_is, gpu, gpu_is, metric, value, metrics, labels } =
        mapped;
    let utc_offset_seconds = utc_offset.0;
    Mapping { time, utc_offset_seconds, host, host_is, gpu, gpu_is, metric, value, metrics, labels }
}

fn csv(csv: Csv) -> anyhow::Result<SourceKind> {
    let mapping = csv.mapping.map(mapping).map(Box::new);
    if csv.follow {
        if csv.speed.is_some() || csv.looped {
            bail!(
                "a csv with follow has no end to begin again at: it takes neither speed nor loop"
            );
        }
        return Ok(SourceKind::Follow(Follow { path: csv.path, mapping }));
    }
    // What is out of range stays so, and is told with the range.
    let speed_milli = csv.speed.map(|speed| (speed * 1000.0).round().max(0.0) as u64);
    Ok(SourceKind::Declared { path: csv.path, speed_milli, looped: csv.looped, mapping })
}

fn simulate(simulated: Simulated) -> SourceKind {
    SourceKind::Simulate(Simulate {
        cluster: simulated.cluster,
        hosts: simulated.hosts,
        gpus: simulated.gpus,
        interval_ms: simulated.interval.0,
        seed: simulated.seed,
        until: simulated.until,
        hosts_per_shard: Simulate::plan_hosts_per_shard(simulated.hosts),
    })
}

fn nvml(local: Local) -> SourceKind {
    let Local { host, interval, cluster } = local;
    SourceKind::Nvml(Nvml { cluster, host, interval_ms: interval.0 })
}

fn scrape(scraped: Scraped) -> anyhow::Result<SourceKind> {
    let login = match (scraped.bearer, scraped.basic) {
        (None, None) => Login::None,
        (Some(Bearer { token_file }), None) => Login::Bearer { token_file },
        (None, Some(Basic { user, password_file })) => Login::Basic { user, password_file },
        (Some(_), Some(_)) => bail!("it must not have both bearer and basic"),
    };
    let targets = scraped.targets.into_iter().map(|Asked { url, host, interval }| Target {
        url,
        host,
        interval_ms: interval.map(|length| length.0),
    });
    let interval_ms = scraped.interval.0;
    let discover = scraped.discover.into_iter().map(Discovered::value);
    let discover = discover.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(SourceKind::Scrape(Box::new(Scrape {
        cluster: scraped.cluster,
        targets: targets.collect(),
        files: scraped.files,
        discover,
        interval_ms,
        timeout_ms: scraped.timeout.map_or(interval_ms.min(10_000), |length| length.0),
        body_bytes_max: scraped.body_bytes_max,
        series_max: scraped.series_max,
        honour_times: scraped.honour_times,
        login,
        ca_file: scraped.ca_file,
        cert_file: scraped.cert_file,
        key_file: scraped.key_file,
        rules: Rules { keep: scraped.keep, drop: scraped.drop, rename: scraped.rename },
        target_shards: scraped.shards,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_what_is_allowed() {
        let check = |text: &str, expected: &[&str]| {
            let error = parse(text).map(|sources| sources.len()).unwrap_err();
            let told = format!("{error:#}");
            assert!(expected.iter().all(|part| told.contains(part)), "{told}");
        };
        let one = |body: &str| format!("sources:\n  - name: a\n    {body}\n");
        check("sources: [{name: a/b, csv: {path: /a}}]", &["line 1", "[A-Za-z0-9._:-]"]);
        check(&one("sim: {}"), &["line 3", "sim", "simulate"]);
        check(&one("simulate: {hosts: 1}"), &["line 3", "gpus"]);
        check(
            &one("simulate: {hosts: 1, gpus: 99}"),
            &["source a", "gpus: 99 is not from 1 to 16"],
        );
        check(&one("simulate: {hosts: x, gpus: 1}"), &["line 3", "x"]);
        check(
            &one("simulate: {hosts: 1, gpus: 1, interval: 1}"),
            &["line 3", "500ms, 1s, 2m or 1h"],
        );
        check(&one("simulate: {hosts: 1, gpus: 1, interval: 1ms}"), &["not from 100 to 86400000"]);
        check(&one("csv: {path: a.csv}"), &["source a", "is not absolute"]);
        check(&one("csv: {path: /a, speed: -1}"), &["from 0.001 to 100000"]);
        check(&one("csv: {path: /a, follow: true, loop: true}"), &["neither speed nor loop"]);
        let mapped = |mapping: &str| one(&format!("csv: {{path: /a, mapping: {mapping}}}"));
        check(&mapped("{utc_offset: CET}"), &["is not like +02:00"]);
        check(&mapped("{when: x}"), &["when", "time"]);
        check(&mapped("{host: a, host_is: b}"), &["both host and host_is"]);
        check(&mapped("{metric: a}"), &["metric and value go together"]);
        check(&mapped("{metrics: {a: 1b}}"), &["metrics"]);
        check(&one("nvml: {interval: 1s}"), &["line 3", "host"]);
        check(&one("nvml: {host: a/b}"), &["line 3", "[A-Za-z0-9._:-]"]);
        check(&one("nvml: {host: a, interval: 1ms}"), &["not from 100 to 86400000"]);
        let scraped =
            |more: &str| one(&format!("scrape: {{targets: [{{url: \"http://a/m\"}}], {more}}}"));
        check(&scraped("cert_file: /c"), &["source a", "cert_file and key_file go together"]);
        check(&scraped("cert_file: /c, key_file: k"), &["\"k\" is not absolute"]);
        let found = |from: &str| one(&format!("scrape: {{discover: [{{{from}}}]}}"));
        check(&one("scrape: {}"), &["neither targets nor files or discover"]);
        check(&found("web: {}"), &["line 3", "web", "http"]);
        check(&found(""), &["exactly one of http, dns and kubernetes"]);
        check(&found("http: {url: \"ftp://a\"}"), &["is not like http://node:9100/metrics"]);
        check(&found("http: {url: \"https://a/t\"}"), &["needs ca_file"]);
        check(&found("http: {url: \"http://a/t\", refresh: 1s}"), &["not from 5000 to 86400000"]);
        check(&found("dns: {name: a b}"), &["source a", "\"a b\" is not like _dcgm._tcp"]);
        check(&found("dns: {name: a, record: mx}"), &["line 3", "srv", "aaaa"]);
        check(&found("dns: {name: a, port: 1}"), &["SRV records say it"]);
        check(&found("dns: {name: a, record: a}"), &["addresses do not say it", "1 to 65535"]);
        check(&found("dns: {name: a, path: m}"), &["\"m\" is not like /metrics"]);
        check(&found("dns: {name: a, https: true}"), &["https needs ca_file"]);
        check(&found("kubernetes: {namespace: A}"), &["\"A\" is not like gpu-operator"]);
        check(&found("kubernetes: {namespace: a, port: \"\"}"), &["a port's name"]);
        check(&one("note: 1"), &["line 3", "note"]);
        check(
            "sources: [{name: a}]",
            &["source a", "exactly one of csv, simulate, scrape and nvml"],
        );
        let twice = "{name: a, csv: {path: /a}}";
        check(&format!("sources: [{twice}, {twice}]"), &["source a stands there twice"]);
        check("sources: [", &["line"]);
    }

    #[test]
    fn a_source_of_each_kind_is_read() {
        let text = "
sources:
  - name: lab
    simulate: {hosts: 16, gpus: 8, interval: 500ms, seed: 7, cluster: c}
  - name: export
    csv: {path: /data/a.csv, speed: 2.5, loop: true}
  - name: log
    csv:
      path: /data/log.csv
      follow: true
      mapping: {time: When, utc_offset: \"-05:30\", host_is: pc, metrics: {\"Load [%]\": load}}
  - name: gpus
    nvml: {host: dgx-001}
";
        let sources = parse(text).unwrap();
        let simulated = SourceKind::Simulate(Simulate {
            cluster: Some("c".parse().unwrap()),
            hosts: 16,
            gpus: 8,
            interval_ms: 500,
            seed: 7,
            until: None,
            hosts_per_shard: 2,
        });
        let export = SourceKind::Declared {
            path: "/data/a.csv".to_owned(),
            speed_milli: Some(2500),
            looped: true,
            mapping: None,
        };
        let log = SourceKind::Follow(Follow {
            path: "/data/log.csv".to_owned(),
            mapping: Some(Box::new(Mapping {
                time: Some("When".to_owned()),
                utc_offset_seconds: -19_800,
                host_is: Some("pc".to_owned()),
                metrics: [("Load [%]".to_owned(), "load".to_owned())].into(),
                ..Mapping::default()
            })),
        });
        let host = "dgx-001".parse().unwrap();
        let gpus = SourceKind::Nvml(Nvml { cluster: None, host, interval_ms: 1000 });
        let expected = [("lab", simulated), ("export", export), ("log", log), ("gpus", gpus)];
        let expected = expected.map(|(n, kind)| (n.parse().unwrap(), Wanted::new(kind).unwrap()));
        assert_eq!(sources, expected);
    }
}
