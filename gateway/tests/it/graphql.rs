//! The graph: what it answers, page by page, at one revision; and what it changes.

use nexus_common::{model::Role, testing::TestEtcd};
use nexus_gateway::auth::TokenHash;
use serde_json::{Value, json};

use crate::{
    pipeline::{Pipeline, export, uuid},
    serve::{Gateway, Reply},
};

/// POSTs an operation.
pub(crate) async fn post(gateway: &Gateway, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let headers = [&[("content-type", "application/json")], headers].concat();
    gateway.send("POST", "/graphql", &headers, Some(&body.to_string())).await
}

/// The data of an operation that must have no errors.
async fn data(gateway: &Gateway, query: &str) -> Value {
    let reply = post(gateway, &json!({ "query": query }), &[]).await;
    let mut answer = reply.json();
    assert!(reply.status == 200 && answer.get("errors").is_none(), "{query}: {}", reply.text);
    answer["data"].take()
}

/// The first error of an operation.
async fn error(gateway: &Gateway, query: &str) -> Value {
    let reply = post(gateway, &json!({ "query": query }), &[]).await;
    reply.json()["errors"][0].take()
}

/// Two hosts of three GPUs, one in a block and one in the queue.
async fn two_hosts() -> (TestEtcd, Pipeline, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 1).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 3)]).await;
    pipeline.commit(&lanes[0], 10).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-002", 3)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    gateway.caught_up(60).await;
    (etcd, pipeline, gateway)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_holds_what_rest_answers_with_and_says_which_revision_it_is() {
    let (_etcd, _pipeline, gateway) = two_hosts().await;
    let query = "{clusters{id name totalGpus hosts{hostname gpus{id uuid hostname name device status \
                 latest{timestamp gpuUtilization temperature customMetrics}}}}}";
    let reply = post(&gateway, &json!({ "query": query }), &[]).await;
    let answer = reply.json();
    let clusters = &answer["data"]["clusters"];
    assert_eq!(clusters[0]["id"], "local-cluster");
    assert_eq!((&clusters[0]["totalGpus"], clusters.as_array().unwrap().len()), (&json!(6), 1));
    let rest = gateway.ok("/api/v1/gpus").await;
    let latest = gateway.ok("/api/v1/telemetry/latest").await;
    for (at, host) in clusters[0]["hosts"].as_array().unwrap().iter().enumerate() {
        for (index, gpu) in host["gpus"].as_array().unwrap().iter().enumerate() {
            let other = &rest["data"][at * 3 + index];
            for field in ["id", "uuid", "hostname", "name", "device", "status"] {
                assert_eq!(gpu[field], other[field], "{field}");
            }
            let row = &latest["data"][at * 3 + index];
            assert_eq!(gpu["latest"]["timestamp"], row["timestamp"]);
            assert_eq!(gpu["latest"]["gpuUtilization"], row["gpu_utilization"]);
            assert_eq!(gpu["latest"]["temperature"], row["temperature"]);
            assert_eq!(gpu["latest"]["customMetrics"], row["custom_metrics"]);
        }
    }
    let revision = reply.headers["x-nexus-revision"].parse::<i64>().unwrap();
    assert_eq!(answer["extensions"]["revision"], revision);
    assert!(answer["extensions"]["stalenessMs"].is_u64());
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_that_of_rest_by_time_limit_metric_and_window() {
    let (_etcd, _pipeline, gateway) = two_hosts().await;
    for host in ["dgx-001", "dgx-002"] {
        let gpu = uuid(host, 1);
        let check =
            async |arguments: &str, query: &str| {
                let fields = "timestamp gpuUtilization temperature smClockMhz";
                let asked = format!("{{gpu(uuid:\"{gpu}\"){{telemetry{arguments}{{{fields}}}}}}}");
                let rows = data(&gateway, &asked).await["gpu"]["telemetry"].take();
                let rest = gateway.ok(&format!("/api/v1/gpus/{gpu}/telemetry{query}")).await;
                let rest: Vec<Value> = rest["data"].as_array().unwrap().iter().map(|row| {
                json!({"timestamp": row["timestamp"], "gpuUtilization": row["gpu_utilization"],
                    "temperature": row["temperature"], "smClockMhz": row["sm_clock_mhz"]})
            }).collect();
                assert_eq!(rows, json!(rest), "{arguments}");
                rest.len()
            };
        assert_eq!(check("", "").await, 4);
        assert_eq!(check("(limit:3)", "?limit=3").await, 3);
        let (first, last) = ("2025-07-18T20:42:35Z", "2025-07-18T20:42:36Z");
        let arguments = format!("(startTime:\"{first}\",endTime:\"{last}\")");
        let query = format!("?start_time={first}&end_time={last}");
        assert_eq!(check(&arguments, &query).await, 2);
    }
    let windows = "{telemetry(hostId:\"dgx-001\",gpuId:\"0\",metrics:[\"gpu_utilization\",\"sm_clock_mhz\"],\
                   window:{seconds:2,aggregate:MAX}){timestamp gpuUtilization smClockMhz temperature}}";
    let rows = data(&gateway, windows).await["telemetry"].take();
    let times: Vec<&str> =
        rows.as_array().unwrap().iter().map(|r| r["timestamp"].as_str().unwrap()).collect();
    assert_eq!(times, ["2025-07-18T20:42:34Z", "2025-07-18T20:42:36Z"]);
    assert!(rows[0]["gpuUtilization"].is_f64() && rows[1]["smClockMhz"].is_f64());
    assert!(rows[0]["temperature"].is_null(), "it was not asked for: {rows}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_one_another_without_gap_or_double() {
    let (_etcd, _pipeline, gateway) = two_hosts().await;
    let page = async |field: &str, node: &str, arguments: &str, after: &mut Option<String>| {
        let after_text = after.as_ref().map(|c| format!(",after:\"{c}\"")).unwrap_or_default();
        let query = format!(
            "{{{field}({arguments}{after_text}){{pageInfo{{hasNextPage hasPreviousPage endCursor}} \
             edges{{cursor node{{{node}}}}}}}}}"
        );
        let answer = data(&gateway, &query).await[field].take();
        let edges = answer["edges"].as_array().unwrap().clone();
        assert_eq!(answer["pageInfo"]["hasPreviousPage"], after.is_some());
        assert_eq!(answer["pageInfo"]["endCursor"], edges.last().unwrap()["cursor"]);
        *after = answer["pageInfo"]["endCursor"].as_str().map(str::to_owned);
        let more = answer["pageInfo"]["hasNextPage"].as_bool().unwrap();
        (edges.into_iter().map(|mut edge| edge["node"].take()).collect::<Vec<_>>(), more)
    };
    let all = async |field: &str, node: &str, arguments: &str| {
        let (mut after, mut nodes, mut pages) = (None, Vec::new(), 0);
        loop {
            let (found, more) = page(field, node, arguments, &mut after).await;
            nodes.extend(found);
            pages += 1;
            if !more {
                return (nodes, pages);
            }
        }
    };
    let (gpus, pages) = all("gpusConnection", "uuid", "first:4").await;
    let listed = data(&gateway, "{gpus{uuid}}").await["gpus"].take();
    assert_eq!((json!(gpus), pages), (listed, 2));
    let (hosts, pages) = all("hostsConnection", "hostname", "first:1").await;
    assert_eq!(
        (json!(hosts), pages),
        (json!([{"hostname": "dgx-001"}, {"hostname": "dgx-002"}]), 2)
    );
    let (rows, pages) = all("telemetryConnection", "telemetryId", "first:5").await;
    let listed = data(&gateway, "{telemetry{telemetryId}}").await["telemetry"].take();
    assert_eq!((json!(rows), pages), (listed, 5));
    let total = data(&gateway, "{gpusConnection(first:1){totalCount}}").await;
    assert_eq!(total["gpusConnection"]["totalCount"], 6);
    let newest = "{telemetryConnection(last:2){pageInfo{hasPreviousPage hasNextPage} edges{node{timestamp}}}}";
    let newest = data(&gateway, newest).await["telemetryConnection"].take();
    assert_eq!(newest["pageInfo"], json!({"hasPreviousPage": true, "hasNextPage": false}));
    assert_eq!(newest["edges"][1]["node"]["timestamp"], "2025-07-18T20:42:37Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_is_null_and_what_is_wrong_is_named() {
    let (_etcd, _pipeline, gateway) = two_hosts().await;
    let unknown = "{gpu(uuid:\"x\"){id} cluster(id:\"x\"){id} source(id:\"x\"){id} hosts(clusterId:\"x\"){id} \
                   cluster2:cluster(id:\"local-cluster\"){host(hostname:\"x\"){id}}}";
    let unknown = data(&gateway, unknown).await;
    let expected = json!({"gpu": null, "cluster": null, "source": null, "hosts": [],
        "cluster2": {"host": null}});
    assert_eq!(unknown, expected);
    let check = async |query: &str, code: &str, said: &str| {
        let error = error(&gateway, query).await;
        assert_eq!(error["extensions"]["code"], code, "{query}: {error}");
        assert_eq!(error["message"], said, "{query}");
    };
    let bad = "bad-parameter";
    check("{telemetry(limit:0){timestamp}}", bad, "limit: \"0\" is not a number from 1 to 10000")
        .await;
    check(
        "{gpusConnection(first:-1){totalCount}}",
        bad,
        "first: \"-1\" is not a number from 1 to 10000",
    )
    .await;
    let cursor = "is not the cursor of an edge of an earlier answer";
    check("{gpusConnection(after:\"x\"){totalCount}}", bad, &format!("after: \"x\" {cursor}"))
        .await;
    check(
        "{telemetryConnection(after:\"x\"){pageInfo{endCursor}}}",
        bad,
        &format!("after: \"x\" {cursor}"),
    )
    .await;
    let backwards = "{telemetry(startTime:\"2025-01-02T00:00:00Z\",endTime:\"2025-01-01T00:00:00Z\"){timestamp}}";
    check(
        backwards,
        bad,
        "endTime: \"2025-01-01T00:00:00Z\" is not at or after startTime, 2025-01-02T00:00:00Z",
    )
    .await;
    check(
        "{telemetry(window:{seconds:0}){timestamp}}",
        bad,
        "seconds: \"0\" is not a number from 0.001 to 31536000",
    )
    .await;
    check(
        "{telemetry(metrics:[\"a b\"]){timestamp}}",
        bad,
        "metrics: \"a b\" is not the name of a metric such as gpu_utilization",
    )
    .await;
    check(
        "mutation{registerSource(id:\"a/b\",path:\"/a\"){id}}",
        bad,
        "id: source id \"a/b\" has a character outside [A-Za-z0-9._:-]",
    )
    .await;
    check(
        "mutation{registerSource(id:\"a\",path:\"a.csv\"){id}}",
        bad,
        "path: \"a.csv\" is not absolute, such as /data/export.csv",
    )
    .await;
    check(
        "mutation{registerSource(id:\"a\",path:\"/a\",replaySpeed:-1){id}}",
        bad,
        "replaySpeed: 0 is not from 0.001 to 100000",
    )
    .await;
    check(
        "mutation{registerSource(id:\"export\",path:\"/a\"){id}}",
        bad,
        "id: export is, or was, the name of another source; choose a new one",
    )
    .await;
    check("mutation{pauseSource(id:\"x\"){id}}", "not-found", "source x is not known").await;
    let time = error(&gateway, "{telemetry(startTime:\"yesterday\"){timestamp}}").await;
    let said = time["message"].as_str().unwrap();
    assert!(said.contains("\"yesterday\" is not an RFC 3339 time"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_asked_for_paused_resumed_and_withdrawn_and_the_next_answer_has_it() {
    let (_etcd, _pipeline, gateway) = two_hosts().await;
    let state =
        async || data(&gateway, "{source(id:\"new\"){state}}").await["source"]["state"].take();
    let change = async |change: &str| {
        let query = format!("mutation{{{change}{{id state}}}}");
        let answer = data(&gateway, &query).await;
        let (_, source) = answer.as_object().unwrap().iter().next().unwrap();
        assert_eq!(source["id"], "new", "{change}");
        (source["state"].clone(), state().await)
    };
    let asked = "registerSource(id:\"new\",path:\"/data/new.csv\",replaySpeed:2.5,looped:true)";
    assert_eq!(change(asked).await, (json!("DECLARED"), json!("DECLARED")));
    let source = data(&gateway, "{source(id:\"new\"){path replaySpeed looped bytes shards}}").await;
    let expected = json!({"path": "/data/new.csv", "replaySpeed": 2.5, "looped": true,
        "bytes": null, "shards": 0});
    assert_eq!(source["source"], expected);
    assert_eq!(change("pauseSource(id:\"new\")").await, (json!("PAUSED"), json!("PAUSED")));
    assert_eq!(change("pauseSource(id:\"new\")").await.0, "PAUSED", "twice is as once");
    assert_eq!(change("resumeSource(id:\"new\")").await, (json!("DECLARED"), json!("DECLARED")));
    assert_eq!(change("withdrawSource(id:\"new\")").await, (json!("DECLARED"), Value::Null));
    let live = "mutation{applySource(id:\"lab\",source:{simulate:{hosts:2,gpus:8,interval:\"5s\"}}){kind intervalSeconds}}";
    let expected = json!({"kind": "simulate", "intervalSeconds": 5.0});
    assert_eq!(data(&gateway, live).await["applySource"], expected);
    let wrong = live.replace("gpus:8", "gpu:8");
    let wrong = error(&gateway, &wrong).await;
    assert!(wrong["message"].as_str().unwrap().contains("unknown field `gpu`"), "{wrong}");
    let audit = data(&gateway, "{audit{clean}}").await;
    assert_eq!(audit["audit"]["clean"], true);
    // Progress of a withdrawn source stays, so its name is taken.
    assert_eq!(
        data(&gateway, "mutation{withdrawSource(id:\"export\"){id}}").await["withdrawSource"]["id"],
        "export"
    );
    let again = error(&gateway, "mutation{registerSource(id:\"export\",path:\"/a\"){id}}").await;
    assert_eq!(again["extensions"]["parameter"], "id");
    assert_eq!(
        data(&gateway, "{audit{clean delta}}").await["audit"],
        json!({"clean": true, "delta": 0})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_changes_nothing_and_the_page_is_for_all() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let line =
        |name: &str, scope: &str, token: &str| format!("{name} {scope} {}\n", TokenHash::of(token));
    std::fs::write(file.path(), line("r", "read", "R") + &line("w", "write", "W")).unwrap();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let path = file.path().to_owned();
    let gateway =
        Gateway::with(process, |args| args.auth_tokens_file = Some(path)).await.loaded().await;
    let ask = async |query: &str, token: &str| {
        post(&gateway, &json!({ "query": query }), &[("authorization", token)]).await
    };
    let register = "mutation{registerSource(id:\"a\",path:\"/a\"){id}}";
    assert_eq!(ask("{sources{id}}", "Bearer X").await.status, 401);
    assert_eq!(ask("{sources{id}}", "Bearer R").await.json()["data"]["sources"], json!([]));
    let refused = ask(register, "Bearer R").await.json();
    assert_eq!(refused["errors"][0]["extensions"]["code"], "forbidden", "{refused}");
    assert_eq!(ask("{sources{id}}", "Bearer R").await.json()["data"]["sources"], json!([]));
    assert_eq!(ask(register, "Bearer W").await.json()["data"]["registerSource"]["id"], "a");
    let page = gateway.send("GET", "/graphql", &[("accept", "text/html")], None).await;
    assert_eq!(page.status, 200);
}
