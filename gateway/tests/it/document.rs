//! The document and the pages.

use nexus_common::testing::TestEtcd;

use crate::{
    pipeline::{Pipeline, export, uuid},
    serve::Gateway,
};

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let committed = include_str!("../../../docs/openapi.json");
    let generated = nexus_gateway::web::document().to_pretty_json().unwrap();
    let hint = "run: make generate-swagger";
    assert!(committed.trim_end() == generated.trim_end(), "docs/openapi.json is stale; {hint}");
    let committed = include_str!("../../../docs/openapi.yaml");
    let generated = nexus_gateway::web::document().to_yaml().unwrap();
    assert!(committed.trim_end() == generated.trim_end(), "docs/openapi.yaml is stale; {hint}");
}

#[test]
fn every_operation_says_all_that_a_reader_needs() {
    let document = serde_json::to_value(nexus_gateway::web::document()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, of)| (format!("{method} {path}"), of))
    });
    for (path, operation) in operations {
        for field in ["operationId", "summary"] {
            assert!(operation[field].is_string(), "{field} of {path}");
        }
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "tag of {path}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{parameter} of {path}");
            // The page fills in examples, and no cursor is good for every list.
            let none = parameter["name"] == "cursor";
            assert_eq!(parameter["example"].is_null(), none, "{parameter} of {path}");
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(response["description"].as_str().is_some_and(|d| !d.is_empty()), "{path}");
            assert!(response["headers"]["x-nexus-revision"].is_object(), "{status} of {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_route_answers_with_what_the_document_says() {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    let document = serde_json::to_value(nexus_gateway::web::document()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        // Answers that do not end, or need a question: they have tests of their own.
        let others = ["/ws", "/graphql", "/api/v1/telemetry/stream"];
        if others.contains(&path.as_str()) || item["get"].is_null() {
            continue;
        }
        let real = path
            .replace("{cluster_id}", "local-cluster")
            .replace("{host_id}", "dgx-001")
            .replace("{hostname}", "dgx-001")
            .replace("{gpu_id}", "0")
            .replace("{uuid}", &uuid("dgx-001", 0))
            .replace("{source_id}", "export");
        let reply = gateway.get(&real).await;
        assert_eq!(reply.status, 200, "{real}: {}", reply.text);
        let content = item["get"]["responses"]["200"]["content"].as_object().unwrap();
        let (kind, media) = content.iter().next().unwrap();
        assert!(reply.headers["content-type"].starts_with(kind.as_str()), "{real}: {kind}");
        if kind == "application/json" {
            let schema = media["schema"]["$ref"].as_str().unwrap();
            let name = schema.rsplit('/').next().unwrap();
            required_fields_are_there(&document, name, &reply.json());
        }
    }
}

/// Also that nothing is told that the document does not know.
pub(crate) fn required_fields_are_there(
    document: &serde_json::Value,
    name: &str,
    answer: &serde_json::Value,
) {
    let schema = &document["components"]["schemas"][name];
    // A flattened resource is an `allOf`.
    if schema["allOf"].is_array() {
        return;
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(answer.get(required.as_str().unwrap()).is_some(), "{required} of {name}");
    }
    for field in answer.as_object().unwrap().keys() {
        assert!(schema["properties"][field].is_object(), "{field} of {name} is not documented");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_there_without_etcd() {
    let mut etcd = TestEtcd::start();
    etcd.kill();
    let gateway = Gateway::start_unloaded(&etcd, "gateway-1").await;
    let page = gateway.get("/swagger/").await;
    assert!(page.status == 200 && page.text.contains("swagger-ui"), "{page:?}");
    let docs = gateway.get("/docs").await;
    assert_eq!((docs.status, docs.headers["location"].as_str()), (308, "/swagger/"));
    let generated = nexus_gateway::web::document();
    let json = gateway.get("/swagger/swagger.json").await;
    assert_eq!(json.text, generated.to_pretty_json().unwrap());
    assert_eq!(gateway.get("/swagger/swagger.yaml").await.text, generated.to_yaml().unwrap());
    let entrance = gateway.get("/").await.text;
    for link in entrance.split("href=\"").skip(1) {
        let link = link.split('"').next().unwrap();
        assert_ne!(gateway.get(link).await.status, 404, "{link}");
    }
}
