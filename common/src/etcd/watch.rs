//! List, then watch. Every failure is an arrow back to one of the two.
//!
//! [`Feed`] is the state machine, without I/O; [`follow`] drives it.

use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Entry, Etcd, RangeRead},
    error::Error,
    members::within,
};
use crate::keyspace::KeyRange;

/// Largest watch answer that is decoded: etcd may batch a thousand revisions into one.
const WATCH_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often a quiet watch is asked whether it lives, and how long it may stay silent.
const ASK_EVERY: Duration = Duration::from_secs(2);
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a follower may leave the channel full.
const LAG_MAX: Duration = Duration::from_secs(1);
/// First and longest pause before listing again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// One key changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Written.
    Put(Entry),
    /// Deleted, at this revision.
    Delete(Vec<u8>, i64),
}

/// What a follower is told, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Everything there is, at one revision. After the first one: changes in between were
    /// missed, forget what you knew.
    Snapshot {
        /// The revision.
        revision: i64,
        /// All keys of the range.
        entries: Vec<Entry>,
    },
    /// What changed up to `revision`; never part of a revision.
    Changes {
        /// The last revision in it.
        revision: i64,
        /// In the order of their revisions.
        changes: Vec<Change>,
    },
    /// Nothing changed; the watch lives.
    Alive,
}

/// What to do after a message.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Tell the follower.
    Emit(Event),
    /// Wait for the next message.
    Wait,
    /// Open the watch again, behind the last revision that was told.
    Resume,
    /// List again: history was lost.
    List,
}

/// The state between messages.
#[derive(Debug, Default)]
struct Feed {
    /// Last revision told to the follower in full.
    applied: i64,
    /// Changes of a revision that etcd sent in fragments.
    partial: Vec<Change>,
}

/// A watch answer, as far as the state machine cares.
#[derive(Debug, Default)]
struct Message {
    changes: Vec<Change>,
    fragment: bool,
    canceled: bool,
    compacted: bool,
}

impl Feed {
    fn listed(revision: i64) -> Self {
        Self { applied: revision, partial: Vec::new() }
    }

    fn on(&mut self, message: Message) -> Step {
        if message.canceled {
            self.partial.clear();
            return if message.compacted { Step::List } else { Step::Resume };
        }
        // After a reconnect, and from some versions of etcd in any case, old events may come.
        let applied = self.applied;
        self.partial.extend(message.changes.into_iter().filter(|c| revision(c) > applied));
        if message.fragment {
            return Step::Wait;
        }
        let changes = std::mem::take(&mut self.partial);
        let Some(last) = changes.iter().map(revision).max() else {
            return Step::Emit(Event::Alive);
        };
        self.applied = last;
        Step::Emit(Event::Changes { revision: last, changes })
    }

    fn interrupted(&mut self) {
        self.partial.clear();
    }
}

fn revision(change: &Change) -> i64 {
    match change {
        Change::Put(entry) => entry.mod_revision,
        Change::Delete(_, revision) => *revision,
    }
}

impl Message {
    fn from(answer: &WatchResponse) -> Self {
        let change = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(Entry::from(kv.clone())),
                EventType::Delete => Change::Delete(kv.key().to_vec(), kv.mod_revision()),
            })
        };
        Self {
            changes: answer.events().iter().filter_map(change).collect(),
            fragment: answer.0.fragment,
            canceled: answer.canceled(),
            compacted: answer.compact_revision() > 0
                || answer.cancel_reason().contains("compacted"),
        }
    }
}

/// Lists `range`, then follows it, telling `tell` until `stop` or the receiver is gone.
///
/// Only for ranges of tiny keys. A follower that does not take for a second loses the watch and
/// gets a new snapshot when it does: a watch that lags costs etcd more than a list.
pub async fn follow(
    etcd: Etcd,
    range: KeyRange,
    tell: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let work = async {
        let mut pause = PAUSE.0;
        loop {
            let began = Instant::now();
            match list_and_watch(&etcd, &range, &tell).await {
                Ok(()) => return,
                Err(e) => {
                    let key = String::from_utf8_lossy(&range.start).into_owned();
                    tracing::warn!(key, error = %e, "watch interrupted, listing again");
                }
            }
            if began.elapsed() > SILENCE_MAX {
                // It had worked for a while: this is another trouble than the last.
                pause = PAUSE.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Returns `Ok` when nobody listens any more.
async fn list_and_watch(
    etcd: &Etcd,
    range: &KeyRange,
    tell: &mpsc::Sender<Event>,
) -> Result<(), Error> {
    let listing = etcd.range(range, RangeRead::default()).await?;
    let mut feed = Feed::listed(listing.revision);
    let snapshot = Event::Snapshot { revision: listing.revision, entries: listing.entries };
    if tell.send(snapshot).await.is_err() {
        return Ok(());
    }
    let mut last_error = None;
    // A plain interruption resumes; five in a row without a change mean that listing is due.
    let (mut in_a_row, mut applied) = (0, feed.applied);
    while in_a_row < 5 {
        in_a_row = if feed.applied > applied { 1 } else { in_a_row + 1 };
        applied = feed.applied;
        let (mut stream, member) = match open(etcd, range, feed.applied + 1).await {
            Ok(opened) => opened,
            Err(e) => {
                last_error = Some(e);
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let ended = tokio::select! {
            ended = drain(&mut stream, &mut feed, tell) => ended,
            // Requests go to another member now: this one is not trusted to be alive.
            () = etcd.members().left(member) => Ended::Step(Step::Resume),
        };
        let step = match ended {
            Ended::Step(step) => step,
            Ended::Broken => {
                etcd.members().leave(member);
                Step::Resume
            }
        };
        match step {
            Step::List if tell.capacity() == 0 => {
                return Err(Error::Timeout { attempt: "tell a change".to_owned(), after: LAG_MAX });
            }
            Step::List => {
                let attempt = "watch".to_owned();
                return Err(Error::Compacted { attempt, revision: feed.applied });
            }
            Step::Wait => return Ok(()),
            _ => feed.interrupted(),
        }
    }
    Err(last_error.unwrap_or(Error::Timeout { attempt: "watch".to_owned(), after: SILENCE_MAX }))
}

/// Opens the watch at the member that is asked now; which one that is.
async fn open(etcd: &Etcd, range: &KeyRange, from: i64) -> Result<(WatchStream, usize), Error> {
    let options =
        WatchOptions::new().with_range(range.end.clone()).with_start_revision(from).with_fragment();
    let (client, member) = etcd.members().watch_channel().await?;
    let mut client = client.max_decoding_message_size(WATCH_BYTES_MAX);
    let attempt = "open a watch";
    let opening = within(SILENCE_MAX, attempt, client.watch(range.start.clone(), Some(options)));
    let opened = tokio::select! {
        opened = opening => opened,
        // A stopped member takes the connection and says nothing: others found out sooner.
        () = etcd.members().left(member) => {
            Err(Error::Timeout { attempt: attempt.to_owned(), after: SILENCE_MAX })
        }
    };
    if opened.is_err() {
        etcd.members().leave(member);
    }
    opened.map(|stream| (stream, member))
}

/// Why a stream is not read any more.
enum Ended {
    /// For this.
    Step(Step),
    /// It ended or failed by itself, or fell silent.
    Broken,
}

/// Reads the stream until it must be opened again (`Resume`), the range listed again (`List`),
/// or nobody listens (`Wait`).
async fn drain(stream: &mut WatchStream, feed: &mut Feed, tell: &mpsc::Sender<Event>) -> Ended {
    let mut heard = Instant::now();
    loop {
        let step = match timeout(ASK_EVERY, stream.message()).await {
            Ok(Ok(Some(answer))) => {
                heard = Instant::now();
                feed.on(Message::from(&answer))
            }
            Ok(Ok(None) | Err(_)) => return Ended::Broken,
            Err(_) if heard.elapsed() > SILENCE_MAX => return Ended::Broken,
            Err(_) => match timeout(ASK_EVERY, stream.request_progress()).await {
                Ok(Ok(())) => Step::Wait,
                _ => return Ended::Broken,
            },
        };
        match step {
            Step::Wait => {}
            Step::Emit(event) => match timeout(LAG_MAX, tell.send(event)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ended::Step(Step::Wait),
                Err(_) => return Ended::Step(Step::List),
            },
            Step::Resume | Step::List => return Ended::Step(step),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn put(key: &str, revision: i64) -> Change {
        Change::Put(Entry {
            key: key.into(),
            value: Bytes::new(),
            create_revision: 1,
            mod_revision: revision,
            lease: 0,
        })
    }

    fn message(changes: Vec<Change>) -> Message {
        Message { changes, ..Message::default() }
    }

    #[test]
    fn changes_are_told_once_and_in_whole_revisions() {
        let mut feed = Feed::listed(10);
        let fragment = Message { fragment: true, ..message(vec![put("a", 11)]) };
        assert_eq!(feed.on(fragment), Step::Wait);
        let whole = Event::Changes { revision: 11, changes: vec![put("a", 11), put("b", 11)] };
        assert_eq!(feed.on(message(vec![put("b", 11)])), Step::Emit(whole));
        assert_eq!(feed.on(message(vec![put("a", 11)])), Step::Emit(Event::Alive));
    }

    #[test]
    fn an_interrupted_fragment_is_asked_for_again() {
        let mut feed = Feed::listed(10);
        feed.on(Message { fragment: true, ..message(vec![put("a", 11)]) });
        feed.interrupted();
        let whole = Event::Changes { revision: 11, changes: vec![put("a", 11)] };
        assert_eq!(feed.on(message(vec![put("a", 11)])), Step::Emit(whole));
    }

    #[test]
    fn a_compacted_watch_lists_and_another_cancel_resumes() {
        let mut feed = Feed::listed(10);
        let canceled = |compacted| Message { canceled: true, compacted, ..Message::default() };
        assert_eq!(feed.on(canceled(true)), Step::List);
        assert_eq!(feed.on(canceled(false)), Step::Resume);
    }
}
