//! What every program can do besides its work: tell whether an instance lives, describe itself.

use std::{
    env,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Command, Subcommand};

/// How long a healthy instance may take to say so.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The version, and the commit it was built from where the build was told (`NEXUS_COMMIT`).
pub fn version() -> &'static str {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    static WITH_COMMIT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    match option_env!("NEXUS_COMMIT") {
        None | Some("") => VERSION,
        Some(commit) => WITH_COMMIT.get_or_init(|| format!("{VERSION} ({commit})")),
    }
}

/// What every program can do besides its work.
#[derive(Debug, Clone, Subcommand)]
pub enum Chore {
    /// Ask an instance whether it lives; fails if it does not. For container engines
    Healthcheck(HealthcheckArgs),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    Man,
}

/// Flags of `healthcheck`.
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// What to ask [default: /livez where METRICS_LISTEN, LISTEN or PORT say that the instance
    /// listens]
    #[arg(long, env = "HEALTHCHECK_URL")]
    pub url: Option<String>,
}

impl Chore {
    /// Does it. `program` is the command line that it describes.
    ///
    /// # Errors
    /// When the instance does not live, or standard output is closed.
    pub fn run(self, mut program: Command) -> anyhow::Result<()> {
        match self {
            Chore::Healthcheck(args) => healthcheck(args.url),
            Chore::Completions { shell } => {
                let name = program.get_name().to_owned();
                // The generator panics where nobody reads any more: it gets memory to write to.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut program, name, &mut script);
                io::stdout().write_all(&script).context("write to standard output")
            }
            Chore::Man => {
                let mut page = Vec::new();
                clap_mangen::Man::new(program).render(&mut page)?;
                io::stdout().write_all(&page).context("write to standard output")
            }
        }
    }
}

fn healthcheck(url: Option<String>) -> anyhow::Result<()> {
    if let Some(url) = url {
        return ask(&url);
    }
    let listen = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let address = match (listen("METRICS_LISTEN").or_else(|| listen("LISTEN")), listen("PORT")) {
        (_, Some(port)) => format!("127.0.0.1:{port}"),
        (Some(address), None) => address,
        (None, None) => {
            anyhow::bail!("where does it listen? Give --url, METRICS_LISTEN, LISTEN or PORT")
        }
    };
    let address: SocketAddr =
        address.parse().with_context(|| format!("{address} is no address with a port"))?;
    let address = reachable(address);
    if env::var_os("TLS_CERT_FILE").is_some_and(|file| !file.is_empty()) {
        // Its certificate names a host that this is not: that somebody takes calls must do.
        return TcpStream::connect_timeout(&address, ANSWER_WITHIN)
            .map(drop)
            .with_context(|| format!("connect to {address}"));
    }
    ask(&format!("http://{address}/livez"))
}

/// Who listens everywhere is found here.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
        }
        _ => address,
    }
}

fn ask(url: &str) -> anyhow::Result<()> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(ANSWER_WITHIN)).build().into();
    agent.get(url).call().map(drop).with_context(|| format!("ask {url}"))
}
