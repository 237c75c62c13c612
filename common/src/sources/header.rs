//! What the columns of a CSV file mean. Whoever takes a file in and whoever reads it must agree on
//! that.

use std::{io, ops::Range};

use csv::ByteRecord;

use super::gpu_z;
use crate::{
    keyspace::Mapping,
    model::{METRICS, Metric, MetricName, metric_by_name},
};

/// Longest header, in bytes: bounds what is read of a file that is no CSV.
pub const HEADER_BYTES_MAX: u64 = 1 << 20;
/// Most column names an error repeats: a header of a wrong file may be megabytes of text.
const NAMED_MAX: usize = 32;
/// Longest column name an error repeats, in characters.
const NAMED_CHARS_MAX: usize = 64;

const LONG: &str = "timestamp, metric_name, value, and hostname and uuid (or gpu_id) or labels_raw; \
     optional: device, modelName, container, pod, namespace";
const WIDE: &str = "timestamp, hostname, uuid (or gpu_id), and at least one metric such as \
     gpu_utilization or DCGM_FI_DEV_GPU_UTIL; optional: device, modelname, container, pod, namespace";

/// Why a first line is not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No first line.
    #[error("no header: the file is empty; its first line must name the columns")]
    Empty,
    /// Neither layout.
    #[error(
        "unknown header, it lacks {missing}: saw the columns [{columns}]; \
         known are the long layout ({LONG}) and the wide layout ({WIDE})"
    )]
    Unknown {
        /// What would have to be there.
        missing: &'static str,
        /// The columns that were seen.
        columns: String,
    },
    /// A column that the mapping names is not there.
    #[error("the mapping names the column {column:?}, which is not there: saw [{columns}]")]
    Unmapped {
        /// The column.
        column: String,
        /// The columns that were seen.
        columns: String,
    },
    /// Something of the mapping cannot be used.
    #[error("the mapping: {0}")]
    Mapping(String),
    /// GPU-Z's log does not say whose it is.
    #[error(
        "a GPU-Z log names neither host nor GPU: say them (--csv-host and --csv-gpu, or a mapping \
         with host_is and gpu_is)"
    )]
    Unsaid,
}

/// Which of the two layouts a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A row a sample: `metric_name` and `value`.
    Long,
    /// A row a point: a column a metric.
    Wide,
}

/// A column that holds values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueColumn {
    /// Which column.
    pub column: usize,
    /// What it measures; none in the long layout, where the row says it.
    pub metric: Option<&'static Metric>,
    /// What it is called, where that is not the metric's own name.
    pub name: Option<MetricName>,
}

/// Where everything stands in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Which of the layouts it is.
    pub kind: Kind,
    /// How many columns a row has.
    pub columns: usize,
    /// When it was measured.
    pub timestamp: usize,
    /// What was measured; none in the wide layout.
    pub metric: Option<usize>,
    /// The host.
    pub host: Option<usize>,
    /// The GPU's UUID.
    pub uuid: Option<usize>,
    /// The GPU's index on its host.
    pub index: Option<usize>,
    /// The device's name.
    pub device: Option<usize>,
    /// The GPU's model.
    pub model: Option<usize>,
    /// The version of the driver.
    pub driver: Option<usize>,
    /// The MIG instance.
    pub mig_instance: Option<usize>,
    /// Its profile.
    pub mig_profile: Option<usize>,
    /// The GPU, as an index or a UUID.
    pub gpu: Option<usize>,
    /// The host of all rows, whatever a column says.
    pub host_is: Option<String>,
    /// The GPU of all rows, an index or a UUID, whatever a column says.
    pub gpu_is: Option<String>,
    /// How far east of UTC times are that do not say it, in milliseconds.
    pub east_ms: i64,
    /// Whether it is a log of GPU-Z: sessions with a header each, a comma more or less at the end
    /// of a line, `-` for what was not measured.
    pub gpu_z: bool,
    /// Labels in Prometheus' text.
    pub labels_raw: Option<usize>,
    /// Columns that are labels of the series, by label name.
    pub labels: Vec<(String, usize)>,
    /// Columns that hold values.
    pub values: Vec<ValueColumn>,
    /// Columns that tell series apart, in contiguous runs: a cached series is found by their
    /// bytes alone.
    pub identity: Vec<Range<usize>>,
    ignored: Vec<String>,
}

/// Case, underscores, dashes and blanks do not tell columns apart (`gpu_uuid`, `GPU UUID`).
fn normal(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-' | ' ' | '\t' | '\u{feff}'))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

fn find(names: &[String], aliases: &[&str]) -> Option<usize> {
    names.iter().position(|name| aliases.contains(&name.as_str()))
}

fn metric_columns(names: &[String]) -> Vec<ValueColumn> {
    let mut values: Vec<ValueColumn> = Vec::new();
    for (column, name) in names.iter().enumerate() {
        let metric = METRICS.iter().find(|m| normal(m.name) == *name || normal(m.dcgm) == *name);
        let Some(metric) = metric else { continue };
        // The first column of a name counts; a second one is listed as ignored.
        if values.iter().all(|v| v.metric != Some(metric)) {
            values.push(ValueColumn { column, metric: Some(metric), name: None });
        }
    }
    values
}

/// A column as the header calls it, but for blanks around it.
fn find_mapped(header: &ByteRecord, name: &str) -> Result<usize, HeaderError> {
    let found = header.iter().position(|column| {
        let column = String::from_utf8_lossy(column);
        column.trim_start_matches('\u{feff}').trim() == name.trim()
    });
    found.ok_or_else(|| HeaderError::Unmapped { column: name.to_owned(), columns: listed(header) })
}

/// In the order of the columns.
fn mapped_values(header: &ByteRecord, mapping: &Mapping) -> Result<Vec<ValueColumn>, HeaderError> {
    let mut values = Vec::with_capacity(mapping.metrics.len());
    for (column, name) in &mapping.metrics {
        let column = find_mapped(header, column)?;
        let metric = metric_by_name(name);
        let name = MetricName::new(name).map_err(|e| HeaderError::Mapping(e.to_string()))?;
        values.push(ValueColumn { column, metric, name: Some(name) });
    }
    values.sort_by_key(|value| value.column);
    if values.windows(2).any(|two| matches!(two, [a, b] if a.column == b.column)) {
        return Err(HeaderError::Mapping("two metrics are of one column".to_owned()));
    }
    Ok(values)
}

fn listed(record: &ByteRecord) -> String {
    let mut names: Vec<String> = record
        .iter()
        .take(NAMED_MAX)
        .map(|name| String::from_utf8_lossy(name).trim().chars().take(NAMED_CHARS_MAX).collect())
        .collect();
    if record.len() > NAMED_MAX {
        names.push(format!("and {} more", record.len() - NAMED_MAX));
    }
    names.join(", ")
}

impl Layout {
    /// Reads a header line. Column order is free, case and underscores do not matter, the first
    /// column of a name counts, and columns nobody knows are ignored (see [`Layout::ignored`]).
    ///
    /// # Errors
    /// Names the columns seen, what is missing and both layouts that would do.
    pub fn parse(header: &ByteRecord) -> Result<Self, HeaderError> {
        Self::parse_as(header, None)
    }

    /// Reads a header line, with a mapping for what it does not say.
    ///
    /// # Errors
    /// As there, and where a column that the mapping names is not there.
    pub fn parse_as(header: &ByteRecord, mapping: Option<&Mapping>) -> Result<Self, HeaderError> {
        if header.is_empty() {
            return Err(HeaderError::Empty);
        }
        let names: Vec<String> =
            header.iter().map(|name| normal(&String::from_utf8_lossy(name))).collect();
        let unknown = |missing| HeaderError::Unknown { missing, columns: listed(header) };
        let none = Mapping::default();
        let mapped = mapping.unwrap_or(&none);
        let column = |named: &Option<String>, aliases: &[&str]| match named {
            Some(name) => find_mapped(header, name).map(Some),
            None => Ok(find(&names, aliases)),
        };
        let gpu_z = gpu_z::is_one(header);
        let times: &[&str] = if gpu_z { &["date"] } else { &["timestamp", "time"] };
        let timestamp = column(&mapped.time, times)?.ok_or_else(|| unknown("timestamp"))?;
        let metric = column(&mapped.metric, &["metricname", "metric"])?;
        let metric = metric.filter(|_| mapped.metrics.is_empty());
        let (kind, values) = match metric {
            Some(_) => {
                let column = column(&mapped.value, &["value"])?.ok_or_else(|| unknown("value"))?;
                (Kind::Long, vec![ValueColumn { column, metric: None, name: None }])
            }
            None if !mapped.metrics.is_empty() => (Kind::Wide, mapped_values(header, mapped)?),
            None if gpu_z => (Kind::Wide, gpu_z::values(header)),
            None => (Kind::Wide, metric_columns(&names)),
        };
        if values.is_empty() {
            return Err(unknown("metric_name (long) or a metric column (wide)"));
        }
        let mut labels: Vec<(String, usize)> = ["container", "pod", "namespace"]
            .iter()
            .filter_map(|label| Some(((*label).to_owned(), find(&names, &[label])?)))
            .collect();
        for (name, label) in &mapped.labels {
            labels.push((label.clone(), find_mapped(header, name)?));
        }
        let mut layout = Self {
            kind,
            columns: names.len(),
            timestamp,
            metric,
            host: column(&mapped.host, &["hostname", "host"])?,
            uuid: find(&names, &["uuid", "gpuuuid"]),
            index: find(&names, &["gpuid", "gpu", "gpuindex"]),
            gpu: column(&mapped.gpu, &[])?,
            host_is: mapped.host_is.clone(),
            gpu_is: mapped.gpu_is.clone(),
            east_ms: i64::from(mapped.utc_offset_seconds) * 1000,
            gpu_z,
            device: find(&names, &["device"]),
            model: find(&names, &["modelname", "model"]),
            driver: find(&names, &["driverversion", "driver", "dcgmfidriverversion"]),
            mig_instance: find(&names, &["gpuiid"]),
            mig_profile: find(&names, &["gpuiprofile"]),
            labels_raw: find(&names, &["labelsraw"]),
            labels,
            values,
            identity: Vec::new(),
            ignored: Vec::new(),
        };
        let host = layout.host.or(layout.labels_raw).is_some() || layout.host_is.is_some();
        let gpu = layout.uuid.or(layout.index).or(layout.gpu).or(layout.labels_raw).is_some()
            || layout.gpu_is.is_some();
        match (host, gpu) {
            (true, true) => {}
            _ if gpu_z => return Err(HeaderError::Unsaid),
            (false, _) => return Err(unknown("hostname")),
            (true, false) => return Err(unknown("uuid")),
        }
        layout.find_identity(header);
        Ok(layout)
    }

    fn find_identity(&mut self, header: &ByteRecord) {
        let single = [self.metric, self.host, self.uuid, self.index, self.device, self.model];
        let rest = [self.gpu, self.driver, self.mig_instance, self.mig_profile, self.labels_raw];
        let named = self.labels.iter().map(|(_, column)| *column);
        let mut columns: Vec<usize> =
            single.into_iter().chain(rest).flatten().chain(named).collect();
        columns.sort_unstable();
        columns.dedup(); // one column may be both the GPU's and a label
        for &column in &columns {
            match self.identity.last_mut() {
                Some(run) if run.end == column => run.end += 1,
                _ => self.identity.push(column..column + 1),
            }
        }
        let known = |c: usize| {
            c == self.timestamp || columns.contains(&c) || self.values.iter().any(|v| v.column == c)
        };
        self.ignored = header
            .iter()
            .enumerate()
            .filter(|(column, _)| !known(*column))
            .map(|(_, name)| String::from_utf8_lossy(name).trim().to_owned())
            .collect();
    }

    /// Whether rows of one series may differ in `column`: in when, how much, and what nobody reads.
    pub fn changes(&self, column: usize) -> bool {
        !self.identity.iter().any(|run| run.contains(&column))
    }

    /// The timestamp of a record of this layout; none if it has another number of columns.
    pub fn timestamp_of<'a>(&self, record: &'a ByteRecord) -> Option<&'a [u8]> {
        if self.fits(record.len()) { record.get(self.timestamp) } else { None }
    }

    /// Whether a row of so many columns is of this layout.
    pub fn fits(&self, columns: usize) -> bool {
        columns == self.columns || (self.gpu_z && columns.abs_diff(self.columns) == 1)
    }

    /// Whether a text says that nothing was measured.
    pub fn is_absent(&self, text: &[u8]) -> bool {
        self.gpu_z && text.trim_ascii() == b"-"
    }

    /// Columns that are skipped, as the header spells them: worth one line in the log.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// The first record of a file's head, and where the next begins. Skips a byte order mark.
///
/// # Errors
/// None in practice: bytes in memory can be read.
pub fn read_header(head: &[u8]) -> io::Result<(ByteRecord, u64)> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(head);
    let mut header = ByteRecord::new();
    reader.read_byte_record(&mut header)?;
    let mut end = reader.position().byte();
    let at = usize::try_from(end).unwrap_or(usize::MAX);
    if head.get(at) == Some(&b'\n') && head.get(at.wrapping_sub(1)) == Some(&b'\r') {
        end += 1; // the reader stops between the two
    }
    Ok((header, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(header: &str) -> Result<Layout, HeaderError> {
        Layout::parse(&ByteRecord::from(header.split(',').collect::<Vec<_>>()))
    }

    #[test]
    fn both_layouts_are_known_under_their_aliases() {
        let check = |header: &str, kind: Kind, values: usize, ignored: &[&str]| {
            let layout = layout(header).unwrap();
            assert_eq!(layout.kind, kind, "{header}");
            assert_eq!(layout.values.len(), values, "{header}");
            assert_eq!(layout.ignored(), ignored, "{header}");
        };
        let long = "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,\
                    namespace,value,labels_raw";
        check(long, Kind::Long, 1, &[]);
        check("VALUE,UUID,hostname,Metric_Name,Timestamp", Kind::Long, 1, &[]);
        check("timestamp,metric_name,value,labels_raw", Kind::Long, 1, &[]);
        let wide = "timestamp,gpu_id,hostname,uuid,device,modelname,gpu_utilization,\
                    memory_utilization,memory_used_mb,memory_free_mb,temperature,power_draw,\
                    sm_clock_mhz,memory_clock_mhz";
        check(wide, Kind::Wide, 8, &[]);
        check("timestamp,Hostname,gpu_uuid,DCGM_FI_DEV_GPU_TEMP,fan", Kind::Wide, 1, &["fan"]);
    }

    #[test]
    fn a_duplicate_column_counts_once_and_is_named() {
        let layout = layout("timestamp,hostname,uuid,gpu_uuid,temperature,temperature").unwrap();
        assert_eq!(layout.uuid, Some(2));
        assert_eq!(layout.ignored(), ["gpu_uuid", "temperature"]);
    }

    #[test]
    fn an_unknown_header_names_what_it_saw_and_what_would_do() {
        let check = |header: &str, missing: &str| {
            let message = layout(header).unwrap_err().to_string();
            assert!(message.contains(&format!("lacks {missing}")), "{message}");
            assert!(message.contains("long layout") && message.contains("wide layout"));
        };
        check("a,b", "timestamp");
        check("timestamp,hostname,uuid,fan", "metric_name (long) or a metric column (wide)");
        check("timestamp,metric_name,hostname,uuid", "value");
        check("timestamp,metric_name,value,uuid", "hostname");
        check("timestamp,hostname,temperature", "uuid");
        let message = layout("a,b").unwrap_err().to_string();
        assert!(message.contains("saw the columns [a, b]"), "{message}");
        assert_eq!(Layout::parse(&ByteRecord::new()), Err(HeaderError::Empty));
    }

    #[test]
    fn a_header_of_megabytes_is_not_repeated_whole() {
        let message = layout(&vec!["x".repeat(1000); 1000].join(",")).unwrap_err().to_string();
        assert!(message.len() < 4096 && message.contains("and 968 more"), "{message}");
    }

    #[test]
    fn identity_skips_what_changes_from_row_to_row() {
        let layout = layout("timestamp,metric_name,uuid,row,hostname,value,labels_raw").unwrap();
        assert_eq!(layout.identity, [1..3, 4..5, 6..7]);
        assert_eq!(layout.ignored(), ["row"]);
    }
}
