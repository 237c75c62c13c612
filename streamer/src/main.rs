//! nexus-streamer: parses the command line, then does it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nexus_streamer::generate::{GenerateArgs, generate};

/// Exit status for a command line that cannot be understood (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

/// Reads GPU telemetry and hands it to the queue.
#[derive(Debug, Parser)]
#[command(name = "nexus-streamer", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write DCGM telemetry as CSV, to try the pipeline with
    Generate(GenerateArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nobody is left to be told
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Generate(args) => run_generate(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nexus-streamer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let written = generate(args)?;
    let (rows, samples, bytes) = (written.rows, written.samples, written.bytes);
    if rows == 0 {
        return Ok(()); // whoever read standard output has left
    }
    eprintln!("{rows} rows, {samples} samples, {bytes} bytes to {}", args.output.display());
    Ok(())
}
