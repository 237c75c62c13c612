//! One connection, from its upgrade to its close frame.

use std::{
    future::{poll_fn, ready},
    sync::Arc,
    time::{Duration, Instant},
    vec::IntoIter,
};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::SinkExt;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::tungstenite;

use super::{
    client::{Request, SUBSCRIPTIONS_MAX, Topic, Wrong},
    pace::Pace,
    server,
    topics::{Inventory, InventoryNews, PIPELINE_EVERY, Telemetry, poll_telemetry},
};
use crate::{
    auth::{Grant, Scope},
    view::{InventoryChange, LiveEvent, LiveFilter, LivePoint, Since},
    web::{App, Credit, Stream, is_stuck, write_update},
};

/// How long a client has for its first frame where a token is needed.
const AUTH_WITHIN: Duration = Duration::from_secs(5);
/// How long a client may read nothing of what it was sent, and how long one write may take: one
/// that takes nothing for so long is cut off.
pub const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// After which silence a client is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a client may be silent: it answers pings without being told to.
pub const SILENT_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be without any subscription.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a client hears nothing before it gets a heartbeat.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);
/// How long the other side has to take the close frame and to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Close code: the gateway stops; come again, here or at another one.
const CLOSE_STOPPING: u16 = 1001;
/// Close code: more frames than are allowed.
const CLOSE_FLOOD: u16 = 1008;
/// Close code: a frame that is too long.
const CLOSE_TOO_LONG: u16 = 1009;
/// Close code: nothing was taken in time; come again later.
const CLOSE_SLOW: u16 = 1013;
/// Close code: no token in time, or none that is known (any more).
pub const CLOSE_UNAUTHORIZED: u16 = 4401;
/// Close code: nothing was heard, or nothing subscribed to, for long.
pub const CLOSE_SILENT: u16 = 4408;

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client closed, or the connection broke.
    Gone,
    /// It is told why: code, reason, one word for the metrics.
    Close(u16, &'static str, &'static str),
}

const STOPPING: End = End::Close(CLOSE_STOPPING, "the gateway stops", "stopping");
const SLOW: End = End::Close(CLOSE_SLOW, "nothing was read for 5 s", "slow");
const TOO_LONG: End = End::Close(CLOSE_TOO_LONG, "a message has at most 64 KiB", "too-long");
const FLOOD: End = End::Close(CLOSE_FLOOD, "more than 20 frames a second", "flood");
const SILENT: End = End::Close(CLOSE_SILENT, "nothing was heard for 10 s", "silent");
const IDLE: End = End::Close(CLOSE_SILENT, "nothing was subscribed to for 60 s", "idle");
const NO_TOKEN: End = End::Close(CLOSE_UNAUTHORIZED, "no known token within 5 s", "unauthorized");
const EXPIRED: End = End::Close(CLOSE_UNAUTHORIZED, "the token is not known any more", "expired");

/// Speaks with one client until it goes or has to.
pub(super) async fn serve(socket: WebSocket, app: App, grant: Option<Grant>, stream: Stream) {
    let now = Instant::now();
    let mut connection = Connection {
        socket,
        app,
        stream,
        grant: None,
        telemetry: Vec::new(),
        last: 0,
        telling: None,
        inventory: Inventory::default(),
        pipeline: Vec::new(),
        numbered: 0,
        heard: now,
        pinged: now,
        sent: now,
        used: now,
        pace: Pace::new(now),
        credit: Credit::new(),
    };
    let end = match connection.authenticate(grant).await {
        Ok(()) => connection.run().await.err().unwrap_or(End::Gone),
        Err(end) => end,
    };
    connection.close(end).await;
}

struct Connection {
    socket: WebSocket,
    app: App,
    stream: Stream,
    grant: Option<Grant>,
    telemetry: Vec<Telemetry>,
    /// Position of the subscription that was served last.
    last: usize,
    /// What is being told, as far as the client has not been sent it.
    telling: Option<Telling>,
    inventory: Inventory,
    pipeline: Vec<String>,
    /// Subscriptions that were given a number.
    numbered: u64,
    heard: Instant,
    pinged: Instant,
    sent: Instant,
    /// When there last was a subscription.
    used: Instant,
    pace: Pace,
    credit: Credit,
}

/// Points of one subscription on their way to the client. They are written one by one as it
/// reads, and who does not read has none written.
struct Telling {
    id: String,
    filter: LiveFilter,
    prefix: String,
    points: IntoIter<Arc<LivePoint>>,
}

/// What was heard, if it is something to answer.
type Heard = Option<Result<Utf8Bytes, Wrong>>;

impl Connection {
    /// Waits for a token, if one is needed and none came with the upgrade.
    async fn authenticate(&mut self, mut grant: Option<Grant>) -> Result<(), End> {
        let deadline = tokio::time::Instant::now() + AUTH_WITHIN;
        while grant.is_none() {
            let message = tokio::select! {
                () = self.app.stop.cancelled() => return Err(STOPPING),
                () = sleep_until(deadline) => return Err(NO_TOKEN),
                message = self.socket.recv() => message,
            };
            let Some(heard) = self.hear(message)? else { continue };
            let Ok(Request::Auth { token }) = heard.and_then(|text| Request::read(&text)) else {
                return Err(NO_TOKEN);
            };
            let admitted = self.app.auth.admit(Some(&token), Scope::Read);
            grant = Some(admitted.map_err(|_| NO_TOKEN)?);
            self.say(server::authenticated()).await?;
        }
        self.grant = grant;
        Ok(())
    }

    /// Serves until the connection has to end.
    async fn run(&mut self) -> Result<(), End> {
        let (stop, view) = (self.app.stop.clone(), self.app.view.clone());
        let mut tokens = self.app.auth.changes();
        let mut second = interval(PIPELINE_EVERY);
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut due = self.heard.max(self.pinged) + PING_EVERY;
            if let Some(since) = self.credit.used_up() {
                due = due.min(since + WRITE_WITHIN);
            }
            // Who does not read is told nothing: the view keeps the latest for it.
            let open = self.credit.is_open();
            let (telling, idle) = (open && self.telling.is_some(), self.telling.is_none());
            let Self { socket, telemetry, last, inventory, pipeline, .. } = self;
            tokio::select! {
                () = stop.cancelled() => return Err(STOPPING),
                message = socket.recv() => match self.hear(message)? {
                    Some(Ok(text)) => self.answer(&text).await?,
                    Some(Err(wrong)) => self.say(server::error(&wrong)).await?,
                    None => {}
                },
                () = ready(()), if telling => self.go_on_telling().await?,
                index = poll_fn(|cx| poll_telemetry(telemetry, *last, cx)), if open && idle => {
                    self.last = index;
                    self.tell_telemetry(index).await?;
                }
                news = inventory.next(&view), if open => self.tell_inventory(news).await?,
                _ = second.tick(), if open && !pipeline.is_empty() => self.tell_pipeline().await?,
                () = sleep_until(due.into()) => self.look_after().await?,
                Ok(()) = tokens.changed() => self.still_allowed()?,
            }
        }
    }

    fn hear(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<Heard, End> {
        let message = match message {
            None | Some(Ok(Message::Close(_))) => return Err(End::Gone),
            Some(Err(error)) => return Err(broken(error)),
            Some(Ok(message)) => message,
        };
        self.heard = Instant::now();
        if let Message::Pong(carried) = &message
            && self.credit.answered(carried, self.heard)
        {
            return Ok(None);
        }
        if !self.pace.take(self.heard) {
            return Err(FLOOD);
        }
        match message {
            Message::Text(text) => Ok(Some(Ok(text))),
            Message::Binary(_) => Ok(Some(Err(Wrong::new("binary", "frames are text here")))),
            _ => Ok(None),
        }
    }

    async fn answer(&mut self, text: &str) -> Result<(), End> {
        match Request::read(text) {
            Ok(Request::Ping { id }) => {
                self.say(server::pong(id.as_deref(), self.revision())).await
            }
            Ok(Request::Subscribe { id, topic, filter, since }) => {
                match self.subscribe(id, topic, filter, since) {
                    Ok(frames) => self.say_all(frames).await,
                    Err(wrong) => self.say(server::error(&wrong)).await,
                }
            }
            Ok(Request::Unsubscribe { id, topic, filter }) => {
                let ended = self.unsubscribe(id.as_deref(), topic, filter.as_ref());
                self.say(server::unsubscribed(&ended)).await
            }
            Ok(Request::Auth { .. }) => self.say(server::authenticated()).await,
            Err(wrong) => self.say(server::error(&wrong)).await,
        }
    }

    /// Begins a subscription; returns what is told at once.
    fn subscribe(
        &mut self,
        id: Option<String>,
        topic: Topic,
        filter: LiveFilter,
        since: Since,
    ) -> Result<Vec<String>, Wrong> {
        if self.ids().count() >= SUBSCRIPTIONS_MAX {
            let detail = format!("a connection has at most {SUBSCRIPTIONS_MAX} subscriptions");
            return Err(Wrong::new("too-many-subscriptions", detail));
        }
        if let Some(grant) = &self.grant
            && let Err(refused) = self.app.auth.count(grant)
        {
            return Err(Wrong::new("rate-limited", refused.to_string()));
        }
        let id = self.name(id)?;
        let view = &self.app.view;
        let loading = || Wrong::new("loading", "the view is not loaded yet; try again");
        let mut frames = Vec::new();
        match topic {
            Topic::Telemetry => {
                let subscription = view.live(filter.clone(), since).ok_or_else(loading)?;
                let revision = subscription.revision();
                frames.push(server::subscribed(&id, topic, &filter, revision));
                self.telemetry.push(Telemetry { id, subscription });
            }
            Topic::Inventory => {
                let (name, wanted) = (id.clone(), filter.clone());
                let snapshot = self.inventory.add(name, wanted, view).ok_or_else(loading)?;
                frames.push(server::subscribed(&id, topic, &filter, snapshot.revision));
                if since == Since::Latest {
                    let all = InventoryChange::all(&snapshot);
                    frames.extend(server::inventory(&id, &all, &filter, true));
                }
            }
            Topic::Pipeline => {
                frames.push(server::subscribed(&id, topic, &filter, self.revision()));
                self.pipeline.push(id);
            }
        }
        Ok(frames)
    }

    fn ids(&self) -> impl Iterator<Item = &String> {
        let telemetry = self.telemetry.iter().map(|one| &one.id);
        telemetry.chain(self.inventory.subscribed.iter().map(|(id, _)| id)).chain(&self.pipeline)
    }

    /// The id a client gave, or a number that is free.
    fn name(&mut self, given: Option<String>) -> Result<String, Wrong> {
        if let Some(id) = given {
            if self.ids().any(|other| *other == id) {
                let detail = format!("id: {id:?} is the id of another subscription");
                return Err(Wrong {
                    field: Some("id".to_owned()),
                    ..Wrong::new("bad-field", detail)
                });
            }
            return Ok(id);
        }
        loop {
            self.numbered += 1;
            let id = self.numbered.to_string();
            if !self.ids().any(|other| *other == id) {
                return Ok(id);
            }
        }
    }

    /// Ends what matches all that is given.
    fn unsubscribe(
        &mut self,
        id: Option<&str>,
        topic: Option<Topic>,
        filter: Option<&LiveFilter>,
    ) -> Vec<String> {
        let mut ended = Vec::new();
        let mut stays = |name: &String, of: Topic, wants: &LiveFilter| {
            let gone = id.is_none_or(|id| id == name)
                && topic.is_none_or(|topic| topic == of)
                && filter.is_none_or(|filter| filter == wants);
            if gone {
                ended.push(name.clone());
            }
            !gone
        };
        self.telemetry.retain(|one| stays(&one.id, Topic::Telemetry, one.subscription.filter()));
        self.inventory.subscribed.retain(|(id, filter)| stays(id, Topic::Inventory, filter));
        self.pipeline.retain(|id| stays(id, Topic::Pipeline, &LiveFilter::default()));
        self.telling.take_if(|telling| ended.contains(&telling.id));
        ended
    }

    async fn tell_telemetry(&mut self, index: usize) -> Result<(), End> {
        let Some(one) = self.telemetry.get_mut(index) else { return Ok(()) };
        let event = one.subscription.take().await;
        // Others' frames come behind it, so that it is not asked for again meanwhile.
        let (id, filter) = (one.id.clone(), one.subscription.filter().clone());
        match event {
            None => Ok(()),
            Some(LiveEvent::Gap(gap)) => self.say(server::gap(&id, Topic::Telemetry, &gap)).await,
            Some(LiveEvent::Points(points)) => {
                let prefix = server::prefix("telemetry_update", &id);
                let points = points.into_iter();
                self.telling = Some(Telling { id, filter, prefix, points });
                self.go_on_telling().await
            }
        }
    }

    /// Tells as much as the client may be sent.
    async fn go_on_telling(&mut self) -> Result<(), End> {
        let Some(mut telling) = self.telling.take() else { return Ok(()) };
        while self.credit.is_open() {
            let Some(point) = telling.points.next() else { return self.flush().await };
            let Telling { id, filter, prefix, .. } = &telling;
            self.feed(update(prefix, id, &point, filter)).await?;
        }
        self.telling = Some(telling);
        self.flush().await
    }

    async fn tell_inventory(&mut self, news: InventoryNews) -> Result<(), End> {
        let mut frames = Vec::new();
        for (id, filter) in &self.inventory.subscribed {
            match &news {
                InventoryNews::Change(change) => {
                    frames.extend(server::inventory(id, change, filter, false));
                }
                InventoryNews::Missed(missed, snapshot) => {
                    frames.push(server::inventory_gap(id, snapshot.revision, *missed));
                    let all = InventoryChange::all(snapshot);
                    frames.extend(server::inventory(id, &all, filter, true));
                }
            }
        }
        self.say_all(frames).await
    }

    async fn tell_pipeline(&mut self) -> Result<(), End> {
        let Some(snapshot) = self.app.view.snapshot() else { return Ok(()) };
        let staleness = self.staleness();
        let text = self.app.streams.pipeline.get(|| server::pipeline(&snapshot, staleness));
        let frames = self.pipeline.iter().map(|id| server::prefix("pipeline_update", id) + &text);
        self.say_all(frames.collect()).await
    }

    /// After a silence: whether the client lives, and that we do.
    async fn look_after(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.ids().next().is_some() {
            self.used = now;
        }
        if is_stuck(&self.credit, WRITE_WITHIN, now) {
            return Err(SLOW);
        }
        if now - self.heard >= SILENT_MAX {
            return Err(SILENT);
        }
        if now - self.used >= IDLE_MAX {
            return Err(IDLE);
        }
        self.pinged = now;
        self.write(Message::Ping(Default::default())).await?;
        if now - self.sent >= HEARTBEAT_EVERY && self.credit.is_open() {
            self.feed(server::heartbeat(self.revision(), self.staleness())).await?;
        }
        self.flush().await
    }

    fn still_allowed(&self) -> Result<(), End> {
        let Some(grant) = &self.grant else { return Err(EXPIRED) };
        if self.app.auth.still(grant, Scope::Read) { Ok(()) } else { Err(EXPIRED) }
    }

    fn revision(&self) -> i64 {
        self.app.view.snapshot().map_or(0, |snapshot| snapshot.revision)
    }

    fn staleness(&self) -> i64 {
        self.app.view.staleness().map_or(-1, |s| i64::try_from(s.as_millis()).unwrap_or(i64::MAX))
    }

    async fn say(&mut self, frame: String) -> Result<(), End> {
        self.feed(frame).await?;
        self.flush().await
    }

    async fn say_all(&mut self, frames: Vec<String>) -> Result<(), End> {
        for frame in frames {
            self.feed(frame).await?;
        }
        self.flush().await
    }

    /// Writes a frame, possibly not before the next [`Connection::flush`].
    async fn feed(&mut self, frame: String) -> Result<(), End> {
        let bytes = frame.len();
        self.write(Message::Text(frame.into())).await?;
        self.stream.sent(1);
        match self.credit.sent(bytes, Instant::now()) {
            Some(sent) => self.write(Message::Ping(sent.to_vec().into())).await,
            None => Ok(()),
        }
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        in_time(self.socket.feed(message)).await
    }

    async fn flush(&mut self) -> Result<(), End> {
        in_time(self.socket.flush()).await?;
        self.sent = Instant::now();
        Ok(())
    }

    /// Says why, as far as the other side listens, and waits a moment for it to close.
    async fn close(mut self, end: End) {
        if let End::Close(_, _, word) = end {
            self.stream.ends(word);
        }
        let close = async {
            if let End::Close(code, reason, _) = end {
                let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
                if self.socket.send(Message::Close(Some(frame))).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(_)) = self.socket.recv().await {}
        };
        // Whoever does not close in time is left.
        let _ = timeout(CLOSE_WITHIN, close).await;
    }
}

async fn in_time(written: impl Future<Output = Result<(), axum::Error>>) -> Result<(), End> {
    match timeout(WRITE_WITHIN, written).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => Err(SLOW),
    }
}

/// Why nothing more can be read.
fn broken(error: axum::Error) -> End {
    match error.into_inner().downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(_)) => TOO_LONG,
        _ => End::Gone,
    }
}

fn update(prefix: &str, id: &str, point: &LivePoint, filter: &LiveFilter) -> String {
    let whole = |rest: &str| [prefix, rest].concat();
    write_update(point, filter, whole).unwrap_or_else(|| {
        let gpu = point.gpu.as_ref().map(|gpu| gpu.uuid.as_str());
        server::too_long(id, point.revision, gpu)
    })
}
