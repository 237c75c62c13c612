//! Answers that follow from the view alone are kept while it does not change, and told apart by
//! a tag, so that who has one already need not get it again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use nexus_common::model::{ClusterId, HostName};

use super::{App, REVISION};
use crate::view::{GpuPlaces, Host, Snapshot, Target};

/// Largest answer that is kept: larger ones are asked for rarely.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What an entry costs beyond its text: key, headers, map.
const ENTRY_OVERHEAD: usize = 1024;

/// Where a list goes on: handlers say so, and it becomes a `Link` header.
#[derive(Debug, Clone)]
pub struct NextPage(pub String);

/// What an answer was made of: as long as that is what the newest snapshot holds, the answer is
/// right.
#[derive(Debug, Clone)]
pub enum Basis {
    /// The whole snapshot.
    Snapshot(Weak<Snapshot>),
    /// Some hosts, and where GPUs are.
    Hosts(Weak<GpuPlaces>, Vec<(ClusterId, HostName, Weak<Host>)>),
}

impl Basis {
    /// The hosts of some targets.
    pub fn hosts(snapshot: &Snapshot, targets: &[Target]) -> Self {
        let host = |target: &Target| {
            let (_, host) = snapshot.host(target.cluster.as_str(), target.host.as_str())?;
            Some((target.cluster.clone(), target.host.clone(), Arc::downgrade(host)))
        };
        Self::Hosts(Arc::downgrade(&snapshot.gpus), targets.iter().filter_map(host).collect())
    }

    fn holds(&self, newest: &Arc<Snapshot>) -> bool {
        // An address that is still referred to is not used again.
        match self {
            Self::Snapshot(of) => std::ptr::eq(of.as_ptr(), Arc::as_ptr(newest)),
            Self::Hosts(gpus, hosts) => {
                std::ptr::eq(gpus.as_ptr(), Arc::as_ptr(&newest.gpus))
                    && hosts.iter().all(|(cluster, name, host)| {
                        newest
                            .host(cluster.as_str(), name.as_str())
                            .is_some_and(|(_, now)| std::ptr::eq(host.as_ptr(), Arc::as_ptr(now)))
                    })
            }
        }
    }
}

/// Answers, bounded in bytes.
#[derive(Debug)]
pub struct Answers {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: usize,
    answers: HashMap<Key, Answer>,
}

/// What was asked: path and parameters, and how it was to be written.
type Key = (String, HeaderValue);

#[derive(Debug, Clone)]
struct Answer {
    basis: Basis,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn size(&self, key: &Key) -> usize {
        self.body.len() + key.0.len() + key.1.len() + ENTRY_OVERHEAD
    }
}

impl Answers {
    /// None yet; with 0 bytes none is kept.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::default() }
    }

    fn get(&self, key: &Key, newest: &Arc<Snapshot>) -> Option<Answer> {
        let kept = self.kept.lock().ok()?;
        kept.answers.get(key).filter(|answer| answer.basis.holds(newest)).cloned()
    }

    fn put(&self, key: Key, answer: Answer, newest: &Arc<Snapshot>) {
        let Ok(mut kept) = self.kept.lock() else { return };
        let size = answer.size(&key);
        if size > self.bytes_max {
            return;
        }
        if let Some(old) = kept.answers.remove(&key) {
            kept.bytes -= old.size(&key);
        }
        if kept.bytes + size > self.bytes_max {
            kept.answers.retain(|_, answer| answer.basis.holds(newest));
            kept.bytes = kept.answers.iter().map(|(key, answer)| answer.size(key)).sum();
        }
        if kept.bytes + size > self.bytes_max {
            // All of them are asked for now; which one goes matters little.
            *kept = Kept::default();
        }
        kept.bytes += size;
        kept.answers.insert(key, answer);
    }
}

/// Answers from what is kept, or keeps what is answered.
pub(super) async fn remember(State(app): State<App>, request: Request, next: Next) -> Response {
    let snapshot = request.extensions().get::<Option<Arc<Snapshot>>>().cloned().flatten();
    let Some(snapshot) = snapshot.filter(|_| request.method() == Method::GET) else {
        return next.run(request).await;
    };
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let accept = request.headers().get(header::ACCEPT).cloned();
    let accept = accept.unwrap_or_else(|| HeaderValue::from_static(""));
    let uri = request.uri().clone();
    let key = (uri.path_and_query().map_or("", |all| all.as_str()).to_owned(), accept);
    if let Some(answer) = app.answers.get(&key, &snapshot) {
        return respond(answer, known.as_ref());
    }
    let mut response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    complete(&mut response, &uri, &snapshot);
    let exact = response.body().size_hint().exact();
    if exact.is_none_or(|size| size > ANSWER_BYTES_MAX as u64) {
        return not_modified(response, known.as_ref());
    }
    let basis = response.extensions_mut().remove::<Basis>();
    let basis = basis.unwrap_or_else(|| Basis::Snapshot(Arc::downgrade(&snapshot)));
    let of = response.headers_mut().remove(REVISION);
    let (parts, body) = response.into_parts();
    // The whole of it is in memory already.
    let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let answer = Answer { basis, headers: parts.headers, body };
    match of {
        // It had to be taken from a newer snapshot.
        Some(of) if of != HeaderValue::from(snapshot.revision) => {
            let mut response = respond(answer, None);
            response.headers_mut().insert(REVISION, of);
            return response;
        }
        _ => app.answers.put(key, answer.clone(), &snapshot),
    }
    respond(answer, known.as_ref())
}

fn respond(answer: Answer, known: Option<&HeaderValue>) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.headers_mut() = answer.headers;
    not_modified(response, known)
}

/// Leaves out what the other side has already.
fn not_modified(mut response: Response, known: Option<&HeaderValue>) -> Response {
    let same = known.zip(response.headers().get(header::ETAG)).is_some_and(|(known, tag)| {
        let weak = |text: &[u8]| text.strip_prefix(b"W/").unwrap_or(text).to_vec();
        let tag = weak(tag.as_bytes());
        known
            .as_bytes()
            .split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|one| one == b"*" || weak(one) == tag)
    });
    if same {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Body::empty();
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Adds the headers that every answer out of a snapshot has.
fn complete(response: &mut Response, uri: &Uri, snapshot: &Snapshot) {
    let next = response.extensions_mut().remove::<NextPage>();
    let headers = response.headers_mut();
    let mut add = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    if let Some(NextPage(cursor)) = next {
        add(header::LINK, format!("<{}>; rel=\"next\"", with_cursor(uri, &cursor)));
    }
    let of = (snapshot.revision, snapshot.places_revision);
    // Weak: what is compressed differs in bytes. Another kind of text has another tag.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = match kind {
        Some(kind) if kind.starts_with("text/csv") => "c",
        Some(kind) if kind.starts_with("application/x-ndjson") => "l",
        _ => "j",
    };
    let tag = format!("W/\"{}.{}{kind}\"", of.0, of.1);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.append(header::VARY, HeaderValue::from_static("accept"));
}

/// The same question, going on behind `cursor`: a cursor is made of what needs no escaping.
fn with_cursor(uri: &Uri, cursor: &str) -> String {
    let query = uri.query().unwrap_or_default();
    let others = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let own = format!("cursor={cursor}");
    let all: Vec<&str> = others.chain([own.as_str()]).collect();
    format!("{}?{}", uri.path(), all.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(basis: Basis, size: usize) -> Answer {
        Answer { basis, headers: HeaderMap::new(), body: Bytes::from(vec![b' '; size]) }
    }

    fn key(path: &str) -> Key {
        (path.to_owned(), HeaderValue::from_static(""))
    }

    #[test]
    fn an_answer_is_right_as_long_as_what_it_was_made_of_stands() {
        let answers = Answers::new(1 << 20);
        let old = Arc::new(Snapshot::empty(1));
        answers.put(key("/a"), answer(Basis::Snapshot(Arc::downgrade(&old)), 10), &old);
        answers.put(key("/b"), answer(Basis::hosts(&old, &[]), 10), &old);
        assert!(answers.get(&key("/a"), &old).is_some());
        let new = Arc::new(Snapshot { revision: 2, ..(*old).clone() });
        assert!(answers.get(&key("/a"), &new).is_none(), "another snapshot");
        assert!(answers.get(&key("/b"), &new).is_some(), "its hosts are the same");
        let moved = Arc::new(Snapshot { gpus: Arc::default(), ..(*new).clone() });
        assert!(answers.get(&key("/b"), &moved).is_none());
        drop(old);
        assert!(answers.get(&key("/a"), &Arc::new(Snapshot::empty(1))).is_none());
    }

    #[test]
    fn the_bound_holds_and_what_is_stale_goes_first() {
        let answers = Answers::new(3 * (ENTRY_OVERHEAD + 102));
        let (old, new) = (Arc::new(Snapshot::empty(1)), Arc::new(Snapshot::empty(2)));
        let of = |s: &Arc<Snapshot>| answer(Basis::Snapshot(Arc::downgrade(s)), 100);
        answers.put(key("/a"), of(&old), &old);
        answers.put(key("/b"), of(&new), &new);
        answers.put(key("/c"), of(&new), &new);
        answers.put(key("/d"), of(&new), &new);
        assert_eq!(answers.kept.lock().unwrap().answers.len(), 3);
        assert!(answers.get(&key("/b"), &new).is_some());
        answers.put(key("/d"), of(&new), &new);
        assert_eq!(answers.kept.lock().unwrap().bytes, 3 * (ENTRY_OVERHEAD + 102));
        answers.put(key("/e"), of(&new), &new);
        assert_eq!(answers.kept.lock().unwrap().answers.len(), 1);
        answers.put(key("/f"), answer(Basis::Snapshot(Weak::new()), 1 << 20), &new);
        assert!(answers.get(&key("/e"), &new).is_some(), "what is too large displaces nothing");
    }

    #[test]
    fn the_next_page_is_the_same_question_behind_the_cursor() {
        let check = |uri: &str, expected: &str| {
            assert_eq!(with_cursor(&uri.parse().unwrap(), "Y35o"), expected);
        };
        check("/a", "/a?cursor=Y35o");
        check("/a?limit=5", "/a?limit=5&cursor=Y35o");
        check("/a?cursor=b&limit=5&host=%20", "/a?limit=5&host=%20&cursor=Y35o");
    }

    #[test]
    fn a_tag_is_compared_weakly() {
        let check = |known: &'static str, expected: StatusCode| {
            let mut response = Response::new(Body::from("x"));
            response.headers_mut().insert(header::ETAG, HeaderValue::from_static("W/\"1.2j\""));
            let known = HeaderValue::from_static(known);
            assert_eq!(not_modified(response, Some(&known)).status(), expected, "{known:?}");
        };
        check("W/\"1.2j\"", StatusCode::NOT_MODIFIED);
        check("\"x\", \"1.2j\"", StatusCode::NOT_MODIFIED);
        check("*", StatusCode::NOT_MODIFIED);
        check("W/\"1.2c\"", StatusCode::OK);
    }
}
