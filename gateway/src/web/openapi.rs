//! The OpenAPI document: its head, and what every operation has in common.

use utoipa::{
    OpenApi as _,
    openapi::{
        Content, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        path::Operation,
        schema::{SchemaType, Type},
    },
};
use utoipa_axum::router::OpenApiRouter;

use super::problem::{PROBLEM_CONTENT_TYPE, Problem};
use crate::rest;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Nexus gateway",
        description = "GPU telemetry out of etcd. Every answer is of one revision \
                       (`x-nexus-revision`) and says how old the gateway's view is \
                       (`x-nexus-staleness-ms`). Values that were not measured are absent or \
                       null, never 0. Times are RFC 3339, both ends of a span inclusive.",
        contact(name = "The Nexus authors"),
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This gateway")),
    tags(
        (name = "health", description = "Whether the gateway and what it serves are well"),
        (name = "gpus", description = "GPUs across all clusters"),
        (name = "hosts", description = "Hosts across all clusters"),
        (name = "clusters", description = "Clusters, their hosts and GPUs, and their figures"),
        (name = "telemetry", description = "What was measured"),
    ),
    components(schemas(Problem)),
)]
struct Head;

/// The document without any path.
pub(super) fn head() -> OpenApi {
    let mut document = Head::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    document
}

/// The whole document, as it is served.
pub fn document() -> OpenApi {
    let routes = OpenApiRouter::with_openapi(head())
        .merge(rest::open_routes())
        .merge(rest::routes_of_snapshots())
        .merge(rest::routes());
    finish(routes.into_openapi())
}

/// Adds to every operation the headers of its answers and the problems it may end in.
pub(super) fn finish(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        if let Some(operation) = &mut item.get {
            add_problems(path, operation);
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    add_headers(response);
                }
            }
        }
    }
    document
}

fn add_problems(path: &str, operation: &mut Operation) {
    let mut add = |status: &str, description: &str| {
        let known = &mut operation.responses.responses;
        known.entry(status.to_owned()).or_insert_with(|| {
            let content = Content::new(Some(Ref::from_schema_name("Problem")));
            let response = ResponseBuilder::new()
                .description(description)
                .content(PROBLEM_CONTENT_TYPE, content);
            RefOr::T(response.build())
        });
    };
    add("400", "A parameter is not known or not as it must be; the problem names it");
    if path.contains('{') {
        add("404", "What the path names is not known");
    }
    if path.starts_with("/api/") {
        if path.ends_with("/telemetry") || path.ends_with("/metrics") {
            add(
                "422",
                "More than 2000 blocks would have to be read for the first row; narrow the span or the places",
            );
        }
        add("503", "The view is not loaded yet, or etcd does not answer; try again");
        add("504", "Not answered in time; ask for less");
    }
    if path == "/audit" {
        add("503", "etcd does not answer; try again");
        add("504", "Not read in time");
    }
    add("500", "The gateway failed; its log says more");
}

fn add_headers(response: &mut Response) {
    let mut add = |name: &str, kind: Type, description: &str, example: serde_json::Value| {
        let schema = ObjectBuilder::new().schema_type(SchemaType::new(kind));
        let header = HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(description))
            .example(Some(example));
        response.headers.insert(name.to_owned(), RefOr::T(header.build()));
    };
    add("x-nexus-revision", Type::Integer, "The revision this answer is of", 4711.into());
    add(
        "x-nexus-staleness-ms",
        Type::Integer,
        "Age of the gateway's view in milliseconds; -1 before it is loaded",
        12.into(),
    );
    add(
        "x-request-id",
        Type::String,
        "The id given with the request, or a new one",
        "5f1c2-17".into(),
    );
}
