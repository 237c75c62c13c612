//! Crash points: named places at which a process ends itself as `kill -9` would, so that tests
//! can see that whoever comes after loses and doubles nothing.
//!
//! They exist only in builds with the feature `crash-points`, which tests alone have; elsewhere
//! the macros leave no code. `NEXUS_CRASH=enqueue.applied:3` ends the process when it gets to
//! that point for the third time. `docs/RELIABILITY.md` lists them.

/// Ends the process here if `NEXUS_CRASH` says so: `crash_point!("enqueue.applied")`, or
/// `crash_point!(op, "applied")` where several operations share the code.
#[cfg(feature = "crash-points")]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::reached($name)
    };
    ($op:expr, $at:literal) => {
        $crate::crash::reached(&format!("{}.{}", $op, $at))
    };
}

/// Ends the process here if `NEXUS_CRASH` says so; not in this build.
#[cfg(not(feature = "crash-points"))]
#[macro_export]
macro_rules! crash_point {
    ($($name:tt)*) => {};
}

/// The request, during which the process ends if `NEXUS_CRASH` says so: somewhere between not
/// yet sent and answered.
#[cfg(feature = "crash-points")]
#[macro_export]
macro_rules! crash_in_flight {
    ($op:expr, $request:expr) => {
        $crate::crash::in_flight(format!("{}.in_flight", $op), $request)
    };
}

/// The request, during which the process ends if `NEXUS_CRASH` says so; not in this build.
#[cfg(not(feature = "crash-points"))]
#[macro_export]
macro_rules! crash_in_flight {
    ($op:expr, $request:expr) => {
        $request
    };
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::{
        future::Future,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    /// Which point, and at which time of getting there.
    struct Armed {
        name: String,
        at: u64,
        reached: AtomicU64,
    }

    fn armed() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        let read = || {
            let text = std::env::var("NEXUS_CRASH").ok()?;
            let (name, at) = text.rsplit_once(':').unwrap_or((&text, "1"));
            let Ok(at @ 1..) = at.parse() else {
                eprintln!(
                    "NEXUS_CRASH={text} must be a point and a count from 1, as in enqueue.applied:3"
                );
                std::process::exit(64);
            };
            Some(Armed { name: name.to_owned(), at, reached: AtomicU64::new(0) })
        };
        ARMED.get_or_init(read).as_ref()
    }

    fn is_due(name: &str) -> bool {
        armed().is_some_and(|a| a.name == name && a.reached.fetch_add(1, Relaxed) + 1 == a.at)
    }

    fn crash(name: &str) -> ! {
        eprintln!("crash point {name}");
        std::process::abort()
    }

    /// Does not return if this is the point, and the time, that `NEXUS_CRASH` names.
    pub fn reached(name: &str) {
        if is_due(name) {
            crash(name);
        }
    }

    /// Awaits `request`, or the end of the process in the midst of it.
    pub async fn in_flight<T>(name: String, request: impl Future<Output = T>) -> T {
        if is_due(&name) {
            // A commit takes etcd about two milliseconds: different processes end before, within
            // and behind that.
            let within = Duration::from_micros(u64::from(std::process::id() % 16) * 250);
            let _ = tokio::time::timeout(within, request).await; // answered or not, it ends here
            crash(&name);
        }
        request.await
    }
}

#[cfg(feature = "crash-points")]
pub use armed::{in_flight, reached};
