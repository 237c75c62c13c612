//! How fast a client may send. Pure.

use std::time::Instant;

/// Frames a client may send in a second, in the long run: pings and requests.
pub const FRAMES_PER_SECOND: u32 = 20;
/// Frames it may send at once: a page that subscribes to all it shows, twice.
pub const BURST_MAX: u32 = 128;

/// How many frames a client may still send: as many as time allows, up to a burst.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    /// A whole burst.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: f64::from(BURST_MAX), at: now }
    }

    /// Whether one more is allowed.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let earned = (now - self.at).as_secs_f64() * f64::from(FRAMES_PER_SECOND);
        self.left = (self.left + earned).min(f64::from(BURST_MAX));
        self.at = now;
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_as_much_as_time_allows() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let taken = (0..1000).filter(|_| pace.take(begin)).count();
        assert_eq!(taken, BURST_MAX as usize);
        let later = begin + Duration::from_millis(500);
        let taken = (0..1000).filter(|_| pace.take(later)).count();
        assert_eq!(taken, FRAMES_PER_SECOND as usize / 2);
        let taken = (0..1000).filter(|_| pace.take(later + Duration::from_secs(60))).count();
        assert_eq!(taken, BURST_MAX as usize);
    }
}
