//! Rows to messages, in a thread of its own: read a batch, encode it, hand it over, go on.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nexus_common::{
    block::EncodeError,
    keyspace::{FileRange, LastError, Progress, Replay},
    model::{ClusterId, Timestamp},
    queue::{Message, fits, messages},
};
use tokio::sync::mpsc;

use crate::source::{
    CsvFile,
    csv::{Batch, BatchLimits, Next, ReadError, Reject, Restamp, SeriesCache, ShardReader},
};

/// Longest sleep of a paced reader before it looks whether it is still wanted.
const NAP: Duration = Duration::from_millis(50);
/// How long before they are due rows of a replay are read and encoded: longer than a hundred
/// thousand of them take, and no longer than a nap.
const AHEAD_MILLIS: i64 = 50;

/// Why a shard cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("encode samples")]
    Encode(#[from] EncodeError),
}

/// One batch, ready to be enqueued: what it adds to the progress.
pub(crate) struct Prepared {
    pub(crate) messages: Vec<Message>,
    pub(crate) batch: Batch,
    /// The range was read to its end in this batch.
    pub(crate) rejects: Vec<Reject>,
}

impl Prepared {
    /// The progress with this batch in it.
    pub(crate) fn advance(&self, progress: &Progress, looped: bool) -> Progress {
        let mut next = progress.clone();
        next.rows_accepted += self.batch.rows_accepted;
        next.rows_absent += self.batch.rows_absent;
        next.samples += self.batch.samples;
        for (reason, rows) in &self.batch.rejected {
            *next.rows_rejected.entry(reason.to_string()).or_default() += rows;
        }
        if let Some(reject) = self.rejects.last() {
            let Reject { offset, reason, detail, .. } = reject;
            let told = format!("row at byte {offset}: {reason}: {detail}");
            next.last_error = Some(LastError::new(Timestamp::now(), &told));
        }
        next.offset = self.batch.end_offset;
        if self.batch.done && looped {
            next.offset = next.range.start;
            next.round += 1;
        } else {
            next.done = self.batch.done;
        }
        next
    }
}

/// What a reading thread needs.
pub(crate) struct Task {
    pub(crate) file: CsvFile,
    pub(crate) cluster: ClusterId,
    pub(crate) range: FileRange,
    pub(crate) offset: u64,
    pub(crate) round: u64,
    pub(crate) rows_max: u64,
    pub(crate) replay: Option<Replay>,
}

impl Task {
    /// Reads until the shard's end (or for ever, looped), an error, or nobody listens. Blocking.
    /// Returns the series met, for the next shard.
    pub(crate) fn run(
        mut self,
        mut cache: SeriesCache,
        to: &mpsc::Sender<Result<Prepared, PrepareError>>,
    ) -> SeriesCache {
        loop {
            let ended;
            (cache, ended) = self.round(cache, to);
            let looped = self.replay.as_ref().is_some_and(|r| r.looped);
            if !ended || !looped {
                return cache;
            }
            self.offset = self.range.start;
            self.round += 1;
        }
    }

    /// Once through the range. True if its end was reached and told.
    fn round(
        &self,
        cache: SeriesCache,
        to: &mpsc::Sender<Result<Prepared, PrepareError>>,
    ) -> (SeriesCache, bool) {
        let range = self.range.start..self.range.end;
        let opened =
            ShardReader::open(&self.file.path, Arc::clone(&self.file.layout), range, self.offset);
        let mut reader = match opened {
            Ok(reader) => reader.with_cache(cache),
            Err(error) => {
                // The receiver may be gone: then nobody needs to know.
                let _ = to.blocking_send(Err(error.into()));
                return (SeriesCache::default(), false);
            }
        };
        let restamp = self.replay.as_ref().map(|replay| restamp(replay, self.round));
        if let Some(restamp) = restamp {
            reader = reader.restamped(restamp);
        }
        let mut rows_max = self.rows_max;
        loop {
            if to.is_closed() {
                return (reader.into_cache(), false);
            }
            let from = reader.offset();
            let prepared = match restamp {
                Some(restamp) => self.next_due(&mut reader, restamp, rows_max),
                None => self.next(&mut reader, rows_max, None).map(Some),
            };
            let (prepared, done) = match prepared {
                // Not due yet.
                Ok(None) => continue,
                Ok(Some(prepared)) if !fits(&prepared.messages) && rows_max > 1 => {
                    rows_max /= 2;
                    match self.again(reader, from, restamp) {
                        Ok(again) => {
                            reader = again;
                            continue;
                        }
                        Err(error) => {
                            let _ = to.blocking_send(Err(error.into()));
                            return (SeriesCache::default(), false);
                        }
                    }
                }
                Ok(Some(prepared)) => {
                    let done = prepared.batch.done;
                    (Ok(prepared), Some(done))
                }
                Err(error) => (Err(error), None),
            };
            let told = to.blocking_send(prepared).is_ok();
            match done {
                Some(false) if told => {}
                Some(done) => return (reader.into_cache(), told && done),
                None => return (reader.into_cache(), false),
            }
        }
    }

    /// A reader at `from`, to read the same rows in smaller batches.
    fn again(
        &self,
        reader: ShardReader,
        from: u64,
        restamp: Option<Restamp>,
    ) -> Result<ShardReader, ReadError> {
        let range = self.range.start..self.range.end;
        let cache = reader.into_cache();
        let layout = Arc::clone(&self.file.layout);
        let reader = ShardReader::open(&self.file.path, layout, range, from)?.with_cache(cache);
        Ok(match restamp {
            Some(restamp) => reader.restamped(restamp),
            None => reader,
        })
    }

    /// The rows that are due by now, or none after a nap. Those of the next instant are read and
    /// encoded ahead, and handed over when they are due: what that takes would make them late.
    fn next_due(
        &self,
        reader: &mut ShardReader,
        restamp: Restamp,
        rows_max: u64,
    ) -> Result<Option<Prepared>, PrepareError> {
        let now = Timestamp::now().as_millis();
        if let Next::At(source) = reader.next_timestamp()? {
            let due = restamp.apply(source);
            if due - now > AHEAD_MILLIS {
                let until_then = Duration::from_millis((due - now).unsigned_abs());
                std::thread::sleep(NAP.min(until_then));
                return Ok(None);
            }
            if due > now {
                let prepared = self.next(reader, rows_max, Some(source))?;
                sleep_until(due);
                return Ok(Some(prepared));
            }
        }
        let elapsed = i128::from(now - restamp.wall_start) * i128::from(restamp.speed_milli) / 1000;
        let until = restamp.source_start.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX));
        self.next(reader, rows_max, Some(until)).map(Some)
    }

    fn next(
        &self,
        reader: &mut ShardReader,
        rows_max: u64,
        until: Option<i64>,
    ) -> Result<Prepared, PrepareError> {
        let limits = BatchLimits { rows_max, until, ..BatchLimits::default() };
        let mut batch = reader.read_batch(&limits)?;
        let hosts = std::mem::take(&mut batch.hosts);
        let rejects = std::mem::take(&mut batch.rejects);
        Ok(Prepared { messages: messages(&self.cluster, hosts)?, batch, rejects })
    }
}

/// Sleeps until an instant, in milliseconds since the epoch; at most as long as rows are read ahead.
fn sleep_until(due: i64) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let due = Duration::from_millis(u64::try_from(due).unwrap_or(0));
    std::thread::sleep(
        due.saturating_sub(since).min(Duration::from_millis(AHEAD_MILLIS.unsigned_abs())),
    );
}

/// Time of the given round of a replay.
fn restamp(replay: &Replay, round: u64) -> Restamp {
    let speed = i128::from(replay.speed_milli.max(1));
    let shift = i128::from(round) * i128::from(replay.span_ms) * 1000 / speed;
    let wall_start = replay.wall_start.as_millis().saturating_add(shift as i64);
    Restamp {
        source_start: replay.source_start.as_millis(),
        wall_start,
        speed_milli: replay.speed_milli,
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::block::Block;

    use super::*;

    #[test]
    fn a_looped_replay_moves_on_in_time() {
        let at = |ms| Timestamp::from_millis(ms).unwrap();
        let replay = Replay {
            speed_milli: 2000,
            looped: true,
            wall_start: at(1_000_000),
            source_start: at(500),
            span_ms: 10_000,
        };
        assert_eq!(restamp(&replay, 0).apply(1500), 1_000_500);
        assert_eq!(restamp(&replay, 3).apply(1500), 1_015_500);
    }

    #[test]
    fn rows_of_a_replay_come_when_they_are_due_and_not_before() {
        let header = "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,\
                      namespace,value,labels_raw\n";
        let row = |second: i64, gpu: usize| {
            format!(
                "\"2025-07-18T20:42:{second:02}Z\",\"DCGM_FI_DEV_GPU_UTIL\",\"{gpu}\",\"nvidia{gpu}\",\
                 \"GPU-{gpu}\",\"H100\",\"h\",\"\",\"\",\"\",\"{second}\",\"\"\n"
            )
        };
        let rows: String = (0..20).flat_map(|second| [row(second, 0), row(second, 1)]).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replay.csv");
        std::fs::write(&path, format!("{header}{rows}")).unwrap();
        let file = CsvFile::open(&path).unwrap();
        let range = FileRange { start: header.len() as u64, end: file.identity.bytes };
        let begin = Timestamp::now().as_millis() + 30;
        let replay = Replay {
            speed_milli: 100_000,
            looped: false,
            wall_start: Timestamp::from_millis(begin).unwrap(),
            source_start: "2025-07-18T20:42:00Z".parse().unwrap(),
            span_ms: 20_000,
        };
        let cluster = ClusterId::new("c").unwrap();
        let offset = range.start;
        let replay = Some(replay);
        let task = Task { file, cluster, range, offset, round: 0, rows_max: 1000, replay };
        let (to, mut prepared) = mpsc::channel(1);
        let reading = std::thread::spawn(move || task.run(SeriesCache::default(), &to));
        let (mut samples, mut last) = (0, 0);
        while let Some(batch) = prepared.blocking_recv() {
            let now = Timestamp::now().as_millis();
            for message in batch.unwrap().messages {
                for section in Block::decode(message.bytes).unwrap().sections {
                    let series = section.decode().unwrap().series;
                    samples += series.iter().map(|series| series.values.len()).sum::<usize>();
                    let newest = series.iter().flat_map(|s| s.timestamps.clone()).max().unwrap();
                    assert!(newest <= now, "{newest} is told at {now}");
                    last = last.max(newest);
                }
            }
        }
        reading.join().unwrap();
        assert_eq!((samples, last), (40, begin + 190));
    }
}
