//! Query and path parameters, checked by name: what is wrong is named, with what is allowed.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{StatusCode, request::Parts},
};
use nexus_common::model::Timestamp;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::{
    view::{PointKey, Snapshot},
    web::{ApiError, App},
};

/// Rows in an answer unless asked otherwise.
pub(crate) const LIMIT_DEFAULT: usize = 100;
/// Most rows in an answer: a few MiB of JSON.
pub(crate) const LIMIT_MAX: usize = 10_000;
const TIME: &str = "an RFC 3339 time such as 2025-07-18T20:42:34Z";
const CURSOR: &str = "the next_cursor of an earlier answer";

/// The snapshot this request is answered from, picked once when it came in.
pub(super) struct At(pub(super) Arc<Snapshot>);

impl FromRequestParts<App> for At {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let picked = parts.extensions.get::<Option<Arc<Snapshot>>>().cloned().flatten();
        picked.map(At).ok_or_else(ApiError::loading)
    }
}

/// Path segments.
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, app).await {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(error) => {
                Err(ApiError::new(StatusCode::BAD_REQUEST, "bad-path", error.body_text()))
            }
        }
    }
}

/// Query parameters of one route.
pub(super) trait Parameters: Sized {
    /// Their names.
    const NAMES: &'static [&'static str];
    /// Reads them.
    fn read(given: &Given) -> Result<Self, ApiError>;
}

/// Checked query parameters.
pub(super) struct Checked<T>(pub(super) T);

impl<T: Parameters> FromRequestParts<App> for Checked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let pairs = Query::<Vec<(String, String)>>::from_request_parts(parts, app).await;
        let Query(pairs) = pairs.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "bad-query", error.body_text())
        })?;
        let given = Given::check(pairs, T::NAMES)?;
        Ok(Self(T::read(&given)?))
    }
}

/// What was given, by known names, each once.
pub(super) struct Given(Vec<(String, String)>);

impl Given {
    fn check(pairs: Vec<(String, String)>, names: &[&str]) -> Result<Self, ApiError> {
        let list = || {
            if names.is_empty() {
                "a parameter: this route takes none".to_owned()
            } else {
                format!("one of the parameters here: {}", names.join(", "))
            }
        };
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !names.contains(&name.as_str()) {
                return Err(ApiError::parameter(name, name, &list()));
            }
            if pairs[..index].iter().any(|(other, _)| other == name) {
                return Err(ApiError::parameter(name, name, "given once"));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        // A '+' that was not escaped arrives as a space.
        let parsed = text.parse().or_else(|_| text.replace(' ', "+").parse());
        parsed.map(Some).map_err(|_| ApiError::parameter(name, text, TIME))
    }

    pub(super) fn limit(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.text("limit") else { return Ok(None) };
        match text.parse() {
            Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => Ok(Some(limit)),
            _ => {
                let allowed = format!("a number from 1 to {LIMIT_MAX}");
                Err(ApiError::parameter("limit", text, &allowed))
            }
        }
    }

    fn span(&self) -> Result<Span, ApiError> {
        let (start, end) = (self.time("start_time")?, self.time("end_time")?);
        if let (Some(from), Some(to)) = (start, end)
            && from > to
        {
            let allowed = format!("at or after start_time, {from}");
            return Err(ApiError::parameter("end_time", &to.to_string(), &allowed));
        }
        let limit = self.limit()?.unwrap_or(LIMIT_DEFAULT);
        let newest = start.is_none();
        let after = match self.text("cursor") {
            None => None,
            Some(text) => {
                let key = PointKey::from_text(text);
                Some(key.ok_or_else(|| ApiError::parameter("cursor", text, CURSOR))?)
            }
        };
        Ok(Span {
            start: start.unwrap_or(Timestamp::MIN).as_millis(),
            end: end.unwrap_or(Timestamp::MAX).as_millis(),
            after,
            newest,
            limit,
        })
    }
}

/// Which points of a series of points.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) after: Option<PointKey>,
    pub(super) newest: bool,
    pub(super) limit: usize,
}

/// No parameters.
pub(super) struct Nothing;

impl Parameters for Nothing {
    const NAMES: &'static [&'static str] = &[];

    fn read(_: &Given) -> Result<Self, ApiError> {
        Ok(Self)
    }
}

/// Parameters of the routes that answer with rows of one GPU.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct SpanParams {
    /// First instant, inclusive. With it the oldest rows from there on are returned; without it
    /// the newest
    #[param(example = "2025-07-18T20:42:34Z", format = DateTime)]
    start_time: Option<String>,
    /// Last instant, inclusive
    #[param(example = "2025-07-18T20:42:37Z", format = DateTime)]
    end_time: Option<String>,
    /// Most rows in the answer. It may end earlier, with a `next_cursor`, where 2000 blocks had
    /// to be read
    #[param(minimum = 1, maximum = 10000, default = 100, example = 100)]
    limit: Option<u32>,
    /// `next_cursor` of an earlier answer to the same question: goes on behind it
    #[param(
        example = "1752871354000~local-cluster~dgx-001~GPU-00000000-1111-2222-3333-444444444444"
    )]
    cursor: Option<String>,
}

impl Parameters for Span {
    const NAMES: &'static [&'static str] = &["start_time", "end_time", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        given.span()
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
    const NAMES: &'static [&'static str] =
        &["cluster_id", "host_id", "gpu_id", "start_time", "end_time", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self(Places::of(given), given.span()?))
    }
}

/// The latest rows of which places.
pub(super) struct LatestSearch {
    pub(super) places: Places,
    pub(super) limit: usize,
    pub(super) cursor: Option<String>,
}

/// How much of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct PageParams {
    /// Most entries in the answer; without it there are up to 10000
    #[param(minimum = 1, maximum = 10000, example = 100)]
    limit: Option<u32>,
    /// `next_cursor` of an earlier answer to the same question: goes on behind it
    #[param(example = "local-cluster~dgx-001~GPU-00000000-1111-2222-3333-444444444444")]
    cursor: Option<String>,
}

impl Parameters for LatestSearch {
    const NAMES: &'static [&'static str] = &["cluster_id", "host_id", "gpu_id", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let limit = given.limit()?.unwrap_or(LIMIT_MAX);
        Ok(Self { places: Places::of(given), limit, cursor: list_cursor(given)? })
    }
}

/// Which GPUs.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct GpuParams {
    /// Only this cluster
    #[param(example = "local-cluster")]
    cluster: Option<String>,
    /// Only hosts of this name
    #[param(example = "dgx-001")]
    host: Option<String>,
    /// Only GPUs that are `active` or `stale`
    #[param(example = "active")]
    status: Option<String>,
}

/// Which GPUs.
pub(crate) struct GpuSearch {
    pub(crate) cluster: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) active: Option<bool>,
    pub(crate) limit: usize,
    pub(crate) cursor: Option<String>,
}

impl Parameters for GpuSearch {
    const NAMES: &'static [&'static str] = &["cluster", "host", "status", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let active = match given.text("status") {
            None => None,
            Some("active") => Some(true),
            Some("stale") => Some(false),
            Some(other) => return Err(ApiError::parameter("status", other, "active or stale")),
        };
        Ok(Self {
            cluster: given.owned("cluster"),
            host: given.owned("host"),
            active,
            limit: given.limit()?.unwrap_or(LIMIT_MAX),
            cursor: list_cursor(given)?,
        })
    }
}

/// A cursor of a list of places: ids, joined by what cannot stand in one.
fn list_cursor(given: &Given) -> Result<Option<String>, ApiError> {
    let Some(text) = given.text("cursor") else { return Ok(None) };
    let id = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b));
    let good = text.split('~').count() == 3 && text.split('~').all(id);
    if good { Ok(Some(text.to_owned())) } else { Err(ApiError::parameter("cursor", text, CURSOR)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Parameters>(query: &[(&str, &str)]) -> Result<T, ApiError> {
        let pairs = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        T::read(&Given::check(pairs, T::NAMES)?)
    }

    #[test]
    fn a_bad_parameter_is_named_with_what_is_allowed() {
        let check = |query: &[(&str, &str)], name: &str, allowed: &str| {
            let error = read::<Span>(query).unwrap_err();
            assert_eq!(error.parameter, Some((name.to_owned(), allowed.to_owned())), "{query:?}");
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
        };
        check(&[("start_time", "yesterday")], "start_time", TIME);
        check(&[("end_time", "2025-07-18")], "end_time", TIME);
        check(&[("limit", "0")], "limit", "a number from 1 to 10000");
        check(&[("limit", "10001")], "limit", "a number from 1 to 10000");
        check(&[("limit", "ten")], "limit", "a number from 1 to 10000");
        check(&[("limit", "1"), ("limit", "2")], "limit", "given once");
        check(&[("cursor", "x")], "cursor", CURSOR);
        let names = "one of the parameters here: start_time, end_time, limit, cursor";
        check(&[("from", "1")], "from", names);
        let (start, end) = ("2025-07-18T20:42:34Z", "2025-07-18T20:42:33Z");
        let allowed = "at or after start_time, 2025-07-18T20:42:34Z";
        check(&[("start_time", start), ("end_time", end)], "end_time", allowed);
    }

    #[test]
    fn without_a_start_the_newest_are_wanted_and_a_hundred_of_them() {
        let span: Span = read(&[]).unwrap();
        assert!(span.newest && span.limit == LIMIT_DEFAULT);
        let span: Span = read(&[("start_time", "2025-07-18T22:42:34 02:00")]).unwrap();
        assert_eq!((span.newest, span.start), (false, 1_752_871_354_000));
    }
}
