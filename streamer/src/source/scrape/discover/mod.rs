//! Lists of targets that others keep: each is asked for once for all shards of a process, again
//! when it is due, and stays what it was while nobody answers.

mod dns;
mod kubernetes;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nexus_common::keyspace::{
    discover::Discover,
    live::{Scrape, Target},
};

pub(crate) use self::kubernetes::Kubernetes;
use super::{
    fetch::{Access, Client, FetchError},
    target::{FILE_BYTES_MAX, TargetsError, groups},
};

/// How long whoever keeps a list may take, in milliseconds: nothing waits for it.
const TIMEOUT_MS: u64 = 10_000;
/// Most targets of a list: a hundred times what a source is made for.
const TARGETS_MAX: usize = 100_000;
/// Least time between two log lines about one list.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoverError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Format(#[from] TargetsError),
    #[error("look up {name}")]
    Dns {
        name: String,
        #[source]
        error: Box<dns::DnsError>,
    },
    #[error("read the answer of {0}: not a list of EndpointSlices")]
    Slices(String, #[source] serde_json::Error),
    #[error("list endpoints: no API of Kubernetes is known here (--kubernetes-api)")]
    NoApi,
    #[error("it names more than {TARGETS_MAX} targets")]
    Many,
}

/// Who is asked, and how: two sources that ask alike share the answer.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    discover: Discover,
    access: Access,
    key: String,
}

impl Question {
    /// All that a source asks.
    pub(crate) fn of(scrape: &Scrape) -> Vec<Self> {
        let access =
            Access { timeout_ms: TIMEOUT_MS, body_bytes_max: FILE_BYTES_MAX, ..Access::of(scrape) };
        let question = |discover: &Discover| {
            let key = format!("{discover:?} {access:?}");
            Self { discover: discover.clone(), access: access.clone(), key }
        };
        scrape.discover.iter().map(question).collect()
    }
}

/// What is known of a list.
#[derive(Debug, Default)]
struct List {
    targets: Option<Arc<Vec<Target>>>,
    asked: Option<Instant>,
    asking: bool,
    refresh: Duration,
    told: Option<Instant>,
}

impl List {
    fn is_used(&self) -> bool {
        let held = self.targets.as_ref().is_some_and(|targets| Arc::strong_count(targets) > 1);
        held || self.asking || self.asked.is_some_and(|asked| asked.elapsed() < self.refresh * 2)
    }
}

/// All lists of a process.
#[derive(Debug)]
pub(crate) struct Discovered {
    lists: Mutex<HashMap<String, List>>,
    /// How often one of them became another one.
    changes: AtomicU64,
    secrets: PathBuf,
    kubernetes: Option<Kubernetes>,
}

impl Discovered {
    /// None yet. Secrets that are sent lie in `secrets`.
    pub(crate) fn new(secrets: PathBuf, kubernetes: Option<Kubernetes>) -> Self {
        let (lists, changes) = (Mutex::default(), AtomicU64::new(0));
        Self { lists, changes, secrets, kubernetes }
    }

    /// Another number, other lists.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// The list as it was told last: the very same one as long as it does not change.
    pub(crate) fn known(&self, question: &Question) -> Option<Arc<Vec<Target>>> {
        self.lists().get(&question.key).and_then(|list| list.targets.clone())
    }

    /// Takes it on to ask, if it is time and nobody else does.
    pub(crate) fn due(self: &Arc<Self>, question: &Question) -> Option<Asking> {
        let mut lists = self.lists();
        let refresh = Duration::from_millis(question.discover.refresh_ms());
        if !lists.contains_key(&question.key) {
            // Those of sources that went: nobody asks for them, and nobody holds what they told.
            lists.retain(|_, list| list.is_used());
        }
        let list = lists.entry(question.key.clone()).or_default();
        list.refresh = refresh;
        if list.asking || list.asked.is_some_and(|asked| asked.elapsed() < refresh) {
            return None;
        }
        list.asking = true;
        list.asked = Some(Instant::now());
        Some(Asking { of: Arc::clone(self), question: question.clone() })
    }

    /// Nothing in here panics half way.
    fn lists(&self) -> MutexGuard<'_, HashMap<String, List>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocking.
    fn ask(&self, question: &Question) -> Result<Vec<Target>, DiscoverError> {
        let found = match &question.discover {
            Discover::Http(lists) => {
                let client = Client::with(question.access.clone(), &self.secrets)?;
                groups(&client.get(&lists.url)?.0, &lists.url)?
            }
            Discover::Dns(names) => {
                dns::targets(names, Duration::from_millis(TIMEOUT_MS)).map_err(|error| {
                    DiscoverError::Dns { name: names.name.clone(), error: Box::new(error) }
                })?
            }
            Discover::Kubernetes(endpoints) => {
                let api = self.kubernetes.as_ref().ok_or(DiscoverError::NoApi)?;
                api.targets(endpoints, TIMEOUT_MS)?
            }
        };
        if found.len() > TARGETS_MAX {
            return Err(DiscoverError::Many);
        }
        // In an order of our own: the same ones are the same list. One that stands there twice is
        // the last of them, as everywhere.
        let by_url: BTreeMap<String, Target> =
            found.into_iter().map(|target| (target.url.clone(), target)).collect();
        Ok(by_url.into_values().collect())
    }
}

/// A question that somebody took on. Let go of in whatever way, it may be asked again.
pub(crate) struct Asking {
    of: Arc<Discovered>,
    question: Question,
}

impl Asking {
    /// Asks and keeps the answer; what was known stays if there is none. Blocking.
    pub(crate) fn ask(self) {
        let asked = self.of.ask(&self.question);
        let mut lists = self.of.lists();
        let list = lists.entry(self.question.key.clone()).or_default();
        match asked {
            Ok(targets) if list.targets.as_deref() == Some(&targets) => list.told = None,
            Ok(targets) => {
                let discover = &self.question.discover;
                tracing::info!(targets = targets.len(), ?discover, "targets discovered");
                list.targets = Some(Arc::new(targets));
                list.told = None;
                self.of.changes.fetch_add(1, Relaxed);
            }
            Err(error) if list.told.is_none_or(|told| told.elapsed() > TELL_EVERY) => {
                list.told = Some(Instant::now());
                let error = format!("{:#}", anyhow::Error::from(error));
                let known = list.targets.as_ref().map_or(0, |targets| targets.len());
                tracing::warn!(error, known, "targets cannot be discovered, those known stay");
            }
            Err(_) => {}
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(list) = self.of.lists().get_mut(&self.question.key) {
            list.asking = false;
        }
    }
}
