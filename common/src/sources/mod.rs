//! What shall be read: sources asked for, paused, resumed and withdrawn.
//!
//! Only `sources/{source}` is written here, each time only if it still is as it was read; and, when
//! a source that is pushed comes into being, its shards with it. What was read so far (`shards/`),
//! what is queued and what is stored is nobody's to change but their claimants', so whatever is
//! asked for here, nothing is lost and nothing there twice.

pub mod discover;
pub mod document;
pub mod gpu_z;
pub mod header;
pub mod input;
pub mod interval;
pub mod label_text;
pub mod series;
mod standing;
mod wanted;

pub use standing::{SourceState, Standing};
pub use wanted::{Applied, Wanted};

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    etcd::{Error, Etcd, Position, RangeRead},
    keyspace::{
        ClaimItem, Claimant, FileRange, Key, Progress, Source, SourceKind, ValueError, from_json,
        to_json,
    },
    model::{InstanceId, Lane, ShardId, SourceId, Timestamp},
};

/// How often a write is tried again because somebody else wrote in between: people and streamers
/// do so rarely.
const TRIES: usize = 5;

/// Why a source is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Something that was given is not as it must be.
    #[error("{field}: {reason}")]
    Field {
        /// What was given wrong, such as `id`, `path` or `replaySpeed`.
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
        let mapping = None;
        let kind = SourceKind::Declared { path: path.to_owned(), speed_milli, looped, mapping };
        self.create(id, &Wanted::new(kind)?).await
    }

    /// What [`SourceDesk::apply`] would do, without doing it.
    ///
    /// # Errors
    /// As there.
    pub async fn plan(&self, id: &SourceId, wanted: &Wanted) -> Result<Applied, SourceError> {
        match self.read(id).await {
            Ok((_, source)) => Ok(match wanted.in_place_of(id, &source)? {
                Some(_) => Applied::Changed,
                None => Applied::Unchanged,
            }),
            Err(SourceError::Unknown(_)) => {
                let used = self.used(id);
                let free = self.etcd.get(&used).await?.is_none();
                if free { Ok(Applied::Created) } else { Err(taken(id)) }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a source what is wanted: creates it, or changes what may change while it is read.
    /// Whether it is paused stays as it is.
    ///
    /// # Errors
    /// When it is of another kind or has another file, its name belonged to one that was
    /// withdrawn, or etcd does not answer.
    pub async fn apply(&self, id: &SourceId, wanted: &Wanted) -> Result<Applied, SourceError> {
        for _ in 0..TRIES {
            let (position, source) = match self.read(id).await {
                Err(SourceError::Unknown(_)) => match self.create(id, wanted).await {
                    // Unless it was withdrawn, somebody else was first, perhaps with the same.
                    Err(SourceError::Field { field: "id", .. })
                        if !self.was_withdrawn(id).await? =>
                    {
                        continue;
                    }
                    created => return created.map(|_| Applied::Created),
                },
                read => read?,
            };
            let Some(source) = wanted.in_place_of(id, &source)? else {
                return Ok(Applied::Unchanged);
            };
            if self.etcd.swap(&position, Some(to_json(&source)), &[]).await?.is_some() {
                return Ok(Applied::Changed);
            }
        }
        Err(SourceError::Moving(id.clone()))
    }

    /// A source as it stands in etcd.
    ///
    /// # Errors
    /// When it is not known, cannot be read, or etcd does not answer.
    pub async fn get(&self, id: &SourceId) -> Result<Written, SourceError> {
        let (position, source) = self.read(id).await?;
        Ok(Written { source, revision: position.mod_revision })
    }

    /// All sources, by id.
    ///
    /// # Errors
    /// When etcd does not answer, or a source cannot be read.
    pub async fn list(&self) -> Result<Vec<(SourceId, Source)>, SourceError> {
        let keyspace = self.etcd.keyspace();
        let listing = self.etcd.range(&keyspace.prefix("sources/"), RangeRead::default()).await?;
        let mut sources = Vec::with_capacity(listing.entries.len());
        for entry in listing.entries {
            if let Ok(Key::Source(id)) = keyspace.parse(&entry.key) {
                sources.push((id, from_json(&entry.key, &entry.value)?));
            }
        }
        Ok(sources)
    }

    /// All sources and how each stands, by id.
    ///
    /// # Errors
    /// When etcd does not answer, or something there cannot be read.
    pub async fn standings(&self) -> Result<Vec<(SourceId, Source, Standing)>, SourceError> {
        let sources = self.list().await?;
        let keyspace = self.etcd.keyspace();
        let listing = self.etcd.range(&keyspace.prefix("shards/"), RangeRead::default()).await?;
        let mut lanes: BTreeMap<SourceId, Vec<Progress>> = BTreeMap::new();
        for entry in listing.entries {
            if let Ok(Key::Shard(lane)) = keyspace.parse(&entry.key) {
                lanes.entry(lane.source).or_default().push(from_json(&entry.key, &entry.value)?);
            }
        }
        let standing = |(id, source): (SourceId, Source)| {
            let lanes = lanes.get(&id).map_or(&[][..], Vec::as_slice);
            let standing = Standing::of(&source, &lanes.iter().collect::<Vec<_>>());
            (id, source, standing)
        };
        Ok(sources.into_iter().map(standing).collect())
    }

    /// Which streamers read shards of which source; of `only` one, if given.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn owners(
        &self,
        only: Option<&SourceId>,
    ) -> Result<BTreeMap<SourceId, BTreeSet<InstanceId>>, SourceError> {
        let keyspace = self.etcd.keyspace();
        let of = only.map_or_else(String::new, |id| format!("{id}/"));
        let range = keyspace.prefix(&format!("claims/shards/{of}"));
        let mut owners: BTreeMap<SourceId, BTreeSet<InstanceId>> = BTreeMap::new();
        for entry in self.etcd.range(&range, RangeRead::default()).await?.entries {
            if let Ok(Key::Claim(ClaimItem::Shard(lane))) = keyspace.parse(&entry.key)
                && let Ok(claimant) = from_json::<Claimant>(&entry.key, &entry.value)
            {
                owners.entry(lane.source).or_default().insert(claimant.instance);
            }
        }
        Ok(owners)
    }

    /// Whether a source was begun to be read, and withdrawn since.
    ///
    /// # Errors
    /// When etcd does not answer, or what stands there cannot be read.
    pub async fn was_withdrawn(&self, id: &SourceId) -> Result<bool, SourceError> {
        // In this order: shards come after their source.
        if self.etcd.get(&self.used(id)).await?.is_none() {
            return Ok(false);
        }
        match self.read(id).await {
            Ok(_) => Ok(false),
            Err(SourceError::Unknown(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// A withdrawn source leaves its progress, which speaks of what it read.
    fn used(&self, id: &SourceId) -> String {
        let first = Lane { source: id.clone(), shard: ShardId(0) };
        self.etcd.keyspace().key(&Key::Shard(first))
    }

    /// Creates a source.
    ///
    /// # Errors
    /// When the id is, or was, another's, or etcd does not answer.
    pub async fn create(&self, id: &SourceId, wanted: &Wanted) -> Result<Written, SourceError> {
        let source = wanted.source();
        let keyspace = self.etcd.keyspace();
        let position = Position { key: keyspace.key(&Key::Source(id.clone())), mod_revision: 0 };
        match self.etcd.swap(&position, Some(to_json(&source)), &[self.used(id)]).await? {
            Some(revision) => Ok(Written { source, revision }),
            None => Err(taken(id)),
        }
    }

    /// Makes sure that there is a source that others send to, with its shards: both come into
    /// being in one transaction, whoever is first.
    ///
    /// # Errors
    /// When the id was used before, for another source or one that was withdrawn, or etcd does not
    /// answer.
    pub async fn open_push(&self, id: &SourceId) -> Result<Written, SourceError> {
        for _ in 0..TRIES {
            match self.get(id).await {
                Ok(written) if written.source.kind.is_pushed() => return Ok(written),
                Ok(_) => return Err(taken(id)),
                Err(SourceError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
            let (keyspace, now) = (self.etcd.keyspace(), Timestamp::now());
            let source = Wanted::new(SourceKind::Push)?.source();
            let start = u64::try_from(now.as_millis()).unwrap_or(0);
            let end = u64::try_from(Timestamp::MAX.as_millis()).unwrap_or(u64::MAX);
            let untouched = to_json(&Progress::untouched(FileRange { start, end }, now));
            let mut entries = vec![(keyspace.key(&Key::Source(id.clone())), to_json(&source))];
            entries.extend((0..source.shards).map(|shard| {
                let lane = Lane { source: id.clone(), shard: ShardId(shard) };
                (keyspace.key(&Key::Shard(lane)), untouched.clone())
            }));
            // If not, somebody else was first, or we were and did not hear of it.
            if !self.etcd.create(&entries).await?
                && self.etcd.get(&self.used(id)).await?.is_some()
                && matches!(self.get(id).await, Err(SourceError::Unknown(_)))
            {
                return Err(taken(id));
            }
        }
        Err(SourceError::Moving(id.clone()))
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

fn taken(id: &SourceId) -> SourceError {
    let reason = format!("{id} is, or was, the name of another source; choose a new one");
    SourceError::Field { field: "id", reason }
}
