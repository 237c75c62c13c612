//! The reader over real files: every trap of real input, and going on from any offset.

mod mapped;
mod properties;

use std::{fs::OpenOptions, path::PathBuf};

use nexus_common::{limits::SECTION_GPUS_MAX, model::HostSamples};
use tempfile::TempDir;

use super::*;
use crate::source::CsvFile;

const LONG: &str = "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,\
                    namespace,value,labels_raw\n";
const WIDE: &str = "timestamp,gpu_id,hostname,uuid,temperature,power_draw,memory_temperature\n";

struct Fixture {
    _dir: TempDir,
    path: PathBuf,
    file: CsvFile,
}

impl Fixture {
    fn new(text: impl AsRef<[u8]>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.csv");
        std::fs::write(&path, text).unwrap();
        let file = CsvFile::open(&path).unwrap();
        Self { _dir: dir, path, file }
    }

    fn reader(&self, from: u64) -> ShardReader {
        let range = self.file.header_end..self.file.identity.bytes;
        ShardReader::open(&self.path, self.file.layout.clone(), range, from).unwrap()
    }

    fn read(&self) -> Batch {
        let batch = self.reader(self.file.header_end).read_batch(&BatchLimits::default()).unwrap();
        assert!(batch.done);
        assert_eq!(batch.end_offset, self.file.identity.bytes);
        batch
    }
}

fn read(text: impl AsRef<[u8]>) -> Batch {
    Fixture::new(text).read()
}

/// Every sample as one line of text, in no particular order.
fn lines(hosts: &[HostSamples]) -> Vec<String> {
    let mut lines = Vec::new();
    for host in hosts {
        for series in &host.series {
            let gpu = series.gpu.map(|g| host.gpus[g as usize].id.to_string()).unwrap_or_default();
            let labels: Vec<_> = series.labels.iter().map(|(n, v)| format!(" {n}={v}")).collect();
            assert_eq!(series.timestamps.len(), series.values.len());
            for (at, value) in series.timestamps.iter().zip(&series.values) {
                let labels = labels.concat();
                lines.push(format!("{} {gpu} {}{labels} {at} {value}", host.host, series.metric));
            }
        }
    }
    lines.sort();
    lines
}

fn long_row(metric: &str, value: &str, labels: &str) -> String {
    let labels = labels.replace('"', "\"\"");
    format!("1970-01-01T00:00:01Z,{metric},0,nvidia0,GPU-1,H100,dgx-001,,,,{value},\"{labels}\"\n")
}

/// One long row: its samples, or the reason it was rejected for.
fn check_long(metric: &str, value: &str, labels: &str, expected: Result<&[&str], RejectReason>) {
    let batch = read(format!("{LONG}{}", long_row(metric, value, labels)));
    let reason = batch.rejected.keys().next().copied();
    match expected {
        Ok(samples) => assert_eq!((lines(&batch.hosts), reason), (to_texts(samples), None)),
        Err(expected) => assert_eq!(reason, Some(expected), "{metric} {value} {labels}"),
    }
    assert_eq!(batch.rows_offered(), 1);
}

fn to_texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

/// Wide rows, each with its outcome.
fn check_wide(text: &str, samples: &[&str], rejected: &[RejectReason]) {
    let batch = read(text);
    assert_eq!(lines(&batch.hosts), to_texts(samples), "{text}");
    let reasons: Vec<_> = batch.rejects.iter().map(|r| r.reason).collect();
    assert_eq!(reasons, rejected, "{text}");
    assert_eq!(batch.rows_rejected(), rejected.len() as u64);
    assert_eq!(batch.samples, samples.len() as u64);
}

#[test]
fn the_documented_long_row_is_read_whole() {
    let row = r#""2025-07-18T20:42:34Z","DCGM_FI_DEV_GPU_UTIL","0","nvidia0","GPU-00000000-1111-2222-3333-444444444444","NVIDIA H100 80GB HBM3","dgx-001","","","","97","DCGM_FI_DRIVER_VERSION=""535.129.03"",Hostname=""dgx-001"",UUID=""GPU-00000000-1111-2222-3333-444444444444"",__name__=""DCGM_FI_DEV_GPU_UTIL"",device=""nvidia0"",gpu=""0"",instance=""dgx-001:9400"",job=""dgx_dcgm_exporter"",modelName=""NVIDIA H100 80GB HBM3""""#;
    let batch = read(format!("{LONG}{row}\n"));
    let host = &batch.hosts[0];
    let gpu = &host.gpus[0];
    assert_eq!(gpu.uuid, "GPU-00000000-1111-2222-3333-444444444444");
    assert_eq!((&*gpu.index, &*gpu.device, &*gpu.mig_profile), ("0", "nvidia0", ""));
    assert_eq!((&*gpu.model, &*gpu.driver), ("NVIDIA H100 80GB HBM3", "535.129.03"));
    let sample = format!("dgx-001 {} gpu_utilization 1752871354000 97", gpu.uuid);
    assert_eq!(lines(&batch.hosts), [sample]);
}

#[test]
fn dcgm_blanks_nan_and_nothing_are_absent_not_zero() {
    let absent: Result<&[&str], _> = Ok(&[]);
    check_long("DCGM_FI_DEV_GPU_TEMP", "2147483632", "", absent);
    check_long("DCGM_FI_DEV_XID_ERRORS", "9223372036854775794", "", absent);
    check_long("DCGM_FI_DEV_POWER_USAGE", "140737488355328", "", absent);
    check_long("DCGM_FI_DEV_POWER_USAGE", "140737488355328.0000", "", absent);
    check_long("DCGM_FI_UNKNOWN", "2147483635", "", absent);
    check_long("DCGM_FI_DEV_GPU_TEMP", "NaN", "", absent);
    check_long("DCGM_FI_DEV_GPU_TEMP", "", "", absent);
    check_long("DCGM_FI_DEV_GPU_TEMP", "0", "", Ok(&["dgx-001 GPU-1 temperature 1000 0"]));
    let batch = read(format!("{LONG}{}", long_row("x", "", "")));
    assert_eq!((batch.rows_accepted, batch.rows_absent, batch.samples), (1, 1, 0));
    assert!(batch.hosts.is_empty());
}

#[test]
fn memory_temperature_zero_is_a_card_without_the_sensor() {
    check_long("DCGM_FI_DEV_MEMORY_TEMP", "0", "", Ok(&[]));
    let expected = ["dgx-001 GPU-1 memory_temperature 1000 41"];
    check_long("DCGM_FI_DEV_MEMORY_TEMP", "41", "", Ok(&expected));
}

#[test]
fn infinite_and_textual_values_are_rejected() {
    check_long("x", "+Inf", "", Err(RejectReason::NotFinite));
    check_long("x", "-Inf", "", Err(RejectReason::NotFinite));
    check_long("x", "fast", "", Err(RejectReason::BadValue));
    check_long("x", "-1", "", Ok(&["dgx-001 GPU-1 x 1000 -1"]));
    check_long("x", "1.59e+09", "", Ok(&["dgx-001 GPU-1 x 1000 1590000000"]));
}

#[test]
fn a_sticky_xid_stays_as_it_was_reported() {
    let row = long_row("DCGM_FI_DEV_XID_ERRORS", "79", "");
    let batch = read(format!("{LONG}{row}{row}"));
    assert_eq!(lines(&batch.hosts), ["dgx-001 GPU-1 xid_error 1000 79"; 2]);
}

#[test]
fn mig_instances_sharing_a_uuid_stay_apart() {
    let mut text = LONG.to_owned();
    for instance in ["1", "2"] {
        let labels = format!(r#"GPU_I_ID="{instance}",GPU_I_PROFILE="1g.10gb""#);
        text += &long_row("x", instance, &labels);
    }
    let batch = read(text);
    let expected = ["dgx-001 GPU-1:1 x 1000 1", "dgx-001 GPU-1:2 x 1000 2"];
    assert_eq!(lines(&batch.hosts), expected);
    assert!(batch.hosts[0].gpus.iter().all(|g| g.uuid == "GPU-1" && g.mig_profile == "1g.10gb"));
}

#[test]
fn labels_beyond_identity_are_kept_and_scrape_noise_is_not() {
    let labels = r#"pod_uid="",exported_pod="train-0",instance="a:9400",job="dcgm",gpu="0",UUID="GPU-9",pci_bus_id="00:01""#;
    check_long("x", "1", labels, Ok(&["dgx-001 GPU-1 x exported_pod=train-0 1000 1"]));
    let row =
        "1970-01-01T00:00:01Z,x,0,,GPU-1,,h,c,,,1,\"pod=\"\"p\"\",container=\"\"other\"\"\"\n";
    let batch = read(format!("{LONG}{row}"));
    assert_eq!(lines(&batch.hosts), ["h GPU-1 x container=c pod=p 1000 1"]);
}

#[test]
fn rows_that_differ_in_scrape_labels_only_share_a_series() {
    let rows = long_row("x", "1", r#"job="a""#) + &long_row("x", "2", r#"job="b""#);
    let batch = read(format!("{LONG}{rows}"));
    assert_eq!(batch.hosts[0].series.len(), 1);
    assert_eq!(batch.hosts[0].series[0].values, [1.0, 2.0]);
}

#[test]
fn labels_are_read_strictly() {
    check_long("x", "1", "a=1", Err(RejectReason::BadLabels));
    check_long("x", "1", r#"a="1",a="2""#, Err(RejectReason::BadLabels));
    let long = format!(r#"a="{}""#, "v".repeat(300));
    check_long("x", "1", &long, Err(RejectReason::BadLabels));
    check_long("1x", "1", "", Err(RejectReason::BadMetric));
    check_long("", "1", "", Err(RejectReason::BadMetric));
}

#[test]
fn identity_may_come_from_labels_alone() {
    for labels in [
        r#"Hostname="h",UUID="GPU-1",__name__="x""#,
        r#"hostname="h",gpu_uuid="GPU-1",model_name="H100""#,
    ] {
        let labels = labels.replace('"', "\"\"");
        let text = format!(
            "timestamp,metric_name,value,labels_raw\n1970-01-01T00:00:01Z,x,1,\"{labels}\"\n"
        );
        assert_eq!(lines(&read(text).hosts), ["h GPU-1 x 1000 1"]);
    }
}

#[test]
fn a_gpu_without_uuid_is_known_by_host_and_index_never_by_index_alone() {
    let row = "1970-01-01T00:00:01Z";
    check_wide(
        &format!("{WIDE}{row},0,a,,1,,\n{row},0,b,,2,,\n{row},,b,,3,,\n{row},0,,,4,,\n"),
        &["a a:0 temperature 1000 1", "b b:0 temperature 1000 2"],
        &[RejectReason::BadGpu, RejectReason::BadHost],
    );
    check_wide(
        &format!("{WIDE}{row},0,a b,G,1,,\n{row},0,a,G/1,1,,\n"),
        &[],
        &[RejectReason::BadHost, RejectReason::BadGpu],
    );
}

#[test]
fn a_wide_row_is_taken_whole_or_not_at_all() {
    let row = "1970-01-01 00:00:01,0,h,G";
    check_wide(
        &format!("{WIDE}{row},40,300.5,0\n{row},,,\n{row},41,x,\n"),
        &["h G power_draw 1000 300.5", "h G temperature 1000 40"],
        &[RejectReason::BadValue],
    );
}

#[test]
fn bom_and_crlf_change_nothing() {
    let plain = format!("{WIDE}1970-01-01T00:00:01Z,0,h,G,1,2,3\n1970-01-01T00:00:02Z,0,h,G,4,,\n");
    let expected = lines(&read(&plain).hosts);
    assert_eq!(expected.len(), 4);
    for text in [format!("\u{feff}{plain}"), plain.replace('\n', "\r\n")] {
        assert_eq!(lines(&read(text).hosts), expected);
    }
}

#[test]
fn a_repeated_header_is_one_reject_with_its_own_name() {
    let row = "1970-01-01T00:00:01Z,0,h,G,1,,\n";
    let sample = "h G temperature 1000 1";
    check_wide(&format!("{WIDE}{row}{WIDE}{row}"), &[sample, sample], &[RejectReason::Header]);
    let joined = format!("{WIDE}{row}\u{feff}{WIDE}{row}");
    check_wide(&joined, &[sample, sample], &[RejectReason::Header]);
}

#[test]
fn half_a_last_line_is_taken_if_it_is_whole_and_rejected_otherwise() {
    let row = "1970-01-01T00:00:01Z,0,h,G,1,,";
    check_wide(&format!("{WIDE}{row}"), &["h G temperature 1000 1"], &[]);
    check_wide(
        &format!("{WIDE}{row}\n1970-01-01T00:00:0"),
        &["h G temperature 1000 1"],
        &[RejectReason::Columns],
    );
}

#[test]
fn missing_and_extra_columns_are_rejected_and_blank_lines_are_no_rows() {
    let row = "1970-01-01T00:00:01Z,0,h,G";
    check_wide(
        &format!("{WIDE}\n{row},1\n\r\n{row},1,2,3,4\n\n{row},1,,\n\n"),
        &["h G temperature 1000 1"],
        &[RejectReason::Columns, RejectReason::Columns],
    );
}

#[test]
fn a_newline_inside_quotes_belongs_to_its_field() {
    let row = "1970-01-01T00:00:01Z,0,\"h\nx\",G,1,,\n1970-01-01T00:00:01Z,0,h,G,\"\n1\",,\n";
    check_wide(&format!("{WIDE}{row}"), &["h G temperature 1000 1"], &[RejectReason::BadHost]);
}

#[test]
fn invalid_utf8_costs_its_row_only() {
    let mut text = WIDE.as_bytes().to_vec();
    text.extend_from_slice(b"1970-01-01T00:00:01Z,0,h\xb0,G,1,,\n\xff,0,h,G,1,,\n");
    text.extend_from_slice(b"1970-01-01T00:00:01Z,0,h,G,\xff,,\n1970-01-01T00:00:01Z,0,h,G,1,,\n");
    let batch = read(text);
    let reasons: Vec<_> = batch.rejects.iter().map(|r| r.reason).collect();
    let expected = [RejectReason::Utf8, RejectReason::BadTimestamp, RejectReason::BadValue];
    assert_eq!(reasons, expected);
    assert_eq!(batch.samples, 1);
}

#[test]
fn a_line_of_ten_megabytes_is_one_reject() {
    let giant = "x".repeat(10 << 20);
    let row = "1970-01-01T00:00:01Z,0,h,G,1,,\n";
    check_wide(
        &format!("{WIDE}1970-01-01T00:00:01Z,0,{giant},G,1,,\n{row}"),
        &["h G temperature 1000 1"],
        &[RejectReason::TooLong],
    );
}

#[test]
fn rejects_say_where_and_why_and_only_the_first_few_are_described() {
    let batch = read(format!("{WIDE}{}", "nonsense\n".repeat(20)));
    assert_eq!(batch.rejected[&RejectReason::Columns], 20);
    assert_eq!(batch.rejects.len(), 8);
    let second = &batch.rejects[1];
    assert_eq!((second.offset, second.row), (WIDE.len() as u64 + 9, 2));
    assert_eq!(second.detail, "1 columns where the header has 7");
    assert_eq!(batch.rejects[0].reason.to_string(), "columns");
    assert_eq!(serde_json::to_string(&batch.rejected).unwrap(), r#"{"columns":20}"#);
}

#[test]
fn the_words_for_reasons_are_the_same_everywhere() {
    use RejectReason::*;
    let all = [
        Columns,
        Header,
        Utf8,
        TooLong,
        BadTimestamp,
        BadMetric,
        BadHost,
        BadGpu,
        BadValue,
        NotFinite,
        BadLabels,
    ];
    for reason in all {
        let text = serde_json::to_string(&reason).unwrap();
        assert_eq!(text, format!("\"{reason}\""));
    }
}

fn wide_rows(rows: impl IntoIterator<Item = (u32, u32)>) -> String {
    let rows = rows.into_iter().map(|(host, second)| {
        format!("1970-01-01 00:00:{second:02},0,h{host},G{host},{second},,\n")
    });
    WIDE.to_owned() + &rows.collect::<String>()
}

#[test]
fn a_batch_ends_before_the_row_that_does_not_fit() {
    let fixture = Fixture::new(wide_rows([(1, 1), (2, 1), (1, 2), (3, 2), (1, 3)]));
    let check = |limits: BatchLimits, expected: &[u64]| {
        let mut reader = fixture.reader(fixture.file.header_end);
        let mut rows = Vec::new();
        loop {
            let batch = reader.read_batch(&limits).unwrap();
            rows.push(batch.rows_accepted);
            if batch.done {
                break;
            }
        }
        assert_eq!(rows, expected, "{limits:?}");
    };
    let none = BatchLimits::default();
    check(none, &[5]);
    check(BatchLimits { hosts_max: 2, ..none }, &[3, 2]);
    check(BatchLimits { hosts_max: 1, ..none }, &[1, 1, 1, 1, 1]);
    check(BatchLimits { hosts_max: 0, ..none }, &[1, 1, 1, 1, 1]);
    check(BatchLimits { samples_max: 2, ..none }, &[2, 2, 1]);
    check(BatchLimits { samples_max: 0, ..none }, &[1, 1, 1, 1, 1]);
    check(BatchLimits { rows_max: 5, ..none }, &[5, 0]);
    check(BatchLimits { rows_max: 0, ..none }, &[1, 1, 1, 1, 1, 0]);
}

#[test]
fn a_host_with_more_gpus_than_a_message_holds_is_spread_over_batches() {
    let rows: String = (0..5000).map(|n| format!("1970-01-01 00:00:01,0,h,G{n},1,,\n")).collect();
    let fixture = Fixture::new(format!("{WIDE}{rows}"));
    let mut reader = fixture.reader(fixture.file.header_end);
    let mut read = || reader.read_batch(&BatchLimits::default()).unwrap();
    let gpus = [read(), read()].map(|batch| batch.hosts[0].gpus.len());
    assert_eq!(gpus, [SECTION_GPUS_MAX, 5000 - SECTION_GPUS_MAX]);
}

#[test]
fn a_paced_replay_waits_for_the_next_timestamp_and_restamps() {
    let fixture = Fixture::new(wide_rows([(1, 10), (2, 10), (1, 20)]) + "nonsense\n");
    let restamp = Restamp { source_start: 10_000, wall_start: 500_000, speed_milli: 2000 };
    let mut reader = fixture.reader(fixture.file.header_end).restamped(restamp);
    let until = |at| BatchLimits { until: Some(at), ..BatchLimits::default() };
    assert_eq!(reader.next_timestamp().unwrap(), Next::At(10_000));
    assert_eq!(reader.read_batch(&until(9_999)).unwrap().rows_offered(), 0);
    let batch = reader.read_batch(&until(10_000)).unwrap();
    let expected = ["h1 G1 temperature 500000 10", "h2 G2 temperature 500000 10"];
    assert_eq!(lines(&batch.hosts), expected);
    assert_eq!(reader.next_timestamp().unwrap(), Next::At(20_000));
    let batch = reader.read_batch(&BatchLimits { rows_max: 1, ..until(20_000) }).unwrap();
    assert_eq!(lines(&batch.hosts), ["h1 G1 temperature 505000 20"]);
    assert_eq!(reader.next_timestamp().unwrap(), Next::Unreadable);
    assert_eq!(reader.read_batch(&until(0)).unwrap().rows_rejected(), 1);
    assert_eq!(reader.next_timestamp().unwrap(), Next::End);
    assert_eq!(reader.offset(), fixture.file.identity.bytes);
}

#[test]
fn truncation_under_the_reader_is_an_error_behind_the_whole_rows() {
    let fixture = Fixture::new(wide_rows((0..50).map(|n| (1, n))));
    let cut = fixture.file.identity.bytes - 5; // in the middle of the last row
    OpenOptions::new().write(true).open(&fixture.path).unwrap().set_len(cut).unwrap();
    let mut reader = fixture.reader(fixture.file.header_end);
    let batch = reader.read_batch(&BatchLimits::default()).unwrap();
    assert_eq!((batch.rows_accepted, batch.done), (49, false));
    for _ in 0..2 {
        let error = reader.read_batch(&BatchLimits::default()).unwrap_err();
        assert!(matches!(error, ReadError::Truncated { .. }), "{error}");
    }
    assert!(reader.next_timestamp().is_err());
}

#[test]
fn rotation_under_the_reader_leaves_it_with_the_file_it_opened() {
    let fixture = Fixture::new(wide_rows([(1, 1), (1, 2)]));
    let mut reader = fixture.reader(fixture.file.header_end);
    std::fs::rename(&fixture.path, fixture.path.with_extension("1")).unwrap();
    std::fs::write(&fixture.path, "other").unwrap();
    assert_eq!(reader.read_batch(&BatchLimits::default()).unwrap().rows_accepted, 2);
    assert!(CsvFile::open_same(&fixture.path, &fixture.file.identity).is_err());
}

#[test]
fn an_offset_outside_the_shard_is_refused() {
    let fixture = Fixture::new(wide_rows([(1, 1)]));
    let layout = fixture.file.layout.clone();
    let error = ShardReader::open(&fixture.path, layout, 70..90, 91).unwrap_err().to_string();
    assert!(error.ends_with("offset 91 is outside its range 70..90"), "{error}");
}

#[test]
fn a_cache_handed_on_to_another_layout_starts_afresh() {
    let first = Fixture::new("timestamp,hostname,uuid,temperature\n1970-01-01 00:00:01,a,b,1\n");
    let second = Fixture::new("timestamp,uuid,hostname,temperature\n1970-01-01 00:00:01,a,b,1\n");
    let mut cache = SeriesCache::default();
    for (fixture, expected) in
        [(&first, "a b temperature 1000 1"), (&second, "b a temperature 1000 1")]
    {
        for _ in 0..2 {
            let mut reader = fixture.reader(fixture.file.header_end).with_cache(cache);
            let batch = reader.read_batch(&BatchLimits::default()).unwrap();
            assert_eq!(lines(&batch.hosts), [expected]);
            cache = reader.into_cache();
        }
    }
}
