//! Parameters of telemetry: from when to when, of what, how much, put together how.

use std::{collections::BTreeSet, sync::Arc};

use nexus_common::model::{MetricName, Timestamp, metric_by_dcgm};
use utoipa::IntoParams;

use super::{
    listing::Fields,
    params::{CURSOR, Given, LIMIT_MAX, Parameters, Part},
    resources::ROW_FIELDS,
};
use crate::{
    view::{Agg, PointKey, Step},
    web::{ApiError, text_of_cursor},
};

/// Rows in an answer unless asked otherwise.
pub(crate) const LIMIT_DEFAULT: usize = 100;
/// Most rows of an export that says how many it wants; one that does not gets all there are.
const EXPORT_LIMIT_MAX: usize = 100_000_000;
/// Most metrics by name: more than any exporter has.
const METRICS_MAX: usize = 256;
/// Longest window, in milliseconds: a leap year.
const STEP_MAX: i64 = 366 * 86_400_000;
const STEP: &str = "a length of time from 1ms to 366d, such as 30s, 5m or 1h";

/// Which points of a series of points.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) after: Option<PointKey>,
    pub(super) newest: bool,
    /// As it was given.
    pub(super) limit: Option<usize>,
    pub(super) metrics: Option<Arc<BTreeSet<MetricName>>>,
    pub(super) step: Option<Step>,
    pub(super) fields: Option<Fields>,
}

impl Span {
    /// Most rows in one answer.
    pub(super) fn rows(&self) -> usize {
        self.limit.unwrap_or(LIMIT_DEFAULT)
    }

    fn of(given: &Given) -> Result<Self, ApiError> {
        let (start, end) = (given.time("start_time")?, given.time("end_time")?);
        if let (Some(from), Some(to)) = (start, end)
            && from > to
        {
            let allowed = format!("at or after start_time, {from}");
            return Err(ApiError::parameter("end_time", &to.to_string(), &allowed));
        }
        let after = match given.text("cursor") {
            None => None,
            Some(text) => {
                let key = text_of_cursor(text).and_then(|text| PointKey::from_text(&text));
                Some(key.ok_or_else(|| ApiError::parameter("cursor", text, CURSOR))?)
            }
        };
        Ok(Self {
            start: start.unwrap_or(Timestamp::MIN).as_millis(),
            end: end.unwrap_or(Timestamp::MAX).as_millis(),
            after,
            newest: start.is_none(),
            limit: given.limit(if given.exports() { EXPORT_LIMIT_MAX } else { LIMIT_MAX })?,
            metrics: metrics(given)?,
            step: step(given)?,
            fields: given.fields(ROW_FIELDS)?,
        })
    }
}

/// Names of metrics, ours or DCGM's, separated by commas.
fn metrics(given: &Given) -> Result<Option<Arc<BTreeSet<MetricName>>>, ApiError> {
    let Some(text) = given.text("metrics") else { return Ok(None) };
    let mut names = BTreeSet::new();
    for name in text.split(',') {
        let name = metric_by_dcgm(name).map_or(name, |metric| metric.name);
        let allowed = "a name of a metric, or several separated by commas";
        names.insert(name.parse().map_err(|_| ApiError::parameter("metrics", name, allowed))?);
    }
    if names.len() > METRICS_MAX {
        let allowed = format!("at most {METRICS_MAX} names");
        return Err(ApiError::parameter("metrics", &names.len().to_string(), &allowed));
    }
    Ok(Some(Arc::new(names)))
}

fn step(given: &Given) -> Result<Option<Step>, ApiError> {
    let agg = match given.text("agg") {
        None => None,
        Some("avg") => Some(Agg::Avg),
        Some("min") => Some(Agg::Min),
        Some("max") => Some(Agg::Max),
        Some("p95") => Some(Agg::P95),
        Some("last") => Some(Agg::Last),
        Some(other) => {
            return Err(ApiError::parameter("agg", other, "one of avg, min, max, p95, last"));
        }
    };
    match (given.text("step"), agg) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let found = given.text("agg").unwrap_or_default();
            Err(ApiError::parameter("agg", found, "given without step"))
        }
        (Some(text), agg) => {
            let millis = duration(text).filter(|millis| (1..=STEP_MAX).contains(millis));
            let millis = millis.ok_or_else(|| ApiError::parameter("step", text, STEP))?;
            Ok(Some(Step { millis, agg: agg.unwrap_or(Agg::Avg) }))
        }
    }
}

/// A number and a unit, in milliseconds.
fn duration(text: &str) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

/// Parameters of the routes that answer with rows of one GPU.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct SpanParams {
    /// First instant, inclusive. With it the oldest rows from there on are returned; without it
    /// the newest
    #[param(format = DateTime, example = "2025-07-18T20:42:34Z")]
    start_time: Option<String>,
    /// Last instant, inclusive
    #[param(format = DateTime, example = "2025-07-18T20:42:37Z")]
    end_time: Option<String>,
    /// Most rows in the answer. It may end earlier, with a `next_cursor`, where 2000 blocks had
    /// to be read. As CSV or lines it may be larger than 10000, and without it all rows come
    #[param(minimum = 1, maximum = 10000, default = 100, example = 100)]
    limit: Option<u32>,
    /// `next_cursor` of an earlier answer to the same question: goes on behind it
    #[param(pattern = "^[A-Za-z0-9_-]{2,600}$")]
    cursor: Option<String>,
    /// Only these metrics, separated by commas, as they are called here or as DCGM calls them
    #[param(
        pattern = "^[A-Za-z_:][A-Za-z0-9_:]{0,255}(,[A-Za-z_:][A-Za-z0-9_:]{0,255}){0,15}$",
        example = "gpu_utilization,power_draw"
    )]
    metrics: Option<String>,
    /// Only these fields of each row, separated by commas
    #[param(example = "timestamp")]
    fields: Option<String>,
    /// Puts rows together: one a GPU and window of this length. Windows begin at its multiples
    /// since 1970, and a row's `timestamp` is where its window begins. Up to 366d
    #[param(
        pattern = "^([1-9][0-9]{0,9}ms|[1-9][0-9]{0,6}s|[1-9][0-9]{0,4}m|[1-9][0-9]{0,2}h|[1-9][0-9]?d)$",
        example = "1m"
    )]
    step: Option<String>,
    /// What becomes of the values of a window: their mean (the default), the smallest, the
    /// largest, the 95th percentile (nearest rank) or the last. Needs `step`
    #[param(inline, example = "avg")]
    agg: Option<AggName>,
}

/// What becomes of the values of a window.
#[derive(utoipa::ToSchema)]
#[schema(rename_all = "lowercase")]
#[allow(dead_code, reason = "the document")]
enum AggName {
    Avg,
    Min,
    Max,
    P95,
    Last,
}

impl Parameters for Span {
    const NAMES: &'static [&'static str] =
        &["start_time", "end_time", "limit", "cursor", "metrics", "fields", "step", "agg"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Self::of(given)
    }
}

/// Which places.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) cluster: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) gpu: Option<String>,
}

/// Where rows shall come from.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct PlaceParams {
    /// Only this cluster
    #[param(example = "local-cluster")]
    cluster_id: Option<String>,
    /// Only hosts of this name
    #[param(example = "dgx-001")]
    host_id: Option<String>,
    /// Only this GPU: its UUID, its id, or with `host_id` its index on that host
    #[param(example = "GPU-00000000-1111-2222-3333-444444444444")]
    gpu_id: Option<String>,
}

impl Places {
    fn of(given: &Given) -> Self {
        Self {
            cluster: given.owned("cluster_id"),
            host: given.owned("host_id"),
            gpu: given.owned("gpu_id"),
        }
    }
}

/// Which points of which places.
pub(super) struct Search(pub(super) Places, pub(super) Span);

impl Parameters for Search {
    const NAMES: &'static [&'static str] = &[
        "cluster_id",
        "host_id",
        "gpu_id",
        "start_time",
        "end_time",
        "limit",
        "cursor",
        "metrics",
        "fields",
        "step",
        "agg",
    ];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(Places::of(given), Span::of(given)?))
    }
}

/// The latest rows of which places.
pub(super) struct LatestSearch {
    pub(super) places: Places,
    pub(super) metrics: Option<Arc<BTreeSet<MetricName>>>,
    pub(super) part: Part,
}

/// Which metrics.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct MetricParams {
    /// Only these metrics, separated by commas, as they are called here or as DCGM calls them
    #[param(
        pattern = "^[A-Za-z_:][A-Za-z0-9_:]{0,255}(,[A-Za-z_:][A-Za-z0-9_:]{0,255}){0,15}$",
        example = "gpu_utilization,power_draw"
    )]
    metrics: Option<String>,
}

impl Parameters for LatestSearch {
    const NAMES: &'static [&'static str] =
        &["cluster_id", "host_id", "gpu_id", "metrics", "limit", "cursor", "fields"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let (metrics, part) = (metrics(given)?, given.part(3, ROW_FIELDS)?);
        Ok(Self { places: Places::of(given), metrics, part })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::rest::listing::Format;

    fn read<T: Parameters>(query: &[(&str, &str)]) -> Result<T, ApiError> {
        let pairs = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        T::read(&Given::check(pairs, T::NAMES, Format::Json)?)
    }

    #[test]
    fn a_bad_parameter_is_named_with_what_is_allowed() {
        let check = |query: &[(&str, &str)], name: &str, allowed: &str| {
            let error = read::<Span>(query).unwrap_err();
            assert_eq!(error.parameter, Some((name.to_owned(), allowed.to_owned())), "{query:?}");
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        };
        let time = "an RFC 3339 time such as 2025-07-18T20:42:34Z";
        check(&[("start_time", "yesterday")], "start_time", time);
        check(&[("end_time", "2025-07-18")], "end_time", time);
        check(&[("limit", "0")], "limit", "a number from 1 to 10000");
        check(&[("limit", "10001")], "limit", "a number from 1 to 10000");
        check(&[("limit", "ten")], "limit", "a number from 1 to 10000");
        check(&[("limit", "1"), ("limit", "2")], "limit", "given once");
        // Also the text that stands in one.
        for cursor in ["x", "1752871354000~c~h~GPU-0", "eA"] {
            check(&[("cursor", cursor)], "cursor", CURSOR);
        }
        let names = "one of the parameters here: start_time, end_time, limit, cursor, metrics, \
                     fields, step, agg";
        check(&[("from", "1")], "from", names);
        let (start, end) = ("2025-07-18T20:42:34Z", "2025-07-18T20:42:33Z");
        let allowed = "at or after start_time, 2025-07-18T20:42:34Z";
        check(&[("start_time", start), ("end_time", end)], "end_time", allowed);
        let metric = "a name of a metric, or several separated by commas";
        check(&[("metrics", "temperature,")], "metrics", metric);
        for step in ["0s", "5", "s", "-1s", "1w", "367d", "99999999999999999999d"] {
            check(&[("step", step)], "step", STEP);
        }
        check(&[("agg", "max")], "agg", "given without step");
        check(&[("step", "1m"), ("agg", "sum")], "agg", "one of avg, min, max, p95, last");
        let fields = format!("of the fields here: {}", ROW_FIELDS.join(", "));
        check(&[("fields", "uuid,colour")], "fields", &fields);
    }

    #[test]
    fn without_a_start_the_newest_are_wanted_and_a_hundred_of_them() {
        let span: Span = read(&[]).unwrap();
        assert!(span.newest && span.rows() == LIMIT_DEFAULT);
        let span: Span = read(&[("start_time", "2025-07-18T22:42:34 02:00")]).unwrap();
        assert_eq!((span.newest, span.start), (false, 1_752_871_354_000));
    }

    #[test]
    fn steps_have_units_and_metrics_two_names() {
        let check = |text: &str, millis: i64| {
            let span: Span = read(&[("step", text)]).unwrap();
            assert_eq!(span.step, Some(Step { millis, agg: Agg::Avg }), "{text}");
        };
        check("1ms", 1);
        check("30s", 30_000);
        check("5m", 300_000);
        check("366d", STEP_MAX);
        let span: Span = read(&[("metrics", "DCGM_FI_DEV_GPU_TEMP,power_draw")]).unwrap();
        let names: Vec<String> =
            span.metrics.iter().flat_map(|m| m.iter()).map(|m| m.to_string()).collect();
        assert_eq!(names, ["power_draw", "temperature"]);
    }
}
