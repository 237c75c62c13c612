//! A shard of a source that is scraped: asks each of its targets when it is due, and enqueues what
//! they answered.
//!
//! The position is the latest instant of which an answer was enqueued. Whoever takes the shard over
//! asks for what is due after it and nothing before, and what an answer holds is of the instant it
//! was due at: so no sample is there twice. What was on its way when a streamer died is an outage.

use std::{
    collections::HashMap,
    path::Path,
    pin::{Pin, pin},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use nexus_common::{
    keyspace::{
        SourceKind,
        live::{Scrape, Target},
    },
    model::{ClusterId, HostName, Lane, Timestamp},
    queue::{Enqueued, Producer},
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    askers::Askers,
    live::Measured,
    shard::{Go, ShardError, Shards},
    source::scrape::{
        Answered, Reader, Reading,
        discover::{Discovered, Question},
        fetch::{Client, FetchError},
        target::{TargetFiles, due, host_of, of_shard, question_at},
    },
};

/// Longest sleep before looking whether the source is still what it was.
const NAP: Duration = Duration::from_millis(250);
/// How often files of targets are read again.
const FILES_EVERY: Duration = Duration::from_secs(5);
/// Answers put into one transaction at most: what they hold waits in memory for the others, and as
/// many once more for etcd to take those before.
const ANSWERS_MAX: usize = 64;
/// How long the first of them waits for the others, at most and in parts of the shortest interval:
/// a transaction an answer would be etcd's whole work.
const LINGER_MAX: Duration = Duration::from_millis(500);
const LINGER_PART: u64 = 10;
/// Least time between two log lines about one target.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// One target, between two questions.
struct Asked {
    target: Target,
    host: HostName,
    /// When it is asked next.
    due: u64,
    /// Counts how often what it is asked for changed: an answer to an older question is dropped.
    generation: u64,
    /// Away while it is asked.
    reader: Option<Reader>,
    told: Option<Instant>,
    /// When lines were last told that were not taken.
    told_lines: Option<Instant>,
    /// It let us wait in vain last time.
    hung: bool,
}

/// What became of a question.
struct Reply {
    url: String,
    at: u64,
    generation: u64,
    reader: Reader,
    answered: Answered,
    error: Option<FetchError>,
}

/// A shard's targets as they are now.
struct Round {
    scrape: Box<Scrape>,
    client: Client,
    reading: Arc<Reading>,
    asked: HashMap<String, Asked>,
    /// Shortest interval of them all, in milliseconds.
    shortest: u64,
    /// What the files said, and whoever else names targets.
    lists: Vec<Arc<Vec<Target>>>,
    /// Whom to ask for more of them, and how many changes of their answers are in the lists.
    questions: Vec<Question>,
    changes: u64,
    /// Questions on their way to targets that hung last time.
    hung: Arc<AtomicUsize>,
    /// First instant that nobody was asked at yet.
    from: u64,
    generation: u64,
    files_read: Instant,
}

/// Answers that wait to be enqueued together.
#[derive(Default)]
struct Waiting {
    measured: Measured,
    answers: usize,
    since: Option<Instant>,
}

impl Shards {
    /// Asks, until asked to leave. What was answered is enqueued meanwhile: an etcd that takes its
    /// time keeps nobody from being asked, as long as there is room for answers.
    pub(crate) async fn scrape(
        &self,
        mut producer: Producer,
        gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        let (lane, begin) = (producer.lane().clone(), producer.progress().offset);
        let leaving = CancellationToken::new();
        let (answers, answered) = mpsc::channel(1);
        let mut enqueuing = pin!(self.enqueue_answers(&mut producer, answered, &leaving));
        let asked = tokio::select! {
            // Whoever cannot enqueue asks in vain.
            go = enqueuing.as_mut() => return go,
            asked = self.ask_targets(&lane, begin, gone, &leaving, answers) => asked,
        };
        leaving.cancel();
        let go = enqueuing.await?;
        asked.map(|()| go)
    }

    /// Enqueues what was answered, until there is no more.
    async fn enqueue_answers(
        &self,
        producer: &mut Producer,
        mut answered: mpsc::Receiver<(ClusterId, Measured)>,
        leaving: &CancellationToken,
    ) -> Result<Go, ShardError> {
        loop {
            tokio::select! {
                () = leaving.cancelled() => {}
                waited = self.wait_for_room(producer) => waited?,
            }
            let Some((cluster, measured)) = answered.recv().await else { return Ok(Go::Ended) };
            match self.send(producer, cluster, measured).await? {
                Enqueued::Committed => {}
                Enqueued::Moved => return Ok(Go::Again),
                Enqueued::Fenced => return Ok(self.fenced(producer)),
            }
        }
    }

    /// Asks whoever is due, from `begin` on, and hands the answers on.
    async fn ask_targets(
        &self,
        lane: &Lane,
        begin: u64,
        mut gone: Pin<&mut impl Future<Output = ()>>,
        leaving: &CancellationToken,
        answers: mpsc::Sender<(ClusterId, Measured)>,
    ) -> Result<(), ShardError> {
        let mut round: Option<Round> = None;
        let mut replies: JoinSet<Reply> = JoinSet::new();
        let mut finding: JoinSet<()> = JoinSet::new();
        let mut waiting = Waiting::default();
        loop {
            let source = self.sources.get(&lane.source).map(|source| source.kind);
            let Some(SourceKind::Scrape(scrape)) = source else { return Ok(()) };
            let now_round = match round.take() {
                Some(known) if known.is_current(&scrape, &self.discovered) => known,
                old => {
                    let (files, discovered) = (&self.target_files, &self.discovered);
                    let lists = (Arc::clone(files), Arc::clone(discovered));
                    let (secrets, shard) = (self.args.scrape_secrets_dir.clone(), lane.shard.0);
                    let renew = move || Round::renew(old, scrape, &lists, &secrets, shard, begin);
                    spawn_blocking(renew).await??
                }
            };
            let now_round = round.insert(now_round);
            // Targets are asked meanwhile, as they are known so far.
            for asking in now_round.questions.iter().filter_map(|q| self.discovered.due(q)) {
                finding.spawn_blocking(|| asking.ask());
            }
            while finding.try_join_next().is_some() {}
            let mut nap = NAP;
            let has_room = waiting.answers < ANSWERS_MAX;
            if has_room {
                let now = u64::try_from(Timestamp::now().as_millis()).unwrap_or(0);
                let (missed, next) = now_round.ask(now, &self.askers, &mut replies);
                waiting.measured.missed += missed;
                nap = nap.min(Duration::from_millis(next.saturating_sub(now).max(1)));
            }
            let linger = waiting.left(now_round.shortest);
            let is_due = !has_room || linger.is_zero();
            if !is_due {
                nap = nap.min(linger);
            }
            tokio::select! {
                () = gone.as_mut() => {
                    leaving.cancel();
                    if waiting.since.is_some() {
                        // Whoever takes them tells what became of them.
                        let _ = answers.send((self.cluster_of(now_round), waiting.measured)).await;
                    }
                    return Ok(());
                }
                taken = answers.reserve(), if is_due => {
                    let Ok(taken) = taken else { return Ok(()) };
                    let measured = std::mem::take(&mut waiting).measured;
                    taken.send((self.cluster_of(now_round), measured));
                }
                Some(reply) = replies.join_next(), if has_room => {
                    let mut reply = Some(reply?);
                    while let Some(ready) = reply {
                        now_round.settle(ready, &mut waiting.measured);
                        waiting.answers += 1;
                        waiting.since.get_or_insert_with(Instant::now);
                        let more = waiting.answers < ANSWERS_MAX;
                        reply = more.then(|| replies.try_join_next()).flatten().transpose()?;
                    }
                }
                () = sleep(nap) => {}
            }
        }
    }

    fn cluster_of(&self, round: &Round) -> ClusterId {
        let own = &self.life.process.args.cluster_id;
        round.scrape.cluster.as_ref().unwrap_or(own).clone()
    }
}

impl Waiting {
    /// How long the others may still take; for ever if there is nothing that waits for them.
    fn left(&self, interval_ms: u64) -> Duration {
        let linger = LINGER_MAX.min(Duration::from_millis(interval_ms / LINGER_PART));
        self.since.map_or(Duration::MAX, |since| linger.saturating_sub(since.elapsed()))
    }
}

impl Round {
    fn is_current(&self, scrape: &Scrape, discovered: &Discovered) -> bool {
        let names_files = !scrape.files.is_empty() || scrape.ca_file.is_some();
        let heard = self.questions.is_empty() || self.changes == discovered.changes();
        *self.scrape == *scrape
            && heard
            && (!names_files || self.files_read.elapsed() < FILES_EVERY)
    }

    /// The targets there are now; those that were there before go on as they were. Blocking.
    fn renew(
        old: Option<Self>,
        scrape: Box<Scrape>,
        (target_files, discovered): &(Arc<TargetFiles>, Arc<Discovered>),
        secrets: &Path,
        shard: u32,
        begin: u64,
    ) -> Result<Self, ShardError> {
        // Before they are looked at: what is told meanwhile is another change.
        let changes = discovered.changes();
        let mut lists = Vec::new();
        let mut complete = true;
        for path in &scrape.files {
            match target_files.read(path) {
                Ok(targets) => lists.push(targets),
                Err(error) => {
                    complete = false;
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(
                        error,
                        "a file of targets cannot be read, its targets stay as they were"
                    );
                }
            }
        }
        let questions = Question::of(&scrape);
        for question in &questions {
            // Nobody told it yet: whoever was asked before us goes on being asked.
            let Some(targets) = discovered.known(question) else {
                complete = false;
                continue;
            };
            lists.push(targets);
        }
        let files_read = Instant::now();
        let old = match old {
            Some(old)
                if complete
                    && !old.client.is_old()
                    && old.scrape == scrape
                    && same(&old.lists, &lists) =>
            {
                return Ok(Self { files_read, changes, ..old });
            }
            old => old,
        };
        let (mut before, begin, mut generation, kept, hung) = match old {
            Some(old) => {
                let kept = (old.scrape == scrape).then_some((old.client, old.reading));
                (old.asked, begin.max(old.from), old.generation, kept, old.hung)
            }
            None => (HashMap::new(), begin, 0, None, Arc::default()),
        };
        let (client, reading) = match kept {
            Some((client, reading)) if !client.is_old() => (client, reading),
            Some((old, reading)) => (renewed(old, &scrape, secrets), reading),
            None => {
                // Series were read by other rules: they are met anew.
                generation += 1;
                for (url, asked) in &mut before {
                    asked.reader = Some(Reader::new(asked.host.clone(), url));
                    asked.generation = generation;
                }
                let reading = Reading {
                    rules: scrape.rules.clone(),
                    series_max: usize::try_from(scrape.series_max).unwrap_or(usize::MAX),
                    honour_times: scrape.honour_times,
                };
                (Client::new(&scrape, secrets)?, Arc::new(reading))
            }
        };
        let mut asked = HashMap::new();
        let all = scrape.targets.iter().chain(lists.iter().flat_map(|targets| targets.iter()));
        for target in of_shard(all, &scrape, shard) {
            let Some(host) = host_of(&target) else {
                tracing::warn!(
                    url = target.url,
                    "the address is no host name: give the target one with host"
                );
                continue;
            };
            let url = target.url.clone();
            let interval = target.interval_ms.unwrap_or(scrape.interval_ms);
            let known = match before.remove(&url).filter(|known| known.host == host) {
                // On the grid of its interval, which may be another one now.
                Some(known) => Asked { due: due(&url, interval, known.due), target, ..known },
                None => {
                    // Not that of one that went: its answer may be on its way.
                    generation += 1;
                    let reader = Some(Reader::new(host.clone(), &url));
                    let due = due(&url, interval, begin);
                    let (told, told_lines, hung) = (None, None, false);
                    Asked { target, host, due, generation, reader, told, told_lines, hung }
                }
            };
            asked.insert(url, known);
        }
        if !complete {
            asked.extend(before);
        }
        let intervals = asked.values().filter_map(|asked| asked.target.interval_ms);
        let shortest = intervals.fold(scrape.interval_ms, u64::min);
        let from = begin;
        let round = Self {
            scrape,
            client,
            reading,
            asked,
            shortest,
            lists,
            questions,
            changes,
            hung,
            from,
            generation,
            files_read,
        };
        Ok(round)
    }

    /// Asks who is due. How many questions nobody asked in time, and when the next is due.
    fn ask(&mut self, now: u64, askers: &Arc<Askers>, replies: &mut JoinSet<Reply>) -> (u64, u64) {
        let (mut missed, mut next) = (0, u64::MAX);
        for asked in self.asked.values_mut() {
            if asked.due > now {
                next = next.min(asked.due);
                continue;
            }
            let interval = asked.target.interval_ms.unwrap_or(self.scrape.interval_ms).max(1);
            let hung = asked.hung.then_some(&self.hung);
            let room = askers.has_room(replies.len(), hung);
            // One that has not answered yet is not asked again: its answer takes that long.
            let Some(mut reader) = asked.reader.take_if(|_| room) else { continue };
            let (late, at) = question_at(asked.due, interval, now);
            missed += late;
            let Some(at) = at else {
                asked.due += late * interval;
                next = next.min(asked.due);
                asked.reader = Some(reader);
                continue;
            };
            asked.due = at + interval;
            self.from = self.from.max(at + 1);
            let generation = asked.generation;
            let (client, reading) = (self.client.clone(), Arc::clone(&self.reading));
            let (url, host) = (asked.target.url.clone(), asked.host.clone());
            askers.ask(replies, hung, move || {
                let (answered, error) = question(&client, &reading, &url, &host, at, &mut reader);
                Reply { url, at, generation, reader, answered, error }
            });
        }
        (missed, next)
    }

    /// Takes note of a reply, unless it is to a question that nobody asks any more.
    fn settle(&mut self, reply: Reply, measured: &mut Measured) {
        let asked = self.asked.get_mut(&reply.url);
        let Some(asked) = asked.filter(|asked| asked.generation == reply.generation) else {
            measured.missed += 1;
            return;
        };
        asked.reader = Some(reply.reader);
        measured.position = measured.position.max(reply.at + 1);
        let Answered { hosts, samples, absent, refused } = reply.answered;
        measured.hosts.extend(hosts);
        measured.rows += samples + absent;
        measured.absent += absent;
        if let Some(reason) = refused.keys().next() {
            measured.error = Some(format!("{}: {reason}", reply.url));
            if is_due(asked.told_lines) {
                asked.told_lines = Some(Instant::now());
                tracing::warn!(url = reply.url, ?refused, "lines of a target are not taken");
            }
        }
        for (reason, lines) in refused {
            *measured.refused.entry(reason.to_owned()).or_default() += lines;
        }
        asked.hung = reply.error.as_ref().is_some_and(FetchError::is_timeout);
        if let Some(error) = reply.error {
            let error = format!("{:#}", anyhow::Error::from(error));
            measured.error = Some(format!("{}: {error}", reply.url));
            if is_due(asked.told) {
                asked.told = Some(Instant::now());
                tracing::warn!(url = reply.url, error, "a target does not answer");
            }
        }
    }
}

/// Whether something may be told again.
fn is_due(told: Option<Instant>) -> bool {
    told.is_none_or(|told| told.elapsed() > TELL_EVERY)
}

/// A client by the files as they are now; the old one while they are being changed.
fn renewed(old: Client, scrape: &Scrape, secrets: &Path) -> Client {
    Client::new(scrape, secrets).unwrap_or_else(|error| {
        let error = format!("{:#}", anyhow::Error::from(error));
        tracing::warn!(error, "targets go on being asked with the certificates there were");
        old
    })
}

/// Whether these are the very same lists.
fn same(old: &[Arc<Vec<Target>>], new: &[Arc<Vec<Target>>]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(old, new)| Arc::ptr_eq(old, new))
}

/// Asks one target: what it answered, and why it did not. Blocking.
fn question(
    client: &Client,
    reading: &Reading,
    url: &str,
    host: &HostName,
    at: u64,
    reader: &mut Reader,
) -> (Answered, Option<FetchError>) {
    let started = Instant::now();
    let instant = i64::try_from(at).unwrap_or(i64::MAX);
    let (mut answered, error) = match client.get(url) {
        Ok((body, format)) => (reader.read(&body, format, instant, reading), None),
        Err(error) => (Answered::default(), Some(error)),
    };
    answered.add_up(host, url, instant, error.is_none(), started.elapsed().as_secs_f64());
    (answered, error)
}
