//! One line of an exposition: Prometheus' text format 0.0.4 or OpenMetrics 1.0.

use memchr::{memchr, memchr2};

/// Which of the two formats, by the answer's content type: they differ in what times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Times are whole milliseconds.
    Text,
    /// Times are seconds, with a fraction.
    OpenMetrics,
}

impl Format {
    /// By the content type of an answer; without one it is the older format.
    pub fn of(content_type: &str) -> Self {
        let open = content_type.trim_start().starts_with("application/openmetrics-text");
        if open { Self::OpenMetrics } else { Self::Text }
    }
}

/// A line that holds a sample: the bytes that name its series, and what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line<'a> {
    /// `name` or `name{labels}`, as it stands there.
    pub series: &'a [u8],
    /// What was measured; NaN and infinities as they are.
    pub value: f64,
    /// Milliseconds since the epoch, if the exporter says when.
    pub at: Option<i64>,
}

/// Why a line holds no sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Labels without an end, or a name alone.
    #[error("no value behind the series")]
    NoValue,
    /// The value is no number.
    #[error("the value is not a number")]
    Value,
    /// The time is no number, or behind it stands something else.
    #[error("the time is not a number, or something stands behind it")]
    Time,
}

/// Reads a line without its line feed; none if it is blank or a comment. `expected` are the series'
/// bytes that stood there last time: where they stand again, nobody looks for their end.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse_line<'a>(
    line: &'a [u8],
    expected: &[u8],
    format: Format,
) -> Result<Option<Line<'a>>, LineError> {
    let known = !expected.is_empty()
        && line.starts_with(expected)
        && line.get(expected.len()).is_some_and(u8::is_ascii_whitespace);
    let (line, end) = if known {
        (line, expected.len())
    } else {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(None);
        }
        (line, series_end(line).ok_or(LineError::NoValue)?)
    };
    let (series, rest) = line.split_at(end);
    // An exemplar says how a value came about; it is no sample.
    let rest = match memchr(b'#', rest) {
        Some(at) => rest.split_at(at).0,
        None => rest,
    };
    let mut words = rest.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let value = words.next().ok_or(LineError::NoValue)?;
    let value = number(value).ok_or(LineError::Value)?;
    let at = words.next().map(|word| time(word, format).ok_or(LineError::Time)).transpose()?;
    if words.next().is_some() {
        return Err(LineError::Time);
    }
    Ok(Some(Line { series: series.trim_ascii_end(), value, at }))
}

/// Where the value's part begins. Quotes may hold anything, a brace and a blank included.
fn series_end(line: &[u8]) -> Option<usize> {
    let brace = line.iter().position(|b| *b == b'{' || b.is_ascii_whitespace())?;
    // A blank may stand between the name and its labels.
    let blanks = line.get(brace..)?.iter().position(|b| !b.is_ascii_whitespace())?;
    if line.get(brace + blanks) != Some(&b'{') {
        return Some(brace);
    }
    let mut at = brace + blanks + 1;
    loop {
        at += memchr2(b'"', b'}', line.get(at..)?)?;
        if line.get(at) == Some(&b'}') {
            return Some(at + 1);
        }
        at += 1;
        loop {
            at += memchr2(b'"', b'\\', line.get(at..)?)?;
            if line.get(at) == Some(&b'"') {
                at += 1;
                break;
            }
            at += 2;
        }
    }
}

fn number(word: &[u8]) -> Option<f64> {
    // Most are short whole numbers: these need no general parser.
    if word.len() <= 15 && word.iter().all(u8::is_ascii_digit) {
        return Some(word.iter().fold(0u64, |n, b| n * 10 + u64::from(b - b'0')) as f64);
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn time(word: &[u8], format: Format) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    match format {
        Format::Text => text.parse().ok(),
        Format::OpenMetrics => {
            let millis = text.parse::<f64>().ok()? * 1000.0;
            (millis.abs() < 9e15).then(|| millis.round() as i64)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(line: &str) -> Result<Option<(String, f64, Option<i64>)>, LineError> {
        let line = parse_line(line.as_bytes(), b"", Format::Text)?;
        Ok(line.map(|l| (String::from_utf8_lossy(l.series).into_owned(), l.value, l.at)))
    }

    #[test]
    fn lines_are_read_as_the_formats_say() {
        let check = |line: &str, series: &str, value: f64, at: Option<i64>| {
            assert_eq!(parsed(line), Ok(Some((series.to_owned(), value, at))), "{line:?}");
        };
        check("a 1", "a", 1.0, None);
        check("a\t-1.59e+09 1700000000123 ", "a", -1.59e9, Some(1_700_000_000_123));
        check("a{b=\"c\"} 0", "a{b=\"c\"}", 0.0, None);
        check("a {b=\"c\"} 7", "a {b=\"c\"}", 7.0, None);
        check("a{b=\"}\\\" 1\",} +Inf", "a{b=\"}\\\" 1\",}", f64::INFINITY, None);
        check("a{} 1 # {id=\"7\"} 0.5 12", "a{}", 1.0, None);
        check("a 9223372036854775794\r", "a", 9_223_372_036_854_775_808.0, None);
        assert!(parsed("a NaN").unwrap().unwrap().1.is_nan());
        for nothing in ["", "  ", "# HELP a b", "#", "# EOF"] {
            assert_eq!(parsed(nothing), Ok(None), "{nothing:?}");
        }
        let wrong = |line: &str, error| assert_eq!(parsed(line), Err(error), "{line:?}");
        wrong("a", LineError::NoValue);
        wrong("a{b=\"c\" 1", LineError::NoValue);
        wrong("a{b=\"c", LineError::NoValue);
        wrong("a{b=\"c\\", LineError::NoValue);
        wrong("a x", LineError::Value);
        wrong("a 1 x", LineError::Time);
        wrong("a 1 2 3", LineError::Time);
    }

    #[test]
    fn seconds_of_openmetrics_become_milliseconds() {
        let line = parse_line(b"a 1 1700000000.1234", b"", Format::OpenMetrics).unwrap().unwrap();
        assert_eq!(line.at, Some(1_700_000_000_123));
        assert_eq!(Format::of("application/openmetrics-text; version=1.0.0"), Format::OpenMetrics);
        assert_eq!(Format::of("text/plain; version=0.0.4"), Format::Text);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_and_what_was_there_before_changes_nothing(
            line in proptest::collection::vec(any::<u8>(), 0..60),
            text in "[a-c]{1,2}(\\{[ab=\"\\\\},]{0,12}\\})? [0-9.e+-]{1,6}( [0-9]{1,4})?",
        ) {
            for line in [line.as_slice(), text.as_bytes()] {
                let fresh = parse_line(line, b"", Format::Text);
                if let Ok(Some(found)) = fresh {
                    let again = parse_line(line, found.series, Format::Text);
                    prop_assert_eq!(again.unwrap().unwrap().series, found.series);
                }
            }
        }
    }
}
