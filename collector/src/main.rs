//! nexus-collector: takes messages from the queue and commits them into the store.

use nexus_collector::{
    args::{Asked, Cli},
    run,
    show::show,
};
use nexus_common::runtime::parse_args;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match parse_args::<Cli>(std::env::args_os()).asked() {
        Asked::Run(args) => run(*args).await,
        Asked::Show(args) => show(*args).await,
    }
}
