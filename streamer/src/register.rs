//! Registers a file as a source: its shards first, the source last. Whoever is first wins, and
//! whoever is late finishes what another began.

use std::{ops::Range, time::Duration};

use anyhow::{Context, bail};
use nexus_common::{
    etcd::{Claim, Error, Etcd},
    keyspace::{
        ClaimItem, FileRange, Follow, Key, Progress, Replay, Source, SourceKind, from_json, to_json,
    },
    limits::TXN_OPS_MAX,
    model::{Lane, ShardId, SourceId, Timestamp},
    runtime::Life,
    sources::Wanted,
};
use tokio::{task::spawn_blocking, time::sleep};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    args::Args,
    source::{
        CsvFile, FileIdentity,
        fetched::{Fetched, file_name, is_url},
        file::{self, source_id},
        named,
    },
};

/// Most shards of one source: their keys are listed by every process.
const SHARDS_MAX: u64 = 10_000;
/// The name of standard input.
const STANDARD_INPUT: &str = "-";
/// How often we look whether whoever registers the source is done.
const LOOK: Duration = Duration::from_millis(50);

/// A file and how it shall be read, checked before etcd is asked for anything.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    file: CsvFile,
    /// Where others find it: its path, or its URL.
    path: String,
    replay: Option<Replay>,
    source: SourceId,
}

impl Registration {
    /// Opens the files that the flags name; standard input is kept as one first. Blocking.
    ///
    /// # Errors
    /// When one cannot be read, is no DCGM CSV, or has no times to replay by.
    pub(crate) fn of(args: &Args, fetched: &Fetched) -> anyhow::Result<Vec<Self>> {
        let Some(given) = args.csv_file.as_ref().filter(|_| !args.follow) else {
            return Ok(Vec::new());
        };
        if let Some(url) = given.to_str().filter(|given| is_url(given)) {
            let (mapping, path) = (args.mapping(), url.to_owned());
            // As what is asked for over an API is checked.
            Wanted::new(SourceKind::Declared { path, speed_milli: None, looped: false, mapping })?;
            return Ok(vec![Self::of_file(fetched.open(url, args.mapping())?, Some(url), args)?]);
        }
        let absolute = |path| std::path::absolute(path).context("find the working directory");
        let paths = if given.as_os_str() == STANDARD_INPUT {
            tracing::info!(folder = %args.spool_dir.display(), "keeping standard input until its end");
            vec![named::spool(std::io::stdin().lock(), &absolute(&args.spool_dir)?)?]
        } else {
            named::matching(&absolute(given)?)?
        };
        let files = paths.into_iter().map(|path| CsvFile::open_as(&path, args.mapping()));
        files.map(|file| Self::of_file(file?, None, args)).collect()
    }

    /// Opens the files that the flags name to be followed, each a source named by its path: its
    /// content has no end.
    ///
    /// # Errors
    /// When there is none, or another flag does not go with it.
    pub(crate) fn followed(args: &Args) -> anyhow::Result<Vec<(SourceId, Wanted)>> {
        let given = match (&args.csv_file, args.follow) {
            (_, false) => return Ok(Vec::new()),
            (None, true) => bail!("--follow needs --csv-file: the file that grows"),
            (Some(given), true) => given,
        };
        if args.replay_speed.is_some() || args.looped || given.as_os_str() == STANDARD_INPUT {
            bail!("--follow goes with neither --replay-speed, --loop nor standard input");
        }
        if given.to_str().is_some_and(is_url) {
            bail!("{}: --follow needs a file; what a web server has is read once", given.display());
        }
        let given = std::path::absolute(given).context("find the working directory")?;
        let named = named::matching(&given)?.into_iter().map(|path| {
            let id = file::id_of_path(&path)?;
            let path = path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))?;
            let mapping = args.mapping();
            let kind = SourceKind::Follow(Follow { path: path.to_owned(), mapping });
            Ok((id, Wanted::new(kind)?))
        });
        named.collect()
    }

    /// A file that is open: the one at its path, or a copy of what is at `url`.
    fn of_file(file: CsvFile, url: Option<&str>, args: &Args) -> anyhow::Result<Self> {
        for column in file.layout.ignored() {
            tracing::warn!(column, "a column without a meaning to us is ignored");
        }
        let name = url.map_or(file.path.as_path(), file_name);
        let mut source = source_id(name, &file.identity)?;
        if let Some(mapping) = &file.mapping {
            // The same file read as something else is another source.
            let digits = xxh3_64(&to_json(mapping)) >> 32;
            source = SourceId::new(&format!("{source}.as-{digits:08x}"))?;
        }
        let speed_milli = args.replay_speed.or(args.looped.then_some(1000));
        let replay = match speed_milli {
            Some(speed_milli) => Some(replay(&file, speed_milli, args.looped)?),
            None => None,
        };
        if replay.is_some() {
            // Replaying a file is another source than reading it.
            source = SourceId::new(&format!("{source}.replay"))?;
        }
        let path = url.map_or_else(|| file.path.display().to_string(), str::to_owned);
        Ok(Self { file, path, replay, source })
    }

    /// Makes sure that the source and all its shards are in etcd: by us, or by whoever has the
    /// claim on it.
    pub(crate) async fn put(self, life: &Life) -> anyhow::Result<()> {
        let etcd = &life.process.etcd;
        let key = etcd.keyspace().key(&Key::Source(self.source.clone()));
        let path = self.path.clone();
        while !life.process.stop.is_cancelled() {
            if let Some(entry) = etcd.get(&key).await? {
                let paused = from_json::<Source>(&entry.key, &entry.value).is_ok_and(|s| s.paused);
                tracing::info!(source = %self.source, path, paused, "going on with a registered source");
                return Ok(());
            }
            let item = ClaimItem::Source(self.source.clone());
            if let Some(claim) = Claim::take(etcd, &life.session, item).await? {
                // The claim only saves work: keys are created once, whoever does.
                let registered = self.create(etcd, &key, &path).await;
                claim.release(etcd).await?;
                if registered? {
                    return Ok(());
                }
                // Somebody did it between our look and our claim: it is there now.
                continue;
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether it is we who put the source there.
    async fn create(&self, etcd: &Etcd, key: &str, path: &str) -> anyhow::Result<bool> {
        let (file, paced) = (self.file.clone(), self.replay.is_some());
        let ranges = spawn_blocking(move || shards(&file, paced)).await??;
        create_shards(etcd, &self.source, &ranges).await?;
        let source = Source {
            kind: SourceKind::Csv {
                path: path.to_owned(),
                bytes: self.file.identity.bytes,
                fingerprint: fingerprint(&self.file.identity),
                replay: self.replay.clone(),
                mapping: self.file.mapping.clone(),
            },
            shards: ranges.len() as u32,
            created_at: Timestamp::now(),
            paused: false,
        };
        let created = etcd.create(&[(key.to_owned(), to_json(&source))]).await?;
        if created {
            tracing::info!(source = %self.source, path, shards = ranges.len(), "source registered");
        }
        Ok(created)
    }
}

/// The identity of a file as it stands in its source.
pub(crate) fn fingerprint(identity: &FileIdentity) -> String {
    format!("{:016x}-{:016x}", identity.head_hash, identity.tail_hash)
}

/// Makes sure that all shards of a source are there, each as nobody has read it yet or as it is.
pub(crate) async fn create_shards(
    etcd: &Etcd,
    source: &SourceId,
    ranges: &[Range<u64>],
) -> Result<(), Error> {
    let (keyspace, now) = (etcd.keyspace(), Timestamp::now());
    let shard_keys: Vec<_> = ranges
        .iter()
        .enumerate()
        .map(|(i, range)| {
            let lane = Lane { source: source.clone(), shard: ShardId(i as u32) };
            let range = FileRange { start: range.start, end: range.end };
            (keyspace.key(&Key::Shard(lane)), to_json(&Progress::untouched(range, now)))
        })
        .collect();
    for part in shard_keys.chunks(TXN_OPS_MAX) {
        create_missing(etcd, part).await?;
    }
    Ok(())
}

/// All of them, or, where some exist, the others one by one.
async fn create_missing(etcd: &Etcd, entries: &[(String, Vec<u8>)]) -> Result<(), Error> {
    if !etcd.create(entries).await? {
        for entry in entries {
            etcd.create(std::slice::from_ref(entry)).await?;
        }
    }
    Ok(())
}

/// A replay follows time through the whole file, so it is not cut: shards of one file would
/// take turns anyway.
pub(crate) fn shards(file: &CsvFile, paced: bool) -> anyhow::Result<Vec<Range<u64>>> {
    if paced && file.layout.gpu_z && file.shards(None)?.len() > 1 {
        let path = file.path.display();
        bail!("{path}: a log of several sessions cannot be replayed in time; read it as it is");
    }
    if paced {
        return Ok(std::iter::once(file.header_end..file.length()?).collect());
    }
    let bytes = file.identity.bytes;
    let largest = (bytes.div_ceil(SHARDS_MAX) > 32 << 20).then(|| bytes.div_ceil(SHARDS_MAX));
    Ok(file.shards(largest)?)
}

/// How a file is replayed: from now on, and from its first instant.
pub(crate) fn replay(file: &CsvFile, speed_milli: u64, looped: bool) -> anyhow::Result<Replay> {
    let path = file.path.display();
    let (first, last) =
        file.span()?.with_context(|| format!("{path}: no row has a time to replay by"))?;
    // One more second, so that a new round does not begin in the instant the last one ended.
    let span_ms = last.as_millis() - first.as_millis() + 1000;
    Ok(Replay { speed_milli, looped, wall_start: Timestamp::now(), source_start: first, span_ms })
}
