//! The page for people: GraphiQL, out of the program itself.

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::web::ApiError;

const PAGE: &str = include_str!("../../assets/graphiql/index.html");
/// Everything comes from here. GraphiQL writes styles into the page, and has its fonts in them.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                      font-src 'self' data:; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The assets change with the program alone.
const CACHE: &str = "public, max-age=3600";

/// An asset: its name, its type, its bytes, and whether they are compressed.
type Asset = (&'static str, &'static str, &'static [u8], bool);

const SCRIPT: &str = "text/javascript; charset=utf-8";
const ASSETS: [Asset; 5] = [
    ("graphiql.min.js", SCRIPT, include_bytes!("../../assets/graphiql/graphiql.min.js.gz"), true),
    (
        "graphiql.min.css",
        "text/css; charset=utf-8",
        include_bytes!("../../assets/graphiql/graphiql.min.css.gz"),
        true,
    ),
    (
        "react.production.min.js",
        SCRIPT,
        include_bytes!("../../assets/graphiql/react.production.min.js.gz"),
        true,
    ),
    (
        "react-dom.production.min.js",
        SCRIPT,
        include_bytes!("../../assets/graphiql/react-dom.production.min.js.gz"),
        true,
    ),
    ("start.js", SCRIPT, include_bytes!("../../assets/graphiql/start.js"), false),
];

/// The page.
pub(super) fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::VARY, "accept"),
    ];
    (headers, PAGE).into_response()
}

/// `GET /graphql/assets/{name}`. Every browser takes gzip, so it is sent as it is stored.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let found = ASSETS.iter().find(|(known, ..)| *known == name);
    let Some((_, kind, bytes, compressed)) = found else {
        let detail = format!("there is nothing at /graphql/assets/{name}");
        return ApiError::new(StatusCode::NOT_FOUND, "not-found", detail).into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CACHE_CONTROL, CACHE),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = (headers, *bytes).into_response();
    if *compressed {
        let gzip = axum::http::HeaderValue::from_static("gzip");
        response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
    }
    response
}
