//! One operation from its text to its answer, whichever way it came in.

use std::{sync::Arc, time::Duration};

use async_graphql::{
    Request, Response, ServerError, Value, Variables,
    parser::{
        parse_query,
        types::{ExecutableDocument, OperationDefinition, OperationType},
    },
};
use futures_util::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Map, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Graph,
    limits::{Beyond, Sizes, scan, weigh},
    operation::Operation,
};
use crate::{
    auth::Grant,
    view::Snapshot,
    web::{ApiError, App},
};

/// Longest an operation may run: half of what a request may take, so that its answer says why.
pub(super) const OPERATION_SECONDS_MAX: u64 = 5;
/// Operations that run at the same time. Each may hold a few ten MiB of answer; the processor has
/// no use for more.
pub(super) const OPERATIONS_MAX: usize = 32;
/// Errors that are told: each of a few thousand fields may have one.
const ERRORS_MAX: usize = 50;
/// How long an operation waits for its turn.
const TURN_WITHIN: Duration = Duration::from_secs(1);

/// What the routes share, cheap to clone.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) app: App,
    graph: Graph,
    turns: Arc<Semaphore>,
}

/// What a client sends.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    pub(super) query: String,
    #[serde(default)]
    pub(super) operation_name: Option<String>,
    #[serde(default)]
    pub(super) variables: Option<Map<String, serde_json::Value>>,
    /// Ours to ignore, but an object if there is one.
    #[serde(default, rename = "extensions")]
    _extensions: Option<Map<String, serde_json::Value>>,
}

/// An operation that is within its limits and not run yet.
pub(super) struct Ready {
    request: Request,
    pub(super) kind: OperationType,
}

/// Why an operation is not run at all.
#[derive(Debug)]
pub(super) struct Invalid(pub(super) Vec<ServerError>);

/// What came of it.
pub(super) enum Outcome {
    /// It ran, with or without errors on the way.
    Ran(Response),
    /// It was not run: validation found it wrong.
    Invalid(Invalid),
}

impl Service {
    pub(super) fn new(app: App, graph: Graph) -> Self {
        Self { app, graph, turns: Arc::new(Semaphore::new(OPERATIONS_MAX)) }
    }

    /// Checks an operation against its limits and finds out what it is.
    pub(super) fn prepare(&self, asked: Asked) -> Result<Ready, Invalid> {
        scan(&asked.query).map_err(Invalid::from)?;
        let document = parse_query(&asked.query).map_err(|e| Invalid(vec![e.into()]))?;
        let variables = asked.variables.map(serde_json::Value::Object).unwrap_or_default();
        let variables = Variables::from_json(variables);
        let sizes = self.app.view.snapshot().map(|now| Sizes::of(&now)).unwrap_or_default();
        weigh(&document, &variables, &sizes).map_err(Invalid::from)?;
        let operation = chosen(&document, asked.operation_name.as_deref())?;
        check_given(operation, &variables)?;
        let kind = operation.ty;
        let mut request = Request::new(asked.query).variables(variables);
        request.operation_name = asked.operation_name;
        request.set_parsed_query(document);
        Ok(Ready { request, kind })
    }

    /// A turn to run an operation.
    ///
    /// # Errors
    /// When too many run already.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        let refused = || {
            let detail =
                format!("{OPERATIONS_MAX} operations run already, which is the maximum; try again");
            ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
        };
        timeout(TURN_WITHIN, self.turns.acquire())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(refused)
    }

    /// Runs a query or mutation at one snapshot.
    pub(super) async fn run(&self, ready: Ready, snapshot: Arc<Snapshot>, grant: Grant) -> Outcome {
        let operation = Operation::new(self.app.clone(), Arc::clone(&snapshot), grant);
        let running = self.graph.execute(ready.request.data(operation));
        let limit = Duration::from_secs(OPERATION_SECONDS_MAX);
        let mut response = match timeout(limit, running).await {
            Ok(response) => response,
            Err(_) => return Outcome::Ran(too_slow()),
        };
        response.errors.truncate(ERRORS_MAX);
        if never_ran(&response) {
            return Outcome::Invalid(Invalid(response.errors));
        }
        self.stamp(&mut response, snapshot.revision);
        Outcome::Ran(response)
    }

    /// Follows a subscription. It keeps no snapshot: it may last for days.
    pub(super) fn follow(&self, ready: Ready) -> BoxStream<'static, Response> {
        self.graph.execute_stream(ready.request.data(self.app.clone()))
    }

    /// Says which revision an answer is of, and how old the view is.
    pub(super) fn stamp(&self, response: &mut Response, revision: i64) {
        let staleness = self.app.view.staleness().map_or(-1, |age| age.as_millis() as i64);
        let mut set = |name: &str, value: i64| {
            response.extensions.insert(name.to_owned(), Value::from(value));
        };
        set("revision", revision);
        set("stalenessMs", staleness);
    }
}

/// The operation that shall run.
fn chosen<'a>(
    document: &'a ExecutableDocument,
    name: Option<&str>,
) -> Result<&'a OperationDefinition, Invalid> {
    let mut operations = document.operations.iter();
    let found = match name {
        Some(name) => operations.find(|(of, _)| of.is_some_and(|of| of.as_str() == name)),
        None => operations.next().filter(|_| operations.next().is_none()),
    };
    let said = || match name {
        Some(name) => format!("operationName: there is no operation {name:?} in the query"),
        None => "operationName: the query has several operations; name the one to run".to_owned(),
    };
    found.map(|(_, operation)| &operation.node).ok_or_else(|| Invalid::told(said(), "operation"))
}

/// Whether every variable that must have a value has one: the library finds that out only where
/// one is used.
fn check_given(operation: &OperationDefinition, variables: &Variables) -> Result<(), Invalid> {
    for definition in operation.variable_definitions.iter().map(|definition| &definition.node) {
        let (name, kind) = (&definition.name.node, &definition.var_type.node);
        let given = variables.get(name);
        let missing = given.is_none() && definition.default_value.is_none();
        if !kind.nullable && (missing || given == Some(&Value::Null)) {
            let said = format!("variables: ${name} of type {kind} has no value");
            return Err(Invalid::told(said, "variables"));
        }
    }
    Ok(())
}

fn too_slow() -> Response {
    let said = format!("not answered within {OPERATION_SECONDS_MAX} s, the maximum; ask for less");
    let mut error = ServerError::new(said, None);
    let code = error.extensions.get_or_insert_default();
    code.set("code", "timeout");
    Response::from_errors(vec![error])
}

/// Errors of fields have a path; without one the operation itself was refused.
pub(super) fn never_ran(response: &Response) -> bool {
    response.data == Value::Null
        && !response.errors.is_empty()
        && response.errors.iter().all(|error| error.path.is_empty())
}

impl Invalid {
    /// One reason.
    pub(super) fn told(message: String, code: &str) -> Self {
        let mut error = ServerError::new(message, None);
        error.extensions.get_or_insert_default().set("code", code);
        Self(vec![error])
    }

    /// As a request error: there is no `data`.
    pub(super) fn body(&self) -> serde_json::Value {
        json!({ "errors": self.0 })
    }
}

impl From<Beyond> for Invalid {
    fn from(beyond: Beyond) -> Self {
        let mut error = ServerError::new(beyond.to_string(), None);
        let extensions = error.extensions.get_or_insert_default();
        extensions.set("code", "limit");
        extensions.set("limit", beyond.what);
        extensions.set("maximum", beyond.maximum);
        Self(vec![error])
    }
}
