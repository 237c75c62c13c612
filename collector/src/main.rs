//! nexus-collector: takes messages from the queue and commits them into the store.

use std::process::ExitCode;

use nexus_collector::{
    args::{Asked, Cli},
    run,
    show::show,
};
use nexus_common::runtime::{conclude, parse_args};

#[tokio::main]
async fn main() -> ExitCode {
    let result = match parse_args::<Cli>(std::env::args_os()).asked() {
        Asked::Run(args) => run(*args).await,
        Asked::Show(args) => show(*args).await,
    };
    conclude("nexus-collector", result)
}
