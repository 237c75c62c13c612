//! How a list is answered: whole or with some fields only, as JSON or another text, with a link
//! to where it goes on.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use crate::web::{ApiError, NextPage};

/// Fields of the entries of a list, in the order they were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields(pub(super) Vec<&'static str>);

impl Fields {
    /// Leaves only these in each entry of the list's arrays.
    fn select(&self, list: &mut Value) {
        let arrays =
            list.as_object_mut().into_iter().flatten().filter_map(|(_, v)| v.as_array_mut());
        for entry in arrays.flatten().filter_map(Value::as_object_mut) {
            entry.retain(|name, _| self.0.contains(&name.as_str()));
        }
    }
}

/// A list, or a part of one.
pub(super) struct Listing<T> {
    pub(super) list: T,
    /// Where it goes on.
    pub(super) next: Option<String>,
    pub(super) fields: Option<Fields>,
}

impl<T: Serialize> IntoResponse for Listing<T> {
    fn into_response(self) -> Response {
        let mut response = match &self.fields {
            None => Json(self.list).into_response(),
            Some(fields) => match serde_json::to_value(self.list) {
                Ok(mut list) => {
                    fields.select(&mut list);
                    Json(list).into_response()
                }
                Err(error) => {
                    tracing::error!(%error, "an answer cannot be written");
                    return ApiError::internal().into_response();
                }
            },
        };
        if let Some(next) = self.next {
            response.extensions_mut().insert(NextPage(next));
        }
        response
    }
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON object.
    Json,
    /// A line a row, fields separated by commas.
    Csv,
    /// A JSON object a line.
    Lines,
}

impl Format {
    /// The first of those that are known in an `Accept` header; JSON without one.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).map(HeaderValue::as_bytes).unwrap_or_default();
        let known = accept.split(|b| *b == b',').find_map(|part| {
            let kind = part.split(|b| *b == b';').next()?.trim_ascii();
            match kind.to_ascii_lowercase().as_slice() {
                b"text/csv" => Some(Self::Csv),
                b"application/x-ndjson" | b"application/jsonl" => Some(Self::Lines),
                b"application/json" | b"application/*" | b"*/*" => Some(Self::Json),
                _ => None,
            }
        });
        known.unwrap_or(Self::Json)
    }

    /// Its media type.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Lines => "application/x-ndjson",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_kind_is_answered() {
        let check = |accept: &'static str, expected: Format| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::wanted(&headers), expected, "{accept}");
        };
        check("text/csv", Format::Csv);
        check("text/html, Text/CSV;q=0.9, */*;q=0.1", Format::Csv);
        check("application/x-ndjson", Format::Lines);
        check("*/*", Format::Json);
        check("application/json, text/csv", Format::Json);
        check("image/png", Format::Json);
        assert_eq!(Format::wanted(&HeaderMap::new()), Format::Json);
    }

    #[test]
    fn only_the_fields_that_were_asked_for_stay() {
        let mut list =
            serde_json::json!({"count": 1, "data": [{"id": "0", "uuid": "G", "name": null}]});
        Fields(vec!["uuid", "name"]).select(&mut list);
        assert_eq!(list, serde_json::json!({"count": 1, "data": [{"uuid": "G", "name": null}]}));
    }
}
