//! The file that says which sources there shall be.

use std::{collections::BTreeSet, io::Read, path::Path};

use anyhow::{Context, bail};
use nexus_common::{
    model::SourceId,
    sources::{
        Wanted,
        document::{CsvSource, NvmlSource, ScrapeSource, SimulateSource, SourceDocument},
    },
};
use serde::Deserialize;

/// Largest file, in bytes: thousands of sources. Bounds what a wrong path makes us read.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sources: Vec<Entry>,
}

/// One source: a name, and what a [`SourceDocument`] has. Both in one would not notice words that
/// nobody knows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: SourceId,
    csv: Option<CsvSource>,
    simulate: Option<SimulateSource>,
    scrape: Option<ScrapeSource>,
    nvml: Option<NvmlSource>,
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
    for Entry { name, csv, simulate, scrape, nvml } in file.sources {
        if !names.insert(name.clone()) {
            bail!("source {name} stands there twice");
        }
        let document = SourceDocument { csv, simulate, scrape, nvml };
        let wanted = document.wanted().with_context(|| format!("source {name}"))?;
        sources.push((name, wanted));
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use nexus_common::keyspace::{
        Follow, Mapping, SourceKind,
        live::{Nvml, Simulate},
    };

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
