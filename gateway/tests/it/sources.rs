//! Sources over REST: listed, asked for, paused, resumed, withdrawn.

use nexus_common::{model::Role, testing::TestEtcd};
use nexus_gateway::auth::TokenHash;
use serde_json::{Value, json};

use crate::{
    pipeline::{Pipeline, export},
    serve::{Gateway, Reply},
};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn exported() -> (TestEtcd, Pipeline, Gateway) {
    let etcd = TestEtcd::start();
    let mut pipeline = Pipeline::new(&etcd).await;
    let lanes = pipeline.source("export", 2).await;
    pipeline.enqueue(&lanes[0], &[export("dgx-001", 2)]).await;
    let gateway = Gateway::start(&etcd, "gateway-1").await;
    (etcd, pipeline, gateway)
}

async fn post(gateway: &Gateway, body: &Value) -> Reply {
    gateway.send("POST", "/api/v1/sources", &[JSON], Some(&body.to_string())).await
}

async fn patch(gateway: &Gateway, id: &str, body: &str) -> Reply {
    gateway.send("PATCH", &format!("/api/v1/sources/{id}"), &[JSON], Some(body)).await
}

async fn delete(gateway: &Gateway, id: &str) -> Reply {
    gateway.send("DELETE", &format!("/api/v1/sources/{id}"), &[], None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_tells_how_far_it_was_read_and_by_whom() {
    let (_etcd, _pipeline, gateway) = exported().await;
    let list = gateway.ok("/api/v1/sources").await;
    assert_eq!((&list["success"], &list["count"]), (&json!(true), &json!(1)));
    let source = &list["data"][0];
    assert_eq!(*source, gateway.ok("/api/v1/sources/export").await);
    let samples = source["samples"].as_u64().unwrap();
    assert_eq!(samples, gateway.view().snapshot().unwrap().queue.samples);
    assert!(samples > 0 && source["last_enqueued_at"].is_string(), "{source}");
    let of = |name: &str| source[name].clone();
    let (state, owners) = (of("state"), of("owners"));
    assert_eq!((state, owners), (json!("running"), json!(["streamer-1"])));
    assert_eq!((of("shards"), of("shards_done"), of("bytes")), (json!(2), json!(0), json!(1000)));
    assert_eq!((of("replay_speed"), of("rows_rejected_by_reason")), (Value::Null, json!({})));
    assert_eq!(gateway.ok("/api/v1/sources?state=paused").await["count"], 0);
    assert_eq!(gateway.get("/api/v1/sources/none").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_asked_for_paused_resumed_and_withdrawn_and_the_next_answer_has_it() {
    let (_etcd, _pipeline, gateway) = exported().await;
    let state = async || {
        let reply = gateway.get("/api/v1/sources/new").await;
        if reply.status == 404 { Value::Null } else { reply.json()["state"].clone() }
    };
    let new = json!({"id": "new", "path": "/data/new.csv", "replay_speed": 2.5, "looped": true});
    let asked = post(&gateway, &new).await;
    assert_eq!((asked.status, asked.headers["location"].as_str()), (201, "/api/v1/sources/new"));
    let source = asked.json();
    let of = |name: &str| source[name].clone();
    assert_eq!(
        (of("path"), of("replay_speed"), of("looped")),
        (json!("/data/new.csv"), json!(2.5), json!(true))
    );
    assert_eq!(
        (of("bytes"), of("owners"), of("last_enqueued_at")),
        (Value::Null, json!([]), Value::Null)
    );
    assert_eq!((of("state"), state().await), (json!("declared"), json!("declared")));
    for _ in 0..2 {
        let paused = patch(&gateway, "new", r#"{"paused":true}"#).await;
        assert_eq!(
            (paused.status, &paused.json()["state"]),
            (200, &json!("paused")),
            "twice is as once"
        );
        assert_eq!(state().await, "paused");
    }
    let resumed = patch(&gateway, "new", r#"{"paused":false}"#).await;
    assert_eq!(
        (resumed.json()["state"].clone(), state().await),
        (json!("declared"), json!("declared"))
    );
    let gone = delete(&gateway, "new").await;
    assert_eq!((gone.status, &gone.json()["id"], state().await), (200, &json!("new"), Value::Null));
    assert_eq!(delete(&gateway, "new").await.status, 404);
    assert_eq!(gateway.ok("/audit").await["clean"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_sources_have_pages() {
    let (_etcd, _pipeline, gateway) = exported().await;
    for id in ["a", "b"] {
        assert_eq!(post(&gateway, &json!({"id": id, "path": "/a.csv"})).await.status, 201);
    }
    let (mut ids, mut query) = (Vec::new(), "?limit=1".to_owned());
    loop {
        let page = gateway.ok(&format!("/api/v1/sources{query}")).await;
        assert_eq!(page["count"], 3);
        ids.extend(page["data"].as_array().unwrap().iter().map(|s| s["id"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=1&cursor={next}");
    }
    assert_eq!(ids, ["a", "b", "export"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_change_is_a_problem_that_names_it() {
    let (_etcd, _pipeline, gateway) = exported().await;
    let check = |reply: Reply, status: u16, code: &str, said: &str| {
        let problem = reply.json();
        assert_eq!((reply.status, &problem["code"]), (status, &json!(code)), "{problem}");
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{detail}");
        problem["parameter"].clone()
    };
    let of = async |body: Value| post(&gateway, &body).await;
    let bad = "bad-parameter";
    let id = check(of(json!({"id": "a/b", "path": "/a"})).await, 400, bad, "[A-Za-z0-9._:-]");
    let path = check(of(json!({"id": "a", "path": "a"})).await, 400, bad, "is not absolute");
    let slow = json!({"id": "a", "path": "/a", "replay_speed": -1});
    let speed = check(of(slow).await, 400, bad, "is not from 0.001 to 100000");
    assert_eq!([id, path, speed], [json!("id"), json!("path"), json!("replay_speed")]);
    let taken = "is, or was, the name of another source";
    check(of(json!({"id": "export", "path": "/a"})).await, 409, "taken", taken);
    check(of(json!({"id": "a"})).await, 400, "bad-body", "missing field `path`");
    check(of(json!({"id": "a", "path": "/a", "x": 1})).await, 400, "bad-body", "unknown field `x`");
    check(patch(&gateway, "export", "{").await, 400, "bad-body", "EOF");
    check(patch(&gateway, "export", "{}").await, 400, "bad-body", "missing field `paused`");
    check(patch(&gateway, "none", r#"{"paused":true}"#).await, 404, "not-found", "none");
    check(delete(&gateway, "none").await, 404, "not-found", "none");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let form = gateway.send("POST", "/api/v1/sources", &form, Some("id=a")).await;
    check(form, 415, "content-type", "application/json");
    let put = gateway.send("PUT", "/api/v1/sources", &[JSON], Some("{}")).await;
    check(put, 405, "method-not-allowed", "not allowed");
    assert_eq!(gateway.ok("/api/v1/sources").await["count"], 1, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_changes_nothing() {
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
    let ask = async |method: &str, path: &str, token: Option<&str>, body: Option<&str>| {
        let token = token.map(|token| ("authorization", token));
        let headers: Vec<_> = token.into_iter().chain([JSON]).collect();
        gateway.send(method, path, &headers, body).await.status
    };
    let (all, one) = ("/api/v1/sources", "/api/v1/sources/a");
    let new = Some(r#"{"id":"a","path":"/a"}"#);
    let change = Some(r#"{"paused":true}"#);
    let calls = [("POST", all, new, 201), ("PATCH", one, change, 200), ("DELETE", one, None, 200)];
    for (method, path, body, done) in calls {
        assert_eq!(ask(method, path, None, body).await, 401, "{method}");
        assert_eq!(ask(method, path, Some("Bearer R"), body).await, 403, "{method}");
        assert_eq!(ask(method, path, Some("Bearer W"), body).await, done, "{method}");
    }
    assert_eq!(ask("GET", all, Some("Bearer R"), None).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_any_kind_is_applied_and_changed_while_it_is_read() {
    let (_etcd, _pipeline, gateway) = exported().await;
    let put = async |id: &str, body: Value| {
        let path = format!("/api/v1/sources/{id}");
        gateway.send("PUT", &path, &[JSON], Some(&body.to_string())).await
    };
    let scrape = |interval: &str| {
        let targets = json!([{"url": "http://127.0.0.1:1/metrics"}]);
        json!({"scrape": {"targets": targets, "interval": interval}})
    };
    for (interval, status, seconds) in [("15s", 201, 15.0), ("15s", 200, 15.0), ("2m", 200, 120.0)]
    {
        let applied = put("rack-7", scrape(interval)).await;
        let source = applied.json();
        assert_eq!((applied.status, &source["kind"]), (status, &json!("scrape")), "{source}");
        assert_eq!(source["interval_seconds"], json!(seconds), "{source}");
    }
    let made_up = put("lab", json!({"simulate": {"hosts": 2, "gpus": 8}})).await;
    assert_eq!((made_up.status, &made_up.json()["kind"]), (201, &json!("simulate")));
    let check = async |id: &str, body: Value, status: u16, named: &str| {
        let refused = put(id, body).await;
        let told = refused.text.clone();
        assert!(refused.status == status && told.contains(named), "{} {told}", refused.status);
    };
    check("rack-7", json!({"simulate": {"hosts": 2, "gpus": 8}}), 400, "of kind scrape").await;
    check("export", json!({"csv": {"path": "/other.csv"}}), 400, "reads another file").await;
    check("a", json!({"simulate": {"hosts": 2, "gpus": 99}}), 400, "not from 1 to 16").await;
    check("a", json!({"scrape": {"interval": "fast"}}), 400, "500ms, 1s, 2m or 1h").await;
    check("a", json!({"sim": {}}), 400, "expected one of").await;
    check("a", json!({}), 400, "exactly one of csv, simulate, scrape and nvml").await;
    assert_eq!(gateway.get("/api/v1/sources/a").await.status, 404, "nothing came of it");
}
