//! The thread of the library: opens it, notices GPUs that come and go, waits for XIDs.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nexus_common::model::SourceId;
use nvml_wrapper::{
    Device, EventSet, Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{seat::Seat, told::now};

/// The library where nothing else is said.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// How long opening may take: a driver that has to wake eight GPUs needs many seconds.
const OPEN_MAX: Duration = Duration::from_secs(60);
/// Between two looks at which GPUs there are; also how long XIDs are waited for at a time.
const LOOK: Duration = Duration::from_millis(500);
/// Longest that a look may take: waking the events of eight GPUs takes a second or two.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Where the kernel's driver lists its GPUs; not there where it is another system's.
const LISTING: &str = "/proc/driver/nvidia/gpus";
/// What the driver calls an XID that it does not know.
const XID_UNKNOWN: u64 = 999;
/// Most XIDs that wait to be enqueued: hundreds a GPU of one interval.
pub(super) const XIDS_MAX: usize = 4096;

/// Why the library cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It is not there, or there is no driver behind it.
    #[error("open {library}: {error}")]
    Library { library: String, error: NvmlError },
    #[error("open {library}: no answer within {} s", OPEN_MAX.as_secs())]
    Hung { library: String },
    /// It was opened before, by a thread that is still in it.
    #[error("open {library}: an earlier call has not come back")]
    Busy { library: String },
    #[error("start a thread for {library}")]
    Thread { library: String, source: std::io::Error },
}

/// An XID error that a GPU had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Xid {
    pub(super) uuid: String,
    /// Milliseconds since the epoch.
    pub(super) at: i64,
    pub(super) xid: u64,
}

/// What the thread and who asks GPUs tell each other.
#[derive(Debug)]
pub(super) struct Shared {
    /// GPUs that have answered: only these are asked for XIDs, because asking one that hangs would
    /// keep the others' from being told.
    pub(super) answering: Mutex<BTreeSet<u32>>,
    /// GPUs whose XIDs are waited for.
    pub(super) watched: Mutex<BTreeSet<u32>>,
    /// There are other GPUs than when the library was opened.
    pub(super) changed: AtomicBool,
    /// When the thread was last seen outside the library.
    looked: Mutex<Instant>,
    /// XIDs for which there was no room, or of GPUs that could not be named.
    pub(super) dropped: AtomicU64,
}

impl Shared {
    fn new() -> Self {
        Self {
            answering: Mutex::default(),
            watched: Mutex::default(),
            changed: AtomicBool::default(),
            looked: Mutex::new(Instant::now()),
            dropped: AtomicU64::default(),
        }
    }

    /// Whether the thread does not come back from the library.
    pub(super) fn hangs(&self) -> bool {
        self.looked.lock().is_ok_and(|at| at.elapsed() > LOOK_MAX)
    }
}

/// The library, open until this is dropped.
#[derive(Debug)]
pub(super) struct Opened {
    /// The thread holds it, so that it is closed there.
    pub(super) nvml: Weak<Nvml>,
    pub(super) count: u32,
    pub(super) driver: String,
    pub(super) shared: Arc<Shared>,
    pub(super) xids: mpsc::Receiver<Xid>,
    _stop: Sender<()>,
}

/// What a thread has found when it has opened the library.
type Found = (Weak<Nvml>, u32, String);

/// How the library is called in what is told.
fn called(library: Option<&Path>) -> String {
    library.map_or_else(|| LIBRARY.to_owned(), |path| path.display().to_string())
}

/// Whether the library can be opened, for who would rather know than wait.
///
/// # Errors
/// Says why not.
pub(crate) async fn probe(source: &SourceId, library: Option<PathBuf>) -> Result<u32, OpenError> {
    open(source, library).await.map(|opened| opened.count)
}

/// Opens the library, on a thread of its own.
pub(super) async fn open(source: &SourceId, library: Option<PathBuf>) -> Result<Opened, OpenError> {
    let called = called(library.as_deref());
    let Some(seat) = sit_down(source).await else {
        return Err(OpenError::Busy { library: called });
    };
    let shared = Arc::new(Shared::new());
    let (tell, xids) = mpsc::channel(XIDS_MAX);
    let (stop, stopped) = channel();
    let (found, finding) = oneshot::channel();
    let known = Arc::clone(&shared);
    let run = move || {
        keep(library.as_deref(), found, &known, &tell, &stopped);
        drop(seat);
    };
    if let Err(source) = thread::Builder::new().name("nvml".to_owned()).spawn(run) {
        return Err(OpenError::Thread { library: called, source });
    }
    match timeout(OPEN_MAX, finding).await {
        Ok(Ok(Ok((nvml, count, driver)))) => {
            Ok(Opened { nvml, count, driver, shared, xids, _stop: stop })
        }
        Ok(Ok(Err(error))) => Err(OpenError::Library { library: called, error }),
        // It ended without a word, or has not come back.
        Ok(Err(_)) | Err(_) => Err(OpenError::Hung { library: called }),
    }
}

/// The seat, when whoever was there has left: they look up every now and then.
async fn sit_down(source: &SourceId) -> Option<Seat> {
    let since = Instant::now();
    loop {
        let seat = Seat::take(source, None);
        if seat.is_some() || since.elapsed() > 4 * LOOK {
            return seat;
        }
        sleep(LOOK / 20).await;
    }
}

fn keep(
    library: Option<&Path>,
    found: oneshot::Sender<Result<Found, NvmlError>>,
    shared: &Shared,
    tell: &mpsc::Sender<Xid>,
    stopped: &Receiver<()>,
) {
    let opened = init(library).and_then(|nvml| {
        let count = nvml.device_count()?;
        // Only a text beside what is measured.
        let driver = nvml.sys_driver_version().unwrap_or_default();
        Ok((Arc::new(nvml), count, driver))
    });
    match opened {
        Ok((nvml, count, driver)) => {
            if found.send(Ok((Arc::downgrade(&nvml), count, driver))).is_ok() {
                watch(&nvml, count, shared, tell, stopped);
            }
        }
        Err(error) => {
            let _ = found.send(Err(error)); // whoever asked may have left
        }
    }
}

fn init(library: Option<&Path>) -> Result<Nvml, NvmlError> {
    match library {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Nvml::builder().lib_path(OsStr::new(LIBRARY)).init(),
    }
}

/// Looks and waits, until told to stop.
fn watch(
    nvml: &Nvml,
    count: u32,
    shared: &Shared,
    tell: &mpsc::Sender<Xid>,
    stopped: &Receiver<()>,
) {
    let listed = listing();
    let mut set: Option<EventSet<'_>> = None;
    let mut registered = BTreeSet::new();
    let mut names = Names::new();
    let mut failed = false;
    loop {
        if let Ok(mut at) = shared.looked.lock() {
            *at = Instant::now();
        }
        // An error is a change, too: the driver has gone.
        if nvml.device_count().ok() != Some(count) || listing() != listed {
            shared.changed.store(true, Relaxed);
        }
        let wanted = shared.answering.lock().map(|all| all.clone()).unwrap_or_default();
        // One that answers no more stays: its last word may be on its way.
        if !wanted.is_subset(&registered) {
            drop(set.take()); // two sets of one GPU would both be told
            let (fresh, watched, named) = register(nvml, &wanted);
            (set, names) = (fresh, named);
            registered = wanted;
            if let Ok(mut told) = shared.watched.lock() {
                *told = watched;
            }
        }
        let began = Instant::now();
        let waited = set.as_ref().map_or(Ok(false), |set| wait(set, &names, shared, tell));
        // Whoever waited for nothing, or not at all, waits here.
        let pause = match waited {
            Ok(true) => Duration::ZERO,
            Ok(false) => LOOK.saturating_sub(began.elapsed()),
            Err(ref error) => {
                if !failed {
                    tracing::warn!(%error, "XIDs cannot be waited for, trying again");
                }
                set = None;
                registered.clear();
                LOOK
            }
        };
        failed = waited.is_err();
        match stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The GPUs that the kernel's driver has; none where it does not say.
fn listing() -> BTreeSet<std::ffi::OsString> {
    let entries = std::fs::read_dir(LISTING).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name())).collect()
}

/// Takes an XID if one comes soon; whether something came.
fn wait(
    set: &EventSet<'_>,
    names: &Names,
    shared: &Shared,
    tell: &mpsc::Sender<Xid>,
) -> Result<bool, NvmlError> {
    let event = match set.wait(LOOK.as_millis() as u32) {
        Ok(event) => event,
        Err(NvmlError::Timeout) => return Ok(false),
        Err(error) => return Err(error),
    };
    let xid = match event.event_data {
        Some(XidError::Value(xid)) => xid,
        Some(XidError::Unknown) => XID_UNKNOWN,
        None => return Ok(true),
    };
    let told = names.get(&handle(&event.device)).is_some_and(|uuid| {
        let xid = Xid { uuid: uuid.clone(), at: now(), xid };
        tell.try_send(xid).is_ok()
    });
    if !told {
        shared.dropped.fetch_add(1, Relaxed);
    }
    Ok(true)
}

/// UUIDs of GPUs, by [`handle`].
type Names = BTreeMap<String, String>;

/// What tells GPUs apart without asking them: one that has an XID may be past answering. The handle
/// itself is only given to code that may do anything with it.
fn handle(gpu: &Device<'_>) -> String {
    format!("{gpu:?}")
}

/// A set of the XIDs of these GPUs, which of them, and how they are named. One that cannot be
/// registered takes the set with it, so another is begun without.
fn register<'n>(
    nvml: &'n Nvml,
    wanted: &BTreeSet<u32>,
) -> (Option<EventSet<'n>>, BTreeSet<u32>, Names) {
    let kind = EventTypes::CRITICAL_XID_ERROR;
    let has = |index: &u32| {
        let types = nvml.device_by_index(*index).and_then(|gpu| gpu.supported_event_types());
        types.is_ok_and(|types| types.contains(kind))
    };
    let mut able: BTreeSet<u32> = wanted.iter().copied().filter(has).collect();
    // Each round that fails leaves one out.
    while !able.is_empty() {
        match register_all(nvml, &able, kind) {
            Ok((set, names)) => return (Some(set), able, names),
            Err((Some(index), error)) => {
                tracing::warn!(gpu = index, error, "no XIDs of this GPU are told");
                able.remove(&index);
            }
            Err((None, error)) => {
                tracing::warn!(error, "no XIDs are told");
                break;
            }
        }
    }
    (None, BTreeSet::new(), Names::new())
}

/// A set of all of these GPUs, or which of them cannot be in one.
fn register_all<'n>(
    nvml: &'n Nvml,
    able: &BTreeSet<u32>,
    kind: EventTypes,
) -> Result<(EventSet<'n>, Names), (Option<u32>, String)> {
    let mut set = nvml.create_event_set().map_err(|error| (None, error.to_string()))?;
    let mut names = Names::new();
    for index in able {
        let refused = |error: String| (Some(*index), error);
        let gpu = nvml.device_by_index(*index).map_err(|error| refused(error.to_string()))?;
        let uuid = gpu.uuid().map_err(|error| refused(error.to_string()))?;
        let with = gpu.register_events(kind, set);
        set = with.map_err(|error| refused(error.to_string()))?;
        names.insert(handle(&gpu), uuid);
    }
    Ok((set, names))
}
