//! What holds of any rows: however they are batched, and whether a line is recognised or read.

use proptest::prelude::*;

use super::*;

fn any_row() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec!["a", "b", "\"c\"", "a b", "", "\"x\ny\""]);
    let value = prop::sample::select(vec!["1", "\"2.5\"", "", "NaN", "Inf", "x", "2147483632"]);
    let time = prop_oneof![
        9 => (0u32..60).prop_map(|s| format!("1970-01-01T00:00:{s:02}Z")),
        1 => Just("never".to_owned()),
    ];
    let row = (time, host, 0u32..3, value.clone(), value)
        .prop_map(|(time, host, gpu, a, b)| format!("{time},{gpu},{host},G{gpu},{a},{b},"));
    prop_oneof![
        12 => row,
        1 => Just(String::new()),
        1 => Just("short,row".to_owned()),
        1 => Just("stray\"quote,1,2,3,4,5,6".to_owned()),
        1 => Just(WIDE.trim_end().to_owned()),
        1 => Just("\u{feff}1970-01-01T00:00:01Z,0,a,G,1,2,3".to_owned()),
    ]
}

#[derive(Default, PartialEq, Debug)]
struct Sum {
    lines: Vec<String>,
    accepted: u64,
    absent: u64,
    rejected: std::collections::BTreeMap<RejectReason, u64>,
}

impl Sum {
    fn add(&mut self, batch: &Batch) {
        self.lines.extend(lines(&batch.hosts));
        self.lines.sort();
        self.accepted += batch.rows_accepted;
        self.absent += batch.rows_absent;
        for (reason, rows) in &batch.rejected {
            *self.rejected.entry(*reason).or_default() += rows;
        }
        assert_eq!(lines(&batch.hosts).len() as u64, batch.samples);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn going_on_from_any_end_gives_the_rows_of_one_pass(
        rows in prop::collection::vec(any_row(), 0..40),
        crlf: bool,
        end_missing: bool,
        limits in (1u64..6, 1u64..6, 1usize..3),
        reopen in prop::collection::vec(any::<bool>(), 80),
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut text = WIDE.replace('\n', end) + &rows.join(end);
        if !end_missing {
            text += end;
        }
        let fixture = Fixture::new(text);
        let mut whole = Sum::default();
        whole.add(&fixture.read());

        let limits = BatchLimits {
            rows_max: limits.0, samples_max: limits.1, hosts_max: limits.2, until: None
        };
        let mut parts = Sum::default();
        let mut reader = fixture.reader(fixture.file.header_end);
        for reopen in reopen {
            let batch = reader.read_batch(&limits).unwrap();
            parts.add(&batch);
            prop_assert_eq!(batch.end_offset, reader.offset());
            prop_assert!(batch.rows_offered() <= limits.rows_max);
            prop_assert!(batch.hosts.len() <= limits.hosts_max);
            if batch.done {
                break;
            }
            if reopen {
                reader = fixture.reader(batch.end_offset).with_cache(reader.into_cache());
            }
        }
        prop_assert_eq!(reader.offset(), fixture.file.identity.bytes);
        prop_assert_eq!(parts, whole);
    }
}

/// Rows as an exporter writes them, round after round, with now and then another in between.
fn any_export() -> impl Strategy<Value = Vec<String>> {
    let change = prop_oneof![
        6 => Just(None),
        1 => any_row().prop_map(Some),
        1 => Just(Some("1970-01-01T00:00:07Z,0,a,G0,1,2,3,4".to_owned())),
        1 => Just(Some("1970-01-01T00:00:07Z,\"0\",\"a\"\"a\",G0,1,2,".to_owned())),
        1 => Just(Some("1970-01-01T00:00:08Z,0,\"a,b\",G0,7,\"8\",9".to_owned())),
    ];
    let value = prop::sample::select(vec!["1", "-2.5", "", "NaN", "Inf", "x", "12345678", " 3 "]);
    let row = (0usize..5, value.clone(), value, change);
    prop::collection::vec(row, 0..80).prop_map(|rows| {
        let row = |(nth, (skip, a, b, other)): (usize, (usize, &str, &str, Option<String>))| {
            let series = (nth + usize::from(skip == 4)) % 4;
            let quote = if series == 3 { "\"" } else { "" };
            let second = nth / 4;
            other.unwrap_or_else(|| {
                format!(
                    "1970-01-01T00:00:{second:02}Z,{series},h{series},G{series},{quote}{a}{quote},{b},"
                )
            })
        };
        rows.into_iter().enumerate().map(row).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_line_that_is_recognised_says_what_it_says_when_it_is_read_in_full(
        rows in any_export(),
        crlf: bool,
        end_missing: bool,
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut text = WIDE.replace('\n', end) + &rows.join(end);
        if !end_missing {
            text += end;
        }
        let fixture = Fixture::new(text);
        let mut whole = Sum::default();
        whole.add(&fixture.read());
        // A reader without what an earlier one learned reads every line in full.
        let one = BatchLimits { rows_max: 1, ..BatchLimits::default() };
        let mut full = Sum::default();
        let mut at = fixture.file.header_end;
        loop {
            let batch = fixture.reader(at).read_batch(&one).unwrap();
            full.add(&batch);
            at = batch.end_offset;
            if batch.done {
                break;
            }
        }
        prop_assert_eq!(whole, full);
    }
}

#[test]
fn lines_of_an_export_are_recognised() {
    for end in ["\n", "\r\n"] {
        let row = |second: u32, gpu: u32| {
            let labels = format!("pod=\"\"p{gpu}\"\",job=\"\"a,b\"\"");
            format!(
                "\"1970-01-01T00:00:{second:02}Z\",TEMP,{gpu},nvidia{gpu},G{gpu},H100,h1,,,,\"{second}.5\",\"{labels}\"{end}"
            )
        };
        let rows = (0..50).flat_map(|second| (0..3).map(move |gpu| row(second, gpu)));
        let fixture = Fixture::new(LONG.replace('\n', end) + &rows.collect::<String>());
        let mut reader = fixture.reader(fixture.file.header_end);
        let batch = reader.read_batch(&BatchLimits::default()).unwrap();
        assert_eq!((batch.rows_accepted, batch.samples), (150, 150));
        // Two rounds are read in full: one for the lines, one for their order.
        assert!(reader.recognised() >= 150 - 2 * 3, "{} of 150", reader.recognised());
    }
}
