//! Time of a row: read once for a run of equal texts, moved for a paced replay.

use nexus_common::model::Timestamp;

/// Last millisecond of the year 2200: later (or before 1970) is a wrong unit or a broken clock.
const LATEST: i64 = 7_289_654_399_999;
/// Longest text worth remembering, in bytes: RFC 3339 with nanoseconds and offset has 35.
const TEXT_MAX: usize = 64;

/// Reads RFC 3339, or `YYYY-MM-DD HH:MM:SS[.fff]` as UTC (how DCGM tools print it), from 1970
/// to 2200.
pub fn parse_timestamp(text: &[u8]) -> Option<Timestamp> {
    parse_local(text, 0)
}

/// Likewise, where a time that does not say its zone is so many milliseconds east of UTC.
pub(crate) fn parse_local(text: &[u8], east_ms: i64) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if text.len() > TEXT_MAX {
        return None;
    }
    let parsed = text.parse::<Timestamp>().ok().or_else(|| {
        let plain = text.as_bytes().get(10) == Some(&b' ') && text.len() >= 19;
        let at: Timestamp = plain.then(|| format!("{text}Z").parse().ok()).flatten()?;
        Timestamp::from_millis(at.as_millis().checked_sub(east_ms)?).ok()
    })?;
    (0..=LATEST).contains(&parsed.as_millis()).then_some(parsed)
}

/// Moves source time to the wall clock, for a replay that looks live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restamp {
    /// Source time that `wall_start` stands for, in milliseconds since the epoch.
    pub source_start: i64,
    /// Wall time of that instant, in milliseconds since the epoch.
    pub wall_start: i64,
    /// Source seconds a thousand wall seconds: 1000 is real time, 10000 ten times as fast. 0
    /// counts as 1.
    pub speed_milli: u64,
}

impl Restamp {
    /// Wall time of `source`, in milliseconds, clamped to 1970..=2200.
    pub fn apply(&self, source: i64) -> i64 {
        let elapsed = i128::from(source) - i128::from(self.source_start);
        let scaled = (elapsed * 1000).div_euclid(i128::from(self.speed_milli.max(1)));
        let wall = (i128::from(self.wall_start) + scaled).clamp(0, i128::from(LATEST));
        // Clamped above, so it fits.
        wall as i64
    }
}

/// Reads timestamps, remembering the last: most rows repeat the text of the one before.
#[derive(Debug, Default)]
pub(super) struct Clock {
    restamp: Option<Restamp>,
    east_ms: i64,
    text: Vec<u8>,
    last: Option<Stamped>,
}

/// One instant: as the source has it, and as it is stored. Milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamped {
    pub(super) source: i64,
    pub(super) stored: i64,
}

impl Clock {
    /// For times that are so many milliseconds east of UTC where they do not say it.
    pub(super) fn east(east_ms: i64) -> Self {
        Self { east_ms, ..Self::default() }
    }

    pub(super) fn restamp(&mut self, restamp: Restamp) {
        self.restamp = Some(restamp);
        self.last = None;
    }

    pub(super) fn read(&mut self, text: &[u8]) -> Option<Stamped> {
        if self.last.is_some() && self.text == text {
            return self.last;
        }
        let source = parse_local(text, self.east_ms)?.as_millis();
        let stored = self.restamp.map_or(source, |r| r.apply(source));
        self.text.clear();
        self.text.extend_from_slice(text);
        self.last = Some(Stamped { source, stored });
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_nothing_else() {
        let check = |text: &str, millis: Option<i64>| {
            assert_eq!(
                parse_timestamp(text.as_bytes()).map(Timestamp::as_millis),
                millis,
                "{text}"
            );
        };
        check("2025-07-18T20:42:34Z", Some(1_752_871_354_000));
        check("2025-07-18T22:42:34.250+02:00", Some(1_752_871_354_250));
        check("2025-07-18 20:42:34", Some(1_752_871_354_000));
        check("2025-07-18 20:42:34.5", Some(1_752_871_354_500));
        check(" 2025-07-18T20:42:34Z ", Some(1_752_871_354_000));
        check("1970-01-01T00:00:00Z", Some(0));
        check("2200-12-31T23:59:59.999Z", Some(LATEST));
        for wrong in ["", "1752871354", "2025-07-18", "2025-07-18T20:42", "1969-12-31T23:59:59Z"] {
            check(wrong, None);
        }
        check("2201-01-01T00:00:00Z", None);
        assert_eq!(parse_timestamp(b"\xff\xfe"), None);
    }

    #[test]
    fn restamping_scales_and_never_overflows() {
        let restamp = Restamp { source_start: 1000, wall_start: 50_000, speed_milli: 10_000 };
        assert_eq!(restamp.apply(1000), 50_000);
        assert_eq!(restamp.apply(2000), 50_100);
        assert_eq!(restamp.apply(0), 49_900);
        let slow = Restamp { source_start: i64::MIN, wall_start: i64::MAX, speed_milli: 0 };
        assert_eq!(slow.apply(i64::MAX), LATEST);
    }

    #[test]
    fn the_remembered_text_is_never_taken_for_another() {
        let mut clock = Clock::default();
        let first = clock.read(b"2025-07-18T20:42:34Z").unwrap();
        assert_eq!(clock.read(b"2025-07-18T20:42:34Z"), Some(first));
        assert_eq!(clock.read(b"garbage"), None);
        assert_eq!(clock.read(b"2025-07-18T20:42:35Z").unwrap().source, first.source + 1000);
        clock.restamp(Restamp { source_start: first.source, wall_start: 7, speed_milli: 1000 });
        assert_eq!(clock.read(b"2025-07-18T20:42:35Z").unwrap().stored, 1007);
    }
}
