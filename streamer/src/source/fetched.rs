//! CSV files that lie on web servers: fetched to a folder first, for what was read must be there to
//! be read again, then read as any file.
//!
//! A copy is named by its URL and its content. So whoever reads a registered source finds the very
//! bytes that were registered, or fetches them; other bytes are refused. What nobody reads any more
//! is removed, and so is what was kept of standard input.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use nexus_common::keyspace::{Mapping, SourceKind};
use tokio_util::sync::CancellationToken;
use ureq::{Agent, Body, http::Response};
use xxhash_rust::xxh3::xxh3_64;

use super::{CsvFile, FileError, FileIdentity, file::identity, named, scrape::fetch};
use crate::register::fingerprint;

/// How long a server may be silent: longer than a disk that was asleep takes.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a file that breaks off is gone on with, and the pause before it.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks whether the process shall end.
const LOOK: Duration = Duration::from_millis(50);
/// Most servers that send us on: one for the name, one for the store behind it, and room.
const REDIRECTS_MAX: u32 = 5;
/// What of a body is read at once, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Least time between two log lines about one file.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A part that nobody wrote to for so long is of a process that died; a copy of that age is of no
/// source that is only about to be registered.
const AGE_MIN: Duration = Duration::from_secs(3600);

/// Why a file on a web server is not here.
#[derive(Debug, thiserror::Error)]
pub enum FetchFileError {
    /// No file.
    #[error("fetch {url}: it answered {status}")]
    Status {
        /// Where.
        url: String,
        /// What was answered.
        status: u16,
    },
    /// No answer.
    #[error("fetch {0}")]
    Http(String, #[source] Box<ureq::Error>),
    /// No authorities to check it with.
    #[error("fetch {0}: read the authorities (--fetch-ca-file)")]
    Authorities(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// More than may be.
    #[error("fetch {url}: it has more than {bytes_max} bytes (--fetch-bytes-max)")]
    Large {
        /// Where.
        url: String,
        /// The limit.
        bytes_max: u64,
    },
    /// It breaks off whenever it is asked for.
    #[error("fetch {url}: it broke off {TRIES} times, at byte {at} at last")]
    Broken {
        /// Where.
        url: String,
        /// How far it came.
        at: u64,
        /// How it broke off.
        #[source]
        source: io::Error,
    },
    /// It cannot be written down.
    #[error("keep {url} in {folder} (--spool-dir)")]
    Keep {
        /// Where from.
        url: String,
        /// Where to.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process ends.
    #[error("fetch {0}: told to stop")]
    Stopped(String),
}

/// Whether a path is a URL.
pub(crate) fn is_url(path: &str) -> bool {
    path.starts_with("http://") || path.starts_with("https://")
}

/// What the name of a URL's file is: without what was asked of the server.
pub(crate) fn file_name(url: &str) -> &Path {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    Path::new(url.get(..end).unwrap_or(url))
}

/// Copies of files on web servers, in a folder that processes may share.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) folder: PathBuf,
    pub(crate) ca_file: PathBuf,
    pub(crate) bytes_max: u64,
    /// Fetching ends when the process shall.
    pub(crate) stop: CancellationToken,
    /// One of ours fetches a URL at a time; the others find its copy.
    pub(crate) busy: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

/// A body that is on its way, and what tells that a later part is of the same one.
struct Coming {
    response: Response<Body>,
    /// Whether it begins where we were.
    goes_on: bool,
}

impl Fetched {
    /// Opens what is at a path, or a copy of what is at a URL as it is now. Blocking.
    ///
    /// # Errors
    /// Names the path, or the URL and what was answered.
    pub(crate) fn open(
        &self,
        path: &str,
        mapping: Option<Box<Mapping>>,
    ) -> Result<CsvFile, FileError> {
        if !is_url(path) {
            return CsvFile::open_as(Path::new(path), mapping);
        }
        let busy = self.busy(path);
        let _alone = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let (copy, _) = self.fetch(path)?;
        CsvFile::open_as(&copy, mapping).map_err(|error| {
            // What is no CSV is asked for again: no pile of it shall grow.
            let _ = std::fs::remove_file(&copy);
            error.of(path)
        })
    }

    /// Likewise of a file that is registered: from the copy that is here, or one that is fetched
    /// now. Blocking.
    ///
    /// # Errors
    /// As there, and when it is another file by now.
    pub(crate) fn open_same(
        &self,
        path: &str,
        bytes: u64,
        registered: &str,
        mapping: Option<Box<Mapping>>,
    ) -> Result<CsvFile, FileError> {
        let local = self.same(path, bytes, registered)?;
        let file = CsvFile::open_as(&local, mapping).map_err(|error| error.of(path))?;
        if file.identity.bytes == bytes && fingerprint(&file.identity) == registered {
            return Ok(file);
        }
        let is = file.identity.bytes;
        Err(FileError::Changed { path: PathBuf::from(path), was: bytes, is })
    }

    /// The file itself, or a copy of the one that is registered.
    fn same(&self, path: &str, bytes: u64, registered: &str) -> Result<PathBuf, FileError> {
        if !is_url(path) {
            return Ok(PathBuf::from(path));
        }
        let busy = self.busy(path);
        let _alone = busy.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = self.copy(path, bytes, registered);
        if copy.exists() {
            return Ok(copy);
        }
        let (found, is) = self.fetch(path)?;
        if found == copy {
            return Ok(copy);
        }
        // Nobody asked for these bytes.
        let _ = std::fs::remove_file(&found);
        Err(FileError::Changed { path: PathBuf::from(path), was: bytes, is: is.bytes })
    }

    fn busy(&self, url: &str) -> Arc<Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(busy.entry(url.to_owned()).or_default())
    }

    fn copy(&self, url: &str, bytes: u64, known: &str) -> PathBuf {
        let of = xxh3_64(url.as_bytes());
        self.folder.join(format!("fetched-{of:016x}-{bytes}-{known}.csv"))
    }

    /// Fetches it: its copy, and what it is.
    fn fetch(&self, url: &str) -> Result<(PathBuf, FileIdentity), FetchFileError> {
        let keep = |source| FetchFileError::Keep {
            url: url.to_owned(),
            folder: self.folder.clone(),
            source,
        };
        let of = xxh3_64(url.as_bytes());
        let part = self.folder.join(format!(".fetched-{of:016x}-{}.part", std::process::id()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&part)
            .map_err(keep)?;
        let kept = self.fill(url, &mut file).and_then(|()| {
            file.sync_all().map_err(keep)?;
            let is = identity(&mut file).map_err(keep)?;
            let copy = self.copy(url, is.bytes, &fingerprint(&is));
            std::fs::rename(&part, &copy).map_err(keep)?;
            File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(keep)?;
            Ok((copy, is))
        });
        if kept.is_err() {
            let _ = std::fs::remove_file(&part); // it may not even have been made
        }
        kept
    }

    /// Removes what was kept of files that are `read`, unless it is of one that is `unread`, too.
    /// Only what is known to be read: the folder may be shared with somebody else's streamers.
    /// Blocking.
    pub(crate) fn clear_away(&self, read: &[SourceKind], unread: &[SourceKind]) {
        self.sweep();
        let needed: BTreeSet<_> = unread.iter().filter_map(|kind| self.kept(kind)).collect();
        let spent: BTreeSet<_> = read.iter().filter_map(|kind| self.kept(kind)).collect();
        for path in spent.difference(&needed).filter(|path| is_old(path)) {
            match std::fs::remove_file(path) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), "removed: nobody reads it any more")
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot be removed"),
            }
        }
    }

    /// Removes what processes left half fetched, or half read from standard input, that died.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_ours = name.starts_with(".fetched-") || name.starts_with(".stdin-");
            if is_ours && name.ends_with(".part") && is_old(&entry.path()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The file that was made here for a source to be read from, if it is of that kind.
    fn kept(&self, kind: &SourceKind) -> Option<PathBuf> {
        let SourceKind::Csv { path, bytes, fingerprint, .. } = kind else { return None };
        if is_url(path) {
            return Some(self.copy(path, *bytes, fingerprint));
        }
        let path = PathBuf::from(path);
        let is_spooled = path.parent() == Some(&self.folder) && named::is_spooled(&path);
        is_spooled.then_some(path)
    }

    fn agent(&self, url: &str) -> Result<Agent, FetchFileError> {
        let authorities =
            |error: fetch::FetchError| FetchFileError::Authorities(url.to_owned(), Box::new(error));
        let secured = url.starts_with("https://");
        let ca_file = self.ca_file.display().to_string();
        let tls = fetch::tls(secured.then_some(ca_file.as_str())).map_err(authorities)?;
        Ok(Agent::config_builder()
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("nexus-streamer/", env!("CARGO_PKG_VERSION")))
            .max_redirects(REDIRECTS_MAX)
            .https_only(secured)
            .http_status_as_error(false)
            .proxy(None)
            .tls_config(tls.build())
            .build()
            .new_agent())
    }

    /// Writes all of it, from where it broke off if the server can say that it still is the same.
    fn fill(&self, url: &str, file: &mut File) -> Result<(), FetchFileError> {
        let agent = self.agent(url)?;
        let (mut at, mut same): (u64, Option<String>) = (0, None);
        let mut tries = 0;
        loop {
            let coming = ask(&agent, url, at, same.as_deref());
            let broken = match coming {
                Ok(Coming { mut response, goes_on }) => {
                    if !goes_on {
                        (at, same) = (0, validator(&response));
                        let cut = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
                        cut.map_err(|source| self.keep_error(url, source))?;
                    }
                    match self.pour(url, &mut response, file, &mut at)? {
                        None => return Ok(()),
                        Some(broken) => broken,
                    }
                }
                // One that never answered is told as it is; one that broke off may be back soon.
                Err(FetchFileError::Http(_, error)) if tries > 0 => io::Error::other(error),
                Err(error) => return Err(error),
            };
            tries += 1;
            if tries >= TRIES {
                return Err(FetchFileError::Broken { url: url.to_owned(), at, source: broken });
            }
            tracing::warn!(url, at, error = %broken, "a file broke off, going on with it");
            self.pause(url)?;
        }
    }

    /// Writes what comes to the file; how it broke off, if it did.
    fn pour(
        &self,
        url: &str,
        response: &mut Response<Body>,
        file: &mut File,
        at: &mut u64,
    ) -> Result<Option<io::Error>, FetchFileError> {
        let large = || FetchFileError::Large { url: url.to_owned(), bytes_max: self.bytes_max };
        let all = response.body().content_length().map(|rest| at.saturating_add(rest));
        if all.is_some_and(|all| all > self.bytes_max) {
            return Err(large());
        }
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut piece = vec![0; PIECE_BYTES];
        let mut told = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return Err(FetchFileError::Stopped(url.to_owned()));
            }
            let got = match reader.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(got) => piece.get(..got).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error)),
            };
            *at += got.len() as u64;
            if *at > self.bytes_max {
                return Err(large());
            }
            file.write_all(got).map_err(|source| self.keep_error(url, source))?;
            if told.elapsed() > TELL_EVERY {
                told = Instant::now();
                tracing::info!(url, bytes = *at, of = all, "fetching");
            }
        }
    }

    fn keep_error(&self, url: &str, source: io::Error) -> FetchFileError {
        FetchFileError::Keep { url: url.to_owned(), folder: self.folder.clone(), source }
    }

    fn pause(&self, url: &str) -> Result<(), FetchFileError> {
        let since = Instant::now();
        while since.elapsed() < PAUSE {
            if self.stop.is_cancelled() {
                return Err(FetchFileError::Stopped(url.to_owned()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Whether nobody wrote to it for long; not if it is not there.
fn is_old(path: &Path) -> bool {
    let written = std::fs::metadata(path).and_then(|is| is.modified()).ok();
    let age = written.and_then(|at| SystemTime::now().duration_since(at).ok());
    age.is_some_and(|age| age > AGE_MIN)
}

/// Asks for all of it, or for what is behind byte `at` if it still is the `same`.
fn ask(agent: &Agent, url: &str, at: u64, same: Option<&str>) -> Result<Coming, FetchFileError> {
    let mut request = agent.get(url);
    if let Some(same) = same.filter(|_| at > 0) {
        request = request.header("Range", format!("bytes={at}-")).header("If-Range", same);
    }
    let response =
        request.call().map_err(|error| FetchFileError::Http(url.to_owned(), Box::new(error)))?;
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    let from_there = range.is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
    match response.status().as_u16() {
        200 => Ok(Coming { response, goes_on: false }),
        206 if from_there => Ok(Coming { response, goes_on: true }),
        status => Err(FetchFileError::Status { url: url.to_owned(), status }),
    }
}

/// What a server knows this very content by (RFC 9110, 13.1.5): a weak one would not do.
fn validator(response: &Response<Body>) -> Option<String> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let tag = header("etag").filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| header("last-modified")).map(str::to_owned)
}
