//! The log of GPU-Z: a column a sensor, with its unit in brackets, differing by card and version.

use std::collections::BTreeMap;

use csv::ByteRecord;

use super::header::ValueColumn;
use crate::model::{MetricName, metric_by_name};

/// Sensors that measure what others call otherwise: name and unit as GPU-Z writes them, without
/// what is not ASCII, and our name. A name that says less than this keeps its own.
const KNOWN: [(&str, &str, &str); 8] = [
    ("gpu load", "%", "gpu_utilization"),
    ("memory controller load", "%", "memory_utilization"),
    ("gpu temperature", "c", "temperature"),
    ("memory temperature", "c", "memory_temperature"),
    ("board power draw", "w", "power_draw"),
    ("memory clock", "mhz", "memory_clock_mhz"),
    ("memory used", "mb", "memory_used_mb"),
    ("memory used (dedicated)", "mb", "memory_used_mb"),
];

/// Lower case, without what is not ASCII (the degree sign, in whatever encoding) and the blanks
/// that pad a column.
fn plain(text: &str) -> String {
    let ascii: String = text.chars().filter(char::is_ascii).collect();
    ascii.trim().to_ascii_lowercase()
}

/// Name and unit of a column such as `GPU Temperature [°C]`.
fn sensor(column: &str) -> Option<(String, String)> {
    let column = plain(column);
    let (name, unit) = column.strip_suffix(']')?.rsplit_once('[')?;
    Some((name.trim().to_owned(), unit.trim().to_owned()))
}

fn texts(header: &ByteRecord) -> impl Iterator<Item = String> {
    header.iter().map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Whether a header is one of GPU-Z: `Date`, then sensors.
pub(super) fn is_one(header: &ByteRecord) -> bool {
    let mut columns = texts(header);
    let date = columns.next().is_some_and(|name| plain(&name) == "date");
    date && columns.any(|name| sensor(&name).is_some())
}

/// Whether a line is a header of GPU-Z again: another session was appended.
pub fn begins_session(line: &[u8]) -> bool {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii_start();
    let word = line.split(|byte| *byte == b',').next().unwrap_or_default();
    let more = word.len() < line.len();
    more && word.trim_ascii().trim_ascii_end().eq_ignore_ascii_case(b"date")
}

/// The name of a sensor that nobody else measures, out of its words and its unit.
fn own_name(name: &str, unit: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let unit = unit.replace('%', "percent");
    let both = format!("{} {unit}", name.replace('%', "percent"));
    for word in both.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        // The unit often stands in the name, too.
        if words.last().is_none_or(|last| last != word) {
            words.push(word.to_owned());
        }
    }
    let name = words.join("_");
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("sensor_{name}") } else { name }
}

/// Every column with a sensor. Two of one name are two sensors: the second one is `..._2`.
pub(super) fn values(header: &ByteRecord) -> Vec<ValueColumn> {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut values = Vec::new();
    for (column, name) in texts(header).enumerate().skip(1) {
        let Some((name, unit)) = sensor(&name) else { continue };
        let known = KNOWN.iter().find(|(known, of, _)| *known == name && *of == unit);
        let name = known.map_or_else(|| own_name(&name, &unit), |(.., ours)| (*ours).to_owned());
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        let metric = metric_by_name(&name).filter(|_| *times == 1);
        let name = if *times == 1 { name } else { format!("{name}_{times}") };
        if let Ok(name) = MetricName::new(&name) {
            values.push(ValueColumn { column, metric, name: Some(name) });
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &[u8]) -> ByteRecord {
        ByteRecord::from(text.split(|byte| *byte == b',').collect::<Vec<_>>())
    }

    #[test]
    fn sensors_have_names_in_whatever_encoding_the_degree_is() {
        let check = |text: &[u8], expected: &[&str]| {
            let header = header(text);
            assert!(is_one(&header));
            let names: Vec<_> = values(&header).into_iter().filter_map(|v| v.name).collect();
            assert_eq!(names.iter().map(MetricName::as_str).collect::<Vec<_>>(), expected);
        };
        let utf8 = "        Date        , GPU Clock [MHz] , GPU Temperature [°C] , Hot Spot [°C] ,";
        check(utf8.as_bytes(), &["gpu_clock_mhz", "temperature", "hot_spot_c"]);
        check(
            b"Date, GPU Temperature [\xb0C] , GPU Load [%] ,",
            &["temperature", "gpu_utilization"],
        );
        let twice = b"Date,Fan Speed (%) [%],Fan Speed (%) [%],12VHPWR Voltage [V],GPU Load [%],GPU Load [%]";
        let expected = [
            "fan_speed_percent",
            "fan_speed_percent_2",
            "sensor_12vhpwr_voltage_v",
            "gpu_utilization",
            "gpu_utilization_2",
        ];
        check(twice, &expected);
    }

    #[test]
    fn other_files_are_not_taken_for_one() {
        let check = |text: &str| assert!(!is_one(&header(text.as_bytes())), "{text}");
        check("");
        check("date,value");
        check("timestamp,GPU Load [%]");
        check("GPU Load [%],Date");
    }

    #[test]
    fn a_session_begins_with_its_header() {
        let check = |line: &[u8], expected| assert_eq!(begins_session(line), expected, "{line:?}");
        check(b"        Date        , GPU Clock [MHz] ,\r\n", true);
        check(b"\xef\xbb\xbfDate,GPU Load [%]\n", true);
        check(b"2024-01-31 12:34:56 , 210.0 ,\n", false);
        check(b"Date\n", false);
        check(b"Dates,1\n", false);
    }
}
