//! What we read of an exposition is what the client library of the Prometheus project reads of it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use fastrand::Rng;
use nexus_common::testing::TestEtcd;
use nexus_streamer::source::{
    csv::parse_labels,
    scrape::{Format, Reader, Reading, line::parse_line},
};
use serde_json::{Value, json};

const NODE: &str = include_str!("expositions/node_exporter.prom");
const DCGM: &str = include_str!("expositions/dcgm_exporter.prom");
const DCGM_1: &str = include_str!("expositions/dcgm_exporter_1.prom");
/// Of ipmi_exporter 1.6.1 with programs of FreeIPMI that answer for a machine that is not there.
const IPMI: &str = include_str!("expositions/ipmi_exporter.prom");
/// By the names and labels that a SLURM exporter documents.
const SLURM: &str = include_str!("expositions/slurm_exporter.prom");
const REFERENCE: &str = include_str!("expositions/reference.py");
/// Set where its library must be there, so that nobody believes a comparison that was not made.
const REQUIRED: &str = "NEXUS_TEST_REFERENCE";
/// The system's own one has the system's library.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

/// An exposition in one of the formats.
struct Exposition {
    format: Format,
    text: String,
}

impl Exposition {
    fn text(text: impl Into<String>) -> Self {
        Self { format: Format::Text, text: text.into() }
    }

    fn open(text: impl Into<String>) -> Self {
        Self { format: Format::OpenMetrics, text: text.into() }
    }
}

/// What the reference reads of each: its samples, or why it reads none. None without its library.
fn theirs(expositions: &[Exposition]) -> Option<Vec<Value>> {
    let has = |python: &&str| {
        let mut import = Command::new(python);
        import.args(["-c", "import prometheus_client"]).stderr(Stdio::null());
        import.status().is_ok_and(|status| status.success())
    };
    let Some(python) = PYTHONS.into_iter().find(has) else {
        assert!(
            std::env::var_os(REQUIRED).is_none(),
            "python3-prometheus-client is missing: scripts/deps.sh installs it"
        );
        println!("NOT COMPARED: python3-prometheus-client is missing; scripts/deps.sh installs it");
        return None;
    };
    let asked: Vec<Value> = expositions
        .iter()
        .map(|e| json!([if e.format == Format::Text { "text" } else { "openmetrics" }, e.text]))
        .collect();
    let mut child = Command::new(python)
        .args(["-c", REFERENCE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads all before it writes.
    child.stdin.take().unwrap().write_all(json!(asked).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// What we read, in the same form; the first line that is wrong in its place.
fn ours(exposition: &Exposition) -> Value {
    let mut samples = Vec::new();
    for line in exposition.text.split('\n') {
        let line = match parse_line(line.as_bytes(), b"", exposition.format) {
            Ok(Some(line)) => line,
            Ok(None) => continue,
            Err(error) => return json!(error.to_string()),
        };
        let series = std::str::from_utf8(line.series).unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut labels = match parse_labels(labels.strip_suffix('}').unwrap()) {
            Ok(labels) => labels,
            Err(error) => return json!(error.to_string()),
        };
        labels.retain(|(_, value)| !value.is_empty());
        labels.sort_unstable();
        let bits = match line.value {
            value if value.is_nan() => "NaN".to_owned(),
            value => format!("{:016x}", value.to_bits()),
        };
        samples.push(json!([name.trim_end(), labels, bits, line.at]));
    }
    json!(samples)
}

fn agree(expositions: &[Exposition]) {
    let Some(theirs) = theirs(expositions) else { return };
    for (exposition, theirs) in expositions.iter().zip(theirs) {
        let text = &exposition.text;
        let their_samples = theirs.as_array().unwrap_or_else(|| panic!("{theirs}\n{text}"));
        let ours = ours(exposition);
        let our_samples = ours.as_array().unwrap_or_else(|| panic!("{ours}\n{text}"));
        for (ours, theirs) in our_samples.iter().zip(their_samples) {
            assert_eq!(ours, theirs, "\n{text}");
        }
        assert_eq!(our_samples.len(), their_samples.len(), "\n{text}");
    }
}

#[test]
fn what_exporters_tell_is_read_as_the_reference_does() {
    // Histograms and summaries as Go writes them, of a program that runs.
    let etcd = TestEtcd::start();
    let url = format!("{}/metrics", etcd.endpoint());
    let etcd = ureq::get(&url).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(etcd.contains("_bucket{") && etcd.contains("quantile="), "{etcd}");
    let windows = NODE.replace('\n', "\r\n");
    let all = [NODE, &windows, DCGM, DCGM_1, IPMI, SLURM, &etcd].map(Exposition::text);
    // And nothing of it is lost on the way to samples.
    for exposition in &all {
        let reading =
            Reading { rules: Default::default(), series_max: 100_000, honour_times: false };
        let mut reader = Reader::new("node-1".parse().unwrap(), "http://node-1/metrics");
        let answer = reader.read(exposition.text.as_bytes(), Format::Text, 7, &reading);
        let lines = exposition.text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
        assert_eq!(answer.samples + answer.absent, lines.count() as u64, "{:?}", answer.refused);
        assert!(answer.refused.is_empty(), "{:?}", answer.refused);
    }
    agree(&all);
}

/// Values as exporters write them, and at the edges of what a double holds.
const VALUES: [&str; 24] = [
    "-0", // first: the reference reads it as 0 where it is a whole number
    "0",
    "1",
    "-1",
    "42",
    "007",
    "+5",
    "0.1",
    ".5",
    "5.",
    "1.59e+09",
    "1E3",
    "1e-320",
    "4.9406564584124654e-324",
    "1.7976931348623157e308",
    "1e999",
    "-1e999",
    "9007199254740993",
    "999999999999999",
    "1000000000000000",
    "18446744073709551615",
    "NaN",
    "+Inf",
    "-Inf",
];

/// Pieces of label values: what must be written otherwise, what could end them, what is not ASCII.
const PIECES: [&str; 14] =
    ["a", "B7", " ", "\\\\", "\\\"", "\\n", "{", "}", ",", "=", "#", "°", "日本", "/dev/sda1"];

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

fn blanks(rng: &mut Rng, least: usize) -> String {
    " ".repeat(least + rng.usize(..3) * rng.usize(..2))
}

fn label_value(rng: &mut Rng) -> String {
    (0..rng.usize(..5)).map(|_| pick(rng, &PIECES)).collect()
}

fn name(rng: &mut Rng) -> String {
    let head = pick(rng, &["node", "a", "_x", "job:rate5m", "DCGM_FI_DEV", "go_gc"]);
    format!("{head}_{}", rng.u32(..1000))
}

/// One sample of the text format, with blanks wherever it allows them.
fn text_line(rng: &mut Rng) -> String {
    let mut line = blanks(rng, 0) + &name(rng);
    if rng.u8(..4) > 0 {
        line += &blanks(rng, 0);
        line.push('{');
        let labels = rng.usize(..5);
        for nth in 0..labels {
            let (before, equals, value) = (blanks(rng, 0), blanks(rng, 0), label_value(rng));
            line +=
                &format!("{before}l{nth}{equals}={}\"{value}\"{}", blanks(rng, 0), blanks(rng, 0));
            if nth + 1 < labels || rng.bool() {
                line.push(',');
            }
        }
        line += &blanks(rng, 0);
        line.push('}');
    }
    line += &format!("{}{}", blanks(rng, 1), pick(rng, &VALUES));
    if rng.u8(..3) == 0 {
        line += &format!("{}{}", blanks(rng, 1), rng.i64(-5..2_000_000_000_000));
    }
    line + &blanks(rng, 0)
}

fn text_exposition(rng: &mut Rng) -> String {
    let end = pick(rng, &["\n", "\n", "\r\n"]);
    let mut text = String::new();
    for _ in 0..rng.usize(..20) {
        let line = match rng.u8(..10) {
            0 => String::new(),
            1 => "# a stray comment {with=\"braces\"} 1".to_owned(),
            2 => format!("# HELP {} of all \\n and \\\\ things", name(rng)),
            3 => "#".to_owned(),
            4 => blanks(rng, 0),
            _ => text_line(rng),
        };
        text += &(line + end);
    }
    // The last line may end without one.
    if rng.bool() { text.trim_end_matches(['\r', '\n']).to_owned() } else { text }
}

/// A family as OpenMetrics insists on it: strict in blanks and in what belongs together.
fn family(rng: &mut Rng, nth: usize, text: &mut String) {
    let name = format!("family_{nth}");
    let kind = pick(rng, &["gauge", "counter", "histogram", "summary", "unknown", "info"]);
    *text += &format!("# TYPE {name} {kind}\n# HELP {name} with \\n and \\\" in it\n");
    let at = match rng.u8(..3) {
        0 => format!(" {}.{:03}", rng.u32(..), rng.u16(..1000)),
        1 => format!(" {}", rng.u32(..)),
        _ => String::new(),
    };
    for member in 0..rng.usize(1..4) {
        let own = format!("member=\"{member}\",text=\"{}\"", label_value(rng));
        let exemplar = match rng.bool() {
            true => " # {trace_id=\"a # c,\"} 0.5 1700000000.5",
            false => " # {} 7",
        };
        let number = pick(rng, &["0", "1", "2.5", "1e3", "123456789.125"]);
        match kind {
            "gauge" | "unknown" => {
                *text += &format!("{name}{{{own}}} {}{at}\n", pick(rng, &VALUES[1..]))
            }
            "info" => *text += &format!("{name}_info{{{own}}} 1{at}\n"),
            "counter" => {
                let exemplar = if rng.bool() { exemplar } else { "" };
                *text += &format!("{name}_total{{{own}}} {number}{at}{exemplar}\n");
                *text += &format!("{name}_created{{{own}}} 1600000000.25{at}\n");
            }
            "summary" => {
                *text += &format!("{name}{{{own},quantile=\"0.99\"}} {number}{at}\n");
                *text +=
                    &format!("{name}_count{{{own}}} 3{at}\n{name}_sum{{{own}}} {number}{at}\n");
            }
            _ => {
                *text += &format!("{name}_bucket{{{own},le=\"0.5\"}} 1{at}{exemplar}\n");
                *text += &format!("{name}_bucket{{{own},le=\"+Inf\"}} 3{at}\n");
                *text +=
                    &format!("{name}_count{{{own}}} 3{at}\n{name}_sum{{{own}}} {number}{at}\n");
            }
        }
    }
}

#[test]
fn what_may_be_written_is_read_as_the_reference_does() {
    let mut rng = Rng::with_seed(20_261_121);
    let text = (0..400).map(|_| Exposition::text(text_exposition(&mut rng))).collect::<Vec<_>>();
    agree(&text);
    let open = (0..400).map(|_| {
        let mut text = String::new();
        for nth in 0..rng.usize(..5) {
            family(&mut rng, nth, &mut text);
        }
        Exposition::open(text + "# EOF\n")
    });
    agree(&open.collect::<Vec<_>>());
}

#[test]
fn where_we_differ_from_the_reference_is_on_purpose() {
    let cases = [
        // Both formats name three escapes; a lone backslash is a mistake of the exporter.
        ("another escape is refused", r#"a{b="\t"} 1"#),
        // One of the two would be lost.
        ("a label that stands twice is refused", r#"a{b="1",b="2"} 1"#),
        ("labels without a comma are refused", r#"a{b="1" c="2"} 1"#),
        // It takes the last word for the time.
        ("words behind the time are refused", "a 1 2 3"),
        // It takes tabs for a part of the name.
        ("blanks of both kinds stand between words", "a\t1 17"),
        ("times with a fraction are refused", "a 1 1.5"),
        // It reads whole numbers of OpenMetrics as such, which have no negative zero.
        ("zero keeps its sign", "# TYPE a gauge\na -0\n# EOF\n"),
        // It takes the first brace for the end of an exemplar's labels.
        ("an exemplar may hold a brace", "# TYPE a counter\na_total 1 # {b=\"}\"} 1\n# EOF\n"),
    ];
    let all = cases.iter().map(|(_, text)| match text.contains("EOF") {
        true => Exposition::open(*text),
        false => Exposition::text(*text),
    });
    let all: Vec<_> = all.collect();
    let Some(theirs) = theirs(&all) else { return };
    for (((name, text), exposition), theirs) in cases.iter().zip(&all).zip(theirs) {
        let ours = ours(exposition);
        assert_ne!(ours, theirs, "{name}: {text}");
        assert_eq!(ours.is_string(), name.ends_with("refused"), "{name}: {ours}");
    }
}
