//! GraphQL over HTTP: content types, methods, limits, the page.

use std::time::{Duration, Instant};

use nexus_common::{model::Role, testing::TestEtcd};
use serde_json::{Value, json};

use crate::{
    graphql::post,
    pipeline::{Pipeline, export},
    serve::Gateway,
};

const NEW: &str = "application/graphql-response+json";

async fn some_data() -> (TestEtcd, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, gateway)
}

#[test]
fn the_committed_schema_is_the_one_that_is_served() {
    let committed = include_str!("../../../docs/schema.graphql");
    let hint = "run: cargo run -p nexus-gateway -- schema > docs/schema.graphql";
    assert!(committed == nexus_gateway::graphql::schema(), "docs/schema.graphql is stale; {hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_and_content_types_are_as_graphql_over_http_has_them() {
    let (_etcd, gateway) = some_data().await;
    let check = async |accept: &str, body: Value, status: u16, has_data: bool| {
        let reply = post(&gateway, &body, &[("accept", accept)]).await;
        assert_eq!(reply.status, status, "{accept} {body}: {}", reply.text);
        assert_eq!(reply.headers["content-type"], format!("{accept}; charset=utf-8"));
        assert_eq!(reply.json().get("data").is_some(), has_data, "{accept} {body}: {}", reply.text);
        assert_eq!(reply.json().get("errors").is_some(), !has_data, "{body}");
    };
    for (accept, invalid) in [(NEW, 400), ("application/json", 200)] {
        check(accept, json!({"query": "{__typename}"}), 200, true).await;
        check(
            accept,
            json!({"query": "{__typename}", "variables": null, "extensions": {}}),
            200,
            true,
        )
        .await;
        check(accept, json!({"query": "{"}), invalid, false).await;
        check(accept, json!({"query": "{nope}"}), invalid, false).await;
        check(
            accept,
            json!({"query": "query($a:Int!){telemetry(limit:$a){timestamp}}"}),
            invalid,
            false,
        )
        .await;
        check(accept, json!({"query": "query A{__typename} query B{__typename}"}), invalid, false)
            .await;
        check(accept, json!({"query": "subscription{pipelineUpdates{revision}}"}), invalid, false)
            .await;
        check(
            accept,
            json!({"query": "query A{__typename} query B{__typename}", "operationName": "B"}),
            200,
            true,
        )
        .await;
        check(accept, json!({}), 400, false).await;
        check(accept, json!({"query": 1}), 400, false).await;
        check(accept, json!({"query": "{__typename}", "variables": "a"}), 400, false).await;
        check(accept, json!([{"query": "{__typename}"}]), 400, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_asks_and_what_is_not_served_is_refused_with_what_is() {
    let (_etcd, gateway) = some_data().await;
    let check =
        async |method: &str, path: &str, headers: &[(&str, &str)], status: u16, said: &str| {
            let reply = gateway
                .send(
                    method,
                    path,
                    headers,
                    Some("{\"query\":\"{__typename}\"}").filter(|_| method == "POST"),
                )
                .await;
            assert_eq!(reply.status, status, "{method} {path} {headers:?}: {}", reply.text);
            assert!(reply.text.contains(said), "{method} {path}: {}", reply.text);
        };
    check(
        "GET",
        "/graphql?query=%7B__typename%7D",
        &[("accept", "text/html, application/json;q=0.5")],
        200,
        "Query",
    )
    .await;
    let variables =
        "query=query($l:Int)%7Btelemetry(limit:$l)%7Btimestamp%7D%7D&variables=%7B%22l%22:1%7D";
    check("GET", &format!("/graphql?{variables}"), &[], 200, "2025-07-18T20:42:37Z").await;
    check("GET", "/graphql", &[("accept", NEW)], 400, "missing field `query`").await;
    check("GET", "/graphql?query=a&variables=b", &[], 400, "variables: it is not JSON").await;
    let mutation = "/graphql?query=mutation%7BpauseSource(id:%22export%22)%7Bid%7D%7D";
    check("GET", mutation, &[], 405, "mutations are by POST").await;
    check("PUT", "/graphql", &[], 405, "GET asks, POST also changes").await;
    check("POST", "/graphql", &[("content-type", "text/plain")], 415, "application/json").await;
    check(
        "POST",
        "/graphql",
        &[("content-type", "application/json"), ("accept", "text/csv")],
        406,
        "only",
    )
    .await;
    let paused = "/graphql?query=%7Bsources%7Bstate%7D%7D";
    check("GET", paused, &[], 200, "RUNNING").await;
    check("GET", "/graphql/ws", &[], 426, "this address speaks WebSocket").await;
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, the 14th and 15th field, in ticks of 10 ms.
    let ticks: u64 = fields[11..13].iter().map(|t| t.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_too_much_is_refused_at_once_with_the_limit_and_its_maximum() {
    const TIMES: u32 = 20;
    let (_etcd, gateway) = some_data().await;
    let check = async |name: &str, body: Value, said: &str| {
        let (cpu_before, began) = (cpu(), Instant::now());
        for _ in 0..TIMES {
            let reply = post(&gateway, &body, &[("accept", NEW)]).await;
            assert!(matches!(reply.status, 400 | 413), "{name}: {}", reply.text);
            assert!(reply.text.contains(said), "{name}: {}", reply.text);
        }
        // The client's part is in it, and so is whatever else runs here: far above it still.
        let spent = (cpu() - cpu_before).min(began.elapsed()) / TIMES;
        assert!(spent < Duration::from_millis(20), "{name}: {spent:?}");
    };
    let query = |query: String| json!({ "query": query });
    let deep = format!("{}a{}", "{a".repeat(10_000), "}".repeat(10_000));
    check("depth", query(deep), "depth: at least 21 found, the maximum is 20").await;
    let aliases: String = (0..10_000).map(|n| format!("a{n}:x ")).collect();
    check("aliases", query(format!("{{{aliases}}}")), "the maximum is").await;
    let aliases: String = (0..101).map(|n| format!("a{n}:__typename ")).collect();
    check(
        "some aliases",
        query(format!("{{{aliases}}}")),
        "aliases: at least 101 found, the maximum is 100",
    )
    .await;
    let directives = format!("{{__typename {}}}", "@a".repeat(100_000));
    check("directives", query(directives), "bytes of the query: 200013, the maximum is 65536")
        .await;
    let directives = format!("{{__typename {}}}", "@a".repeat(20_000));
    check(
        "fewer directives",
        query(directives),
        "directives: at least 51 found, the maximum is 50",
    )
    .await;
    let circle = "{...A} fragment A on Query{...B} fragment B on Query{...A}".to_owned();
    check("cycle", query(circle), "A contains itself").await;
    check(
        "points",
        query("{telemetry(limit:1000000000){timestamp}}".to_owned()),
        "the maximum is 200000",
    )
    .await;
    let nested = "{clusters{hosts{gpus{telemetry(limit:10000){timestamp hostname gpuId uuid device temperature powerDraw clusterId modelName telemetryId}}}}}";
    check("product", query(nested.to_owned()), "cost: the answer may hold").await;
    let batch = vec![json!({"query": "{__typename}"}); 1000];
    check("batch", json!(batch), "1000 operations in one request, the maximum is 1").await;
    let many = "x ".repeat(6000);
    check(
        "tokens",
        query(format!("{{{many}}}")),
        "tokens: at least 5001 found, the maximum is 5000",
    )
    .await;
    let unknown: String = (0..4900).map(|_| "x ").collect();
    let reply = post(&gateway, &query(format!("{{{unknown}}}")), &[]).await;
    assert_eq!(reply.json()["errors"].as_array().unwrap().len(), 50, "errors are bounded, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn introspection_is_within_the_limits() {
    let (_etcd, gateway) = some_data().await;
    // What GraphiQL asks.
    let of_type =
        (0..9).fold("kind name".to_owned(), |inner, _| format!("kind name ofType{{{inner}}}"));
    let query = format!(
        "query IntrospectionQuery{{__schema{{description queryType{{name}} mutationType{{name}} \
         subscriptionType{{name}} types{{...FullType}} directives{{name description isRepeatable \
         locations args(includeDeprecated:true){{...InputValue}}}}}}}} \
         fragment FullType on __Type{{kind name description specifiedByURL \
         fields(includeDeprecated:true){{name description args(includeDeprecated:true){{...InputValue}} \
         type{{...TypeRef}} isDeprecated deprecationReason}} inputFields(includeDeprecated:true){{...InputValue}} \
         interfaces{{...TypeRef}} enumValues(includeDeprecated:true){{name description isDeprecated \
         deprecationReason}} possibleTypes{{...TypeRef}}}} \
         fragment InputValue on __InputValue{{name description type{{...TypeRef}} defaultValue \
         isDeprecated deprecationReason}} fragment TypeRef on __Type{{{of_type}}}"
    );
    let reply = post(&gateway, &json!({ "query": query }), &[("accept", NEW)]).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let answer = reply.json();
    assert!(answer.get("errors").is_none(), "{}", reply.text);
    assert!(answer["data"]["__schema"]["types"].as_array().unwrap().len() > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_brings_everything_it_needs() {
    let (_etcd, gateway) = some_data().await;
    let page = gateway.send("GET", "/graphql", &[("accept", "text/html,*/*;q=0.8")], None).await;
    assert!(
        page.status == 200 && page.headers["content-type"].starts_with("text/html"),
        "{page:?}"
    );
    assert!(page.headers["content-security-policy"].starts_with("default-src 'none'"), "{page:?}");
    assert!(!page.text.contains("://"), "nothing comes from elsewhere: {}", page.text);
    let links = page.text.split(['"']).filter(|text| text.starts_with("/graphql/assets/"));
    let links: Vec<&str> = links.collect();
    assert_eq!(links.len(), 5, "{}", page.text);
    for link in links {
        let asset = gateway.get(link).await;
        assert!(asset.status == 200 && !asset.text.is_empty(), "{link}");
    }
    assert_eq!(gateway.get("/graphql/assets/nope.js").await.status, 404);
    // Its questions are run here, so that none of them is ever out of date.
    let start = gateway.get("/graphql/assets/start.js").await.text;
    let questions: Vec<&str> = start.split('`').skip(1).step_by(2).collect();
    assert_eq!(questions.len(), 5);
    for question in questions.iter().filter(|q| !q.contains("subscription ")) {
        let reply = post(&gateway, &json!({ "query": question }), &[]).await;
        assert!(reply.json().get("errors").is_none(), "{question}: {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_nothing_is_there() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| args.enable_graphql = false).await.loaded().await;
    for path in ["/graphql", "/graphql/ws", "/graphql/assets/start.js"] {
        assert_eq!(gateway.get(path).await.status, 404, "{path}");
    }
}
