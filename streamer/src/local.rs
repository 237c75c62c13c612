//! A shard of this host's GPUs: at each tick all of them are asked, and what they told is enqueued.
//!
//! Nobody else can ask them, so what this streamer does not measure is an outage. One that hangs
//! costs the others at most one tick's patience, once: it is not asked again before it answers.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use nexus_common::{
    keyspace::SourceKind,
    model::Timestamp,
    queue::{Enqueued, Producer},
};
use tokio::time::sleep;

use crate::{
    live::{Measured, Tick, tick},
    shard::{Go, ShardError, Shards},
    source::nvml::{Gpus, OpenError},
};

/// Longest sleep before looking whether the source is still what it was.
const NAP: Duration = Duration::from_millis(250);
/// Between two attempts to open the library.
const OPEN_EVERY: Duration = Duration::from_secs(1);
/// Longest that a GPU is waited for at one tick.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
/// Least time between two log lines about a driver that is not there.
const TELL_EVERY: Duration = Duration::from_secs(600);

impl Shards {
    /// Measures this host's GPUs, until asked to leave.
    pub(crate) async fn measure(
        &self,
        mut producer: Producer,
        mut gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        let mut gpus: Option<Gpus> = None;
        let mut waiting = Waiting::default();
        loop {
            let source = self.sources.get(&producer.lane().source).map(|source| source.kind);
            let Some(SourceKind::Nvml(nvml)) = source else { return Ok(Go::Ended) };
            if self.host.as_ref() != Some(&nvml.host) {
                return Ok(Go::Ended);
            }
            let library = self.args.nvml_library.clone();
            let of = producer.lane().source.clone();
            let gpus = gpus.get_or_insert_with(|| Gpus::new(of, nvml.host.clone(), library));
            tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                waited = self.wait_for_room(&mut producer) => waited?,
            }
            // Before it is decided which tick is due: opening the library takes its time.
            let ready = tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                ready = gpus.ready() => ready,
            };
            if let Err(error) = ready {
                waiting.tell(&error);
                tokio::select! {
                    () = gone.as_mut() => return Ok(Go::Ended),
                    () = sleep(OPEN_EVERY) => continue,
                }
            }
            waiting = Waiting::default();
            let now = u64::try_from(Timestamp::now().as_millis()).unwrap_or(0);
            let from = producer.progress().offset;
            let (at, missed) = match tick(from, nvml.interval_ms, now) {
                Tick::Due { at, missed } => (at, missed),
                Tick::Next(next) => {
                    let nap = NAP.min(Duration::from_millis(next.saturating_sub(now).max(1)));
                    tokio::select! {
                        () = gone.as_mut() => return Ok(Go::Ended),
                        () = sleep(nap) => continue,
                    }
                }
            };
            let measured = tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                measured = gpus.measure(from, at, patience(nvml.interval_ms)) => measured,
            };
            let measured = Measured { missed, ..measured };
            let cluster = nvml.cluster.as_ref().unwrap_or(&self.life.process.args.cluster_id);
            match self.send(&mut producer, cluster.clone(), measured).await? {
                Enqueued::Committed => {}
                Enqueued::Moved => return Ok(Go::Again),
                Enqueued::Fenced => return Ok(self.fenced(&producer)),
            }
        }
    }
}

/// A part of the interval, so that a GPU that hangs does not make the others miss the next tick.
fn patience(interval_ms: u64) -> Duration {
    Duration::from_millis(interval_ms / 4 * 3).min(PATIENCE_MAX)
}

/// When it was last told that there is no driver.
#[derive(Default)]
struct Waiting(Option<Instant>);

impl Waiting {
    fn tell(&mut self, error: &OpenError) {
        if self.0.is_none_or(|told| told.elapsed() > TELL_EVERY) {
            self.0 = Some(Instant::now());
            tracing::warn!(%error, "waiting for NVIDIA's driver");
        }
    }
}
