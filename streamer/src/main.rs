//! nexus-streamer: parses the command line, then does it.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use nexus_common::runtime::{Chore, conclude, parse_args, version};
use nexus_streamer::{
    args::Args,
    ask::{SourceArgs, ask},
    generate::{GenerateArgs, generate},
    nvml::{NO_DRIVER, NoDriver, NvmlArgs, nvml},
    simulate::{SimulateArgs, simulate},
};

/// What is read, decoded and planned is many short-lived pieces that go and come on several
/// threads: glibc's allocator gives them back neither soon nor cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Streams GPU telemetry from sources into the queue in etcd
#[derive(Debug, Parser)]
#[command(name = "nexus-streamer", version = version(), args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stream until told to stop (the default)
    Run(Box<Args>),
    /// Write DCGM telemetry as CSV, to try the pipeline with
    Generate(GenerateArgs),
    /// Stream telemetry that is made up, live, until told to stop
    Simulate(Box<SimulateArgs>),
    /// Stream this host's NVIDIA GPUs until told to stop
    Nvml(Box<NvmlArgs>),
    /// Say what shall be read, and see what is
    Source(Box<SourceArgs>),
    #[command(flatten)]
    Chore(Chore),
}

fn main() -> ExitCode {
    let cli: Cli = parse_args(std::env::args_os());
    let result = match cli.command {
        Some(Command::Run(args)) => block_on(nexus_streamer::run(*args)),
        Some(Command::Simulate(args)) => block_on(simulate(*args)),
        Some(Command::Nvml(args)) => block_on(nvml(*args)),
        Some(Command::Source(args)) => block_on(ask(*args)),
        Some(Command::Generate(args)) => run_generate(&args),
        Some(Command::Chore(chore)) => chore.run(Cli::command()),
        None => block_on(nexus_streamer::run(cli.args)),
    };
    let no_driver = result.as_ref().is_err_and(|error| error.is::<NoDriver>());
    let code = conclude("nexus-streamer", result);
    if no_driver { ExitCode::from(NO_DRIVER) } else { code }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A question to an exporter that is still on its way is nobody's any more.
    runtime.shutdown_background();
    result
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
