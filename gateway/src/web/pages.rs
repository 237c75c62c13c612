//! Pages for people: the entrance, and the interactive document.

use axum::{
    Router,
    http::header,
    response::{Html, Redirect},
    routing::get,
};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::App;

const ENTRANCE: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Nexus gateway</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}
li{margin:.3rem 0}code{background:#8882;padding:.1rem .3rem;border-radius:.2rem}</style></head>
<body><h1>Nexus gateway</h1><p>GPU telemetry, straight from etcd.</p><ul>
<li><a href="/swagger/">/swagger/</a>: every route, to try out</li>
<li><a href="/api/v1/clusters">/api/v1/clusters</a></li>
<li><a href="/api/v1/hosts">/api/v1/hosts</a></li>
<li><a href="/api/v1/gpus">/api/v1/gpus</a></li>
<li><a href="/api/v1/telemetry/latest">/api/v1/telemetry/latest</a></li>
<li><a href="/api/v1/telemetry">/api/v1/telemetry</a></li>
<li><a href="/audit">/audit</a>: is anything lost or there twice?</li>
<li><a href="/readyz?verbose">/readyz?verbose</a>, <a href="/metrics">/metrics</a></li>
</ul></body></html>
"#;

/// `/`, `/docs`, `/swagger/` and the document as JSON and YAML.
pub(super) fn routes(document: &OpenApi) -> Router<App> {
    // A document of ours always serialises; an empty answer would be noticed by its test.
    let json = document.to_pretty_json().unwrap_or_default();
    let yaml = document.to_yaml().unwrap_or_default();
    let text = |kind: &'static str, text: String| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    let swagger = SwaggerUi::new("/swagger").config(Config::from("/swagger/swagger.json"));
    Router::from(swagger)
        .route("/", get(|| async { Html(ENTRANCE) }))
        .route("/docs", get(|| async { Redirect::permanent("/swagger/") }))
        .route("/swagger/swagger.json", text("application/json", json))
        .route("/swagger/swagger.yaml", text("application/yaml", yaml))
}
