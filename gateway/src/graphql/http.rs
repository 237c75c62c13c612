//! GraphQL over HTTP (<https://graphql.github.io/graphql-over-http/draft/>): what may come in, and
//! in which of two content types the answer goes out.

use async_graphql::parser::types::OperationType;
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{FromRequestParts as _, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    document::{GraphQlRequest, GraphQlResponse},
    execute::{Asked, Invalid, Outcome, Service},
    playground,
};
use crate::{
    auth::Grant,
    web::{ApiError, BODY_BYTES_MAX, Problem, REVISION},
};

/// The content types of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Statuses say whether the operation ran.
    GraphQl,
    /// What clients have known for longer: 200 whatever becomes of a well-formed request.
    Json,
}

impl Kind {
    /// A well-formed request whose operation cannot be run.
    fn refuse(self, invalid: &Invalid) -> Response {
        let status = if self == Kind::Json { StatusCode::OK } else { StatusCode::BAD_REQUEST };
        self.answer(status, &invalid.body())
    }

    const fn content_type(self) -> &'static str {
        match self {
            Kind::GraphQl => "application/graphql-response+json; charset=utf-8",
            Kind::Json => "application/json; charset=utf-8",
        }
    }

    fn answer(self, status: StatusCode, body: &impl serde::Serialize) -> Response {
        // Our own structs always serialise; an empty answer would be noticed by any client.
        let body = serde_json::to_vec(body).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, self.content_type())], Body::from(body)).into_response()
    }
}

/// The best of what a client accepts; without a wish what clients have known for longer.
fn negotiate(headers: &HeaderMap) -> Result<Kind, ApiError> {
    let mut accepted = headers.get_all(header::ACCEPT).iter().peekable();
    if accepted.peek().is_none() {
        return Ok(Kind::Json);
    }
    let text: Vec<&str> = accepted.filter_map(|value| value.to_str().ok()).collect();
    let mut best: Option<(f32, Kind)> = None;
    for range in text.iter().flat_map(|text| text.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "application/graphql-response+json" => Kind::GraphQl,
            "application/json" | "application/*" | "*/*" => Kind::Json,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let weight = weight.and_then(|q| q.parse().ok()).unwrap_or(1.0);
        if weight > 0.0 && best.is_none_or(|(known, _)| weight > known) {
            best = Some((weight, kind));
        }
    }
    best.map(|(_, kind)| kind).ok_or_else(|| {
        let detail = "only application/graphql-response+json and application/json are served here";
        ApiError::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", detail)
    })
}

/// Whether a person came for the page: a query is answered, not shown.
fn wants_page(parts: &Parts) -> bool {
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("text/html"));
    let queries = parts.uri.query().is_some_and(|text| pair(text, "query").is_some());
    !queries && parts.headers.get_all(header::ACCEPT).iter().any(accepts)
}

fn pair(query: &str, name: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = axum::extract::Query::try_from_uri(
        &axum::http::Uri::builder().path_and_query(format!("/?{query}")).build().ok()?,
    )
    .ok()?
    .0;
    pairs.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

/// Runs a GraphQL query
///
/// Only queries: mutations are by POST, subscriptions by graphql-transport-ws at `/graphql/ws`. Who
/// accepts `text/html` and asks nothing gets the playground.
#[utoipa::path(get, path = "/graphql", operation_id = "askGraphQl", tag = "graphql",
    params(("query" = String, Query, description = "The query, at most 65536 bytes",
            example = "{ gpus { uuid status } }"),
        ("variables" = Option<String>, Query, description = "Values of its variables, as a JSON object",
            example = "{\"name\":\"dgx-001\"}"),
        ("operationName" = Option<String>, Query, description = "Which of several operations in `query`",
            example = "Host"),
        ("extensions" = Option<String>, Query, description = "Not used; a JSON object", example = "{}")),
    responses((status = 200, description = "What became of it; also of what was not run, under `application/json`",
            content((GraphQlResponse = "application/json"), (GraphQlResponse = "application/graphql-response+json"))),
        (status = 400, description = "It is not well-formed, or was not run",
            content((GraphQlResponse = "application/json"), (GraphQlResponse = "application/graphql-response+json"))),
        (status = 405, description = "Another method, or a mutation by GET",
            content_type = "application/problem+json", body = Problem),
        (status = 406, description = "Neither content type is accepted",
            content_type = "application/problem+json", body = Problem),
        (status = 503, description = "Too much is asked at once, or the view is not loaded yet; try again",
            content_type = "application/problem+json", body = Problem)))]
pub(super) async fn get(State(service): State<Service>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    if wants_page(&parts) {
        return playground::page();
    }
    let admitted = admit(&service, &mut parts).await;
    let (kind, grant) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return error.into_response(),
    };
    let asked = from_url(parts.uri.query().unwrap_or_default());
    let asked = match asked {
        Ok(asked) => asked,
        Err(invalid) => return kind.answer(StatusCode::BAD_REQUEST, &invalid.body()),
    };
    match service.prepare(asked) {
        Err(invalid) => kind.refuse(&invalid),
        Ok(ready) if ready.kind == OperationType::Mutation => {
            let detail = "GET only asks: mutations are by POST";
            let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
            ([(header::ALLOW, "POST")], error).into_response()
        }
        Ok(ready) => run(&service, kind, ready, grant).await,
    }
}

/// Runs a GraphQL query or mutation
///
/// Mutations need the scope `write`. What may be asked is in `docs/schema.graphql`, or by
/// introspection.
#[utoipa::path(post, path = "/graphql", operation_id = "runGraphQl", tag = "graphql",
    request_body = GraphQlRequest,
    responses((status = 200, description = "What became of it; also of what was not run, under `application/json`",
            content((GraphQlResponse = "application/json"), (GraphQlResponse = "application/graphql-response+json"))),
        (status = 400, description = "It is not well-formed, or was not run",
            content((GraphQlResponse = "application/json"), (GraphQlResponse = "application/graphql-response+json"))),
        (status = 405, description = "Another method, or a mutation by GET",
            content_type = "application/problem+json", body = Problem),
        (status = 406, description = "Neither content type is accepted",
            content_type = "application/problem+json", body = Problem),
        (status = 503, description = "Too much is asked at once, or the view is not loaded yet; try again",
            content_type = "application/problem+json", body = Problem)))]
pub(super) async fn post(State(service): State<Service>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let asked = async {
        let admitted = admit(&service, &mut parts).await?;
        check_content_type(&parts.headers)?;
        let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| too_large())?;
        Ok::<_, ApiError>((admitted, body))
    };
    let ((kind, grant), body) = match asked.await {
        Ok(asked) => asked,
        Err(error) => return error.into_response(),
    };
    let asked = match from_body(&body) {
        Ok(asked) => asked,
        Err(invalid) => return kind.answer(StatusCode::BAD_REQUEST, &invalid.body()),
    };
    match service.prepare(asked) {
        Err(invalid) => kind.refuse(&invalid),
        Ok(ready) => run(&service, kind, ready, grant).await,
    }
}

/// Any other method.
pub(super) async fn other(method: Method) -> Response {
    let detail = format!("{method} is not served here: GET asks, POST also changes");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
    ([(header::ALLOW, "GET, HEAD, POST")], error).into_response()
}

/// Who may read, and in which content type the answer shall be.
async fn admit(service: &Service, parts: &mut Parts) -> Result<(Kind, Grant), ApiError> {
    let grant = Grant::from_request_parts(parts, &service.app).await?;
    Ok((negotiate(&parts.headers)?, grant))
}

async fn run(
    service: &Service,
    kind: Kind,
    ready: super::execute::Ready,
    grant: Grant,
) -> Response {
    if ready.kind == OperationType::Subscription {
        let said = "subscriptions are served over graphql-transport-ws at /graphql/ws";
        let invalid = Invalid::told(said.to_owned(), "subscription");
        return kind.refuse(&invalid);
    }
    let turn = match service.turn().await {
        Ok(turn) => turn,
        Err(error) => return error.into_response(),
    };
    let Some(snapshot) = service.app.view.snapshot() else {
        return ApiError::loading().into_response();
    };
    let revision = snapshot.revision;
    let mut response = match service.run(ready, snapshot, grant, turn).await {
        Outcome::Invalid(invalid) => kind.refuse(&invalid),
        Outcome::Ran(response) => kind.answer(StatusCode::OK, &response),
    };
    response.headers_mut().insert(REVISION, revision.into());
    response
}

fn too_large() -> ApiError {
    let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes, the maximum");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body", detail)
}

/// JSON in UTF-8 is all that is taken: no page of another origin can send that unasked.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |detail: &str| {
        Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", detail))
    };
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let text = text.unwrap_or_default().to_ascii_lowercase();
    let mut parts = text.split(';').map(str::trim);
    if parts.next() != Some("application/json") {
        return refused("the content type of a request must be application/json");
    }
    let charset = parts.find_map(|part| part.strip_prefix("charset="));
    match charset.map(|charset| charset.trim_matches('"')) {
        None | Some("utf-8" | "utf8") => Ok(()),
        Some(_) => refused("the charset of a request must be utf-8"),
    }
}

fn from_body(body: &Bytes) -> Result<Asked, Invalid> {
    let bad = |reason: String| Invalid::told(reason, "bad-request");
    let value: Value =
        serde_json::from_slice(body).map_err(|e| bad(format!("the body is not JSON: {e}")))?;
    if let Value::Array(all) = &value {
        let found = all.len();
        return Err(bad(format!(
            "batch: {found} operations in one request, the maximum is 1 (not in a list)"
        )));
    }
    serde_json::from_value(value).map_err(|e| {
        let form = r#"{"query": "...", "variables": {...}, "operationName": "..."}"#;
        bad(format!("the body is not of the form {form}: {e}"))
    })
}

fn from_url(query: &str) -> Result<Asked, Invalid> {
    let bad = |reason: String| Invalid::told(reason, "bad-request");
    let mut asked = serde_json::Map::new();
    for name in ["query", "operationName", "variables", "extensions"] {
        let Some(text) = pair(query, name) else { continue };
        let value = match name {
            "query" | "operationName" => Value::String(text),
            _ => serde_json::from_str(&text)
                .map_err(|e| bad(format!("{name}: it is not JSON: {e}")))?,
        };
        asked.insert(name.to_owned(), value);
    }
    serde_json::from_value(Value::Object(asked)).map_err(|e| bad(format!("parameters: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_is_what_the_client_likes_best() {
        let check = |accept: Option<&str>, expected: Option<Kind>| {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(negotiate(&headers).ok(), expected, "{accept:?}");
        };
        check(None, Some(Kind::Json));
        check(Some("*/*"), Some(Kind::Json));
        check(Some("application/json"), Some(Kind::Json));
        check(Some("application/graphql-response+json"), Some(Kind::GraphQl));
        check(
            Some("application/graphql-response+json, application/json;q=0.9"),
            Some(Kind::GraphQl),
        );
        check(
            Some("application/json;q=0.9,application/graphql-response+json;q=0.5"),
            Some(Kind::Json),
        );
        check(Some("Application/JSON; charset=utf-8"), Some(Kind::Json));
        check(Some("text/html"), None);
        check(Some("application/json;q=0"), None);
    }

    #[test]
    fn only_json_in_utf_8_is_taken() {
        let check = |given: Option<&str>, taken: bool| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(header::CONTENT_TYPE, given.parse().unwrap());
            }
            assert_eq!(check_content_type(&headers).is_ok(), taken, "{given:?}");
        };
        check(Some("application/json"), true);
        check(Some("application/json; charset=UTF-8"), true);
        check(Some("application/json; charset=utf-16"), false);
        check(Some("text/plain"), false);
        check(Some("application/x-www-form-urlencoded"), false);
        check(None, false);
    }
}
