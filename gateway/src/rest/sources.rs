//! Which sources are read: listed, asked for, paused, resumed, withdrawn.
//!
//! The view never writes; the writing is [`SourceDesk`]'s, each time by one guarded transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    extract::{FromRequest, Request, State, rejection::JsonRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use nexus_common::{
    model::{InstanceId, SourceId},
    sources::{Applied, SourceDesk, SourceError, SourceState, Written, document::SourceDocument},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use super::{
    listing::Listing,
    params::{At, Checked, Given, NamePageParams, Nothing, Parameters, Part, Segments},
    source::SourceResource,
};
use crate::{
    auth::{Grant, Refused, Scope},
    view::Snapshot,
    web::{ApiError, App, Problem},
};

/// How long an answer waits for the view to have what was written, so that whoever asks next
/// finds it: far longer than a watch takes.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How long an answer waits for who reads a source: during an outage the rest is still worth
/// telling.
const OWNERS_WITHIN: Duration = Duration::from_secs(2);

/// A list of sources.
#[derive(Debug, Serialize, ToSchema)]
pub struct SourceList {
    /// Always true
    #[schema(example = true)]
    pub success: bool,
    /// How many match, in this part or not
    #[schema(example = 1)]
    pub count: usize,
    /// The sources, by id
    pub data: Vec<SourceResource>,
    /// Where the list goes on, if it does
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "cmFjay03")]
    pub next_cursor: Option<String>,
}

/// What shall be read.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSource {
    /// A name that no source had before
    #[schema(pattern = "^[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,127}$", example = "rack-7")]
    id: String,
    /// Where streamers find the file: an absolute path, or an http(s) URL
    #[schema(
        pattern = "^(/|https?://)[^\\x00-\\x1f\\x7f-\\x9f]{1,1000}$",
        example = "/data/rack-7.csv"
    )]
    path: String,
    /// Replay it in time: 1 as it was recorded, 10 ten times as fast; as fast as possible if not
    /// given
    #[serde(default)]
    #[schema(minimum = 0.001, maximum = 100_000, example = 1.0)]
    replay_speed: Option<f64>,
    /// Begin again at its end, for ever, with time moving on
    #[serde(default)]
    #[schema(default = false, example = false)]
    looped: bool,
}

/// What shall become of a source.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceChange {
    /// Whether nobody shall read it now
    #[schema(example = true)]
    paused: bool,
}

/// Which sources.
pub(super) struct SourceSearch {
    state: Option<SourceState>,
    part: Part,
}

impl Parameters for SourceSearch {
    const NAMES: &'static [&'static str] = &["state", "limit", "cursor"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        let state = given.text("state").map(|text| {
            let allowed = "one of declared, running, paused, done";
            SourceState::parse(text).ok_or_else(|| ApiError::parameter("state", text, allowed))
        });
        Ok(Self { state: state.transpose()?, part: given.part(1, &[])? })
    }
}

/// Which sources.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct SourceParams {
    /// Only sources in this state
    #[param(inline, example = "running")]
    state: Option<SourceState>,
}

/// A JSON body; what is wrong with it is a problem.
pub(super) struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let read = Json::<T>::from_request(request, app).await;
        read.map(|Json(body)| Self(body)).map_err(|error| match error {
            JsonRejection::MissingJsonContentType(_) => {
                let detail = "the content type of a request must be application/json";
                ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail)
            }
            // Only the length can be wrong about bytes.
            JsonRejection::BytesRejection(error) => {
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", error.body_text())
            }
            error => ApiError::new(StatusCode::BAD_REQUEST, "bad-body", error.body_text()),
        })
    }
}

/// All sources
///
/// What shall be read, how far it was, and by whom.
#[utoipa::path(get, path = "/api/v1/sources", operation_id = "listSources", tag = "sources",
    params(SourceParams, NamePageParams),
    responses((status = 200, description = "The sources that match", body = SourceList)))]
pub(super) async fn list(
    State(app): State<App>,
    At(snapshot): At,
    Checked(search): Checked<SourceSearch>,
) -> Listing<SourceList> {
    let sources = snapshot.sources.iter();
    let mut all: Vec<SourceResource> =
        sources.map(|(id, source)| SourceResource::of(id, source, &snapshot)).collect();
    all.retain(|source| search.state.is_none_or(|state| state == source.state));
    let count = all.len();
    let (mut data, next) = search.part.of(all, |source| source.id.clone());
    let owners = owners_in_time(&app, None).await;
    for source in &mut data {
        source.owners = owners.as_ref().map(|owners| of_source(owners, &source.id));
    }
    let list = SourceList { success: true, count, data, next_cursor: next.clone() };
    Listing { list, next, fields: None }
}

/// One source
#[utoipa::path(get, path = "/api/v1/sources/{source_id}", operation_id = "getSource",
    tag = "sources",
    params(("source_id" = String, Path, description = "The source", example = "rack-7")),
    responses((status = 200, description = "The source", body = SourceResource)))]
pub(super) async fn one(
    State(app): State<App>,
    At(snapshot): At,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<SourceResource>, ApiError> {
    let found = snapshot.sources.iter().find(|(known, _)| known.as_str() == id);
    let (id, source) = found.ok_or_else(|| ApiError::not_found("source", &id))?;
    Ok(Json(with_owners(&app, SourceResource::of(id, source, &snapshot)).await))
}

/// Asks for a file to be read
///
/// The first streamer that finds the DCGM CSV file cuts it into shards, which all streamers share.
/// Needs the scope `write`.
#[utoipa::path(post, path = "/api/v1/sources", operation_id = "registerSource", tag = "sources",
    request_body = NewSource,
    responses((status = 201, description = "The source as it was written", body = SourceResource),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "The id is, or was, another source's", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn register(
    State(app): State<App>,
    grant: Grant,
    Checked(Nothing): Checked<Nothing>,
    Body(new): Body<NewSource>,
) -> Result<Response, ApiError> {
    let id = begin(&grant, &new.id)?;
    // Anything beyond the range stays beyond it.
    let speed_milli = new.replay_speed.map(|speed| (speed * 1000.0).round() as u64);
    let desk = SourceDesk::new(app.view.etcd().clone());
    let written = desk.register(&id, &new.path, speed_milli, new.looped).await?;
    tracing::info!(source = %id, path = new.path, "a source was asked for");
    let answer = Json(written_source(&app, &id, &written).await);
    // An id has no character that an address would have to escape.
    let location = HeaderValue::try_from(format!("/api/v1/sources/{id}"));
    let location = location.map(|at| [(header::LOCATION, at)]).map_err(|_| ApiError::internal())?;
    Ok((StatusCode::CREATED, location, answer).into_response())
}

/// Makes a source what is asked for
///
/// Creates it, or changes what may change while it is read: what is simulated, which exporters are
/// asked and how, how often GPUs are. A file stays the file it was. Whether it is paused stays as
/// it is. Needs the scope `write`.
#[utoipa::path(put, path = "/api/v1/sources/{source_id}", operation_id = "applySource",
    tag = "sources", request_body(content = SourceDocument,
        example = json!({"scrape": {"targets": [{"url": "http://dgx-001:9400/metrics"}], "interval": "15s"}})),
    params(("source_id" = String, Path, description = "The source", example = "rack-7")),
    responses((status = 201, description = "The source as it was created", body = SourceResource),
        (status = 200, description = "The source as it is now, changed or not", body = SourceResource),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "The id was another source's, or somebody else kept writing it", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn apply(
    State(app): State<App>,
    grant: Grant,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
    Body(document): Body<SourceDocument>,
) -> Result<Response, ApiError> {
    let id = begin(&grant, &id)?;
    let desk = SourceDesk::new(app.view.etcd().clone());
    let applied = desk.apply(&id, &document.wanted()?).await?;
    let status = match applied {
        Applied::Created => StatusCode::CREATED,
        Applied::Changed | Applied::Unchanged => StatusCode::OK,
    };
    tracing::info!(source = %id, ?applied, "a source was applied");
    let written = desk.get(&id).await?;
    Ok((status, Json(written_source(&app, &id, &written).await)).into_response())
}

/// Pauses or resumes a source
///
/// Paused, it is not read behind the message in hand; what was read stays, and resumed it goes on
/// there. Needs the scope `write`.
#[utoipa::path(patch, path = "/api/v1/sources/{source_id}", operation_id = "changeSource",
    tag = "sources", request_body = SourceChange,
    params(("source_id" = String, Path, description = "The source", example = "rack-7")),
    responses((status = 200, description = "The source as it was written", body = SourceResource),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "Somebody else kept writing it; try again", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn change(
    State(app): State<App>,
    grant: Grant,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
    Body(SourceChange { paused }): Body<SourceChange>,
) -> Result<Json<SourceResource>, ApiError> {
    let id = begin(&grant, &id)?;
    let written = SourceDesk::new(app.view.etcd().clone()).set_paused(&id, paused).await?;
    tracing::info!(source = %id, paused, "a source was paused or resumed");
    Ok(Json(written_source(&app, &id, &written).await))
}

/// Withdraws a source
///
/// Ends its reading for good. What was read stays, and its name is not free again. The answer is
/// the source as it was. Needs the scope `write`.
#[utoipa::path(delete, path = "/api/v1/sources/{source_id}", operation_id = "withdrawSource",
    tag = "sources",
    params(("source_id" = String, Path, description = "The source", example = "rack-7")),
    responses((status = 200, description = "The source as it was", body = SourceResource),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "Somebody else kept writing it; try again", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn withdraw(
    State(app): State<App>,
    grant: Grant,
    Segments(id): Segments<String>,
    Checked(Nothing): Checked<Nothing>,
) -> Result<Json<SourceResource>, ApiError> {
    let id = begin(&grant, &id)?;
    let written = SourceDesk::new(app.view.etcd().clone()).withdraw(&id).await?;
    tracing::info!(source = %id, "a source was withdrawn");
    Ok(Json(written_source(&app, &id, &written).await))
}

/// Whether it may be done at all, and to what.
fn begin(grant: &Grant, id: &str) -> Result<SourceId, ApiError> {
    if !grant.allows(Scope::Write) {
        return Err(Refused::Beyond.into());
    }
    let parsed = id.parse::<SourceId>();
    parsed.map_err(|error| wrong("id", error.to_string()))
}

/// A field that is not as it must be, with the reason in words.
fn wrong(name: &str, reason: String) -> ApiError {
    let detail = format!("{name}: {reason}");
    let parameter = Some((name.to_owned(), reason));
    ApiError { parameter, ..ApiError::new(StatusCode::BAD_REQUEST, "bad-parameter", detail) }
}

impl From<SourceError> for ApiError {
    fn from(error: SourceError) -> Self {
        let (status, kind) = match error {
            // What an id may be made of was checked before: it is taken.
            SourceError::Field { field: "id", .. } => (StatusCode::CONFLICT, "taken"),
            SourceError::Field { field: "replaySpeed", reason } => {
                return wrong("replay_speed", reason);
            }
            SourceError::Field { field, reason } => return wrong(field, reason),
            SourceError::Unknown(_) => (StatusCode::NOT_FOUND, "not-found"),
            SourceError::Moving(_) => (StatusCode::CONFLICT, "moving"),
            SourceError::Value(_) => (StatusCode::INTERNAL_SERVER_ERROR, "source"),
            SourceError::Etcd(_) => (StatusCode::SERVICE_UNAVAILABLE, "etcd"),
        };
        Self::new(status, kind, error.to_string())
    }
}

/// The source as it was written, once the view has that, too, with who reads it.
pub(super) async fn written_source(app: &App, id: &SourceId, written: &Written) -> SourceResource {
    let now = seen(app, written).await;
    let nothing = || Arc::new(Snapshot::empty(written.revision));
    let source = SourceResource::of(id, &written.source, &now.unwrap_or_else(nothing));
    with_owners(app, source).await
}

/// Waits a moment until the view has what was written; returns what it has.
pub(crate) async fn seen(app: &App, written: &Written) -> Option<Arc<Snapshot>> {
    let mut published = app.view.subscribe();
    let reached =
        published.wait_for(|now| now.as_ref().is_some_and(|now| now.revision >= written.revision));
    // What was written was written, whether we see it or not.
    let _ = timeout(SEEN_WITHIN, reached).await;
    app.view.snapshot()
}

async fn with_owners(app: &App, source: SourceResource) -> SourceResource {
    let id = source.id.parse().ok();
    let owners = owners_in_time(app, id.as_ref()).await;
    let owners = owners.map(|owners| of_source(&owners, &source.id));
    SourceResource { owners, ..source }
}

/// Which streamers read shards of which source.
type Owners = BTreeMap<SourceId, BTreeSet<InstanceId>>;

fn of_source(owners: &Owners, id: &str) -> Vec<String> {
    let of = owners.iter().find(|(source, _)| source.as_str() == id);
    of.into_iter().flat_map(|(_, instances)| instances).map(InstanceId::to_string).collect()
}

/// Who reads shards of a source (of any, if none is named); none if etcd does not answer soon.
async fn owners_in_time(app: &App, source: Option<&SourceId>) -> Option<Owners> {
    let desk = SourceDesk::new(app.view.etcd().clone());
    timeout(OWNERS_WITHIN, desk.owners(source)).await.ok()?.ok()
}
