//! Rows as text that is written while they are read: however many there are, only a few are in
//! memory.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use nexus_common::model::MetricName;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    listing::{Fields, Format},
    resources::{ROW_FIELDS, Row},
    span::Span,
    telemetry::query,
};
use crate::{
    view::{QueryError, Snapshot, Target},
    web::{ApiError, App, REVISION},
};

/// Rows that are read at a time: below a MiB of text.
const ROWS_AT_A_TIME: usize = 2_000;

/// An export that goes on.
struct Export<F> {
    app: App,
    snapshot: Arc<Snapshot>,
    span: Span,
    find: F,
    writer: Writer,
    /// Rows that may still come.
    left: usize,
    over: bool,
    /// An export is one of a few.
    _turn: OwnedSemaphorePermit,
}

/// Answers with the rows of a span, from the oldest on; if only the newest are wanted, with those.
pub(super) async fn answer(
    app: App,
    snapshot: Arc<Snapshot>,
    mut span: Span,
    format: Format,
    find: impl Fn(&Snapshot) -> Vec<Target> + Send + Sync + 'static,
) -> Result<Response, ApiError> {
    let turn = Arc::clone(&app.exports).try_acquire_owned().map_err(|_| {
        let detail = "too many exports at once; try again";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    })?;
    // The newest come from the end: they are turned around in memory, so there is a bound.
    let newest = span.newest && span.limit.is_some_and(|limit| limit <= ROWS_AT_A_TIME);
    if span.newest && !newest && span.limit.is_some() {
        let found = span.rows().to_string();
        let allowed = format!("at most {ROWS_AT_A_TIME} in an export without start_time");
        return Err(ApiError::parameter("limit", &found, &allowed));
    }
    span.newest = newest;
    let writer = Writer::new(format, &span);
    let revision = snapshot.revision;
    let left = span.limit.unwrap_or(usize::MAX);
    let mut export = Export { app, snapshot, span, find, writer, left, over: false, _turn: turn };
    // What fails at once is a problem; what fails later cuts the answer off, unfinished.
    let first = export.next().await?.unwrap_or_default();
    let rest = stream::unfold(Some(export), |export| async {
        let mut export = export?;
        match export.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(export))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(%error, "an export is cut off");
                Some((Err(error), None))
            }
        }
    });
    // Whoever compresses it asks once more behind the end.
    let rest = rest.fuse();
    let body = Body::from_stream(stream::once(async { Ok(first) }).chain(rest));
    let headers = [(header::CONTENT_TYPE, format.kind())];
    let mut response = (headers, body).into_response();
    response.headers_mut().insert(REVISION, revision.into());
    Ok(response)
}

impl<F: Fn(&Snapshot) -> Vec<Target>> Export<F> {
    /// The next chunk of text; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, QueryError> {
        if self.over {
            return Ok(None);
        }
        let limit = self.left.min(ROWS_AT_A_TIME);
        let ask = |s: &Snapshot| query(&self.span, (self.find)(s), limit);
        let answer = self.app.view.points(Arc::clone(&self.snapshot), ask).await?;
        self.left -= answer.points.len().min(self.left);
        self.over = answer.next.is_none() || self.left == 0 || self.span.newest;
        self.span.after = answer.next;
        self.snapshot = answer.snapshot;
        for point in &answer.points {
            self.writer.row(Row::of(point, &self.snapshot));
        }
        Ok(Some(self.writer.take()))
    }
}

/// Writes rows.
struct Writer {
    format: Format,
    text: Vec<u8>,
    fields: Option<Fields>,
    /// Columns of CSV.
    columns: Vec<Column>,
}

/// A column of CSV: a field of a row, or a metric that was asked for by name and has no field.
enum Column {
    Field(&'static str),
    Metric(MetricName),
}

impl Column {
    fn name(&self) -> &str {
        match self {
            Self::Field(name) => name,
            Self::Metric(name) => name.as_str(),
        }
    }
}

impl Writer {
    fn new(format: Format, span: &Span) -> Self {
        let fields = span.fields.as_ref().map_or_else(|| ROW_FIELDS.to_vec(), |f| f.0.clone());
        let mut columns: Vec<Column> = fields.into_iter().map(Column::Field).collect();
        if let Some(metrics) = &span.metrics {
            // Metrics that were not asked for have no values.
            let asked = |name: &str| metrics.iter().any(|m| m.as_str() == name);
            let metric = |name: &str| nexus_common::model::metric_by_name(name).is_some();
            columns.retain(|c| asked(c.name()) || !metric(c.name()) || span.fields.is_some());
            let own = metrics.iter().filter(|m| !ROW_FIELDS.contains(&m.as_str()));
            columns.extend(own.cloned().map(Column::Metric));
        }
        let mut writer = Self { format, text: Vec::new(), fields: span.fields.clone(), columns };
        if format == Format::Csv {
            let names: Vec<String> = writer.columns.iter().map(|c| c.name().to_owned()).collect();
            writer.record(&names);
        }
        writer
    }

    fn row(&mut self, row: Row) {
        // A row of ours always serialises.
        let Ok(mut row) = serde_json::to_value(row) else { return };
        if self.format == Format::Csv {
            let text = |value: Option<&serde_json::Value>| match value {
                None | Some(serde_json::Value::Null) => String::new(),
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(serde_json::Value::Object(empty)) if empty.is_empty() => String::new(),
                Some(other) => other.to_string(),
            };
            let record: Vec<String> = self
                .columns
                .iter()
                .map(|column| match column {
                    Column::Field(name) => text(row.get(name)),
                    Column::Metric(name) => text(row["custom_metrics"].get(name.as_str())),
                })
                .collect();
            self.record(&record);
            return;
        }
        if let (Some(fields), Some(row)) = (&self.fields, row.as_object_mut()) {
            row.retain(|name, _| fields.0.contains(&name.as_str()));
        }
        self.text.extend(row.to_string().into_bytes());
        self.text.push(b'\n');
    }

    fn record(&mut self, fields: &[String]) {
        let mut writer = csv::WriterBuilder::new().from_writer(&mut self.text);
        // Writing to memory cannot fail.
        let _ = writer.write_record(fields);
        let _ = writer.flush();
    }

    fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.text).into()
    }
}
