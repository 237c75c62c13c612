//! Query and path parameters, checked by name: what is wrong is named, with what is allowed.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{StatusCode, request::Parts},
};
use nexus_common::{limits::ID_BYTES_MAX, model::Timestamp};
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::{
    listing::{Fields, Format},
    resources::{GPU_FIELDS, Status},
};
use crate::{
    view::Snapshot,
    web::{ApiError, App, cursor_of, text_of_cursor},
};

/// Most entries in an answer: a few MiB of JSON.
pub(crate) const LIMIT_MAX: usize = 10_000;
const TIME: &str = "an RFC 3339 time such as 2025-07-18T20:42:34Z";
pub(super) const CURSOR: &str = "the next_cursor of an earlier answer";

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

/// How the answer is to be written.
pub(super) struct Wanted(pub(super) Format);

impl FromRequestParts<App> for Wanted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        Ok(Self(Format::wanted(&parts.headers)))
    }
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
        let given = Given::check(pairs, T::NAMES, Format::wanted(&parts.headers))?;
        Ok(Self(T::read(&given)?))
    }
}

/// What was given, by known names, each once.
pub(super) struct Given {
    pairs: Vec<(String, String)>,
    format: Format,
}

impl Given {
    pub(super) fn check(
        pairs: Vec<(String, String)>,
        names: &[&str],
        format: Format,
    ) -> Result<Self, ApiError> {
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
        Ok(Self { pairs, format })
    }

    /// Whether rows are to be written one by one, as many as there are.
    pub(super) fn exports(&self) -> bool {
        self.format != Format::Json
    }

    /// What `limit`, `cursor` (of so many ids) and `fields` say.
    pub(super) fn part(
        &self,
        ids: usize,
        fields: &'static [&'static str],
    ) -> Result<Part, ApiError> {
        let (limit, cursor) = (self.limit(LIMIT_MAX)?, list_cursor(self, ids)?);
        Ok(Part { limit, cursor, fields: self.fields(fields)? })
    }

    pub(super) fn status(&self) -> Result<Option<Status>, ApiError> {
        match self.text("status") {
            None => Ok(None),
            Some("active") => Ok(Some(Status::Active)),
            Some("stale") => Ok(Some(Status::Stale)),
            Some(other) => Err(ApiError::parameter("status", other, "active or stale")),
        }
    }

    /// Names of fields, separated by commas.
    pub(super) fn fields(
        &self,
        known: &'static [&'static str],
    ) -> Result<Option<Fields>, ApiError> {
        let Some(text) = self.text("fields") else { return Ok(None) };
        let mut fields = Vec::new();
        for name in text.split(',') {
            let Some(field) = known.iter().find(|field| **field == name) else {
                let allowed = format!("of the fields here: {}", known.join(", "));
                return Err(ApiError::parameter("fields", name, &allowed));
            };
            if !fields.contains(field) {
                fields.push(*field);
            }
        }
        Ok(Some(Fields(fields)))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        // A '+' that was not escaped arrives as a space.
        let parsed = text.parse().or_else(|_| text.replace(' ', "+").parse());
        parsed.map(Some).map_err(|_| ApiError::parameter(name, text, TIME))
    }

    pub(super) fn limit(&self, most: usize) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.text("limit") else { return Ok(None) };
        match text.parse() {
            Ok(limit) if (1..=most).contains(&limit) => Ok(Some(limit)),
            _ => {
                let allowed = format!("a number from 1 to {most}");
                Err(ApiError::parameter("limit", text, &allowed))
            }
        }
    }
}

/// No parameters.
pub(super) struct Nothing;

impl Parameters for Nothing {
    const NAMES: &'static [&'static str] = &[];

    fn read(_: &Given) -> Result<Self, ApiError> {
        Ok(Self)
    }
}

/// How much of a list, and what of each entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    /// Most entries; all there are without.
    pub(crate) limit: Option<usize>,
    /// Behind which one to go on, as it names itself.
    pub(crate) cursor: Option<String>,
    /// Which fields of each.
    pub(crate) fields: Option<Fields>,
}

impl Part {
    /// The part of a list whose entries `cursor` names, each with its own, in the list's order.
    /// Says where to go on, if there are more. A list that lost the entry behind which it should
    /// go on is over.
    pub(super) fn of<T>(
        &self,
        mut all: Vec<T>,
        cursor: impl Fn(&T) -> String,
    ) -> (Vec<T>, Option<String>) {
        if let Some(text) = &self.cursor {
            let known = all.iter().position(|one| cursor(one) == *text);
            all.drain(..known.map_or(all.len(), |at| at + 1));
        }
        let limit = self.limit.unwrap_or(LIMIT_MAX);
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|last| cursor_of(&cursor(last)));
        (all, next)
    }
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
    #[param(pattern = "^[A-Za-z0-9_-]{2,600}$")]
    cursor: Option<String>,
    /// Only these fields of each entry, separated by commas
    #[param(example = "status")]
    fields: Option<String>,
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
    /// Only GPUs of this model
    #[param(example = "NVIDIA H100 80GB HBM3")]
    name: Option<String>,
    /// Only GPUs that are `active` or `stale`
    #[param(inline, example = "active")]
    status: Option<Status>,
}

/// Which GPUs.
#[derive(Default)]
pub(crate) struct GpuSearch {
    pub(crate) cluster: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) status: Option<Status>,
    pub(crate) part: Part,
}

impl Parameters for GpuSearch {
    const NAMES: &'static [&'static str] =
        &["cluster", "host", "name", "status", "limit", "cursor", "fields"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        Ok(Self {
            cluster: given.owned("cluster"),
            host: given.owned("host"),
            name: given.owned("name"),
            status: given.status()?,
            part: given.part(3, GPU_FIELDS)?,
        })
    }
}

/// GPUs of one host.
pub(super) struct HostGpuSearch(pub(super) GpuSearch);

/// Which fields of each entry.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct FieldParams {
    /// Only these fields of each entry, separated by commas
    #[param(example = "status")]
    fields: Option<String>,
}

/// How much of a list of names.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct NamePageParams {
    /// Most names in the answer; without it there are up to 10000
    #[param(minimum = 1, maximum = 10000, example = 100)]
    limit: Option<u32>,
    /// `next_cursor` of an earlier answer to the same question: goes on behind it
    #[param(pattern = "^[A-Za-z0-9_-]{2,600}$")]
    cursor: Option<String>,
}

impl HostGpuSearch {
    /// Those of this host, of one cluster or all.
    pub(super) fn of(self, cluster: Option<String>, host: String) -> GpuSearch {
        GpuSearch { cluster, host: Some(host), ..self.0 }
    }
}

impl Parameters for HostGpuSearch {
    const NAMES: &'static [&'static str] = &["status", "limit", "cursor", "fields"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let (status, part) = (given.status()?, given.part(3, GPU_FIELDS)?);
        Ok(Self(GpuSearch { status, part, ..GpuSearch::default() }))
    }
}

/// Only what still sends, or what does not.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct StatusParams {
    /// Only those that are `active` or `stale`
    #[param(inline, example = "active")]
    status: Option<Status>,
}

/// A cursor of a list of places: ids, joined by what cannot stand in one.
fn list_cursor(given: &Given, ids: usize) -> Result<Option<String>, ApiError> {
    let Some(given) = given.text("cursor") else { return Ok(None) };
    let bad = || ApiError::parameter("cursor", given, CURSOR);
    let text = text_of_cursor(given).ok_or_else(bad)?;
    let id = |part: &str| {
        part.len() <= ID_BYTES_MAX
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b))
    };
    // Only the last of three may be empty: a row of a host itself.
    let named = text.split('~').take(2).all(|part| !part.is_empty());
    let good = named && text.split('~').count() == ids && text.split('~').all(id);
    if good { Ok(Some(text)) } else { Err(bad()) }
}
