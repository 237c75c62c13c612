//! Time: UTC milliseconds inside, RFC 3339 outside; ingest-time buckets.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An instant: milliseconds since 1970-01-01T00:00:00Z.
///
/// Serialises as RFC 3339 text. Years outside 0001..=9999 cannot be written and are refused on
/// the way in.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

/// Why a text or a number is not a [`Timestamp`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an RFC 3339 time such as 2025-07-18T20:42:34Z")]
pub struct TimestampError(String);

impl Timestamp {
    /// The epoch.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// Earliest instant that RFC 3339 can write.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000);
    /// Latest instant accepted: the end of 9998, so that any zone can still write it.
    pub const MAX: Timestamp = Timestamp(253_370_764_799_999);

    /// From milliseconds since the epoch.
    ///
    /// # Errors
    /// When RFC 3339 could not write it.
    pub fn from_millis(millis: i64) -> Result<Self, TimestampError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&millis) {
            Ok(Self(millis))
        } else {
            Err(TimestampError(format!("{millis} ms")))
        }
    }

    /// Like [`Timestamp::from_millis`], clamped to what can be written.
    pub fn saturating_from_millis(millis: i64) -> Self {
        Self(millis.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The wall clock. Liveness and labels only: no guard rests on it.
    pub fn now() -> Self {
        #[cfg(feature = "testing")]
        if let Some(now) = crate::testing::clock::now() {
            return now;
        }
        Self::saturating_from_millis(jiff::Timestamp::now().as_millisecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let fail = || TimestampError(text.chars().take(64).collect());
        let parsed: jiff::Timestamp = text.trim().parse().map_err(|_| fail())?;
        Self::from_millis(parsed.as_millisecond()).map_err(|_| fail())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;
    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(t: Timestamp) -> String {
        t.to_string()
    }
}

/// An ingest-time bucket: its start, as `20260131T140000Z`. Fixed width, so that keys and
/// etcd's value compares order buckets as time does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BucketId(String);

impl BucketId {
    const FORMAT: &'static str = "%Y%m%dT%H%M%SZ";

    /// The bucket of `bucket_seconds` that holds `at`.
    pub fn holding(at: Timestamp, bucket_seconds: u32) -> Self {
        let width = i64::from(bucket_seconds.max(1)) * 1000;
        Self::starting(at.0.div_euclid(width) * width)
    }

    /// Before every bucket: where the retention floor starts.
    pub fn first() -> Self {
        Self("00000101T000000Z".to_owned())
    }

    fn starting(millis: i64) -> Self {
        let start = Timestamp::saturating_from_millis(millis);
        match jiff::Timestamp::from_millisecond(start.0) {
            Ok(t) => Self(t.strftime(Self::FORMAT).to_string()),
            Err(_) => Self::first(),
        }
    }

    /// When the bucket begins; the epoch for [`BucketId::first`].
    pub fn start(&self) -> Timestamp {
        let parsed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", &self.0[..15]);
        parsed.and_then(|t| t.to_zoned(jiff::tz::TimeZone::UTC)).map_or(Timestamp::EPOCH, |z| {
            Timestamp::saturating_from_millis(z.timestamp().as_millisecond())
        })
    }

    /// The text that stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BucketId {
    type Err = TimestampError;
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let bytes = text.as_bytes();
        let shape = bytes.len() == 16
            && bytes[8] == b'T'
            && bytes[15] == b'Z'
            && bytes.iter().enumerate().all(|(i, b)| i == 8 || i == 15 || b.is_ascii_digit());
        if shape { Ok(Self(text.to_owned())) } else { Err(TimestampError(text.to_owned())) }
    }
}

impl TryFrom<String> for BucketId {
    type Error = TimestampError;
    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl From<BucketId> for String {
    fn from(b: BucketId) -> String {
        b.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_goes_in_and_comes_out() {
        let check = |text: &str, millis: i64, back: &str| {
            let t: Timestamp = text.parse().unwrap();
            assert_eq!(t.as_millis(), millis);
            assert_eq!(t.to_string(), back);
        };
        check("2025-07-18T20:42:34Z", 1_752_871_354_000, "2025-07-18T20:42:34Z");
        check("2025-07-18T22:42:34.5+02:00", 1_752_871_354_500, "2025-07-18T20:42:34.5Z");
        assert!("2025-07-18".parse::<Timestamp>().is_err());
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn buckets_order_as_time_does() {
        let at: Timestamp = "2025-07-18T20:42:34Z".parse().unwrap();
        let hour = BucketId::holding(at, 3600);
        assert_eq!(hour.as_str(), "20250718T200000Z");
        assert_eq!(hour.start().to_string(), "2025-07-18T20:00:00Z");
        assert!(BucketId::first() < hour);
        assert_eq!(BucketId::holding(at, 5).as_str(), "20250718T204230Z");
        assert!("20250718T2042300".parse::<BucketId>().is_err());
    }
}
