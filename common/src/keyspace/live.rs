//! What sources without an end read: telemetry that is made up, exporters that are asked, and the
//! GPUs of a host.
//!
//! Such a source has no file to be cut by bytes. What decides which shard a host or a target
//! belongs to is fixed when the source comes into being; everything else may change while it is
//! read. A shard's position is the first millisecond that nothing was enqueued for yet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::discover::Discover;
use crate::model::{ClusterId, HostName, Timestamp};

/// Most hosts of a made-up source: with [`GPUS_MAX`] a hundred times what one etcd carries.
pub const HOSTS_MAX: u32 = 10_000;
/// Most GPUs of a made-up host: no server has more slots.
pub const GPUS_MAX: u32 = 16;
/// Shortest and longest interval, in milliseconds: below it a tick costs etcd more than it tells,
/// above a day nothing is live.
pub const INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;
/// Most hosts of one shard: a tick of it is one small transaction.
const HOSTS_PER_SHARD_MAX: u32 = 64;
/// Shards that even few hosts are spread over, so that several streamers have something to do.
const SHARDS_WANTED: u32 = 8;

/// Telemetry that is made up: the same for the same seed, host and instant, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulate {
    /// The cluster of its hosts; the streamer's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// How many hosts.
    pub hosts: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// From one measurement to the next, on the wall clock's grid.
    pub interval_ms: u64,
    /// Another seed, other values.
    pub seed: u32,
    /// First instant that is not measured any more; none goes on for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Fixed for ever, so that no host changes its shard.
    pub hosts_per_shard: u32,
}

impl Simulate {
    /// How many hosts a shard of a new source shall have.
    pub fn plan_hosts_per_shard(hosts: u32) -> u32 {
        hosts.div_ceil(SHARDS_WANTED).clamp(1, HOSTS_PER_SHARD_MAX)
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.hosts.div_ceil(self.hosts_per_shard.max(1))
    }

    /// The numbers of a shard's hosts.
    pub fn hosts_of(&self, shard: u32) -> std::ops::Range<u32> {
        let at = |shard: u32| shard.saturating_mul(self.hosts_per_shard).min(self.hosts);
        at(shard)..at(shard.saturating_add(1))
    }
}

/// Most targets that a source names itself: more would make a value that is watched large; files
/// may name any number.
pub const TARGETS_MAX: usize = 1000;
/// Most files of targets, and most rules of a kind.
pub const LISTED_MAX: usize = 100;
/// Most of those who name targets: every streamer that asks targets of the source asks each of them.
pub const DISCOVER_MAX: usize = 16;
/// Shards that the targets of a source are dealt to, if nothing else is said.
pub const SCRAPE_SHARDS: u32 = 8;
/// Most shards of a source that is scraped: each is a claim and a transaction now and then.
pub const SCRAPE_SHARDS_MAX: u32 = 256;
/// Largest answer of a target, in bytes, unpacked.
pub const BODY_BYTES: std::ops::RangeInclusive<u64> = 1024..=256 << 20;

/// Shards of a source that is pushed: each is worked by one gateway, and no cluster has as many.
pub const PUSH_SHARDS: u32 = 16;

/// Exporters that are asked for what they measure, in Prometheus' text format or OpenMetrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrape {
    /// The cluster of its hosts; the streamer's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// Who is asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Files that name more of them, where streamers find them; read again when they change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Others who name more of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<Discover>,
    /// From one question to the next.
    pub interval_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// Largest answer, in bytes, unpacked.
    pub body_bytes_max: u64,
    /// Most series of one target.
    pub series_max: u64,
    /// Take the times that exporters give, where they give any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub honour_times: bool,
    /// Who asks.
    #[serde(default)]
    pub login: Login,
    /// PEM of the authorities that `https` targets are checked with, where streamers find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// PEM of the certificate, and those above it, that `https` targets are shown; and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<String>,
    /// PEM of the certificate's private key: a secret, as those of [`Login`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// What is taken.
    #[serde(default)]
    pub rules: Rules,
    /// How many shards they are dealt to: fixed for ever, so that no target changes its shard.
    pub target_shards: u32,
}

/// One exporter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// `http://node:9100/metrics`.
    pub url: String,
    /// The host whose metrics these are; the address' if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// From one question to the next, if not as for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// How a streamer says who it is. Secrets stand in files where it runs, never in etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// Not at all.
    #[default]
    None,
    /// With the token that a file holds.
    Bearer {
        /// The file.
        token_file: String,
    },
    /// With a name, and the password that a file holds.
    Basic {
        /// The name.
        user: String,
        /// The file.
        password_file: String,
    },
}

/// The GPUs of one host, asked through NVIDIA's management library: one shard, which nobody but a
/// streamer on that host may claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nvml {
    /// The cluster of its host; the streamer's if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// Whose GPUs these are, by the name that its streamer goes by.
    pub host: HostName,
    /// From one measurement to the next, on the wall clock's grid.
    pub interval_ms: u64,
}

/// Which metrics are taken, and under which names. In patterns `*` is any text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Only what one of these matches; everything if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keep: Vec<String>,
    /// And nothing that one of these matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
    /// The exporter's name and ours.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
}

impl Rules {
    /// Whether a metric of this name is taken.
    pub fn takes(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
        (self.keep.is_empty() || any(&self.keep)) && !any(&self.drop)
    }
}

/// Whether all of `text` is as `pattern` says. Each part is looked for once: no pattern is slow.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, behind)) = text.split_once(part) else { return false };
        text = behind;
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::discover::{DnsNames, Endpoints, Form, HttpLists, Record};
    use crate::keyspace::{Source, SourceKind, from_json, to_json};

    fn simulate(hosts: u32, hosts_per_shard: u32) -> Simulate {
        let (cluster, until) = (None, None);
        Simulate { cluster, hosts, gpus: 8, interval_ms: 1000, seed: 1, until, hosts_per_shard }
    }

    #[test]
    fn every_host_has_one_shard_and_keeps_it_when_there_are_more() {
        for hosts in [1, 7, 8, 9, 64, 1000, HOSTS_MAX] {
            let per_shard = Simulate::plan_hosts_per_shard(hosts);
            let (few, many) = (simulate(hosts, per_shard), simulate(hosts * 2, per_shard));
            let all: Vec<u32> = (0..few.shards()).flat_map(|s| few.hosts_of(s)).collect();
            assert_eq!(all, (0..hosts).collect::<Vec<_>>());
            for shard in 0..few.shards() {
                assert!(few.hosts_of(shard).all(|host| many.hosts_of(shard).contains(&host)));
            }
        }
        assert_eq!(simulate(8, 1).shards(), 8);
        assert!(simulate(8, 1).hosts_of(8).is_empty());
    }

    #[test]
    fn rules_keep_and_drop_by_pattern() {
        let check = |pattern: &str, text: &str, expected| {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        };
        check("a", "a", true);
        check("a", "ab", false);
        check("*", "", true);
        check("a*", "ab", true);
        check("*b", "ab", true);
        check("a*a", "a", false);
        check("a*b*c", "axbyc", true);
        check("a*b*c", "axcyb", false);
        let rules = |keep: &[&str], drop: &[&str]| Rules {
            keep: keep.iter().map(|k| (*k).to_owned()).collect(),
            drop: drop.iter().map(|k| (*k).to_owned()).collect(),
            rename: BTreeMap::new(),
        };
        assert!(rules(&[], &[]).takes("x") && rules(&["x", "y"], &[]).takes("y"));
        assert!(!rules(&["x"], &[]).takes("y") && !rules(&["x*"], &["*y"]).takes("xy"));
    }

    #[test]
    fn sources_of_every_kind_come_back_from_etcd_as_they_were() {
        let check = |kind: SourceKind| {
            let source = Source { kind, shards: 7, created_at: Timestamp::EPOCH, paused: true };
            let json = to_json(&source);
            assert_eq!(from_json::<Source>(b"key", &json), Ok(source));
        };
        let until = Some(Timestamp::EPOCH);
        check(SourceKind::Simulate(Simulate { until, ..simulate(3, 2) }));
        let (cluster, host) = (None, HostName::new("dgx-001").unwrap());
        check(SourceKind::Nvml(Nvml { cluster, host, interval_ms: 1000 }));
        check(SourceKind::Push);
        let target = Target {
            url: "http://a:1/m".to_owned(),
            host: Some("h".to_owned()),
            interval_ms: Some(5),
        };
        let text = || "x".to_owned();
        let (form, refresh_ms) = (Form { https: true, path: text() }, 7);
        let discover = vec![
            Discover::Http(HttpLists { url: text(), refresh_ms }),
            Discover::Dns(DnsNames {
                name: text(),
                record: Record::Aaaa,
                port: Some(9400),
                server: "[::1]:53".parse().ok(),
                form: form.clone(),
                refresh_ms,
            }),
            Discover::Kubernetes(Endpoints {
                namespace: text(),
                selector: Some(text()),
                port: Some(text()),
                form,
                refresh_ms,
            }),
        ];
        let rename = [(text(), text())].into();
        for login in [
            Login::None,
            Login::Bearer { token_file: text() },
            Login::Basic { user: text(), password_file: text() },
        ] {
            check(SourceKind::Scrape(Box::new(Scrape {
                cluster: ClusterId::new("c").ok(),
                targets: vec![target.clone()],
                files: vec![text()],
                discover: discover.clone(),
                interval_ms: 1,
                timeout_ms: 2,
                body_bytes_max: 3,
                series_max: 4,
                honour_times: true,
                login,
                ca_file: Some(text()),
                cert_file: Some(text()),
                key_file: Some(text()),
                rules: Rules {
                    keep: vec![text()],
                    drop: vec![text()],
                    rename: BTreeMap::clone(&rename),
                },
                target_shards: 5,
            })));
        }
    }
}
