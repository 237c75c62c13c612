//! nexus-collector: takes messages from the queue and commits them into the store.

use nexus_collector::args::Cli;
use nexus_common::runtime::parse_args;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    nexus_collector::run(parse_args::<Cli>(std::env::args_os()).into_args()).await
}
