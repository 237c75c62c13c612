//! The CSV reader: every record is accepted or rejected, wherever reading stops and goes on and
//! wherever the file is cut; what is accepted can be sent.

use std::{collections::BTreeMap, env, fs, ops::Range, path::PathBuf, process};

use nexus_common::{block::Section, model::HostSamples};
use nexus_streamer::source::{
    CsvFile,
    csv::{Batch, BatchLimits, RejectReason, ShardReader},
};

/// What became of a file or of a part of it.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    accepted: u64,
    absent: u64,
    rejected: BTreeMap<RejectReason, u64>,
    /// A line each, sorted in the end.
    samples: Vec<String>,
}

impl Outcome {
    fn add(&mut self, batch: &Batch) {
        let before = self.samples.len();
        self.accepted += batch.rows_accepted;
        self.absent += batch.rows_absent;
        for (reason, rows) in &batch.rejected {
            *self.rejected.entry(*reason).or_default() += rows;
        }
        batch.hosts.iter().for_each(|host| self.add_host(host));
        assert_eq!(batch.samples, (self.samples.len() - before) as u64);
    }

    fn add_host(&mut self, host: &HostSamples) {
        if host.samples() > 0 {
            let sent = Section::encode(host).map(|section| section.samples());
            assert_eq!(sent, Ok(host.samples() as u64), "accepted, but cannot be sent");
        }
        for series in &host.series {
            let gpu = series.gpu.map(|gpu| &host.gpus[gpu as usize].id);
            let name = format!("{} {gpu:?} {} {:?}", host.host, series.metric, series.labels);
            assert_eq!(series.timestamps.len(), series.values.len());
            for (at, value) in series.timestamps.iter().zip(&series.values) {
                assert!(value.is_finite(), "{name} {value}");
                self.samples.push(format!("{name} {at} {:x}", value.to_bits()));
            }
        }
    }

    fn offered(&self) -> u64 {
        self.accepted + self.rejected.values().sum::<u64>()
    }
}

/// A file that goes with the value.
struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The first byte says how many rows are read at once, the second how large a shard is; the rest
/// is the file.
pub(crate) fn run(bytes: &[u8]) {
    let [rows, shard, text @ ..] = bytes else { return };
    let (rows, shard_bytes) = (1 + u64::from(rows % 32), 1 + 3 * u64::from(*shard));
    let written = Written(env::temp_dir().join(format!("nexus-fuzz-{}.csv", process::id())));
    if fs::write(&written.0, text).is_err() {
        panic!("write {}", written.0.display());
    }
    let Ok(file) = CsvFile::open(&written.0) else { return };
    let whole = file.header_end..text.len() as u64;
    let body = &text[file.header_end as usize..];

    let at_once = read(&file, whole.clone(), u64::MAX);
    assert_eq!(at_once.offered(), records(body));
    assert_eq!(read(&file, whole.clone(), rows), at_once, "{rows} rows at once");

    let shards = file.shards(Some(shard_bytes)).unwrap_or_else(|e| panic!("{e}"));
    let mut at = whole.start;
    for shard in &shards {
        assert!(shard.start == at && shard.end > at, "{shards:?}");
        at = shard.end;
    }
    assert_eq!(at, whole.end, "{shards:?}");
    let mut parts = Outcome::default();
    for shard in shards {
        let within = &text[shard.start as usize..shard.end as usize];
        let part = read(&file, shard, rows);
        assert_eq!(part.offered(), records(within));
        join(&mut parts, part);
    }
    // A stray quote may hide where a record ends: then rows are counted, not promised.
    if well_quoted(body) {
        assert_eq!(parts, at_once, "shards of {shard_bytes} bytes");
    }
    let _ = file.span();
}

/// Reads a range, each batch with a reader of its own that goes on where the last one ended.
fn read(file: &CsvFile, range: Range<u64>, rows_max: u64) -> Outcome {
    let limits = BatchLimits { rows_max, ..BatchLimits::default() };
    let mut outcome = Outcome::default();
    let mut from = range.start;
    loop {
        let layout = file.layout.clone();
        let batch = ShardReader::open(&file.path, layout, range.clone(), from)
            .and_then(|mut reader| reader.read_batch(&limits))
            .unwrap_or_else(|e| panic!("{e}"));
        outcome.add(&batch);
        assert!(batch.rows_offered() <= rows_max);
        assert!((from..=range.end).contains(&batch.end_offset));
        if batch.done {
            assert_eq!(batch.end_offset, range.end);
            outcome.samples.sort();
            return outcome;
        }
        assert!(batch.end_offset > from, "no progress at byte {from}");
        from = batch.end_offset;
    }
}

fn join(all: &mut Outcome, part: Outcome) {
    all.accepted += part.accepted;
    all.absent += part.absent;
    for (reason, rows) in part.rejected {
        *all.rejected.entry(reason).or_default() += rows;
    }
    all.samples.extend(part.samples);
    all.samples.sort();
}

/// Records as the library sees them, behind a line feed as every part of a file is.
fn records(body: &[u8]) -> u64 {
    let body = [b"\n", body].concat();
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(&*body);
    reader.byte_records().count() as u64
}

/// Whether quotes stand around whole fields only, and doubled within.
fn well_quoted(body: &[u8]) -> bool {
    let ends = |byte: Option<&u8>| matches!(byte, None | Some(b',' | b'\n' | b'\r'));
    let mut at = 0;
    let mut start = true; // of a field
    let mut quoted = false;
    while let Some(&byte) = body.get(at) {
        match byte {
            b'"' if quoted && body.get(at + 1) == Some(&b'"') => at += 1,
            b'"' if quoted && ends(body.get(at + 1)) => quoted = false,
            b'"' if !quoted && start => quoted = true,
            b'"' => return false,
            _ => {}
        }
        start = matches!(byte, b',' | b'\n' | b'\r') && !quoted;
        at += 1;
    }
    !quoted
}
