//! What shall be read: sources asked for, paused, resumed and withdrawn.
//!
//! Only `sources/{source}` is written here, each time only if it still is as it was read. What was
//! read so far (`shards/`), what is queued and what is stored is nobody's to change but their
//! claimants', so whatever is asked for here, nothing is lost and nothing there twice.

use crate::{
    etcd::{Error, Etcd, Position},
    keyspace::{Key, Source, SourceKind, ValueError, from_json, to_json},
    model::{Lane, ShardId, SourceId, Timestamp},
};

/// How often a write is tried again because somebody else wrote in between: people and streamers
/// do so rarely.
const TRIES: usize = 5;
/// Longest path of a file, in bytes: Linux takes none that is longer.
const PATH_BYTES_MAX: usize = 4096;
/// Slowest and fastest replay, in thousandths of real time.
const SPEED_MILLI: std::ops::RangeInclusive<u64> = 1..=100_000_000;

/// Why a source is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Something that was given is not as it must be.
    #[error("{field}: {reason}")]
    Field {
        /// What was given wrong: `id`, `path` or `replaySpeed`.
        field: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// There is none of that name.
    #[error("source {0} is not known")]
    Unknown(SourceId),
    /// Somebody else kept writing it.
    #[error("source {0} was written by somebody else, {TRIES} times; try again")]
    Moving(SourceId),
    /// What stands in etcd is no source.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// etcd does not answer.
    #[error(transparent)]
    Etcd(#[from] Error),
}

/// A source as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What stands in etcd now, or stood there until it was withdrawn.
    pub source: Source,
    /// The revision from which on it does.
    pub revision: i64,
}

/// What may be asked about sources.
#[derive(Clone)]
pub struct SourceDesk {
    etcd: Etcd,
}

impl SourceDesk {
    /// Writes to `etcd`'s keyspace.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    /// Asks for a CSV file to be read: the first streamer that finds it at `path` cuts it into
    /// shards. Replayed in time with `speed_milli` (1000 is as it was recorded), else as fast as
    /// possible; with `looped` again and again.
    ///
    /// # Errors
    /// When something given is not as it must be, the id was used before, or etcd does not answer.
    pub async fn register(
        &self,
        id: &SourceId,
        path: &str,
        speed_milli: Option<u64>,
        looped: bool,
    ) -> Result<Written, SourceError> {
        check_path(path)?;
        if let Some(speed) = speed_milli.filter(|speed| !SPEED_MILLI.contains(speed)) {
            let reason = format!("{} is not from 0.001 to 100000", speed as f64 / 1000.0);
            return Err(SourceError::Field { field: "replaySpeed", reason });
        }
        let kind = SourceKind::Declared { path: path.to_owned(), speed_milli, looped };
        let source = Source { kind, shards: 0, created_at: Timestamp::now(), paused: false };
        let keyspace = self.etcd.keyspace();
        let position = Position { key: keyspace.key(&Key::Source(id.clone())), mod_revision: 0 };
        // A withdrawn source leaves its progress, which speaks of the file it had.
        let first = Lane { source: id.clone(), shard: ShardId(0) };
        let used = [keyspace.key(&Key::Shard(first))];
        match self.etcd.swap(&position, Some(to_json(&source)), &used).await? {
            Some(revision) => Ok(Written { source, revision }),
            None => Err(SourceError::Field {
                field: "id",
                reason: format!("{id} is, or was, the name of another source; choose a new one"),
            }),
        }
    }

    /// Stops the reading of a source after the message in hand, or lets it go on from there.
    ///
    /// # Errors
    /// When it is not known, or etcd does not answer.
    pub async fn set_paused(&self, id: &SourceId, paused: bool) -> Result<Written, SourceError> {
        self.rewrite(id, |source| {
            (source.paused != paused).then(|| Source { paused, ..source.clone() })
        })
        .await
    }

    /// Ends the reading of a source. What was read stays, and so does how far: the law goes on
    /// counting both.
    ///
    /// # Errors
    /// When it is not known, or etcd does not answer.
    pub async fn withdraw(&self, id: &SourceId) -> Result<Written, SourceError> {
        for _ in 0..TRIES {
            let (position, source) = self.read(id).await?;
            if let Some(revision) = self.etcd.swap(&position, None, &[]).await? {
                return Ok(Written { source, revision });
            }
        }
        Err(SourceError::Moving(id.clone()))
    }

    /// Puts what `change` makes of a source in its place; nothing to change is no error.
    async fn rewrite(
        &self,
        id: &SourceId,
        change: impl Fn(&Source) -> Option<Source>,
    ) -> Result<Written, SourceError> {
        for _ in 0..TRIES {
            let (position, source) = self.read(id).await?;
            let Some(source) = change(&source) else {
                return Ok(Written { source, revision: position.mod_revision });
            };
            if let Some(revision) = self.etcd.swap(&position, Some(to_json(&source)), &[]).await? {
                return Ok(Written { source, revision });
            }
        }
        Err(SourceError::Moving(id.clone()))
    }

    async fn read(&self, id: &SourceId) -> Result<(Position, Source), SourceError> {
        let key = self.etcd.keyspace().key(&Key::Source(id.clone()));
        let entry = self.etcd.get(&key).await?;
        let entry = entry.ok_or_else(|| SourceError::Unknown(id.clone()))?;
        let source = from_json(&entry.key, &entry.value)?;
        Ok((Position::seen(key, Some(&entry)), source))
    }
}

/// Whether a streamer could open it, wherever it runs.
fn check_path(path: &str) -> Result<(), SourceError> {
    let bad = |reason: String| Err(SourceError::Field { field: "path", reason });
    if path.len() > PATH_BYTES_MAX {
        return bad(format!("it has {} bytes, at most {PATH_BYTES_MAX} are allowed", path.len()));
    }
    if !path.starts_with('/') {
        return bad(format!("{path:?} is not absolute, such as /data/export.csv"));
    }
    if path.chars().any(char::is_control) {
        return bad(format!("{path:?} has control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_streamer_could_open_is_refused() {
        let check = |path: &str, expected: Option<&str>| {
            let said = check_path(path).err().map(|error| error.to_string());
            assert_eq!(said.as_deref(), expected, "{path:?}");
        };
        check("/data/export.csv", None);
        check("export.csv", Some("path: \"export.csv\" is not absolute, such as /data/export.csv"));
        check("", Some("path: \"\" is not absolute, such as /data/export.csv"));
        check("/a\n", Some("path: \"/a\\n\" has control characters"));
        check(&format!("/{}", "a".repeat(4095)), None);
        let told = "path: it has 4097 bytes, at most 4096 are allowed";
        check(&format!("/{}", "a".repeat(4096)), Some(told));
    }
}
