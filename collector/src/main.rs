//! nexus-collector: takes messages from the queue and commits them into the store.

use std::process::ExitCode;

use clap::CommandFactory;
use nexus_collector::{
    args::{Asked, Cli},
    check::check,
    run,
    show::show,
};
use nexus_common::runtime::{conclude, parse_args};

/// What is read, decoded and planned is many short-lived pieces that go and come on several
/// threads: glibc's allocator gives them back neither soon nor cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let result = match parse_args::<Cli>(std::env::args_os()).asked() {
        Asked::Run(args) => run(*args).await,
        Asked::Show(args) => show(*args).await,
        Asked::Audit(args) => check(*args).await,
        Asked::Chore(chore) => chore.run(Cli::command()),
    };
    conclude("nexus-collector", result)
}
