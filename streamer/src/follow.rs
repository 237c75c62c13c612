//! A shard that is a growing file: take what is complete, enqueue, look again.
//!
//! The position is the file that is stood in and a byte of it. Both move in the transaction that
//! enqueues, so whoever goes on does so at the byte, also when the file has another name by then.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    time::{Duration, Instant},
};

use nexus_common::{
    keyspace::{Followed, Mapping, Progress, SourceKind},
    model::ClusterId,
    queue::{Enqueued, Producer, fits, messages},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    prepare::{PrepareError, Prepared},
    shard::{Go, ShardError, Shards},
    source::{
        FileError,
        csv::{BatchLimits, ReadError},
        follow::{Look, ReadFailed, Tail},
    },
};

/// Between two looks at a file that has nothing new.
const NAP: Duration = Duration::from_millis(250);

/// What one look found.
enum Found {
    Rows(Box<Rows>),
    Nothing,
}

/// Rows that were read, and where that leads.
struct Rows {
    prepared: Prepared,
    bytes: u64,
    followed: Followed,
}

impl Rows {
    fn advance(&self, progress: &Progress) -> Progress {
        Progress {
            // Of all files there were: it never goes back.
            offset: progress.offset + self.bytes,
            followed: Some(self.followed.clone()),
            done: false,
            ..self.prepared.advance(progress, false)
        }
    }
}

impl Shards {
    /// Follows a file until asked to leave.
    pub(crate) async fn tail(
        &self,
        mut producer: Producer,
        mut gone: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Go, ShardError> {
        let source = self.sources.get(&producer.lane().source).map(|source| source.kind);
        let Some(SourceKind::Follow(follow)) = source else { return Ok(Go::Ended) };
        let mut tail = None;
        loop {
            tokio::select! {
                () = gone.as_mut() => return Ok(Go::Ended),
                waited = self.wait_for_room(&mut producer) => waited?,
            }
            let (path, mapping) = (PathBuf::from(&follow.path), follow.mapping.clone());
            let stood = producer.progress().followed.clone();
            let cluster = self.life.process.args.cluster_id.clone();
            let rows_max = self.args.batch_size;
            let looking = spawn_blocking(move || {
                let mut tail = match tail {
                    Some(tail) => Some(tail),
                    None => open(&path, mapping, stood.as_ref())?,
                };
                let found = match &mut tail {
                    Some(tail) => look(tail, &cluster, rows_max)?,
                    None => Found::Nothing,
                };
                Ok::<_, ShardError>((tail, found))
            });
            let found;
            (tail, found) = looking.await??;
            match found {
                Found::Rows(rows) => {
                    let next = rows.advance(producer.progress());
                    match self.enqueue(&mut producer, &rows.prepared, next).await? {
                        Enqueued::Committed => {}
                        Enqueued::Moved => return Ok(Go::Again),
                        Enqueued::Fenced => return Ok(self.fenced(&producer)),
                    }
                }
                Found::Nothing => tokio::select! {
                    () = gone.as_mut() => return Ok(Go::Ended),
                    () = sleep(NAP) => {}
                },
            }
        }
    }
}

fn open(
    path: &Path,
    mapping: Option<Box<Mapping>>,
    stood: Option<&Followed>,
) -> Result<Option<Tail>, FileError> {
    let (tail, lost) = Tail::open(path, mapping, stood)?;
    if lost {
        tracing::warn!(path = %path.display(), "the file that was followed is not here any more, or was emptied; what was not read of it is lost");
    }
    for column in tail.iter().flat_map(Tail::ignored) {
        tracing::warn!(column, "a column without a meaning to us is ignored");
    }
    Ok(tail)
}

/// One look, or several where a file gives way to the next.
fn look(tail: &mut Tail, cluster: &ClusterId, most: u64) -> Result<Found, ShardError> {
    let (from, mut rows_max) = (tail.position(), most);
    loop {
        let limits = BatchLimits { rows_max, ..BatchLimits::default() };
        let mut batch = match tail.look(&limits, Instant::now()) {
            Ok(Look::Rows(batch)) => batch,
            Ok(Look::Nothing) => return Ok(Found::Nothing),
            Ok(Look::Switched) => {
                tracing::info!(path = %tail.path().display(), "the file was rotated, going on with the next");
                return Ok(Found::Nothing);
            }
            Ok(Look::Truncated) => {
                tracing::warn!(path = %tail.path().display(), "the file was emptied; what was not read of it before is lost");
                return Ok(Found::Nothing);
            }
            // Emptied while it was read: the next look sees it.
            Err(ReadFailed::Rows(ReadError::Truncated { .. })) => return Ok(Found::Nothing),
            Err(ReadFailed::Rows(error)) => return Err(PrepareError::from(error).into()),
            Err(ReadFailed::File(error)) => return Err(error.into()),
        };
        let hosts = std::mem::take(&mut batch.hosts);
        let rejects = std::mem::take(&mut batch.rejects);
        let messages = messages(cluster, hosts).map_err(PrepareError::from)?;
        let prepared = Prepared { messages, batch, rejects };
        if !fits(&prepared.messages) && rows_max > 1 {
            tail.back_to(from);
            rows_max /= 2;
            continue;
        }
        let bytes = tail.position() - from;
        let followed = tail.followed().map_err(|source| FileError::io(tail.path(), source))?;
        return Ok(Found::Rows(Box::new(Rows { prepared, bytes, followed })));
    }
}
