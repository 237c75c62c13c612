//! How often one token may ask.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A bucket that fills with a steady rate, kept as one number: the instant at which it is full
/// again, in nanoseconds after `since`.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    every: u64,
    depth: u64,
    full_at: AtomicU64,
}

impl Pace {
    /// `per_second` requests on average, twice as many at once; any number with 0.
    pub(super) fn new(per_second: u32) -> Self {
        let every = 1_000_000_000_u64.checked_div(u64::from(per_second)).unwrap_or(0);
        let depth = every.saturating_mul(2 * u64::from(per_second));
        Self { since: Instant::now(), every, depth, full_at: AtomicU64::new(0) }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// How long to wait until there is one again.
    pub(super) fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.every == 0 {
            return Ok(());
        }
        let since = now.saturating_duration_since(self.since).as_nanos();
        let now = u64::try_from(since).unwrap_or(u64::MAX);
        let mut wait = 0;
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(self.every);
            wait = next.saturating_sub(now).saturating_sub(self.depth);
            (wait == 0).then_some(next)
        });
        taken.map(drop).map_err(|_| Duration::from_nanos(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_rate_at_once_then_the_rate() {
        let pace = Pace::new(10);
        let start = pace.since;
        let taken = (0..100).take_while(|_| pace.take(start).is_ok()).count();
        assert_eq!(taken, 20);
        assert_eq!(pace.take(start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(pace.take(later), Ok(()));
        assert!(pace.take(later).is_err());
        let full = start + Duration::from_secs(60);
        assert_eq!((0..100).take_while(|_| pace.take(full).is_ok()).count(), 20);
    }

    #[test]
    fn without_a_rate_there_is_no_bound() {
        let pace = Pace::new(0);
        assert!((0..1000).all(|_| pace.take(pace.since).is_ok()));
    }
}
