//! Lengths of time and zones as people write them: `500ms`, `1s`, `2m`, `1h`; `+02:00`.

/// Milliseconds.
///
/// # Errors
/// Says how one is written.
pub fn parse_ms(text: &str) -> Result<u64, String> {
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
pub fn show_ms(ms: u64) -> String {
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let whole = units.iter().find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

/// Reads how far a zone is east of UTC, such as `+02:00`, in seconds.
///
/// # Errors
/// Says what is allowed.
pub fn parse_offset(text: &str) -> Result<i32, String> {
    let wrong = || format!("{text:?} is not like +02:00 or -05:30");
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => return Err(wrong()),
    };
    let (hours, minutes) = rest.split_once(':').ok_or_else(wrong)?;
    let number = |digits: &str, most: i32| {
        let two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<i32>().ok().filter(|number| two && *number <= most).ok_or_else(wrong)
    };
    Ok(sign * (number(hours, 14)? * 3600 + number(minutes, 59)? * 60))
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

    #[test]
    fn offsets_are_read_and_nothing_else() {
        let check = |text: &str, expected: Option<i32>| {
            assert_eq!(parse_offset(text).ok(), expected, "{text}");
        };
        check("+00:00", Some(0));
        check("+02:00", Some(7200));
        check("-05:30", Some(-19_800));
        for wrong in ["", "2", "02:00", "+2:00", "+02", "+15:00", "+02:60", "+-1:00", "CET"] {
            check(wrong, None);
        }
    }
}
