//! The form in which a file is sent: perhaps what its columns mean, then the file.

use std::{path::PathBuf, time::Duration};

use axum::{
    extract::{
        Multipart,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
};
use bytes::Bytes;
use nexus_common::{keyspace::Mapping, sources::document::CsvMapping};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::intake::{Intake, Refusal, Taken};
use crate::web::ApiError;

/// Longest silence of whoever sends.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Pieces that wait for the disk: of some 64 KiB each, so it never idles and little is held.
const PIECES: usize = 4;
/// Longest mapping, in bytes: what all columns that one may name need.
pub(super) const MAPPING_BYTES_MAX: usize = 64 * 1024;
/// The file.
pub(super) const FILE: &str = "file";
/// What its columns mean.
pub(super) const MAPPING: &str = "mapping";

/// Where a file goes, and how large it may be.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) bytes_max: u64,
}

/// What a form has.
pub(super) struct Received {
    pub(super) taken: Taken,
    /// What the sender calls the file.
    pub(super) filename: Option<String>,
    /// What the file's header does not say.
    pub(super) mapping: Option<Mapping>,
}

/// Reads a form to its end.
pub(super) async fn receive(form: &mut Multipart, place: Place) -> Result<Received, ApiError> {
    let mut mapping = None;
    let field = loop {
        let field = next(form).await?.ok_or_else(|| wrong_field("", "there is no file"))?;
        match field.name().unwrap_or_default() {
            FILE => break field,
            MAPPING if mapping.is_none() => mapping = Some(read_mapping(field).await?),
            MAPPING => return Err(wrong_field(MAPPING, "it is there twice")),
            name => return Err(wrong_field(name, "it is not known")),
        }
    };
    let filename = field.file_name().map(|name| name.chars().take(255).collect());
    let taken = write(field, place, mapping.clone()).await?;
    if let Some(more) = next(form).await? {
        let name = more.name().unwrap_or_default();
        return Err(wrong_field(name, "it comes behind the file: send one file a request"));
    }
    // One that says nothing is none: the same file is the same source.
    let mapping = mapping.filter(|mapping| *mapping != Mapping::default());
    Ok(Received { taken, filename, mapping })
}

async fn next(form: &mut Multipart) -> Result<Option<Field<'_>>, ApiError> {
    in_time(form.next_field()).await?.map_err(bad_form)
}

async fn read_mapping(mut field: Field<'_>) -> Result<Mapping, ApiError> {
    let mut text = Vec::new();
    while let Some(piece) = in_time(field.chunk()).await?.map_err(bad_form)? {
        text.extend_from_slice(&piece);
        if text.len() > MAPPING_BYTES_MAX {
            let why = format!("it has more than {MAPPING_BYTES_MAX} bytes");
            return Err(wrong_field(MAPPING, &why));
        }
    }
    let mapping = serde_json::from_slice::<CsvMapping>(&text);
    let mapping = mapping.map_err(|error| wrong_field(MAPPING, &error.to_string()))?;
    Ok(mapping.mapping()?)
}

/// Hands what comes to a thread that writes it. A sender that leaves leaves nothing.
async fn write(
    mut field: Field<'_>,
    place: Place,
    mapping: Option<Mapping>,
) -> Result<Taken, ApiError> {
    let (to, mut pieces) = mpsc::channel::<Option<Bytes>>(PIECES);
    let writing: JoinHandle<Option<Result<Taken, Refusal>>> = spawn_blocking(move || {
        let mut intake = match Intake::begin(&place.folder, place.bytes_max, mapping) {
            Ok(intake) => intake,
            Err(refusal) => return Some(Err(refusal)),
        };
        loop {
            match pieces.blocking_recv() {
                Some(Some(piece)) => {
                    if let Err(refusal) = intake.push(&piece) {
                        return Some(Err(refusal));
                    }
                }
                Some(None) => return Some(intake.finish()),
                // Whoever sent is gone, and nobody waits for an answer.
                None => return None,
            }
        }
    });
    loop {
        let piece = in_time(field.chunk()).await?.map_err(bad_form)?;
        let ended = piece.is_none();
        // It only stops listening when it has an answer.
        if to.send(piece).await.is_err() || ended {
            break;
        }
    }
    let written = writing.await.map_err(|_| ApiError::internal())?;
    written.ok_or_else(ApiError::internal)?.map_err(ApiError::from)
}

/// Waits for whoever sends, but not for ever.
async fn in_time<T>(coming: impl Future<Output = T>) -> Result<T, ApiError> {
    timeout(SILENCE_MAX, coming).await.map_err(|_| {
        let detail = format!("nothing more came for {} s", SILENCE_MAX.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail)
    })
}

fn bad_form(error: MultipartError) -> ApiError {
    // What is not the form's fault is the connection's: it broke off.
    let status = match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    ApiError::new(status, "bad-body", format!("read the form: {}", error.body_text()))
}

fn wrong_field(name: &str, why: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    let allowed = format!(
        "one field {FILE} that holds the CSV file, and perhaps a field {MAPPING} before it, in JSON"
    );
    let detail = format!("form field {name:?}: {why}; allowed is {allowed}");
    let parameter = Some((name, allowed));
    ApiError { parameter, ..ApiError::new(StatusCode::BAD_REQUEST, "bad-parameter", detail) }
}
