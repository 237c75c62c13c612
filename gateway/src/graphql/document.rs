//! `/graphql` as the OpenAPI document has it: how one asks, not what; that is in the schema.

use serde_json::Value;
use utoipa::{OpenApi as _, ToSchema, openapi::OpenApi};

use super::http;

/// A GraphQL operation.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
#[schema(example = json!({"query": "query Host($name: String!) { hosts { hostname } gpus(host: $name) { uuid } }",
    "variables": {"name": "dgx-001"}}))]
pub(super) struct GraphQlRequest {
    /// The operation; one of more than 65536 bytes is not run
    query: String,
    /// Values of its variables
    variables: Option<std::collections::BTreeMap<String, Value>>,
    /// Which of several operations in `query`
    #[schema(rename = "operationName")]
    operation_name: Option<String>,
    /// Not used
    extensions: Option<std::collections::BTreeMap<String, Value>>,
}

/// What became of a GraphQL operation.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
#[schema(example = json!({"data": {"gpus": [{"uuid": "GPU-0"}]}, "extensions": {"revision": 4711, "stalenessMs": 12}}))]
pub(super) struct GraphQlResponse {
    /// What was asked for; absent where the operation was not run
    data: Option<Value>,
    /// What went wrong; absent where nothing did
    errors: Option<Vec<GraphQlError>>,
    /// The revision it is of, and how old the gateway's view is
    extensions: Option<std::collections::BTreeMap<String, Value>>,
}

/// What went wrong with a GraphQL operation.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct GraphQlError {
    /// In words
    message: String,
    /// Where in the operation
    locations: Option<Vec<std::collections::BTreeMap<String, u64>>>,
    /// Where in the answer
    path: Option<Vec<Value>>,
    /// A `code`, and which parameter or limit it was
    extensions: Option<std::collections::BTreeMap<String, Value>>,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    paths(http::get, http::post),
    components(schemas(GraphQlRequest, GraphQlResponse, GraphQlError)),
    tags((name = "graphql", description = "Everything of REST, as a graph: see docs/schema.graphql")),
)]
struct Paths;

/// The paths and what they are made of.
pub(crate) fn document() -> OpenApi {
    Paths::openapi()
}
