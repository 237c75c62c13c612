//! nexus-gateway: serves REST out of etcd.

use clap::CommandFactory;
use nexus_common::runtime::parse_args;
use nexus_gateway::server::{Cli, Command, TokenCommand, new_token, run};

/// What is read, decoded and planned is many short-lived pieces that go and come on several
/// threads: glibc's allocator gives them back neither soon nor cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let cli: Cli = parse_args(std::env::args_os());
    let args = match cli.command {
        None => cli.run,
        Some(Command::Run(args)) => *args,
        Some(Command::Chore(chore)) => return chore.run(Cli::command()),
        Some(Command::Openapi { yaml }) => {
            let document = nexus_gateway::web::document();
            let text = if yaml { document.to_yaml()? } else { document.to_pretty_json()? };
            println!("{}", text.trim_end());
            return Ok(());
        }
        Some(Command::Schema) => {
            print!("{}", nexus_gateway::graphql::schema());
            return Ok(());
        }
        Some(Command::Token(TokenCommand::New { name, scopes })) => return new_token(name, scopes),
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
}
