//! What the flags say of a file whose header does not say it.

use nexus_common::keyspace::Mapping;

use crate::args::Args;

/// Reads how far a zone is east of UTC, such as `+02:00`, in seconds.
///
/// # Errors
/// Says what is allowed.
pub(crate) fn parse_offset(text: &str) -> Result<i32, String> {
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

impl Args {
    /// The mapping that the flags make; none if they say nothing.
    pub(crate) fn mapping(&self) -> Option<Box<Mapping>> {
        let mapping = Mapping {
            host_is: self.csv_host.as_ref().map(ToString::to_string),
            gpu_is: self.csv_gpu.as_ref().map(ToString::to_string),
            utc_offset_seconds: self.csv_utc_offset,
            ..Mapping::default()
        };
        (mapping != Mapping::default()).then(|| Box::new(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
