//! Lets requests in: the bearer token of each, and what it allows.

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{ApiError, App};
use crate::auth::{Grant, Scope};

/// The bearer token of a request, as it stands in its `Authorization` header.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Lets in who may read; handlers that do more ask the [`Grant`], which they extract.
pub(super) async fn admit(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match app.auth.admit(bearer(request.headers()), Scope::Read) {
        Ok(grant) => {
            request.extensions_mut().insert(grant);
            next.run(request).await
        }
        Err(refused) => ApiError::from(refused).into_response(),
    }
}

/// What the request's token allows. On a route that is not behind `admit` it is asked here.
impl FromRequestParts<App> for Grant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        match parts.extensions.get::<Self>() {
            Some(grant) => Ok(grant.clone()),
            None => Ok(app.auth.admit(bearer(&parts.headers), Scope::Read)?),
        }
    }
}
