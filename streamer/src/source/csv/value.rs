//! The text of one measurement.

/// Why a text is not a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueError {
    /// Not a number.
    Text,
    /// Infinite: no sensor reads it, and no answer could write it.
    Infinite,
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// A measurement; `None` where the source says that there is none (empty, NaN).
pub(super) fn parse_value(text: &[u8]) -> Result<Option<f64>, ValueError> {
    if let Some(value) = parse_short(text) {
        return Ok(Some(value));
    }
    let text = text.trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let text = std::str::from_utf8(text).map_err(|_| ValueError::Text)?;
    match text.parse::<f64>() {
        Ok(value) if value.is_nan() => Ok(None),
        Ok(value) if value.is_infinite() => Err(ValueError::Infinite),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(ValueError::Text),
    }
}

/// Short decimals without the general parser: a mantissa below 2^53 and a power of ten up to
/// 10^22 are both exact, so their one division rounds as the general parser does.
fn parse_short(text: &[u8]) -> Option<f64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    // 16 digits fit a u64 with ease; whether they stay below 2^53 is checked below.
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    let mut mantissa: u64 = 0;
    let mut decimals: Option<usize> = None;
    for &byte in digits {
        match byte {
            b'0'..=b'9' => {
                mantissa = mantissa * 10 + u64::from(byte - b'0');
                decimals = decimals.map(|d| d + 1);
            }
            b'.' if decimals.is_none() => decimals = Some(0),
            _ => return None,
        }
    }
    if mantissa >= 1 << 53 || (decimals.is_some() && digits.len() == 1) {
        return None;
    }
    let value = mantissa as f64 / POWERS.get(decimals.unwrap_or(0))?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_as_written() {
        let check = |text: &str, expected: Result<Option<f64>, ValueError>| {
            assert_eq!(parse_value(text.as_bytes()), expected, "{text}");
        };
        check("97", Ok(Some(97.0)));
        check("-1", Ok(Some(-1.0)));
        check("412.347", Ok(Some(412.347)));
        check(" 5. ", Ok(Some(5.0)));
        check("1.59e+09", Ok(Some(1.59e9)));
        check("9223372036854775794", Ok(Some(9_223_372_036_854_775_808.0)));
        check("", Ok(None));
        check("  ", Ok(None));
        check("NaN", Ok(None));
        check("+Inf", Err(ValueError::Infinite));
        check("-Inf", Err(ValueError::Infinite));
        check("1e999", Err(ValueError::Infinite));
        for text in [".", "-", "--1", "1.2.3", "0x10", "12 W", "1,5", "\u{b2}"] {
            check(text, Err(ValueError::Text));
        }
        assert_eq!(parse_value(b"\xff"), Err(ValueError::Text));
    }

    proptest! {
        #[test]
        fn the_short_path_agrees_with_the_general_parser(
            text in "-?[0-9]{0,17}\\.?[0-9]{0,17}"
        ) {
            if let Some(value) = parse_short(text.as_bytes()) {
                prop_assert_eq!(value.to_bits(), text.parse::<f64>().unwrap().to_bits());
            }
        }
    }
}
