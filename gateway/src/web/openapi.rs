//! The OpenAPI document: its head, and what every operation has in common.

use utoipa::{
    OpenApi as _,
    openapi::{
        Content, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn, ParameterStyle, PathItem},
        schema::{ArrayBuilder, Schema, SchemaType, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
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
        (name = "sources", description = "Which sources are read"),
    ),
    components(schemas(Problem)),
)]
struct Head;

/// The document without any path.
pub(super) fn head() -> OpenApi {
    let mut document = Head::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "A token from the gateway's file of tokens. Without such a file none is needed.",
    ));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("bearer", SecurityScheme::Http(scheme.build()));
    document
}

/// The whole document, as it is served.
pub fn document() -> OpenApi {
    let head = OpenApiRouter::with_openapi(head());
    let all = super::groups().into_iter().fold(head, |all, (_, routes)| all.merge(routes));
    finish(with_graphql(all.into_openapi()))
}

/// With `/graphql`, whose routes let in by themselves and are not made with the others.
pub(super) fn with_graphql(mut document: OpenApi) -> OpenApi {
    let mut graph = crate::graphql::document();
    describe(Group::Guarded, &mut graph);
    document.merge(graph);
    document
}

/// Which requests a group of routes lets in, and what becomes of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Anybody's; or the route lets in by itself.
    Open,
    /// Those with a token, once there are any.
    Guarded,
    /// Likewise, and answers follow from the snapshot alone.
    Kept,
}

/// Adds to every operation of a group what its layers may answer.
pub(super) fn describe(group: Group, document: &mut OpenApi) {
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        if group == Group::Open {
            operation.security.get_or_insert_with(Vec::new);
            continue;
        }
        let needed = [SecurityRequirement::new("bearer", [""; 0]), SecurityRequirement::default()];
        operation.security.get_or_insert_with(|| needed.to_vec());
        add_problem(operation, "401", "No token, or none that is known");
        add_problem(operation, "429", "Too many requests with this token; see `Retry-After`");
        if group == Group::Kept {
            add_kept(operation);
        }
    }
}

/// What an answer that is kept and tagged has more.
fn add_kept(operation: &mut Operation) {
    let tag = "The tag of an answer that is known: if it is still right, it is not sent again";
    let known = ParameterBuilder::new()
        .name("If-None-Match")
        .parameter_in(ParameterIn::Header)
        .description(Some(tag))
        .schema(Some(ObjectBuilder::new().schema_type(SchemaType::new(Type::String))))
        .example(Some("W/\"4711.4711j\"".into()));
    operation.parameters.get_or_insert_default().push(RefOr::T(known.build()));
    let unchanged = ResponseBuilder::new().description("The answer that is known is still right");
    let (paged, rows) = (takes(operation, "cursor"), takes(operation, "step"));
    let known = &mut operation.responses.responses;
    known.entry("304".to_owned()).or_insert_with(|| RefOr::T(unchanged.build()));
    for status in ["200", "304"] {
        let Some(RefOr::T(response)) = known.get_mut(status) else { continue };
        let text = Type::String;
        add_header(response, "etag", text.clone(), "The answer's tag", "W/\"4711.4711j\"".into());
        if paged && status == "200" {
            let next = "</api/v1/gpus?limit=1&cursor=Y35ofmc>; rel=\"next\"";
            add_header(response, "link", text, "The next part, if there is one", next.into());
        }
    }
    if let Some(RefOr::T(response)) = known.get_mut("200").filter(|_| rows) {
        for (kind, example) in [
            ("text/csv", "timestamp,uuid\n2025-07-18T20:42:34Z,GPU-0\n"),
            (
                "application/x-ndjson",
                "{\"timestamp\":\"2025-07-18T20:42:34Z\",\"uuid\":\"GPU-0\"}\n",
            ),
        ] {
            let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
            let mut content = Content::new(Some(text));
            content.example = Some(example.into());
            response.content.insert(kind.to_owned(), RefOr::T(content));
        }
    }
}

/// Adds to every operation the headers of its answers and the problems it may end in.
pub(super) fn finish(mut document: OpenApi) -> OpenApi {
    entries_may_lack_fields(&mut document);
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            name_fields(path, operation);
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

/// Says which fields `fields` may name.
fn name_fields(path: &str, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && parameter.name == "fields"
        {
            let names = rest::fields_of(path);
            let name = ObjectBuilder::new()
                .schema_type(SchemaType::new(Type::String))
                .enum_values(Some(names.iter().copied()));
            let schema = ArrayBuilder::new().items(name).min_items(Some(1));
            let told = ParameterBuilder::new()
                .name("fields")
                .parameter_in(ParameterIn::Query)
                .description(parameter.description.clone())
                .schema(Some(schema))
                .style(Some(ParameterStyle::Form))
                .explode(Some(false))
                .example(Some(serde_json::json!(names.get(..2))));
            *parameter = told.build();
        }
    }
}

/// With `fields` an entry of a list has no field for certain.
fn entries_may_lack_fields(document: &mut OpenApi) {
    let Some(components) = &mut document.components else { return };
    for name in ["GpuResource", "HostResource", "ClusterResource", "Row"] {
        if let Some(RefOr::T(Schema::Object(entry))) = components.schemas.get_mut(name) {
            entry.required.clear();
        }
    }
}

fn takes(operation: &Operation, name: &str) -> bool {
    let named = |one: &RefOr<Parameter>| matches!(one, RefOr::T(one) if one.name == name);
    operation.parameters.iter().flatten().any(named)
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete]
        .into_iter()
        .flatten()
}

fn add_problem(operation: &mut Operation, status: &str, description: &str) {
    let known = &mut operation.responses.responses;
    known.entry(status.to_owned()).or_insert_with(|| {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        let response =
            ResponseBuilder::new().description(description).content(PROBLEM_CONTENT_TYPE, content);
        RefOr::T(response.build())
    });
}

fn add_problems(path: &str, operation: &mut Operation) {
    let takes_body = operation.request_body.is_some();
    let mut add = |status: &str, text: &str| add_problem(operation, status, text);
    add("400", "A parameter is not known or not as it must be; the problem names it");
    add("413", "A body where none belongs, or one that is too large");
    if path.contains('{') {
        add("404", "What the path names is not known");
    }
    if path.starts_with("/api/") {
        if path.ends_with("/telemetry") || path.ends_with("/metrics") {
            add(
                "422",
                "More than 2000 blocks would have to be read for the first row, or too many samples for one window; narrow the span, the places or the step",
            );
        }
        add(
            "503",
            "The view is not loaded yet, etcd does not answer, or too much is asked at once; try again",
        );
        add("504", "Not answered in time; ask for less");
    }
    if path == "/audit" {
        add("503", "etcd does not answer; try again");
        add("504", "Not read in time");
    }
    if takes_body {
        add("415", "A body that is not application/json");
    }
    add("500", "The gateway failed; its log says more");
}

fn add_header(
    response: &mut Response,
    name: &str,
    kind: Type,
    description: &str,
    example: serde_json::Value,
) {
    let schema = ObjectBuilder::new().schema_type(SchemaType::new(kind));
    let header = HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some(description))
        .example(Some(example));
    response.headers.insert(name.to_owned(), RefOr::T(header.build()));
}

fn add_headers(response: &mut Response) {
    let mut add = |name: &str, kind: Type, description: &str, example: serde_json::Value| {
        add_header(response, name, kind, description, example);
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
