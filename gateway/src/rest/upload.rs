//! A file that is sent: kept where streamers find it, then asked for as a source.
//!
//! The name says the content and what it means, so the same file twice is one source, whoever sends
//! it to which gateway; and whatever happens in between, sending it again ends where sending it
//! once does.

mod form;
mod intake;
mod spent;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json,
    extract::{FromRequest, Multipart, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use clap::Args;
use futures_util::StreamExt;
use nexus_common::{
    keyspace::{Mapping, SourceKind, to_json},
    model::{SourceId, Timestamp},
    sources::{SourceDesk, SourceError, SourceState, Wanted, Written, document::CsvMapping},
};
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{interval, timeout},
};
use utoipa::{IntoParams, ToSchema};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    params::{Checked, Given, Parameters},
    source::SourceResource,
    sources::written_source,
};
use crate::{
    auth::{Grant, Refused, Scope},
    web::{ApiError, App, Problem},
};
use form::{FILE, MAPPING, MAPPING_BYTES_MAX, Place, Received};
use intake::{Intake, Refusal, Taken};

/// Where files are sent to.
pub(crate) const UPLOAD_PATH: &str = "/api/v1/csv/upload";
/// Longest an upload may take: 2 GiB at 4 MiB/s. Its body is bounded by bytes as well.
pub(crate) const UPLOAD_SECONDS_MAX: u64 = 600;
/// What a form has around its file, in bytes: a mapping, boundaries and headers of a few hundred.
const FORM_BYTES_MAX: u64 = 2 * MAPPING_BYTES_MAX as u64;
/// How long the rest of a refused file is taken, to be dropped: some hundred MiB on a machine's own
/// network.
const HEAR_OUT: Duration = Duration::from_secs(2);
/// Uploads at once: they share one disk.
const UPLOADS_MAX: usize = 4;
/// Age from which a half-written file has no gateway any more, and one that was read no sender who
/// is about to ask for it again: many times what an upload may take.
const LEFT_AFTER: Duration = Duration::from_secs(6 * UPLOAD_SECONDS_MAX);
/// How often it is looked for files that nobody reads any more.
const CLEAR_EVERY: Duration = Duration::from_secs(600);
/// Hex digits of the hash that a source is named by: nobody finds two files that share 128 bits.
const NAME_DIGITS: usize = 32;

/// Flags of uploads.
#[derive(Debug, Clone, Args)]
pub struct UploadArgs {
    /// Directory for files that are sent to /api/v1/csv/upload; streamers must have it under the
    /// same path. Nothing can be sent without it
    #[arg(long, env = "UPLOAD_DIR", value_name = "DIRECTORY")]
    pub upload_dir: Option<PathBuf>,
    /// Largest file that may be sent, in bytes
    #[arg(long, env = "UPLOAD_BYTES_MAX", default_value_t = 2 << 30, value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
    pub upload_bytes_max: u64,
}

/// Where files that are sent come to lie.
pub struct Uploads {
    folder: Option<PathBuf>,
    bytes_max: u64,
    turns: Semaphore,
}

impl Uploads {
    /// Checks the directory, and removes what gateways that died left half written there.
    ///
    /// # Errors
    /// When it is no directory that can be written.
    pub fn new(args: &UploadArgs) -> anyhow::Result<Self> {
        let (bytes_max, turns) = (args.upload_bytes_max, Semaphore::new(UPLOADS_MAX));
        let Some(given) = &args.upload_dir else {
            return Ok(Self { folder: None, bytes_max, turns });
        };
        let wrong = || format!("--upload-dir {}", given.display());
        let folder = std::path::absolute(given).with_context(wrong)?;
        let swept = spent::sweep(&folder, LEFT_AFTER).with_context(wrong)?;
        for path in swept {
            tracing::warn!(path = %path.display(), "a file that was left half sent is removed");
        }
        Intake::begin(&folder, 0, None).with_context(wrong)?;
        let text = folder.to_str().filter(|text| !text.chars().any(char::is_control));
        text.with_context(wrong).context("the path of uploads must be UTF-8")?;
        Ok(Self { folder: Some(folder), bytes_max, turns })
    }

    /// Removes files that nobody reads any more, now and then, for as long as it is polled.
    pub(crate) async fn clear_away(&self, desk: &SourceDesk) {
        let Some(folder) = &self.folder else { return };
        let mut look = interval(CLEAR_EVERY);
        loop {
            look.tick().await;
            match spent::clear_away(folder.clone(), LEFT_AFTER, desk).await {
                Ok(removed) => removed.iter().for_each(|path| {
                    tracing::info!(path = %path.display(), "removed: nobody reads it any more");
                }),
                Err(error) => tracing::warn!(%error, "could not look which files were read"),
            }
        }
    }

    /// Whether a request may bring a file at all, and to which directory.
    fn may(&self, grant: &Grant, request: &Request) -> Result<PathBuf, ApiError> {
        if !grant.allows(Scope::Write) {
            return Err(Refused::Beyond.into());
        }
        let folder = self.folder.clone().ok_or_else(off)?;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.bytes_max.saturating_add(FORM_BYTES_MAX)) {
            return Err(Refusal::TooLarge { max: self.bytes_max }.into());
        }
        Ok(folder)
    }
}

/// A file that was taken in.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UploadResource {
    /// Always true
    #[schema(example = true)]
    success: bool,
    /// The source that reads it; its name follows from the content
    #[schema(example = "upload-9f86d081884c7d659a2feaa0c55ad015")]
    file_id: String,
    /// What the sender calls it; null if it was not told
    #[schema(example = "rack-7.csv")]
    filename: Option<String>,
    /// Bytes
    #[schema(example = 1_048_576)]
    size: u64,
    /// Rows behind the header, whatever they say
    #[schema(example = 2470)]
    record_count: u64,
    /// Hash of the content, in hex
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    sha256: String,
    /// Whether it was there already: nothing is read twice
    #[schema(example = false)]
    duplicate: bool,
    /// What becomes of it
    status: SourceState,
    /// Where to ask how far it was read
    #[schema(example = "/api/v1/sources/upload-9f86d081884c7d659a2feaa0c55ad015")]
    status_url: String,
    /// When it had come in
    #[schema(value_type = String, format = DateTime, example = "2026-01-31T14:00:00Z")]
    uploaded_at: Timestamp,
    /// The source as it is now
    source: SourceResource,
}

/// A form with one file, and perhaps before it what its columns mean.
#[derive(ToSchema)]
#[allow(dead_code, reason = "the document; the form is read piece by piece")]
pub(super) struct UploadForm {
    /// The CSV file, in one of the layouts that streamers read; packed with gzip or zstd or not
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    file: Vec<u8>,
    /// In JSON, before the file: what its header does not say
    mapping: Option<CsvMapping>,
}

/// How a file is taken.
pub(super) struct UploadSearch {
    force: bool,
}

impl Parameters for UploadSearch {
    const NAMES: &'static [&'static str] = &["force"];

    fn read(given: &Given) -> Result<Self, ApiError> {
        match given.text("force") {
            None | Some("false") => Ok(Self { force: false }),
            Some("true") => Ok(Self { force: true }),
            Some(other) => Err(ApiError::parameter("force", other, "true or false")),
        }
    }
}

/// How a file is taken.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the document; values are read through `Given`")]
pub(super) struct UploadParams {
    /// Read it once more, as another source, though it was sent before
    #[param(inline, default = false, example = false)]
    force: Option<bool>,
}

/// Takes a CSV file in and has it read
///
/// The form has the field `file`, and before it perhaps `mapping`, which says what the columns mean
/// where the header does not: of a log of GPU-Z whose it is. The file is kept where streamers find
/// it and becomes a source named by its content: sent again it is the same source, and nothing is
/// read twice. Ask `status_url` how far it is. Needs the scope `write`, and a gateway with
/// `--upload-dir`.
#[utoipa::path(post, path = "/api/v1/csv/upload", operation_id = "uploadCsv", tag = "sources",
    params(UploadParams),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses((status = 201, description = "It was taken in and is a source now", body = UploadResource),
        (status = 200, description = "It was there already", body = UploadResource),
        (status = 400, description = "Not a form with a field `file`, a mapping that cannot be, or a file that is no CSV of a known layout; nothing of it is kept", content_type = "application/problem+json", body = Problem),
        (status = 403, description = "The token has not the scope write", content_type = "application/problem+json", body = Problem),
        (status = 408, description = "Nothing more came for 10 s", content_type = "application/problem+json", body = Problem),
        (status = 409, description = "The source of this content was withdrawn; send it with `force=true` to have it read again", content_type = "application/problem+json", body = Problem),
        (status = 413, description = "The file is larger than this gateway takes", content_type = "application/problem+json", body = Problem),
        (status = 415, description = "A body that is not multipart/form-data", content_type = "application/problem+json", body = Problem),
        (status = 501, description = "This gateway has no directory for files", content_type = "application/problem+json", body = Problem),
        (status = 507, description = "The directory for files cannot be written", content_type = "application/problem+json", body = Problem)))]
pub(super) async fn upload(
    State(app): State<App>,
    grant: Grant,
    Checked(search): Checked<UploadSearch>,
    request: Request,
) -> Result<Response, ApiError> {
    let folder = match app.uploads.may(&grant, &request) {
        Ok(folder) => folder,
        Err(error) => {
            let mut rest = request.into_body().into_data_stream();
            hear_out(async { while let Some(Ok(_)) = rest.next().await {} }).await;
            return Err(error);
        }
    };
    let Ok(_turn) = app.uploads.turns.try_acquire() else {
        let detail = format!("{UPLOADS_MAX} files are coming in already; try again");
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail));
    };
    let mut form = Multipart::from_request(request, &app).await.map_err(|error| {
        let detail = format!("{}; send multipart/form-data with a field {FILE}", error.body_text());
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail)
    })?;
    let place = Place { folder: folder.clone(), bytes_max: app.uploads.bytes_max };
    let received = form::receive(&mut form, place).await;
    if received.is_err() {
        hear_out(async { while let Ok(Some(_)) = form.next_field().await {} }).await;
    }
    let Received { taken, filename, mapping } = received?;
    let (size, record_count, sha256) = (taken.bytes, taken.records, taken.sha256.clone());
    let (id, written, duplicate) = register(&app, taken, mapping, &folder, search.force).await?;
    tracing::info!(source = %id, ?filename, size, record_count, duplicate, "a file was sent");
    let source = written_source(&app, &id, &written).await;
    let status_url = format!("/api/v1/sources/{id}");
    // An id has no character that an address would have to escape.
    let location = HeaderValue::try_from(&status_url).map_err(|_| ApiError::internal())?;
    let answer = UploadResource {
        success: true,
        file_id: id.to_string(),
        filename,
        size,
        record_count,
        sha256,
        duplicate,
        status: source.state,
        status_url,
        uploaded_at: Timestamp::now(),
        source,
    };
    let status = if duplicate { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, [(header::LOCATION, location)], Json(answer)).into_response())
}

fn off() -> ApiError {
    let detail = "this gateway takes no files: start it with --upload-dir DIRECTORY (UPLOAD_DIR), \
                  a directory that streamers have under the same path";
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "uploads-off", detail)
}

/// Keeps the file and asks for it to be read, or finds that this was done before.
async fn register(
    app: &App,
    taken: Taken,
    mapping: Option<Mapping>,
    folder: &Path,
    force: bool,
) -> Result<(SourceId, Written, bool), ApiError> {
    let digits = taken.sha256.get(..NAME_DIGITS).unwrap_or_default();
    // Read otherwise it is another source.
    let read_as = mapping.as_ref().map(|m| format!("-{:016x}", xxh3_64(&to_json(m))));
    let again = force.then(|| format!("-{:x}", Timestamp::now().as_millis()));
    let [read_as, again] = [read_as, again].map(Option::unwrap_or_default);
    let id = format!("{}{digits}{read_as}{again}", spent::PREFIX).parse::<SourceId>();
    let id = id.map_err(|_| ApiError::internal())?;
    let path = folder.join(format!("{id}{}", spent::SUFFIX));
    let desk = SourceDesk::new(app.view.etcd().clone());
    let known = match desk.get(&id).await {
        Ok(written) => Some(written),
        Err(SourceError::Unknown(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let there = path.exists();
    // A file that went missing comes back by being sent again.
    if known.is_none() || !there {
        let to = path.clone();
        let kept = spawn_blocking(move || taken.keep(&to)).await;
        kept.map_err(|_| ApiError::internal())?.map_err(Refusal::Write)?;
    }
    if let Some(written) = known {
        return Ok((id, written, true));
    }
    let text = path.to_str().ok_or_else(ApiError::internal)?.to_owned();
    let mapping = mapping.map(Box::new);
    let kind = SourceKind::Declared { path: text, speed_milli: None, looped: false, mapping };
    match desk.create(&id, &Wanted::new(kind)?).await {
        Ok(written) => Ok((id, written, false)),
        Err(SourceError::Field { field: "id", .. }) => match desk.get(&id).await {
            // Somebody sent the same in the same moment.
            Ok(written) => Ok((id, written, true)),
            Err(_) => {
                if !there {
                    // Nobody asks for it: it would lie there for ever.
                    let _ = std::fs::remove_file(&path);
                }
                Err(withdrawn(&id))
            }
        },
        // It may have been written: the file stays, and sending it again finds out.
        Err(error) => Err(error.into()),
    }
}

fn withdrawn(id: &SourceId) -> ApiError {
    let detail = format!(
        "this file was sent before, and its source {id} was withdrawn; send it with ?force=true \
         to have it read again as another source"
    );
    ApiError::new(StatusCode::CONFLICT, "taken", detail)
}

/// Takes what is still sent, for a moment: most clients only read an answer once they have sent
/// all, and one that is cut off reads none.
pub(super) async fn hear_out(rest: impl Future<Output = ()>) {
    // What takes longer is cut off: nothing of it is wanted.
    let _ = timeout(HEAR_OUT, rest).await;
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let allowed = format!(
            "a CSV file in the long or the wide layout, with a header and rows; what the header \
             does not say is said in the form's field {MAPPING}"
        );
        let (status, kind, allowed) = match &refusal {
            Refusal::TooLarge { max } | Refusal::TooLargeUnpacked { max } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body", format!("a file of at most {max} bytes"))
            }
            Refusal::Write(_) => {
                tracing::error!(error = %refusal, "a file that was sent cannot be kept");
                return Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage", refusal.to_string());
            }
            Refusal::Empty(_) | Refusal::Binary(_) | Refusal::Packed(_) | Refusal::Header(_) => {
                (StatusCode::BAD_REQUEST, "bad-csv", allowed)
            }
        };
        let detail = format!("{FILE}: {refusal}");
        let parameter = Some((FILE.to_owned(), allowed));
        Self { parameter, ..Self::new(status, kind, detail) }
    }
}
