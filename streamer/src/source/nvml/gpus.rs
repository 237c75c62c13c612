//! All GPUs of this host: who is there, who answers in time, and what they told at one instant.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::Ordering::Relaxed,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use nexus_common::model::{Gpu, HostName, HostSamples, SourceId};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout_at},
};

use super::{
    keeper::{OpenError, Opened, XIDS_MAX, Xid, open},
    seat::Seat,
    told::{Silent, Told, Trouble, Value, series},
    worker::{Answer, Who, start},
};
use crate::live::Measured;

/// How long a library that was closed may take before it is opened again.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Between two looks whether it is closed.
const CLOSE_LOOK: Duration = Duration::from_millis(20);
/// First and longest time from one attempt to find a lost GPU again to the next. Opening the
/// library anew disturbs all GPUs of a host for a moment.
const FIND_FIRST: Duration = Duration::from_secs(1);
const FIND_LAST: Duration = Duration::from_secs(300);
/// Most GPUs of a host: the library itself knows of no more.
const GPUS_MAX: u32 = 64;
/// Metric of XIDs, as CSV files and exporters have it.
const XID: &str = "xid_error";

/// How a GPU is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    New,
    Answers,
    Hung,
    Lost,
}

/// A GPU, by its index.
#[derive(Debug)]
struct Slot {
    index: u32,
    state: State,
    /// None while there is no thread.
    asks: Option<SyncSender<u64>>,
    /// The question that was not answered yet.
    out: Option<u64>,
    /// As it last described itself.
    gpu: Option<Gpu>,
    /// What it did not tell.
    silent: Arc<Mutex<[Silent; 2]>>,
}

/// A GPU that was met.
#[derive(Debug)]
struct Known {
    gpu: Gpu,
    /// Its last XID: DCGM's field keeps it until the next.
    xid: Option<u64>,
}

/// The library, and a thread for each of its GPUs.
struct Session {
    opened: Opened,
    slots: Vec<Slot>,
    answers: mpsc::Receiver<Answer>,
    answer: mpsc::Sender<Answer>,
}

/// When lost GPUs are looked for again.
#[derive(Debug)]
struct Search {
    pause: Duration,
    at: Option<Instant>,
}

/// The GPUs of a host, for one source.
pub(crate) struct Gpus {
    source: SourceId,
    host: HostName,
    library: Option<PathBuf>,
    session: Option<Session>,
    /// Of the session before, until there is another.
    before: Vec<Slot>,
    search: Search,
    number: u64,
    /// By UUID, those that were there at the last instant when all answered, and since then.
    known: BTreeMap<String, Known>,
    /// XIDs that are not enqueued yet.
    pending: Vec<Xid>,
}

impl Gpus {
    pub(crate) fn new(source: SourceId, host: HostName, library: Option<PathBuf>) -> Self {
        Self {
            source,
            host,
            library,
            session: None,
            before: Vec::new(),
            search: Search { pause: FIND_FIRST, at: None },
            number: 0,
            known: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// Makes sure that the library is open, and anew where there is a reason.
    ///
    /// # Errors
    /// When it cannot be opened now; that may pass.
    pub(crate) async fn ready(&mut self) -> Result<(), OpenError> {
        if self.shall_begin_anew() {
            self.search.at = None;
            self.take_xids();
            if let Some(old) = self.session.take() {
                tracing::info!("looking for GPUs anew");
                self.before = close(old).await;
            }
        }
        if self.session.is_none() {
            let opened = open(&self.source, self.library.clone()).await?;
            let (count, driver) = (opened.count, opened.driver.as_str());
            tracing::info!(gpus = count, driver, host = %self.host, "NVML is open");
            self.session = Some(Session::new(opened, &self.before));
            self.before.clear();
        }
        Ok(())
    }

    /// While a thread hangs in the library it cannot be closed, so opening it again would tell
    /// nothing new.
    fn shall_begin_anew(&self) -> bool {
        let Some(session) = &self.session else { return false };
        let shared = &session.opened.shared;
        let hangs = shared.hangs() || session.slots.iter().any(|slot| slot.state == State::Hung);
        let changed = shared.changed.load(Relaxed);
        !hangs && (changed || self.search.at.is_some_and(|at| at <= Instant::now()))
    }

    /// Takes the XIDs that wait.
    fn take_xids(&mut self) {
        let Some(session) = &mut self.session else { return };
        while self.pending.len() < XIDS_MAX
            && let Ok(xid) = session.opened.xids.try_recv()
        {
            self.pending.push(xid);
        }
    }

    /// Asks all GPUs for the instant `at`, and waits for them no longer than `patience`. XIDs from
    /// `from` on, the first instant of which nothing was enqueued, have their own times.
    pub(crate) async fn measure(&mut self, from: u64, at: u64, patience: Duration) -> Measured {
        let mut measured = Measured { position: at + 1, ..Measured::default() };
        let Some(session) = &mut self.session else { return measured };
        self.number += 1;
        session.ask(&self.source, &self.host, self.number);
        let told = session.collect(self.number, patience).await;
        session.judge(self.number, &mut measured);
        let dropped = session.opened.shared.dropped.swap(0, Relaxed);
        if dropped > 0 {
            measured.refused.insert("XID without room".to_owned(), dropped);
        }
        self.take_xids();
        self.put_together(told, from, at, &mut measured);
        self.settle();
        measured
    }

    /// Decides whether GPUs are looked for again, and says who came and went.
    fn settle(&mut self) {
        let Some(session) = &self.session else { return };
        if session.slots.iter().any(|slot| slot.state == State::Lost) {
            if self.search.at.is_none() {
                self.search.at = Some(Instant::now() + self.search.pause);
                self.search.pause = (self.search.pause * 2).min(FIND_LAST);
            }
            return;
        }
        if session.slots.iter().any(|slot| slot.state != State::Answers) {
            return;
        }
        self.search = Search { pause: FIND_FIRST, at: None };
        let gpus = session.slots.iter().filter_map(|slot| slot.gpu.as_ref());
        let there: BTreeSet<&str> = gpus.map(|gpu| gpu.uuid.as_str()).collect();
        self.known.retain(|uuid, _| {
            let stays = there.contains(uuid.as_str());
            if !stays {
                tracing::warn!(uuid, "a GPU that was here is gone");
            }
            stays
        });
    }

    /// What was told, as samples of the host.
    fn put_together(&mut self, told: Vec<Told>, from: u64, at: u64, measured: &mut Measured) {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        let mut host =
            HostSamples { host: self.host.clone(), gpus: Vec::new(), series: Vec::new() };
        let mut seen = BTreeSet::new();
        for told in told {
            // Two places that tell of one GPU are one: the list of GPUs is changing.
            if !seen.insert(told.gpu.id.clone()) {
                *measured.refused.entry("GPU twice".to_owned()).or_default() += 1;
                continue;
            }
            let nth = host.gpus.len() as u32; // far fewer than 2^32
            host.series.extend(told.series(nth, at));
            measured.rows += told.values.len() as u64 + told.absent;
            measured.absent += told.absent;
            host.gpus.push(told.gpu);
        }
        measured.rows += self.put_xids(&mut host, from, at);
        if !host.series.is_empty() {
            measured.hosts.push(host);
        }
    }

    /// XIDs at their own times, and at `at` the last one of each GPU that is watched, 0 before
    /// there was any. Also those of a GPU that does not answer any more, its last words. How many
    /// samples these are.
    fn put_xids(&mut self, host: &mut HostSamples, from: i64, at: i64) -> u64 {
        let sticky = self.meet();
        let pending = std::mem::take(&mut self.pending);
        let (mut now, later): (Vec<Xid>, Vec<Xid>) = pending.into_iter().partition(|x| x.at < at);
        self.pending = later;
        let mut samples = 0;
        for (uuid, known) in &mut self.known {
            let (own, others): (Vec<Xid>, Vec<Xid>) =
                std::mem::take(&mut now).into_iter().partition(|xid| xid.uuid == *uuid);
            now = others;
            if let Some(last) = own.last() {
                tracing::warn!(uuid, count = own.len(), last = last.xid, "a GPU has XID errors");
                known.xid = Some(last.xid);
            }
            let (mut times, mut values) = timed(&own, from, at);
            if sticky.contains(uuid) || !own.is_empty() {
                times.push(at);
                values.push(known.xid.unwrap_or(0) as f64);
            }
            if times.is_empty() {
                continue;
            }
            let here = host.gpus.iter().position(|gpu| gpu.id == known.gpu.id);
            let nth = here.unwrap_or_else(|| {
                host.gpus.push(known.gpu.clone());
                host.gpus.len() - 1
            });
            samples += times.len() as u64;
            let value = Value { metric: XID, label: None, value: 0.0 };
            host.series.extend(series(nth as u32, &value, times, values));
        }
        samples
    }

    /// Meets the GPUs that answer; the UUIDs of those whose XIDs are waited for.
    fn meet(&mut self) -> BTreeSet<String> {
        let Some(session) = &self.session else { return BTreeSet::new() };
        let watched = session.opened.shared.watched.lock().map(|all| all.clone());
        let watched = watched.unwrap_or_default();
        let mut sticky = BTreeSet::new();
        for slot in session.slots.iter().filter(|slot| slot.state == State::Answers) {
            let Some(gpu) = &slot.gpu else { continue };
            if watched.contains(&slot.index) {
                sticky.insert(gpu.uuid.clone());
            }
            match self.known.get_mut(&gpu.uuid) {
                Some(known) => known.gpu.clone_from(gpu),
                None => {
                    tracing::info!(uuid = gpu.uuid, gpu = slot.index, "a GPU is here");
                    let known = Known { gpu: gpu.clone(), xid: None };
                    self.known.insert(gpu.uuid.clone(), known);
                }
            }
        }
        sticky
    }
}

/// Each XID at its own time, from `from` on and before `at`; later than the one before, because two
/// samples of one time would be one. Where there is no room between, the one at `at` tells.
fn timed(xids: &[Xid], from: i64, at: i64) -> (Vec<i64>, Vec<f64>) {
    let mut free = from;
    let mut timed = (Vec::new(), Vec::new());
    for xid in xids {
        let time = xid.at.max(free);
        if time >= at {
            break;
        }
        free = time + 1;
        timed.0.push(time);
        timed.1.push(xid.xid as f64);
    }
    timed
}

/// Waits until nobody uses the library any more, so that opening it again finds what is there now.
/// Returns what is known of its GPUs.
async fn close(session: Session) -> Vec<Slot> {
    let Session { opened, mut slots, .. } = session;
    for slot in &mut slots {
        slot.asks = None;
    }
    let nvml = opened.nvml.clone();
    drop(opened);
    let since = Instant::now();
    while nvml.strong_count() > 0 && since.elapsed() < CLOSE_MAX {
        sleep(CLOSE_LOOK).await;
    }
    slots
}

impl Session {
    /// A session after one with these GPUs.
    fn new(opened: Opened, before: &[Slot]) -> Self {
        let count = opened.count.min(GPUS_MAX);
        let slots = (0..count).map(|index| {
            let before = before.iter().find(|slot| slot.index == index);
            // One that still is lost is no news.
            let lost = before.is_some_and(|slot| slot.state == State::Lost);
            Slot {
                index,
                state: if lost { State::Lost } else { State::New },
                asks: None,
                out: None,
                gpu: None,
                silent: before.map(|slot| Arc::clone(&slot.silent)).unwrap_or_default(),
            }
        });
        let slots = slots.collect();
        // A GPU has at most one answer on its way.
        let (answer, answers) = mpsc::channel(GPUS_MAX as usize);
        Self { opened, slots, answers, answer }
    }

    /// Asks everybody who does not owe an answer, on threads that are started where there is none.
    fn ask(&mut self, source: &SourceId, host: &HostName, number: u64) {
        // Who comes back late can be asked again.
        while let Ok(late) = self.answers.try_recv() {
            self.take(late, number, &mut Vec::new());
        }
        for slot in &mut self.slots {
            if slot.out.is_some() {
                continue;
            }
            if slot.asks.is_none() {
                // No seat: the thread of an earlier session still is in there.
                let Some(seat) = Seat::take(source, Some(slot.index)) else { continue };
                let Some(nvml) = self.opened.nvml.upgrade() else { continue };
                let who = Who {
                    index: slot.index,
                    host: host.clone(),
                    driver: self.opened.driver.clone(),
                    silent: Arc::clone(&slot.silent),
                };
                match start(seat, nvml, who, self.answer.clone()) {
                    Ok(asks) => slot.asks = Some(asks),
                    Err(error) => {
                        tracing::error!(gpu = slot.index, %error, "no thread can be started");
                        continue;
                    }
                }
            }
            match slot.asks.as_ref().map(|asks| asks.try_send(number)) {
                Some(Ok(())) => slot.out = Some(number),
                // It ended: another one is started next time.
                Some(Err(TrySendError::Disconnected(_))) => slot.asks = None,
                Some(Err(TrySendError::Full(_))) | None => {}
            }
        }
    }

    /// What all tell until time is up.
    async fn collect(&mut self, number: u64, patience: Duration) -> Vec<Told> {
        let until = tokio::time::Instant::now() + patience;
        let mut told = Vec::new();
        while self.slots.iter().any(|slot| slot.out == Some(number)) {
            let Ok(Some(answer)) = timeout_at(until, self.answers.recv()).await else { break };
            self.take(answer, number, &mut told);
        }
        // By index, whoever was quicker.
        told.sort_by_key(|(index, _)| *index);
        told.into_iter().flat_map(|(_, told)| told).collect()
    }

    /// Takes note of an answer. One to an older question only tells that its thread is back.
    fn take(&mut self, answer: Answer, number: u64, all: &mut Vec<(u32, Vec<Told>)>) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.index == answer.index) else {
            return;
        };
        slot.out = None;
        if answer.number != number {
            return;
        }
        match answer.told {
            Ok(told) => {
                slot.gpu = told.first().map(|told| told.gpu.clone());
                slot.change(State::Answers, None);
                all.push((answer.index, told));
            }
            Err(trouble) => slot.change(State::Lost, Some(trouble)),
        }
    }

    /// Who does not answer is counted, and asked for no XIDs.
    fn judge(&mut self, number: u64, measured: &mut Measured) {
        let mut answering = BTreeSet::new();
        for slot in &mut self.slots {
            if slot.out == Some(number) || (slot.asks.is_none() && slot.out.is_none()) {
                slot.change(State::Hung, None);
            }
            let reason = match slot.state {
                State::Answers => {
                    answering.insert(slot.index);
                    continue;
                }
                State::Lost => "GPU lost",
                State::New | State::Hung => "GPU hung",
            };
            *measured.refused.entry(reason.to_owned()).or_default() += 1;
            let uuid = slot.gpu.as_ref().map_or("", |gpu| gpu.uuid.as_str());
            measured.error = Some(format!("{reason}: {} {uuid}", slot.index));
        }
        if let Ok(mut told) = self.opened.shared.answering.lock() {
            *told = answering;
        }
    }
}

impl Slot {
    /// Says how a GPU is doing when that is new.
    fn change(&mut self, state: State, trouble: Option<Trouble>) {
        if self.state == state {
            return;
        }
        let uuid = self.gpu.as_ref().map_or("", |gpu| gpu.uuid.as_str());
        match (&self.state, &state) {
            (_, State::Hung) => {
                tracing::warn!(
                    gpu = self.index,
                    uuid,
                    "a GPU does not answer; the others go on, and it is not asked again before it does"
                );
            }
            (_, State::Lost) => {
                let error = trouble.map(|trouble| trouble.to_string()).unwrap_or_default();
                tracing::warn!(gpu = self.index, uuid, error, "a GPU is lost");
            }
            (State::Hung | State::Lost, State::Answers) => {
                tracing::info!(gpu = self.index, uuid, "a GPU answers again");
            }
            _ => {}
        }
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_have_their_own_times_and_none_stands_twice() {
        let check = |times: &[i64], expected: &[i64]| {
            let xid =
                |(nth, at): (usize, &i64)| Xid { uuid: String::new(), at: *at, xid: nth as u64 };
            let xids: Vec<Xid> = times.iter().enumerate().map(xid).collect();
            let (times, values) = timed(&xids, 100, 200);
            assert_eq!(times, expected, "{xids:?}");
            assert_eq!(values.len(), times.len());
        };
        check(&[], &[]);
        check(&[150], &[150]);
        check(&[150, 150, 150], &[150, 151, 152]);
        check(&[50, 60], &[100, 101]);
        check(&[199, 199], &[199]);
        check(&[200], &[]);
    }
}
