//! The wall clock of one thread, tied to its runtime's clock: where time is stopped, dates and
//! buckets move with it.

use std::cell::Cell;

use tokio::time::Instant;

use crate::model::Timestamp;

thread_local! {
    static TIED: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
}

/// From now on it is `at` on this thread, and later as the runtime's clock goes on.
pub fn tie(at: Timestamp) {
    TIED.set(Some((Instant::now(), at)));
}

/// Back to the real clock.
pub fn untie() {
    TIED.set(None);
}

/// The time, if it is tied.
pub(crate) fn now() -> Option<Timestamp> {
    TIED.get().map(|(since, at)| {
        let passed = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::saturating_from_millis(at.as_millis().saturating_add(passed))
    })
}
