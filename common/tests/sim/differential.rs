//! The etcd in memory against the real one: the same requests, the same answers.

use std::time::Duration;

use etcd_client::{
    Channel, Client, CompactionOptions, Compare, CompareOp, DeleteOptions, EventType, GetOptions,
    LeaseGrantOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use fastrand::Rng;
use nexus_common::testing::{MemoryEtcd, TestEtcd};

/// Requests in the script; with fewer than a thousand not every refusal comes up.
const REQUESTS: usize = 4000;
/// Keys are few, so that requests meet.
const KEYS: [&str; 6] = ["/a", "/a/1", "/a/2", "/b", "/b/1", "/c"];
const LEASES: [i64; 3] = [71, 72, 73];

/// A request, made so that it can be sent twice.
#[derive(Debug, Clone)]
enum Request {
    Get(String, GetOptions),
    Put(String, String, PutOptions),
    Delete(String, DeleteOptions),
    Txn(Txn),
    Compact(i64),
    Grant(i64),
    Revoke(i64),
}

fn key(rng: &mut Rng) -> String {
    if rng.u8(..40) == 0 { String::new() } else { KEYS[rng.usize(..KEYS.len())].to_owned() }
}

fn end(rng: &mut Rng) -> Option<&'static str> {
    [None, None, Some("/b"), Some("/a/2"), Some("/z"), Some("\0")][rng.usize(..6)]
}

fn get_options(rng: &mut Rng, revision: i64) -> GetOptions {
    let mut options = GetOptions::new();
    if let Some(end) = end(rng) {
        options = options.with_range(end);
    }
    match rng.u8(..6) {
        0 => options = options.with_limit(rng.i64(1..4)),
        1 => options = options.with_keys_only(),
        2 => options = options.with_count_only(),
        3 => options = options.with_revision((revision + rng.i64(-30..3)).max(1)),
        _ => {}
    }
    options
}

fn put_options(rng: &mut Rng) -> PutOptions {
    let options = PutOptions::new();
    match rng.u8(..8) {
        0 => options.with_lease(LEASES[rng.usize(..3)]),
        1 => options.with_ignore_lease(),
        2 => options.with_prev_key(),
        3 => options.with_lease(LEASES[rng.usize(..3)]).with_ignore_lease(),
        4 => options.with_ignore_value(),
        _ => options,
    }
}

/// Without an open end: etcd does not see that such a delete meets a put of the same
/// transaction, applies both, and panics when the put relies on what was deleted.
fn delete_options(rng: &mut Rng) -> DeleteOptions {
    let mut options = DeleteOptions::new();
    if let Some(end) = end(rng).filter(|end| *end != "\0") {
        options = options.with_range(end);
    }
    if rng.bool() { options.with_prev_key() } else { options }
}

fn compare(rng: &mut Rng, revision: i64) -> Compare {
    let key = key(rng);
    let op = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual]
        [rng.usize(..4)];
    let near = rng.i64(0..=revision);
    match rng.u8(..5) {
        0 => Compare::version(key, op, rng.i64(0..4)),
        1 => Compare::create_revision(key, op, if rng.bool() { 0 } else { near }),
        2 => Compare::mod_revision(key, op, if rng.bool() { 0 } else { near }),
        3 => Compare::value(key, op, rng.u8(b'0'..=b'9').to_string()),
        _ => Compare::lease(key, op, if rng.bool() { 0 } else { LEASES[rng.usize(..3)] }),
    }
}

fn ops(rng: &mut Rng, revision: i64) -> Vec<TxnOp> {
    let many = if rng.u8(..40) == 0 { 129 } else { rng.usize(..4) };
    let op = |rng: &mut Rng| match rng.u8(..4) {
        0 => TxnOp::get(key(rng), Some(get_options(rng, revision))),
        1 => TxnOp::delete(key(rng), Some(delete_options(rng))),
        _ => TxnOp::put(key(rng), rng.u8(..).to_string(), Some(put_options(rng))),
    };
    (0..many).map(|_| op(rng)).collect()
}

fn request(rng: &mut Rng, revision: i64) -> Request {
    match rng.u8(..100) {
        0..20 => Request::Get(key(rng), get_options(rng, revision)),
        20..50 => Request::Put(key(rng), rng.u8(..).to_string(), put_options(rng)),
        50..60 => Request::Delete(key(rng), delete_options(rng)),
        60..90 => {
            let compares: Vec<Compare> =
                (0..rng.usize(..3)).map(|_| compare(rng, revision)).collect();
            let (then, or_else) = (ops(rng, revision), ops(rng, revision));
            Request::Txn(Txn::new().when(compares).and_then(then).or_else(or_else))
        }
        90..92 => Request::Compact(revision + rng.i64(-20..3)),
        92..97 => Request::Grant(LEASES[rng.usize(..3)]),
        _ => Request::Revoke(LEASES[rng.usize(..3)]),
    }
}

/// Sends it and tells what came back, without what names the cluster.
async fn answer(client: &mut Client, request: Request) -> (String, Option<i64>) {
    let told = match request {
        Request::Get(key, options) => {
            client.get(key, Some(options)).await.map(|a| (a.header().cloned(), format!("{a:?}")))
        }
        Request::Put(key, value, options) => client
            .put(key, value, Some(options))
            .await
            .map(|a| (a.header().cloned(), format!("{a:?}"))),
        Request::Delete(key, options) => {
            client.delete(key, Some(options)).await.map(|a| (a.header().cloned(), format!("{a:?}")))
        }
        Request::Txn(txn) => client.txn(txn).await.map(|a| (a.header().cloned(), format!("{a:?}"))),
        Request::Compact(revision) => client
            .compact(revision, Some(CompactionOptions::new()))
            .await
            .map(|a| (a.header().cloned(), "compacted".to_owned())),
        Request::Grant(id) => client
            .lease_grant(600, Some(LeaseGrantOptions::new().with_id(id)))
            .await
            .map(|a| (a.header().cloned(), format!("lease {} for {} s", a.id(), a.ttl()))),
        Request::Revoke(id) => {
            client.lease_revoke(id).await.map(|a| (a.header().cloned(), "revoked".to_owned()))
        }
    };
    match told {
        Ok((header, text)) => {
            let revision = header.map(|header| header.revision());
            (format!("revision {revision:?}: {}", anonymous(&text)), revision)
        }
        Err(etcd_client::Error::GRpcStatus(status)) => {
            (format!("{:?}: {}", status.code(), status.message()), None)
        }
        Err(other) => (other.to_string(), None),
    }
}

/// The text of an answer, with every member called 0.
fn anonymous(text: &str) -> String {
    let mut clean = text.to_owned();
    for field in ["cluster_id: ", "member_id: ", "raft_term: "] {
        let parts: Vec<&str> = clean.split(field).collect();
        let rest = |part: &&str| part.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
        let tail: Vec<String> = parts[1..].iter().map(rest).collect();
        clean = std::iter::once(parts[0].to_owned()).chain(tail).collect::<Vec<_>>().join(field);
    }
    clean
}

async fn in_memory(etcd: &MemoryEtcd) -> Client {
    Client::from_channel(Channel::Custom(etcd.channel()), None).await.unwrap()
}

#[tokio::test]
async fn the_etcd_in_memory_answers_as_the_real_one_does() {
    let (server, memory) = (TestEtcd::start(), MemoryEtcd::start());
    let mut real = Client::connect([server.endpoint()], None).await.unwrap();
    let mut fake = in_memory(&memory).await;
    let mut rng = Rng::with_seed(4);
    let (mut revision, mut compacted, mut refused) = (1, 1, 0);
    for number in 0..REQUESTS {
        let request = request(&mut rng, revision);
        let (expected, at) = answer(&mut real, request.clone()).await;
        let (found, _) = answer(&mut fake, request.clone()).await;
        assert_eq!(found, expected, "request {number}: {request:?}");
        revision = at.unwrap_or(revision);
        refused += u32::from(at.is_none());
        if let (Request::Compact(at), "compacted") =
            (request, expected.rsplit(": ").next().unwrap_or_default())
        {
            compacted = at;
        }
    }
    assert!(refused > 100, "the script has to contain what is refused");
    // Not from `compacted` itself: whether etcd still tells of what was deleted by that very
    // revision depends on its version.
    for from in [0, compacted - 1, compacted + 1, revision, revision + 1] {
        let expected = watched(&mut real, from).await;
        assert_eq!(watched(&mut fake, from).await, expected, "a watch from {from}");
    }
}

/// What a watch from a revision tells until a mark that is put then, event by event.
async fn watched(client: &mut Client, from: i64) -> Vec<String> {
    let mut options = WatchOptions::new().with_range("/z").with_prev_key();
    if from != 0 {
        options = options.with_start_revision(from);
    }
    let mut stream = client.watch("/a", Some(options)).await.unwrap();
    let mut told = Vec::new();
    let mut marked = false;
    loop {
        let message = tokio::time::timeout(Duration::from_secs(5), stream.message());
        let answer = message.await.expect("the mark comes").unwrap().expect("the stream goes on");
        if answer.created() {
            told.push("created".to_owned());
        }
        if answer.canceled() {
            told.push(format!("canceled, compacted at {}", answer.compact_revision()));
            return told;
        }
        for event in answer.events() {
            let kv = event.kv().unwrap();
            let is_mark = kv.key() == b"/mark" && event.event_type() == EventType::Put;
            told.push(format!("{event:?}"));
            if is_mark && marked {
                return told;
            }
        }
        if !marked {
            client.put("/mark", from.to_string(), None).await.unwrap();
            client.delete("/mark", None).await.unwrap();
            client.put("/mark", from.to_string(), None).await.unwrap();
            marked = true;
        }
    }
}
