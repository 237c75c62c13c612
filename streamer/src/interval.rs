//! Lengths of time as people write them: `500ms`, `1s`, `2m`, `1h`.

/// Milliseconds.
///
/// # Errors
/// Says how one is written.
pub(crate) fn parse_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a length of time such as 500ms, 1s, 2m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// As it would be written: in the largest unit that leaves a whole number.
pub(crate) fn show_ms(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let whole = units.iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_written_alike() {
        for text in ["1ms", "500ms", "1s", "90s", "2m", "1h", "0ms"] {
            assert_eq!(show_ms(parse_ms(text).unwrap()), text);
        }
        for text in ["", "1", "s", "1.5s", "-1s", "1 s", "1d", "99999999999999999999h"] {
            assert!(parse_ms(text).is_err(), "{text}");
        }
    }
}
