//! A source as people write it down: in a file of sources, or in the body of a request.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    SourceError, Wanted, discover::DiscoverSource, interval::parse_ms, interval::parse_offset,
    wanted::check_mapping,
};
use crate::{
    keyspace::{
        Follow, Mapping, SourceKind,
        live::{Login, Nvml, Rules, SCRAPE_SHARDS, Scrape, Simulate, Target},
    },
    model::{ClusterId, HostName, Timestamp},
};

/// What a source reads: exactly one kind with what it takes.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SourceDocument {
    /// A CSV file.
    pub csv: Option<CsvSource>,
    /// Telemetry that is made up.
    pub simulate: Option<SimulateSource>,
    /// Exporters.
    pub scrape: Option<ScrapeSource>,
    /// The NVIDIA GPUs of a host.
    pub nvml: Option<NvmlSource>,
}

impl SourceDocument {
    /// Checks it.
    ///
    /// # Errors
    /// Names what was given wrong and what is allowed.
    pub fn wanted(self) -> Result<Wanted, SourceError> {
        let scraped = self.scrape.map(scrape).transpose()?;
        let local = self.nvml.map(nvml);
        let kinds = [self.csv.map(csv).transpose()?, self.simulate.map(simulate), scraped, local];
        let mut kinds = kinds.into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Wanted::new(kind),
            _ => wrong("kind", "it must have exactly one of csv, simulate, scrape and nvml"),
        }
    }
}

fn wrong<T>(field: &'static str, reason: &str) -> Result<T, SourceError> {
    Err(SourceError::Field { field, reason: reason.to_owned() })
}

/// A CSV file that streamers open.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CsvSource {
    /// Where streamers find it: an absolute path, or an http(s) URL.
    #[cfg_attr(feature = "openapi", schema(example = "/data/rack-7.csv"))]
    path: String,
    /// Replay it in time: 1 as it was recorded, 10 ten times as fast, from 0.001 to 100000; as
    /// fast as possible if not given.
    speed: Option<f64>,
    /// Begin again at its end, for ever, with time moving on.
    #[serde(default, rename = "loop")]
    looped: bool,
    /// Read it while it grows.
    #[serde(default)]
    follow: bool,
    /// What its columns mean, if its header does not say it.
    mapping: Option<CsvMapping>,
}

/// Columns by their names in the header, and what holds for all rows.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CsvMapping {
    /// The column of times.
    time: Option<String>,
    /// How far east of UTC times without a zone are.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "+02:00"))]
    utc_offset: Offset,
    /// The column of hosts.
    host: Option<String>,
    /// The host of all rows.
    host_is: Option<String>,
    /// The column of GPUs.
    gpu: Option<String>,
    /// The GPU of all rows.
    gpu_is: Option<String>,
    /// The column that names the metric, where a row is a sample.
    metric: Option<String>,
    /// The column of its value.
    value: Option<String>,
    /// Columns that are metrics, and what these are called.
    #[serde(default)]
    metrics: BTreeMap<String, String>,
    /// Columns that are labels, and what these are called.
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

/// Hosts with GPUs that are made up.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SimulateSource {
    /// Hosts.
    #[cfg_attr(feature = "openapi", schema(example = 4))]
    hosts: u32,
    /// GPUs of each.
    #[cfg_attr(feature = "openapi", schema(example = 8))]
    gpus: u32,
    /// From one measurement to the next, such as 500ms, 1s or 2m.
    #[serde(default = "second")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "1s"))]
    interval: Length,
    /// Another one is another fleet.
    #[serde(default = "one")]
    seed: u32,
    /// Their cluster, if it is not the streamers'.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    cluster: Option<ClusterId>,
    /// When it ends.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = DateTime))]
    until: Option<Timestamp>,
}

/// Exporters in Prometheus' text format or OpenMetrics.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ScrapeSource {
    /// What is asked.
    #[serde(default)]
    targets: Vec<ScrapeTarget>,
    /// Files of targets, as Prometheus' `file_sd` has them: absolute paths.
    #[serde(default)]
    files: Vec<String>,
    /// Others who name targets.
    #[serde(default)]
    discover: Vec<DiscoverSource>,
    /// From one question to the next, such as 500ms, 15s or 2m.
    #[serde(default = "ten_seconds")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "15s"))]
    interval: Length,
    /// How long an answer may take; the interval, up to 10s, if not given.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "5s"))]
    timeout: Option<Length>,
    /// Largest answer, unpacked, in bytes.
    #[serde(default = "body_bytes_max")]
    body_bytes_max: u64,
    /// Most series of an answer.
    #[serde(default = "series_max")]
    series_max: u64,
    /// Take the exporters' own times.
    #[serde(default)]
    honour_times: bool,
    /// A token to send.
    bearer: Option<BearerLogin>,
    /// A name and a password to send.
    basic: Option<BasicLogin>,
    /// The authorities that https targets are checked with: an absolute path.
    ca_file: Option<String>,
    /// What https targets are shown that ask for a certificate: an absolute path.
    cert_file: Option<String>,
    /// Its key, below the streamers' directory of secrets.
    key_file: Option<String>,
    /// Metrics to take; * stands for anything. All if none is given.
    #[serde(default)]
    keep: Vec<String>,
    /// Metrics to leave.
    #[serde(default)]
    drop: Vec<String>,
    /// Metrics and what they are called here.
    #[serde(default)]
    rename: BTreeMap<String, String>,
    /// Their cluster, if it is not the streamers'.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    cluster: Option<ClusterId>,
    /// Parts that streamers share; stays as it is created with.
    #[serde(default = "shards")]
    shards: u32,
}

/// The NVIDIA GPUs of a host, asked by the streamer there.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NvmlSource {
    /// The host.
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "dgx-001"))]
    host: HostName,
    /// From one measurement to the next, such as 500ms, 1s or 2m.
    #[serde(default = "second")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "1s"))]
    interval: Length,
    /// Its cluster, if it is not the streamers'.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    cluster: Option<ClusterId>,
}

/// One exporter.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ScrapeTarget {
    /// Where it answers.
    #[cfg_attr(feature = "openapi", schema(example = "http://dgx-001:9400/metrics"))]
    url: String,
    /// The host it tells of; the one of its URL if not given.
    host: Option<String>,
    /// From one question to the next, if it is another than the others'.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "30s"))]
    interval: Option<Length>,
}

/// A token to send.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BearerLogin {
    /// Where it stands, below the streamers' directory of secrets.
    #[cfg_attr(feature = "openapi", schema(example = "/etc/nexus/secrets/token"))]
    token_file: String,
}

/// A name and a password to send.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BasicLogin {
    /// The name.
    user: String,
    /// Where the password stands, below the streamers' directory of secrets.
    #[cfg_attr(feature = "openapi", schema(example = "/etc/nexus/secrets/password"))]
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

impl CsvMapping {
    /// Checks it.
    ///
    /// # Errors
    /// Names what was given wrong and what is allowed.
    pub fn mapping(self) -> Result<Mapping, SourceError> {
        let Self { time, utc_offset, host, host_is, gpu, gpu_is, metric, value, metrics, labels } =
            self;
        let utc_offset_seconds = utc_offset.0;
        let mapping = Mapping {
            time,
            utc_offset_seconds,
            host,
            host_is,
            gpu,
            gpu_is,
            metric,
            value,
            metrics,
            labels,
        };
        check_mapping(&mapping)?;
        Ok(mapping)
    }
}

fn csv(csv: CsvSource) -> Result<SourceKind, SourceError> {
    let mapping = csv.mapping.map(CsvMapping::mapping).transpose()?.map(Box::new);
    if csv.follow {
        if csv.speed.is_some() || csv.looped {
            let told = "with it there is no end to begin again at: it takes neither speed nor loop";
            return wrong("follow", told);
        }
        return Ok(SourceKind::Follow(Follow { path: csv.path, mapping }));
    }
    // What is out of range stays so, and is told with the range.
    let speed_milli = csv.speed.map(|speed| (speed * 1000.0).round().max(0.0) as u64);
    Ok(SourceKind::Declared { path: csv.path, speed_milli, looped: csv.looped, mapping })
}

fn simulate(simulated: SimulateSource) -> SourceKind {
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

fn nvml(local: NvmlSource) -> SourceKind {
    let NvmlSource { host, interval, cluster } = local;
    SourceKind::Nvml(Nvml { cluster, host, interval_ms: interval.0 })
}

fn scrape(scraped: ScrapeSource) -> Result<SourceKind, SourceError> {
    let login = match (scraped.bearer, scraped.basic) {
        (None, None) => Login::None,
        (Some(BearerLogin { token_file }), None) => Login::Bearer { token_file },
        (None, Some(BasicLogin { user, password_file })) => Login::Basic { user, password_file },
        (Some(_), Some(_)) => return wrong("bearer", "it must not have basic, too"),
    };
    let targets = scraped.targets.into_iter().map(|ScrapeTarget { url, host, interval }| Target {
        url,
        host,
        interval_ms: interval.map(|length| length.0),
    });
    let interval_ms = scraped.interval.0;
    let discover = scraped.discover.into_iter().map(DiscoverSource::value);
    let discover = discover.collect::<Result<Vec<_>, _>>()?;
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
