//! A flow of samples that lasts as long as a phase needs it, and what became of it in the end.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nexus_common::{
    audit::AuditReport,
    etcd::{Change, Etcd, Event, follow},
    keyspace::Key,
    model::Role,
    testing::{
        Fleet, LOOK, Server, digest, eventually,
        truth::{Historian, audited, audited_until, is_settled},
    },
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::report::Report;

/// Writes that make a lane or partition a steady one.
const STEADY: usize = 3;
/// For anything that must happen.
pub(crate) const WITHIN: Duration = Duration::from_secs(90);

/// Streamers and collectors at work: messages of a few rows, so that there are many transactions
/// and the file lasts.
pub(crate) struct Flow<S: Server> {
    pub(crate) fleet: Fleet<S>,
    pub(crate) etcd: Etcd,
    pub(crate) pulse: Pulse,
    files: Vec<PathBuf>,
    historian: Historian,
    audits: u64,
}

/// What every flow has, before what a phase adds.
pub(crate) const ENV: [(&str, &str); 5] = [
    ("COMMIT_AGE_MS", "50"),
    ("BATCH_SIZE", "20"),
    ("BACKLOG_MAX", "2"),
    ("PARALLEL_SHARDS", "8"),
    ("AUDIT_EVERY_SECONDS", "1"),
];

impl<S: Server> Flow<S> {
    /// `files` of so many seconds of telemetry (320 rows each), and nobody at work yet.
    pub(crate) async fn new(server: S, env: &[(&str, &str)], files: u64, seconds: u64) -> Self {
        let fleet = Fleet::on(server, &[&ENV, env].concat());
        let (seconds, write) = (seconds.to_string(), |number: u64| {
            let flags = ["--seconds", &seconds.to_string(), "--seed", &number.to_string()];
            fleet.generate_with(&format!("{number}.csv"), &flags)
        });
        let files = (1..=files).map(|number| write(number)).collect();
        drop(seconds);
        let (etcd, historian) = (fleet.connect().await, Historian::follow(&fleet).await);
        let pulse = Pulse::follow(&etcd);
        Self { fleet, etcd, pulse, files, historian, audits: 0 }
    }

    /// [`Flow::new`] with two streamers (`streamer-a`, `streamer-b`) of one file and two
    /// collectors, all of which work.
    pub(crate) async fn start(server: S, env: &[(&str, &str)], seconds: u64) -> Self {
        let mut flow = Self::new(server, env, 1, seconds).await;
        for letter in ["a", "b"] {
            flow.stream(&format!("streamer-{letter}"), 0, &[]);
            flow.fleet.collect(&format!("collector-{letter}"), &[]);
        }
        flow.flows().await;
        flow
    }

    /// Starts a streamer of the nth file.
    pub(crate) fn stream(&mut self, name: &str, nth: usize, flags: &[&str]) {
        let file = self.files[nth].clone();
        self.fleet.stream(name, &file, flags);
    }

    /// Waits until something more is committed.
    pub(crate) async fn flows(&mut self) {
        let before = self.audit().await.samples.committed;
        let flows = |r: &AuditReport| r.samples.committed > before;
        audited_until(&self.etcd, "data flows", WITHIN, flows).await;
    }

    /// Audits; the law must hold.
    pub(crate) async fn audit(&mut self) -> AuditReport {
        self.audits += 1;
        audited(&self.etcd).await
    }

    /// Fails when the flow is over: then nothing was tested.
    pub(crate) async fn assert_unfinished(&mut self) {
        assert!(!is_settled(&self.audit().await), "the files did not last: nothing flowed");
    }

    /// Waits until no collector and no streamer holds back, ends the streamers, lets others read
    /// the rest in large messages, and compares every sample with its source.
    pub(crate) async fn finish(mut self, report: &mut Report) -> Fleet<S> {
        self.fleet.assert_alive();
        for name in self.fleet.names() {
            if name.starts_with("streamer") {
                let (status, _) = self.fleet.terminate(&name).await;
                assert!(status.success(), "{name}: {status}");
            }
        }
        if !self.fleet.names().iter().any(|name| name.starts_with("collector")) {
            self.fleet.collect("collector-last", &[]);
        }
        for nth in 0..self.files.len() {
            let flags = ["--batch-size", "50000", "--backlog-max", "64", "--parallel-shards", "2"];
            self.stream(&format!("streamer-last-{nth}"), nth, &flags);
        }
        let settled = audited_until(&self.etcd, "all is committed", WITHIN, is_settled).await;
        self.fleet.assert_alive();
        let source = self.files.iter().map(|file| digest::source(file));
        let source = source.fold(digest::Digest::default(), digest::Digest::and);
        let stored = digest::stored(&self.etcd).await;
        report.compared(stored.samples, source.samples);
        assert_eq!(stored, source, "samples differ from their source");
        assert_eq!(settled.samples.stored, source.samples, "the audit counts others");
        let writes = self.historian.assert_sound();
        report.audited(self.audits + 1);
        report.fact("writes of positions, none under an older claim or back", writes, "-", true);
        self.fleet
    }
}

/// When every lane and partition was last written, seen by a watch of our own.
pub(crate) struct Pulse {
    beats: Arc<Mutex<BTreeMap<Vec<u8>, Vec<Instant>>>>,
    stop: CancellationToken,
}

impl Pulse {
    fn follow(etcd: &Etcd) -> Self {
        let (beats, stop) =
            (Arc::<Mutex<BTreeMap<_, Vec<_>>>>::default(), CancellationToken::new());
        // One who only watches finds out last that a member is silent.
        let (asking, asked) = (etcd.clone(), stop.clone());
        tokio::spawn(async move {
            while !asked.is_cancelled() {
                let _ = asking.revision().await; // what counts is that it is asked
                sleep(10 * LOOK).await;
            }
        });
        for path in ["shards/", "commits/"] {
            let (tell, mut events) = mpsc::channel(1024);
            tokio::spawn(follow(etcd.clone(), etcd.keyspace().prefix(path), tell, stop.clone()));
            let (beats, mut known) = (Arc::clone(&beats), BTreeMap::<Vec<u8>, i64>::new());
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    let entries = match event {
                        Event::Snapshot { entries, .. } => entries,
                        Event::Changes { changes, .. } => {
                            changes.into_iter().filter_map(put).collect()
                        }
                        Event::Alive => continue,
                    };
                    let mut beats = beats.lock().unwrap();
                    for entry in entries {
                        // What is listed again did not beat again.
                        let before = known.insert(entry.key.clone(), entry.mod_revision);
                        if before.is_none_or(|before| before < entry.mod_revision) {
                            beats.entry(entry.key).or_default().push(Instant::now());
                        }
                    }
                }
            });
        }
        Self { beats, stop }
    }

    /// Those that beat steadily within `window` before `at`: one that beats once may be a merge,
    /// of which there is none for a long time.
    pub(crate) fn alive_at(&self, at: Instant, window: Duration) -> Vec<Vec<u8>> {
        let beats = self.beats.lock().unwrap();
        let recent = |list: &[Instant]| {
            list.iter().filter(|b| **b <= at && **b + window >= at).count() >= STEADY
        };
        beats.iter().filter(|(_, list)| recent(list)).map(|(key, _)| key.clone()).collect()
    }

    /// How long each of `keys` was silent from `since` on; waits until all have beaten again.
    pub(crate) async fn pauses(
        &self,
        keys: &[Vec<u8>],
        since: Instant,
        within: Duration,
    ) -> Vec<Duration> {
        assert!(!keys.is_empty(), "nothing flowed");
        let mut pauses = Vec::new();
        for key in keys {
            let first = || {
                let beats = self.beats.lock().unwrap();
                beats.get(key).and_then(|list| list.iter().find(|b| **b > since).copied())
            };
            let deadline = Instant::now() + within;
            let beat = loop {
                if let Some(beat) = first() {
                    break beat;
                }
                let name = String::from_utf8_lossy(key);
                assert!(Instant::now() < deadline, "{name} is silent for more than {within:?}");
                sleep(LOOK / 5).await;
            };
            pauses.push(beat - since);
        }
        pauses
    }

    /// The times between two beats of each of the keys `is_meant` names, in a span of time.
    pub(crate) fn gaps(
        &self,
        from: Instant,
        to: Instant,
        is_meant: impl Fn(&[u8]) -> bool,
    ) -> Vec<Duration> {
        let beats = self.beats.lock().unwrap();
        let meant = beats.iter().filter(|(key, _)| is_meant(key));
        meant
            .flat_map(|(_, list)| {
                let within = |pair: &&[Instant]| pair[0] < to && pair[1] > from;
                list.windows(2).filter(within).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn put(change: Change) -> Option<nexus_common::etcd::Entry> {
    match change {
        Change::Put(entry) => Some(entry),
        Change::Delete(..) => None,
    }
}

/// The lease under which an instance is registered, if it is.
pub(crate) async fn lease(etcd: &Etcd, role: Role, name: &str) -> Option<i64> {
    let key = etcd.keyspace().key(&Key::Instance(role, name.parse().unwrap()));
    etcd.get(&key).await.unwrap().map(|entry| entry.lease)
}

/// How long until `condition` holds.
pub(crate) async fn took<F: Future<Output = bool>>(
    what: &str,
    condition: impl FnMut() -> F,
) -> Duration {
    let since = Instant::now();
    eventually(what, WITHIN, condition).await;
    since.elapsed()
}
