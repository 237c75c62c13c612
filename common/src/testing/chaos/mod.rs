//! A wire on which everything goes wrong that can, as a seed decides: answers lost, requests
//! lost, late or twice, reads of the past, an etcd that says it has no space and writes anyway.
//!
//! It lies below the etcd client, so nothing above knows. Only keys and values are meddled with:
//! leases and watches go through, unless a client is cut off altogether.

mod frame;
mod story;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use fastrand::Rng;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::{Code, Status};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::wire::{WireAnswer, WireChannel, WireRequest};
use frame::{Answer, Call, Past};

/// What can happen to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// etcd did it, and nobody heard.
    AnswerLost,
    /// etcd never saw it.
    RequestLost,
    /// Nobody heard, and etcd does it much later.
    Late,
    /// etcd does it, and does it again later.
    Twice,
    /// etcd does it and says that it has no space for it.
    NoSpace,
    /// A read is answered out of the past.
    Stale,
}

/// How often it happens, in requests out of a thousand.
#[derive(Debug, Clone, Copy)]
pub struct Odds {
    /// Any fault at a write.
    pub writes: u16,
    /// Any fault at a read.
    pub reads: u16,
    /// Longest time that a request is late, in milliseconds.
    pub late_ms_max: u64,
    /// How far back a read may be answered from, in revisions.
    pub stale_revisions_max: i64,
}

/// The wire, and what happened on it. Clones are the same one.
#[derive(Clone)]
pub struct Chaos(Arc<Shared>);

struct Shared {
    odds: Odds,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    quiet: bool,
    requests: u64,
    /// Newest revision that etcd told of.
    head: i64,
    faults: BTreeMap<Fault, u64>,
    /// Until when nothing of whom gets anywhere, and until when only leases and watches do.
    cut_off: HashMap<String, Instant>,
    held_up: HashMap<String, Instant>,
    story: Option<Vec<String>>,
}

/// What is decided about one request.
struct Fate {
    there_ms: u64,
    back_ms: u64,
    fault: Option<Fault>,
    late_ms: u64,
    /// Whether a client that gets no answer is told so, or has to find out.
    silent: bool,
    past: Past,
}

impl Chaos {
    /// A wire whose accidents follow from `seed`.
    pub fn new(seed: u64, odds: Odds) -> Self {
        let state = State {
            rng: Rng::with_seed(seed),
            quiet: false,
            requests: 0,
            head: 1,
            faults: BTreeMap::new(),
            cut_off: HashMap::new(),
            held_up: HashMap::new(),
            story: None,
        };
        Self(Arc::new(Shared { odds, began: Instant::now(), state: Mutex::new(state) }))
    }

    /// Writes down what happens from now on.
    pub fn record(&self) {
        self.state().story = Some(Vec::new());
    }

    /// Adds a line to what is written down.
    pub fn note(&self, who: &str, line: &str) {
        let at = self.0.began.elapsed().as_secs_f64();
        if let Some(story) = &mut self.state().story {
            story.push(format!("{at:8.3} s  {who:<12} {line}"));
        }
    }

    /// What was written down.
    pub fn story(&self) -> Vec<String> {
        self.state().story.clone().unwrap_or_default()
    }

    /// No accidents any more. What is late already still comes, and who is cut off stays so.
    pub fn calm_down(&self) {
        let mut state = self.state();
        state.quiet = true;
    }

    /// Nothing that `who` sends gets anywhere for a while, its keep-alives neither.
    pub fn cut_off(&self, who: &str, lasting: Duration) {
        self.note(who, &format!("is cut off for {lasting:?}"));
        self.state().cut_off.insert(who.to_owned(), Instant::now() + lasting);
    }

    /// Nothing that `who` asks about keys and values gets anywhere for a while, but its
    /// keep-alives do: it stays who it is.
    pub fn hold_up(&self, who: &str, lasting: Duration) {
        self.note(who, &format!("is held up for {lasting:?}"));
        self.state().held_up.insert(who.to_owned(), Instant::now() + lasting);
    }

    /// Requests about keys and values so far.
    pub fn requests(&self) -> u64 {
        self.state().requests
    }

    /// Accidents so far.
    pub fn faults(&self) -> BTreeMap<Fault, u64> {
        self.state().faults.clone()
    }

    /// `inner`, as `who` sees it.
    pub fn around(&self, who: &str, inner: WireChannel) -> WireChannel {
        let (chaos, who) = (self.clone(), Arc::<str>::from(who));
        BoxCloneSyncService::new(tower::service_fn(move |request: WireRequest| {
            let (chaos, who, inner) = (chaos.clone(), Arc::clone(&who), inner.clone());
            async move {
                chaos.connected(&who, false).await;
                if request.uri().path().starts_with("/etcdserverpb.KV/") {
                    chaos.carry(&who, inner, request).await
                } else {
                    let held = chaos.clone();
                    let request = request.map(|body| {
                        frame::held_up(body, move || {
                            let (chaos, who) = (held.clone(), Arc::clone(&who));
                            async move { chaos.connected(&who, false).await }
                        })
                    });
                    inner.oneshot(request).await
                }
            }
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// Returns when `who` is not cut off, or not held up either.
    async fn connected(&self, who: &str, wholly: bool) {
        loop {
            let until = {
                let state = self.state();
                let held_up = state.held_up.get(who).filter(|_| wholly);
                state.cut_off.get(who).max(held_up).copied()
            };
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    async fn carry(
        &self,
        who: &str,
        inner: WireChannel,
        request: WireRequest,
    ) -> Result<WireAnswer, tower::BoxError> {
        let call = Call::read(request).await?;
        self.connected(who, true).await;
        let fate = self.decide(call.writes());
        sleep(Duration::from_millis(fate.there_ms)).await;
        let result = self.meet(who, inner, &call, &fate).await?;
        self.tell(who, &call, &fate, result.as_ref());
        match result {
            Some(answer) => {
                sleep(Duration::from_millis(fate.back_ms)).await;
                self.connected(who, true).await;
                Ok(answer.into_wire())
            }
            None if fate.silent => std::future::pending().await,
            None => Ok(Status::unavailable("the wire broke").into_http()),
        }
    }

    /// Lets happen what was decided. The answer, if one comes back.
    async fn meet(
        &self,
        who: &str,
        inner: WireChannel,
        call: &Call,
        fate: &Fate,
    ) -> Result<Option<Answer>, tower::BoxError> {
        match fate.fault {
            None => self.send(inner, call).await.map(Some),
            Some(Fault::RequestLost) => Ok(None),
            Some(Fault::AnswerLost) => self.send(inner, call).await.map(|_| None),
            Some(Fault::NoSpace) => {
                self.send(inner, call).await?;
                let text = "etcdserver: mvcc: database space exceeded";
                Ok(Some(Answer::refused(&Status::new(Code::ResourceExhausted, text))))
            }
            Some(Fault::Late) => {
                self.send_later(who, inner, call, fate.late_ms);
                Ok(None)
            }
            Some(Fault::Twice) => {
                let answer = self.send(inner.clone(), call).await?;
                self.send_later(who, inner, call, fate.late_ms);
                Ok(Some(answer))
            }
            Some(Fault::Stale) => {
                let answer = self.send(inner.clone(), &call.of_the_past(&fate.past)).await?;
                if answer.is_refused() {
                    // That past is gone.
                    return self.send(inner, call).await.map(Some);
                }
                Ok(Some(call.as_if_then(answer, &fate.past)))
            }
        }
    }

    fn decide(&self, writes: bool) -> Fate {
        use Fault::{AnswerLost, Late, NoSpace, RequestLost, Stale, Twice};
        let odds = self.0.odds;
        let mut state = self.state();
        let head = state.head;
        state.requests += 1;
        let rng = &mut state.rng;
        let fault = match (writes, rng.u16(..1000)) {
            (true, roll) if roll < odds.writes => {
                Some([AnswerLost, RequestLost, Late, Twice, NoSpace][rng.usize(..5)])
            }
            (false, roll) if roll < odds.reads => Some([RequestLost, Stale, Stale][rng.usize(..3)]),
            _ => None,
        };
        let fate = Fate {
            there_ms: rng.u64(..4),
            back_ms: rng.u64(..4),
            fault: None,
            late_ms: rng.u64(1..=odds.late_ms_max),
            silent: rng.bool(),
            past: Past {
                revision: (head - rng.i64(1..=odds.stale_revisions_max)).max(1),
                says_so: rng.bool(),
            },
        };
        let fault = fault.filter(|_| !state.quiet);
        if let Some(fault) = fault {
            *state.faults.entry(fault).or_default() += 1;
        }
        Fate { fault, ..fate }
    }

    async fn send(&self, inner: WireChannel, call: &Call) -> Result<Answer, tower::BoxError> {
        let answer = Answer::read(inner.oneshot(call.to_wire()).await?).await?;
        let mut state = self.state();
        state.head = state.head.max(answer.revision());
        Ok(answer)
    }

    fn send_later(&self, who: &str, inner: WireChannel, call: &Call, late_ms: u64) {
        let (chaos, who, call) = (self.clone(), who.to_owned(), call.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(late_ms)).await;
            let result = match chaos.send(inner, &call).await {
                Ok(answer) => call.outcome(&answer),
                Err(error) => error.to_string(),
            };
            chaos.note(&who, &format!("({late_ms} ms late) {call}: {result}"));
        });
    }

    fn tell(&self, who: &str, call: &Call, fate: &Fate, answer: Option<&Answer>) {
        if self.state().story.is_none() {
            return;
        }
        let outcome = answer.map_or_else(|| "no answer".to_owned(), |a| call.outcome(a));
        let fault = match fate.fault {
            None => String::new(),
            Some(Fault::Stale) => format!(" ({})", fate.past),
            Some(fault) => format!(" ({fault:?})"),
        };
        self.note(who, &format!("{call}: {outcome}{fault}"));
    }
}
