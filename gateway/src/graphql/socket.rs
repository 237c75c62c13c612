//! graphql-transport-ws, as its protocol has it
//! (<https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md>).
//!
//! One task a socket reads, runs and writes in turn, so nothing waits in a queue: a client that
//! reads slowly is answered slowly, and one that does not read at all is sent little, then let go.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use async_graphql::{Response, ServerError, parser::types::OperationType};
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response as HttpResponse},
};
use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::{self, BoxStream, SelectAll},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, interval, sleep_until, timeout},
};

use super::execute::{Asked, Invalid, Outcome, Ready, Service, never_ran};
use crate::{
    auth::{Grant, Refused, Scope},
    web::{ApiError, BODY_BYTES_MAX, Credit, Protocol, Stream, bearer, is_stuck},
};

/// What is spoken here.
const PROTOCOL: &str = "graphql-transport-ws";
/// How long a client may take to introduce itself.
const INIT_WITHIN: Duration = Duration::from_secs(5);
/// How often a client is asked for a sign of life. After two without one it is let go: its
/// machine is gone, or the way to it.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How long one message may take to be taken.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may read nothing of what it was sent.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Operations of one socket at the same time.
const OPERATIONS_MAX: usize = 32;
/// Answers to queries of one socket that are made before the ones before them are taken: each may
/// have some ten MiB.
const ANSWERS_MAX: usize = 2;
/// Messages of a client between two signs of life: a hundred a second.
const MESSAGES_MAX: u32 = 1500;
/// Largest message of a client, in bytes: the largest operation.
const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX;
/// Longest id of an operation, in bytes: clients use UUIDs.
const ID_BYTES_MAX: usize = 128;

/// Close codes of the protocol.
const BAD_REQUEST: u16 = 4400;
const UNAUTHORIZED: u16 = 4401;
const FORBIDDEN: u16 = 4403;
const BAD_PROTOCOL: u16 = 4406;
const INIT_TIMEOUT: u16 = 4408;
const ID_TAKEN: u16 = 4409;
const TOO_MANY_INITS: u16 = 4429;

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Said {
    ConnectionInit {
        #[serde(default)]
        payload: Option<serde_json::Map<String, Value>>,
    },
    Subscribe {
        id: String,
        payload: Asked,
    },
    Complete {
        id: String,
    },
    Ping {
        #[serde(default)]
        payload: Option<Value>,
    },
    Pong {
        #[serde(default, rename = "payload")]
        _payload: Option<Value>,
    },
}

/// What is said of an operation. A struct, since the fields of an answer keep their order.
#[derive(Serialize)]
struct Frame<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a T>,
}

/// What becomes of an operation.
enum Event {
    Next(Response),
    /// An answer, and its place among those that wait to be taken.
    Answer(Response, Option<OwnedSemaphorePermit>),
    Refused(Invalid),
    Complete,
}

/// Why a socket ends.
enum End {
    /// It is told why.
    Close(u16, String),
    /// It is not there any more, or does not read.
    Gone,
}

/// `GET /graphql/ws`.
pub(super) async fn upgrade(
    State(service): State<Service>,
    headers: HeaderMap,
    asked: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> HttpResponse {
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            let detail = format!("this address speaks WebSocket: {}", error.body_text());
            let status = StatusCode::UPGRADE_REQUIRED;
            return ApiError::new(status, "upgrade-required", detail).into_response();
        }
    };
    if !service.app.origins.allow(&headers) {
        let detail = "pages of this origin may not open a WebSocket here; \
                      ENABLE_CORS and CORS_ALLOWED_ORIGINS say which may";
        return ApiError::new(StatusCode::FORBIDDEN, "origin", detail).into_response();
    }
    let place = match service.app.streams.open(Protocol::GraphQl) {
        Ok(place) => place,
        Err(error) => return error.into_response(),
    };
    let token = bearer(&headers).map(str::to_owned);
    asked
        .protocols([PROTOCOL])
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(async move |socket| {
            Connection::new(service, socket, token, place).serve().await;
        })
}

struct Connection {
    service: Service,
    socket: WebSocket,
    place: Stream,
    /// Who does not read is sent nothing more: the view keeps the latest for it.
    credit: Credit,
    token: Option<String>,
    grant: Option<Grant>,
    running: BTreeMap<String, AbortHandle>,
    /// Answers that may wait to be taken.
    answers: Arc<Semaphore>,
    events: SelectAll<BoxStream<'static, (String, Event)>>,
}

impl Connection {
    fn new(service: Service, socket: WebSocket, token: Option<String>, place: Stream) -> Self {
        let (running, events, credit) = (BTreeMap::new(), SelectAll::new(), Credit::new());
        let answers = Arc::new(Semaphore::new(ANSWERS_MAX));
        Self { service, socket, place, credit, token, grant: None, running, answers, events }
    }

    async fn serve(mut self) {
        let spoken = self.socket.protocol().is_some_and(|protocol| protocol == PROTOCOL);
        let end = if spoken {
            self.talk().await
        } else {
            End::Close(BAD_PROTOCOL, format!("Subprotocol not acceptable: speak {PROTOCOL}"))
        };
        if let End::Close(code, reason) = end {
            tracing::debug!(code, reason, "closing a GraphQL socket");
            let frame = CloseFrame { code, reason: cut(reason).into() };
            let close = self.socket.send(Message::Close(Some(frame)));
            let _ = timeout(WRITE_WITHIN, close).await;
        }
    }

    /// Until something ends it.
    async fn talk(&mut self) -> End {
        let auth = self.service.app.auth.clone();
        let stop = self.service.app.stop.clone();
        let mut tokens_changed = auth.changes();
        let init_until = Instant::now() + INIT_WITHIN;
        let mut alive = interval(ALIVE_EVERY);
        alive.reset();
        let (mut silent_for, mut messages) = (0, 0);
        loop {
            let open = self.credit.is_open();
            let stuck_at = self.credit.used_up().unwrap_or_else(StdInstant::now) + READ_WITHIN;
            let step = tokio::select! {
                heard = self.socket.recv() => {
                    silent_for = 0;
                    let shown = self.shows_reading(&heard);
                    messages += u32::from(!shown);
                    match heard {
                        _ if shown => Ok(()),
                        _ if messages > MESSAGES_MAX => {
                            close(close_code::POLICY, "too many messages")
                        }
                        Some(Ok(message)) => self.hear(message).await,
                        Some(Err(_)) | None => Err(End::Gone),
                    }
                }
                Some((id, event)) = self.events.next(), if open && !self.events.is_empty() => {
                    self.tell(id, event).await
                }
                () = sleep_until(stuck_at.into()), if !open => self.stuck(),
                () = sleep_until(init_until), if self.grant.is_none() => {
                    close(INIT_TIMEOUT, "Connection initialisation timeout")
                }
                _ = alive.tick() => {
                    (silent_for, messages) = (silent_for + 1, 0);
                    if silent_for > 2 { Err(End::Gone) } else { self.ping().await }
                }
                Ok(()) = tokens_changed.changed() => match &self.grant {
                    Some(grant) if !auth.still(grant, Scope::Read) => close(FORBIDDEN, "Forbidden"),
                    _ => Ok(()),
                },
                () = stop.cancelled() => close(close_code::AWAY, "the gateway is about to end"),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Whether it answers a ping that went along with what was sent: so many are in order.
    fn shows_reading(&mut self, heard: &Option<Result<Message, axum::Error>>) -> bool {
        let Some(Ok(Message::Pong(carried))) = heard else { return false };
        self.credit.answered(carried, StdInstant::now())
    }

    async fn hear(&mut self, message: Message) -> Result<(), End> {
        let text = match message {
            Message::Text(text) => text,
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(_) => return Err(End::Gone),
            Message::Binary(_) => return close(BAD_REQUEST, "messages are text"),
        };
        let said = serde_json::from_str(&text)
            .map_err(|e| End::Close(BAD_REQUEST, format!("Invalid message: {e}")))?;
        match said {
            Said::ConnectionInit { payload } => self.init(payload).await,
            Said::Ping { payload } => {
                let mut pong = json!({"type": "pong"});
                if let (Some(payload), Some(pong)) = (payload, pong.as_object_mut()) {
                    pong.insert("payload".to_owned(), payload);
                }
                self.send(&pong).await
            }
            Said::Pong { .. } => Ok(()),
            Said::Subscribe { id, payload } => self.subscribe(id, payload).await,
            Said::Complete { id } => {
                if let Some(running) = self.running.remove(&id) {
                    running.abort();
                }
                Ok(())
            }
        }
    }

    async fn init(&mut self, payload: Option<serde_json::Map<String, Value>>) -> Result<(), End> {
        if self.grant.is_some() {
            return close(TOO_MANY_INITS, "Too many initialisation requests");
        }
        let given = payload.and_then(|payload| token_of(&payload));
        let token = given.or_else(|| self.token.take());
        match self.service.app.auth.admit(token.as_deref(), Scope::Read) {
            Ok(grant) => self.grant = Some(grant),
            Err(refused) => return close(FORBIDDEN, &format!("Forbidden: {refused}")),
        }
        self.send(&json!({"type": "connection_ack"})).await
    }

    async fn subscribe(&mut self, id: String, asked: Asked) -> Result<(), End> {
        let Some(grant) = self.grant.clone() else { return close(UNAUTHORIZED, "Unauthorized") };
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return close(BAD_REQUEST, "Invalid message: an id has 1 to 128 bytes");
        }
        if self.running.contains_key(&id) {
            return close(ID_TAKEN, &format!("Subscriber for {id} already exists"));
        }
        let ready = self.prepare(&grant, asked);
        let (abort, registration) = AbortHandle::new_pair();
        self.running.insert(id.clone(), abort);
        let events = match ready {
            Err(invalid) => stream::iter([Event::Refused(invalid)]).boxed(),
            Ok(ready) if ready.kind == OperationType::Subscription => {
                let followed = self.service.follow(ready);
                let event = |response: Response| match never_ran(&response) {
                    true => Event::Refused(Invalid(response.errors)),
                    false => Event::Next(response),
                };
                followed.map(event).chain(stream::iter([Event::Complete])).boxed()
            }
            Ok(ready) => {
                let ran = run(self.service.clone(), ready, grant, Arc::clone(&self.answers));
                stream::once(ran).flat_map(stream::iter).boxed()
            }
        };
        let named = Abortable::new(events, registration).map(move |event| (id.clone(), event));
        self.events.push(named.boxed());
        Ok(())
    }

    fn prepare(&self, grant: &Grant, asked: Asked) -> Result<Ready, Invalid> {
        if self.running.len() >= OPERATIONS_MAX {
            let said =
                format!("operations of this socket: {OPERATIONS_MAX} run, which is the maximum");
            return Err(Invalid::told(said, "limit"));
        }
        let counted = self.service.app.auth.count(grant);
        counted.map_err(|refused: Refused| Invalid::told(refused.to_string(), "rate-limited"))?;
        self.service.prepare(asked)
    }

    async fn tell(&mut self, id: String, event: Event) -> Result<(), End> {
        // Of an operation that the client ended, or that was refused, nothing more is told.
        if !self.running.contains_key(&id) {
            return Ok(());
        }
        match event {
            Event::Answer(response, _place) => {
                self.send(&Frame { kind: "next", id: &id, payload: Some(&response) }).await
            }
            Event::Next(mut response) => {
                let revision = self.service.app.view.snapshot().map_or(0, |now| now.revision);
                self.service.stamp(&mut response, revision);
                self.send(&Frame { kind: "next", id: &id, payload: Some(&response) }).await
            }
            Event::Refused(Invalid(errors)) => {
                self.end(&id);
                self.send(&Frame { kind: "error", id: &id, payload: Some(&errors) }).await
            }
            Event::Complete => {
                self.end(&id);
                self.send(&Frame::<()> { kind: "complete", id: &id, payload: None }).await
            }
        }
    }

    fn end(&mut self, id: &str) {
        if let Some(running) = self.running.remove(id) {
            running.abort();
        }
    }

    async fn ping(&mut self) -> Result<(), End> {
        self.write(Message::Ping(Default::default())).await
    }

    fn stuck(&mut self) -> Result<(), End> {
        if !is_stuck(&self.credit, READ_WITHIN, StdInstant::now()) {
            return Ok(());
        }
        self.place.ends("slow");
        close(close_code::AGAIN, "nothing was read for 5 s")
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), End> {
        // Our own structs always serialise; an empty message would be noticed by any client.
        let text = serde_json::to_string(message).unwrap_or_default();
        let bytes = text.len();
        self.write(Message::Text(text.into())).await?;
        self.place.sent(1);
        match self.credit.sent(bytes, StdInstant::now()) {
            Some(sent) => self.write(Message::Ping(sent.to_vec().into())).await,
            None => Ok(()),
        }
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        let sent = timeout(WRITE_WITHIN, self.socket.send(message)).await;
        sent.ok().and_then(Result::ok).ok_or(End::Gone)
    }
}

/// A query or mutation: one answer.
async fn run(service: Service, ready: Ready, grant: Grant, answers: Arc<Semaphore>) -> Vec<Event> {
    let refuse =
        |error: ApiError| vec![Event::Refused(Invalid(vec![ServerError::new(error.detail, None)]))];
    let place = answers.acquire_owned().await.ok();
    let turn = match service.turn().await {
        Ok(turn) => turn,
        Err(error) => return refuse(error),
    };
    let Some(snapshot) = service.app.view.snapshot() else {
        return refuse(ApiError::loading());
    };
    match service.run(ready, snapshot, grant, turn).await {
        Outcome::Ran(response) => vec![Event::Answer(response, place), Event::Complete],
        Outcome::Invalid(invalid) => vec![Event::Refused(invalid)],
    }
}

/// The token in what a client introduces itself with: as the header would have it, or bare.
fn token_of(payload: &serde_json::Map<String, Value>) -> Option<String> {
    let text = |name: &str| {
        let found = payload.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.as_str())
    };
    let of_header = text("authorization").and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    of_header.or_else(|| text("token")).map(str::to_owned)
}

fn close<T>(code: u16, reason: &str) -> Result<T, End> {
    Err(End::Close(code, reason.to_owned()))
}

/// At most what a close frame holds: 123 bytes.
fn cut(mut reason: String) -> String {
    while reason.len() > 123 {
        reason.pop();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_its_frame() {
        assert_eq!(cut("a".to_owned()), "a");
        assert_eq!(cut("é".repeat(100)).len(), 122);
    }

    #[test]
    fn the_token_comes_as_the_header_has_it_or_bare() {
        let check = |payload: Value, expected: Option<&str>| {
            assert_eq!(token_of(payload.as_object().unwrap()).as_deref(), expected, "{payload}");
        };
        check(json!({"Authorization": "Bearer t"}), Some("t"));
        check(json!({"authorization": "Basic t"}), None);
        check(json!({"token": "t"}), Some("t"));
        check(json!({"token": 1}), None);
        check(json!({}), None);
    }
}
