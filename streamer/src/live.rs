//! A shard of a source that follows the wall clock: measure, enqueue, wait for the next tick.
//!
//! The position is a time that only moves forward, and moves in the transaction that enqueues what
//! was measured. So no tick is enqueued twice, whoever measured it; one that nobody enqueued, for
//! whatever reason, is an outage, and counted as one.

use std::{collections::BTreeMap, pin::Pin, sync::atomic::Ordering::Relaxed, time::Duration};

use nexus_common::{
    keyspace::{LastError, Progress, SourceKind, live::Simulate},
    limits::ENQUEUE_MESSAGES_MAX,
    model::{ClusterId, HostSamples, Timestamp},
    queue::{Enqueued, Message, Producer, messages_of_good},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    prepare::PrepareError,
    shard::{Go, ShardError, Shards},
    source::simulate::hosts_at,
};

/// Longest sleep before looking whether the source is still what it was.
const NAP: Duration = Duration::from_millis(250);

/// What was measured, and how far the position moves with it.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) hosts: Vec<HostSamples>,
    /// Things that were measured (GPUs, or targets' samples): the rows of a source without rows.
    pub(crate) rows: u64,
    /// Of those, without a value.
    pub(crate) absent: u64,
    /// Things that were refused, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Measurements that were due before and that nobody made.
    pub(crate) missed: u64,
    /// First millisecond that nothing was measured for yet.
    pub(crate) position: u64,
    /// What went wrong, if something did.
    pub(crate) error: Option<String>,
    pub(crate) done: bool,
}

impl Measured {
    /// The progress with all of this in it but its samples.
    fn advance(&self, progress: &Progress) -> Progress {
        let mut rows_rejected = progress.rows_rejected.clone();
        for (reason, lines) in &self.refused {
            *rows_rejected.entry(reason.clone()).or_default() += lines;
        }
        let error = self.error.as_deref();
        let last_error = error.map(|told| LastError::new(Timestamp::now(), told));
        Progress {
            rows_absent: progress.rows_absent + self.absent,
            rows_rejected,
            last_error: last_error.or_else(|| progress.last_error.clone()),
            offset: progress.offset.max(self.position),
            rows_accepted: progress.rows_accepted + self.rows,
            missed: progress.missed + self.missed,
            done: self.done,
            ..progress.clone()
        }
    }
}

/// The tick to measure at `now`, and how many before it nobody measured; or when the next is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tick {
    Due { at: u64, missed: u64 },
    Next(u64),
}

/// Looks at the wall clock's grid of `interval` milliseconds, from `position` on. What is older
/// than the newest tick is not made up for: a measurement of another time would be a lie.
pub(crate) fn tick(position: u64, interval: u64, now: u64) -> Tick {
    let interval = interval.max(1);
    let first = position.div_ceil(interval) * interval;
    let newest = now / interval * interval;
    if newest >= first {
        Tick::Due { at: newest, missed: (newest - first) / interval }
    } else {
        Tick::Next(first)
    }
}

impl Shards {
    /// Makes measurements up, until asked to leave.
    pub(crate) async fn simulate(
        &self,
        mut producer: Producer,
        mut gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        loop {
            let source = self.sources.get(&producer.lane().source).map(|source| source.kind);
            // As it is now: it may have changed since the last tick.
            let Some(SourceKind::Simulate(simulate)) = source else { return Ok(Go::Ended) };
            tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                waited = self.wait_for_room(&mut producer) => waited?,
            }
            let now = u64::try_from(Timestamp::now().as_millis()).unwrap_or(0);
            let until = simulate.until.map_or(u64::MAX, |at| at.as_millis().unsigned_abs());
            // What was due before the end is measured, however late: it is a function of time.
            let last = now.min(until.saturating_sub(1));
            let due = tick(producer.progress().offset, simulate.interval_ms, last);
            let measured = match due {
                Tick::Due { at, missed } => self.made_up(&producer, &simulate, at, missed)?,
                Tick::Next(_) if now >= until => {
                    Measured { position: until, done: true, ..Measured::default() }
                }
                Tick::Next(next) => {
                    let nap = NAP.min(Duration::from_millis(next.saturating_sub(now).max(1)));
                    tokio::select! {
                        () = gone.as_mut() => return Ok(Go::Ended),
                        () = sleep(nap) => continue,
                    }
                }
            };
            let cluster = simulate.cluster.as_ref().unwrap_or(&self.life.process.args.cluster_id);
            match self.send(&mut producer, cluster.clone(), measured).await? {
                Enqueued::Committed if producer.progress().done => return Ok(Go::Ended),
                Enqueued::Committed => {}
                Enqueued::Moved => return Ok(Go::Again),
                Enqueued::Fenced => return Ok(self.fenced(&producer)),
            }
        }
    }

    fn made_up(
        &self,
        producer: &Producer,
        simulate: &Simulate,
        at: u64,
        missed: u64,
    ) -> Result<Measured, ShardError> {
        let lane = producer.lane();
        let now = i64::try_from(at).unwrap_or(i64::MAX);
        let hosts = simulate.hosts_of(lane.shard.0);
        let (hosts, rows) = hosts_at(&lane.source, simulate, hosts, now)?;
        Ok(Measured { hosts, rows, missed, position: at + 1, ..Measured::default() })
    }

    /// Enqueues what was measured. The position moves with the first transaction: if there are
    /// more and one fails, the rest is lost, and never there twice.
    pub(crate) async fn send(
        &self,
        producer: &mut Producer,
        cluster: ClusterId,
        mut measured: Measured,
    ) -> Result<Enqueued, ShardError> {
        let hosts = std::mem::take(&mut measured.hosts);
        let (all, refused) = spawn_blocking(move || messages_of_good(&cluster, hosts))
            .await?
            .map_err(PrepareError::from)?;
        if refused > 0 {
            *measured.refused.entry("not encodable".to_owned()).or_default() += refused;
            measured.error = Some(format!("{refused} samples cannot be encoded"));
        }
        let mut next = measured.advance(producer.progress());
        let mut rest = all.as_slice();
        loop {
            let (part, behind) = rest.split_at(fitting(rest));
            next.samples += part.iter().map(|message| message.samples).sum::<u64>();
            let enqueued = producer.enqueue(part, next.clone()).await?;
            if enqueued != Enqueued::Committed || behind.is_empty() {
                self.count(producer, &measured, enqueued);
                return Ok(enqueued);
            }
            rest = behind;
        }
    }

    fn count(&self, producer: &Producer, measured: &Measured, enqueued: Enqueued) {
        if enqueued == Enqueued::Committed {
            let metrics = &self.life.process.metrics;
            metrics.count_rows("accepted", measured.rows);
            metrics.count_rows("missed", measured.missed);
            for (reason, lines) in &measured.refused {
                metrics.count_rows(reason, *lines);
            }
            metrics.figures.backlog.store(producer.backlog(), Relaxed);
        }
    }

    pub(crate) fn fenced(&self, producer: &Producer) -> Go {
        tracing::info!(lane = %producer.lane(), "the shard is somebody else's now");
        Go::Ended
    }
}

/// How many of these messages fit in one transaction: at least one, if there is one.
fn fitting(messages: &[Message]) -> usize {
    let mut bytes = 0;
    let fits = messages.iter().take(ENQUEUE_MESSAGES_MAX).take_while(|message| {
        bytes += message.bytes.len();
        bytes <= Producer::room()
    });
    fits.count().max(1).min(messages.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_is_due_once_and_what_was_missed_is_counted() {
        let check = |position, now, expected: Tick| {
            assert_eq!(tick(position, 1000, now), expected, "{position} at {now}");
        };
        check(5000, 5000, Tick::Due { at: 5000, missed: 0 });
        check(5001, 5000, Tick::Next(6000));
        check(5001, 5999, Tick::Next(6000));
        check(5001, 6500, Tick::Due { at: 6000, missed: 0 });
        check(5001, 9999, Tick::Due { at: 9000, missed: 3 });
        // A clock that went back waits.
        check(9001, 5000, Tick::Next(10_000));
        assert_eq!(tick(0, 0, 7), Tick::Due { at: 7, missed: 7 }, "no division by nothing");
    }

    #[test]
    fn messages_are_dealt_to_transactions_by_size_and_number() {
        let check = |sizes: &[usize], expected: usize| {
            let messages: Vec<Message> = sizes
                .iter()
                .map(|size| Message { bytes: vec![0; *size].into(), samples: 1 })
                .collect();
            assert_eq!(fitting(&messages), expected, "{sizes:?}");
        };
        check(&[], 0);
        check(&[400_000], 1);
        check(&[400_000; 4], 3);
        check(&[10; 200], ENQUEUE_MESSAGES_MAX);
    }
}
