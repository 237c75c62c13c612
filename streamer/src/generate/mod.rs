//! Writes DCGM telemetry as CSV: for demonstrations, load tests and benchmarks.
//!
//! Deterministic: the same arguments give the same bytes on every machine, for ever.

mod model;
mod random;
mod text;

use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use nexus_common::model::Timestamp;

pub(crate) use self::random::SplitMix64;
use self::{
    model::{FIELDS, GpuState},
    text::{Gpu, LONG_HEADER, LongRows, WIDE_HEADER, WideRows},
};
use crate::source::csv::parse_timestamp;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// Rows between two lines of progress: about one a second.
const PROGRESS_ROWS: u64 = 2_000_000;

/// Which columns to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// A row a sample, as dcgm-exporter's telemetry is exported.
    Long,
    /// A row a point: a column a metric.
    Wide,
}

/// A ready-made choice of everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// 2,470 samples of 247 GPUs on 31 hosts: ten metrics, four timestamps a second apart, each
    /// metric at one of them.
    Sample,
}

/// What to write, and where.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Everything at once; leaves only --layout, --seed, --start and --output to choose
    #[arg(long, conflicts_with_all = ["hosts", "gpus_per_host", "metrics", "seconds"])]
    pub preset: Option<Preset>,
    /// Hosts, 1 to 4096
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub hosts: u64,
    /// GPUs on each host, 1 to 16
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=16))]
    pub gpus_per_host: u64,
    /// Metrics of each GPU, 1 to 10 (the wide layout has columns for eight of them)
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10))]
    pub metrics: u64,
    /// Seconds of telemetry, one measurement a second, 1 to 31536000 (a year)
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub seconds: u64,
    /// Another seed gives other values; the same gives the same bytes
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Time of the first measurement, RFC 3339, 1970 to 2200
    #[arg(long, default_value = "2025-07-18T20:42:34Z", value_parser = read_start)]
    pub start: Timestamp,
    /// Layout of the rows
    #[arg(long, value_enum, default_value_t = Shape::Long)]
    pub layout: Shape,
    /// File to write, replaced once it is complete; - for standard output
    #[arg(long, short, alias = "out", default_value = "-")]
    pub output: PathBuf,
}

fn read_start(text: &str) -> Result<Timestamp, String> {
    parse_timestamp(text.as_bytes()).ok_or_else(|| {
        format!("{text:?} is not an RFC 3339 time from 1970 to 2200 such as 2025-07-18T20:42:34Z")
    })
}

/// Why nothing, or not everything, was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The file cannot be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Rows, without the header.
    pub rows: u64,
    /// Samples: values that are there.
    pub samples: u64,
    /// Bytes, with the header.
    pub bytes: u64,
}

/// Writes what `args` asks for. Blocking. A reader that closes standard output early ends it
/// without an error, and with nothing counted.
///
/// # Errors
/// When the file cannot be written; a half-written one is removed.
pub fn generate(args: &GenerateArgs) -> Result<Written, GenerateError> {
    if args.output == Path::new("-") {
        let result = write_rows(args, &mut io::stdout().lock());
        return match result {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Written::default()),
            other => other.map_err(|source| fail(&args.output, source)),
        };
    }
    // Under another name until it is complete, so that nobody reads half of it.
    let mut name = args.output.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let result = File::create(&partial).and_then(|mut file| {
        let written = write_rows(args, &mut file)?;
        std::fs::rename(&partial, &args.output)?;
        Ok(written)
    });
    result.map_err(|source| {
        let _ = std::fs::remove_file(&partial); // may not have come into being
        fail(&args.output, source)
    })
}

fn fail(path: &Path, source: io::Error) -> GenerateError {
    GenerateError::Write { path: path.to_owned(), source }
}

/// What to write, with a preset's choices made.
#[derive(Debug, Clone, Copy)]
struct Plan {
    hosts: u64,
    gpus_per_host: u64,
    /// GPUs of the last host that are not there.
    gpus_missing: u64,
    metrics: usize,
    seconds: u64,
    /// Each metric at its own second only.
    families: bool,
}

impl Plan {
    fn of(args: &GenerateArgs) -> Self {
        match args.preset {
            Some(Preset::Sample) => Self {
                hosts: 31,
                gpus_per_host: 8,
                gpus_missing: 1,
                metrics: FIELDS.len(),
                seconds: 4,
                families: true,
            },
            None => Self {
                hosts: args.hosts,
                gpus_per_host: args.gpus_per_host,
                gpus_missing: 0,
                metrics: usize::try_from(args.metrics).unwrap_or(FIELDS.len()),
                seconds: args.seconds,
                families: false,
            },
        }
    }

    fn gpus(&self, seed: u64) -> Vec<Gpu> {
        let count = (self.hosts * self.gpus_per_host).saturating_sub(self.gpus_missing);
        (0..count)
            .map(|number| Gpu {
                host: format!("dgx-{:03}", number / self.gpus_per_host + 1),
                index: number % self.gpus_per_host,
                uuid: uuid(seed, number),
            })
            .collect()
    }

    fn is_due(&self, nth: usize, family: u64, second: u64) -> bool {
        nth < self.metrics && (!self.families || family == second)
    }
}

/// The UUID of GPU `number`.
pub(crate) fn uuid(seed: u64, number: u64) -> String {
    // A stream of its own: values and names must not share numbers.
    let mut random = SplitMix64::new(!seed, number);
    let (a, b) = (random.next(), random.next());
    format!(
        "GPU-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xffff,
        b >> 48,
        b & 0xffff_ffff_ffff
    )
}

enum Rows {
    Long(LongRows),
    Wide(WideRows),
}

/// Writes header and rows, ordered by time, then host, GPU and metric.
fn write_rows(args: &GenerateArgs, out: &mut dyn Write) -> io::Result<Written> {
    let plan = Plan::of(args);
    let mut gpus = Vec::new();
    for (number, gpu) in (0..).zip(plan.gpus(args.seed)) {
        let rows = match args.layout {
            Shape::Long => Rows::Long(LongRows::new(&gpu)?),
            Shape::Wide => Rows::Wide(WideRows::new(&gpu)?),
        };
        gpus.push((GpuState::new(args.seed, number), rows));
    }
    let header = if args.layout == Shape::Long { LONG_HEADER } else { WIDE_HEADER };
    let mut sink = Sink::new(out);
    sink.buffer.extend_from_slice(header.as_bytes());
    for second in 0..plan.seconds {
        // Bounded by a year, so it fits.
        let time = args.start.as_millis() + second as i64 * 1000;
        let time = Timestamp::saturating_from_millis(time).to_string();
        for (state, rows) in &mut gpus {
            let readings = state.step();
            match rows {
                Rows::Wide(rows) => {
                    let due = |nth, field: &model::Field| plan.is_due(nth, field.family, second);
                    let samples = rows.write(&mut sink.buffer, &time, &readings, due);
                    sink.count(u64::from(samples > 0), samples)?;
                }
                Rows::Long(rows) => {
                    let fields = FIELDS.iter().zip(readings).enumerate();
                    for (_, (field, reading)) in
                        fields.filter(|(nth, (f, _))| plan.is_due(*nth, f.family, second))
                    {
                        rows.write(&mut sink.buffer, &time, field, reading);
                        sink.count(1, 1)?;
                    }
                }
            }
        }
    }
    sink.finish()
}

struct Sink<'a> {
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
    written: Written,
    told: u64,
    tells: bool,
}

impl<'a> Sink<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        let buffer = Vec::with_capacity(BUFFER_BYTES + 4096);
        let tells = io::stderr().is_terminal();
        Self { out, buffer, written: Written::default(), told: 0, tells }
    }

    fn count(&mut self, rows: u64, samples: u64) -> io::Result<()> {
        self.written.rows += rows;
        self.written.samples += samples;
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        if self.tells && self.written.rows >= self.told + PROGRESS_ROWS {
            self.told = self.written.rows;
            let (rows, mib) = (self.told, self.written.bytes >> 20);
            // Progress is a courtesy: a closed terminal must not end the work.
            let _ = write!(io::stderr(), "\r{rows} rows, {mib} MiB");
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.written.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<Written> {
        self.flush()?;
        self.out.flush()?;
        if self.told > 0 {
            let _ = writeln!(io::stderr()); // ends the line of progress
        }
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests;
