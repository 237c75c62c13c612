//! Files that are sent: taken in, refused, sent again, broken off.

use std::{
    fs::File,
    path::Path,
    time::{Duration, SystemTime},
};

use nexus_common::{
    keyspace::{FileRange, Key, Progress, Source, SourceKind, to_json},
    model::{Lane, Role, ShardId, SourceId, Timestamp},
    sources::SourceDesk,
    testing::{TestEtcd, eventually},
};
use nexus_gateway::auth::TokenHash;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    document::required_fields_are_there,
    pipeline::Pipeline,
    serve::{Gateway, Reply},
};

const URL: &str = "/api/v1/csv/upload";
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=XX");
const CSV: &str = "timestamp,hostname,uuid,temperature\n2025-07-18T20:42:34Z,h,GPU-1,50\n";

async fn started(bytes_max: u64) -> (TestEtcd, TempDir, Gateway) {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let folder = TempDir::new().unwrap();
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let path = folder.path().to_owned();
    let gateway = Gateway::with(process, |args| {
        args.uploads.upload_dir = Some(path);
        args.uploads.upload_bytes_max = bytes_max;
    });
    let gateway = gateway.await.loaded().await;
    (etcd, folder, gateway)
}

fn part(field: &str, file: Option<&str>, content: &str) -> String {
    let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
    format!("--XX\r\ncontent-disposition: form-data; name=\"{field}\"{file}\r\n\r\n{content}\r\n")
}

fn form(content: &str) -> String {
    part("file", Some("a.csv"), content) + "--XX--\r\n"
}

async fn send(gateway: &Gateway, query: &str, body: &str) -> Reply {
    gateway.send("POST", &format!("{URL}{query}"), &[FORM], Some(body)).await
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

async fn count(gateway: &Gateway) -> Value {
    gateway.ok("/api/v1/sources").await["count"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_sent_twice_is_one_source_unless_that_is_wanted() {
    let (_etcd, folder, gateway) = started(1 << 20).await;
    let first = send(&gateway, "", &form(CSV)).await;
    let answer = first.json();
    assert_eq!(first.status, 201, "{answer}");
    let document = serde_json::to_value(nexus_gateway::web::document()).unwrap();
    required_fields_are_there(&document, "UploadResource", &answer);
    let of = |name: &str| answer[name].clone();
    assert_eq!((of("success"), of("filename")), (json!(true), json!("a.csv")));
    assert_eq!((of("size"), of("record_count")), (json!(CSV.len()), json!(1)));
    assert_eq!((of("duplicate"), of("status")), (json!(false), json!("declared")));
    let id = answer["file_id"].as_str().unwrap();
    assert_eq!(id, format!("upload-{}", &answer["sha256"].as_str().unwrap()[..32]));
    let status_url = answer["status_url"].as_str().unwrap();
    assert_eq!((first.headers["location"].as_str(), status_url), (status_url, status_url));
    let source = gateway.ok(status_url).await;
    assert_eq!(source["id"], id);
    let path = source["path"].as_str().unwrap();
    assert_eq!(path, folder.path().join(format!("{id}.csv")).to_str().unwrap());
    assert_eq!(std::fs::read_to_string(path).unwrap(), CSV);

    std::fs::remove_file(path).unwrap();
    let again = send(&gateway, "?force=false", &(part("file", None, CSV) + "--XX--")).await;
    assert_eq!((again.status, again.json()["duplicate"].clone()), (200, json!(true)));
    assert_eq!(
        (again.json()["file_id"].clone(), again.json()["filename"].clone()),
        (json!(id), Value::Null)
    );
    assert_eq!(files(folder.path()), [format!("{id}.csv")], "what went missing is back");
    let empty = send(&gateway, "", &(part("mapping", None, "{}") + &form(CSV))).await;
    assert_eq!((empty.status, empty.json()["file_id"].clone()), (200, json!(id)));
    assert_eq!(count(&gateway).await, 1);

    let forced = send(&gateway, "?force=true", &form(CSV)).await;
    let other = forced.json()["file_id"].clone();
    assert_eq!(forced.status, 201);
    assert!(other.as_str().unwrap().starts_with(&format!("{id}-")), "{other}");
    assert_eq!((count(&gateway).await, files(folder.path()).len()), (json!(2), 2));

    // As a streamer leaves it that has begun: the name is used up.
    let lane = Lane { source: id.parse().unwrap(), shard: ShardId(0) };
    let progress = Progress::untouched(FileRange { start: 36, end: 68 }, Timestamp::now());
    let etcd = &gateway.process.etcd;
    let key = etcd.keyspace().key(&Key::Shard(lane));
    assert!(etcd.create(&[(key, to_json(&progress))]).await.unwrap());
    gateway.send("DELETE", status_url, &[], None).await;
    std::fs::remove_file(path).unwrap();
    let refused = send(&gateway, "", &form(CSV)).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (409, json!("taken")));
    assert!(refused.text.contains("force=true"), "{}", refused.text);
    assert_eq!(files(folder.path()).len(), 1, "what nobody reads is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_or_withdrawn_goes_once_it_is_old() {
    let (server, folder, gateway) = started(1 << 20).await;
    let etcd = gateway.process.etcd.clone();
    let desk = SourceDesk::new(etcd.clone());
    let mut sent = Vec::new();
    for row in 0..5 {
        let body = form(&format!("{CSV}2025-07-18T20:42:34Z,h,GPU-2,{row}\n"));
        let reply = send(&gateway, "", &body).await.json();
        sent.push(reply["file_id"].as_str().unwrap().parse::<SourceId>().unwrap());
    }
    let [read, unread, withdrawn, undecided, young] = sent.try_into().unwrap();
    let path = |id: &SourceId| folder.path().join(format!("{id}.csv"));
    // As streamers leave them that read one to its end and have begun two.
    for (id, done) in [(&read, true), (&unread, false), (&withdrawn, false), (&young, true)] {
        let source = desk.get(id).await.unwrap().source;
        let (file, fingerprint) = (path(id).display().to_string(), "1".to_owned());
        let kind =
            SourceKind::Csv { path: file, bytes: 1, fingerprint, replay: None, mapping: None };
        let source = Source { kind, shards: 1, ..source };
        let untouched = Progress::untouched(FileRange { start: 0, end: 1 }, Timestamp::now());
        let lane = Lane { source: id.clone(), shard: ShardId(0) };
        let key = |key| etcd.keyspace().key(&key);
        let entries = [
            (key(Key::Source(id.clone())), to_json(&source)),
            (key(Key::Shard(lane)), to_json(&Progress { done, ..untouched })),
        ];
        etcd.describe(&entries).await.unwrap();
    }
    desk.withdraw(&withdrawn).await.unwrap();
    std::fs::write(folder.path().join("mine.csv"), "").unwrap();
    let mut left = files(folder.path());
    assert_eq!(left.len(), 6);
    for name in left.iter().filter(|name| !name.contains(young.as_str())) {
        let file = File::options().write(true).open(folder.path().join(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    }
    let path_of_uploads = folder.path().to_owned();
    let process = server.process(Role::Gateway, "gateway-2", 10).await;
    let other = Gateway::with(process, |args| args.uploads.upload_dir = Some(path_of_uploads));
    let _other = other.await.loaded().await;
    left.retain(|name| !name.contains(read.as_str()) && !name.contains(withdrawn.as_str()));
    assert!(left.iter().any(|name| name.contains(undecided.as_str())));
    let gone = async || files(folder.path()) == left;
    eventually("what nobody reads is gone", Duration::from_secs(20), gone).await;
    assert!(path(&unread).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_named_with_what_is_allowed_and_leaves_no_file() {
    let (_etcd, folder, gateway) = started(200).await;
    let check = async |body: String, status: u16, code: &str, said: &[&str]| {
        let reply = send(&gateway, "", &body).await;
        let problem = reply.json();
        assert_eq!((reply.status, &problem["code"]), (status, &json!(code)), "{problem}");
        assert!(said.iter().all(|said| reply.text.contains(said)), "{problem}");
        assert!(files(folder.path()).is_empty(), "{problem}");
    };
    check(form(""), 400, "bad-csv", &["it has no bytes", "\"parameter\":\"file\""]).await;
    check(form("a,b\n1,2\n"), 400, "bad-csv", &["saw the columns [a, b]", "long layout"]).await;
    check(form("time\0stamp\n1\n"), 400, "bad-csv", &["binary"]).await;
    check(form(&CSV.repeat(9)), 413, "body", &["more than 200 bytes", "--upload-bytes-max"]).await;
    let long = form(&CSV.repeat(2000));
    check(long, 413, "body", &["more than 200 bytes"]).await;
    let wrong = part("csv", Some("a.csv"), CSV) + "--XX--";
    check(wrong, 400, "bad-parameter", &["\"parameter\":\"csv\"", "one field file"]).await;
    let two = part("file", Some("a.csv"), CSV) + &part("file", Some("b.csv"), CSV) + "--XX--";
    check(two, 400, "bad-parameter", &["one file a request"]).await;
    check("--XX--\r\n".to_owned(), 400, "bad-parameter", &["there is no file"]).await;
    check(part("file", Some("a.csv"), CSV), 400, "bad-body", &["read the form"]).await;
    let mapped = |mapping: &str| part("mapping", None, mapping) + &form("a,b\n1,2\n");
    let unknown = ["\"parameter\":\"mapping\"", "unknown field `hosts`", "expected one of"];
    check(mapped(r#"{"hosts":"a"}"#), 400, "bad-parameter", &unknown).await;
    check(mapped("{"), 400, "bad-parameter", &["EOF"]).await;
    let both = r#"{"host":"a","host_is":"b"}"#;
    check(mapped(both), 400, "bad-parameter", &["both host and host_is"]).await;
    check(mapped(r#"{"time":"c"}"#), 400, "bad-csv", &["column \\\"c\\\"", "saw [a, b]"]).await;
    let long = format!("{{\"time\":\"{}\"}}", "t".repeat(70_000));
    check(mapped(&long), 400, "bad-parameter", &["more than 65536 bytes"]).await;
    let twice = part("mapping", None, "{}") + &mapped("{}");
    check(twice, 400, "bad-parameter", &["it is there twice"]).await;
    let behind = part("file", None, CSV) + &part("mapping", None, "{}") + "--XX--";
    check(behind, 400, "bad-parameter", &["it comes behind the file"]).await;
    let json = gateway.send("POST", URL, &[("content-type", "application/json")], Some("{}")).await;
    assert_eq!((json.status, json.json()["code"].clone()), (415, json!("content-type")));
    let query = send(&gateway, "?force=maybe", &form(CSV)).await;
    assert_eq!((query.status, query.json()["allowed"].clone()), (400, json!("true or false")));
    assert_eq!(count(&gateway).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_gpu_z_is_taken_with_a_mapping_that_says_whose_it_is() {
    let (_etcd, _folder, gateway) = started(1 << 20).await;
    let log = "Date , GPU Temperature [\u{b0}C] , GPU Load [%] ,\n\
               2025-07-18 20:42:34 , 51.0 , 17 ,\n";
    let unsaid = send(&gateway, "", &form(log)).await;
    assert_eq!((unsaid.status, unsaid.json()["code"].clone()), (400, json!("bad-csv")));
    let allowed = unsaid.json()["allowed"].to_string();
    assert!(allowed.contains("form's field mapping"), "{allowed}");

    let of = |gpu: &str| {
        let mapping = json!({"host_is": "pc-7", "gpu_is": gpu, "utc_offset": "+02:00"});
        part("mapping", None, &mapping.to_string()) + &form(log)
    };
    let first = send(&gateway, "", &of("0")).await;
    assert_eq!((first.status, first.json()["record_count"].clone()), (201, json!(1)));
    let id = first.json()["file_id"].as_str().unwrap().to_owned();
    let again = send(&gateway, "", &of("0")).await;
    assert_eq!((again.status, again.json()["file_id"].clone()), (200, json!(id)));
    let other = send(&gateway, "", &of("1")).await;
    assert_eq!(other.status, 201, "the same log of another GPU is another source");

    let desk = SourceDesk::new(gateway.process.etcd.clone());
    let SourceKind::Declared { mapping: Some(mapping), .. } =
        desk.get(&id.parse().unwrap()).await.unwrap().source.kind
    else {
        panic!("{id} has no mapping");
    };
    assert_eq!((mapping.host_is.as_deref(), mapping.gpu_is.as_deref()), (Some("pc-7"), Some("0")));
    assert_eq!(mapping.utc_offset_seconds, 7200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_leaves_half_way_leaves_nothing() {
    let (_etcd, folder, gateway) = started(1 << 20).await;
    let mut sender = TcpStream::connect(gateway.serving.address).await.unwrap();
    let head = format!(
        "POST {URL} HTTP/1.1\r\nhost: x\r\n{}: {}\r\ncontent-length: 9999\r\n\r\n",
        FORM.0, FORM.1
    );
    let begun = head + &part("file", Some("a.csv"), CSV);
    sender.write_all(begun.as_bytes()).await.unwrap();
    let comes = || async { files(folder.path()).len() == 1 };
    eventually("the file comes in", Duration::from_secs(10), comes).await;
    assert!(files(folder.path())[0].starts_with(".upload-"), "and has no name yet");
    drop(sender);
    let gone = || async { files(folder.path()).is_empty() };
    eventually("nothing of it is left", Duration::from_secs(10), gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_taken_from_who_may_write_and_only_where_there_is_a_directory() {
    let etcd = TestEtcd::start();
    Pipeline::new(&etcd).await;
    let (folder, tokens) = (TempDir::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let line =
        |name: &str, scope: &str, token: &str| format!("{name} {scope} {}\n", TokenHash::of(token));
    std::fs::write(tokens.path(), line("r", "read", "R") + &line("w", "write", "W")).unwrap();
    let (path, file) = (folder.path().to_owned(), tokens.path().to_owned());
    let process = etcd.process(Role::Gateway, "gateway-1", 10).await;
    let gateway = Gateway::with(process, |args| {
        args.uploads.upload_dir = Some(path);
        args.auth_tokens_file = Some(file);
    });
    let gateway = gateway.await.loaded().await;
    let ask = async |token: Option<&str>| {
        let token = token.map(|token| ("authorization", token));
        let headers: Vec<_> = token.into_iter().chain([FORM]).collect();
        gateway.send("POST", URL, &headers, Some(&form(CSV))).await.status
    };
    assert_eq!((ask(None).await, ask(Some("Bearer R")).await), (401, 403));
    assert!(files(folder.path()).is_empty());
    assert_eq!(ask(Some("Bearer W")).await, 201);

    let without = Gateway::start(&etcd, "gateway-2").await;
    let refused = send(&without, "", &form(CSV)).await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (501, json!("uploads-off")));
    assert!(refused.text.contains("--upload-dir"), "{}", refused.text);
}
