//! For tests of every crate: a real etcd, started as a child on free loopback ports; one in
//! memory; and what can go wrong on the wire between.
//!
//! A missing etcd is a failure, not a skipped test.

// Tests may panic, and this is only compiled for them.
#![allow(clippy::unwrap_used)]

pub mod chaos;
pub mod clock;
mod cluster;
pub mod digest;
mod fleet;
mod memory;
pub mod mutation;
mod proxy;
pub mod truth;
mod wire;

use std::{
    fs::File,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
pub use cluster::TestCluster;
pub use fleet::{Fleet, LOOK, assert_has_crash_points};
pub use memory::{Change, MemoryEtcd};
pub use proxy::{FaultCount, Faults, Proxy};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
pub use wire::{Wire, WireAnswer, WireChannel, WireRequest};

use crate::{
    etcd::{Etcd, EtcdConfig, Security, Session},
    keyspace::{Config, Keyspace},
    model::{InstanceId, Role},
    runtime::{CommonArgs, Health, Life, LogFormat, Metrics, Process},
};

/// An etcd that processes can be started on.
pub trait Server {
    /// URLs of its members.
    fn endpoints(&self) -> Vec<String>;
}

/// An etcd of our own. Killed when dropped; its data goes with it.
pub struct TestEtcd {
    child: Child,
    data: TempDir,
    client_port: u16,
    peer_port: u16,
    flags: Vec<String>,
    secured: Secured,
}

/// How clients have to come.
#[derive(Debug, Clone, Default)]
pub struct Secured {
    /// Over TLS.
    pub tls: bool,
    /// What etcdctl has to be told for it.
    pub etcdctl: Vec<String>,
}

/// A folder for the data of an etcd, below `NEXUS_TEST_ETCD_DATA` if that is set: in memory, the
/// disk of a machine that others use too has no say in how long an election takes.
fn etcd_data() -> TempDir {
    match std::env::var_os("NEXUS_TEST_ETCD_DATA") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }
    .unwrap()
}

impl TestEtcd {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        Self::with_flags(&[])
    }

    /// Starts one with further flags.
    pub fn with_flags(flags: &[&str]) -> Self {
        Self::secured(flags, Secured::default())
    }

    /// Starts one with further flags, to which not everyone may come.
    pub fn secured(flags: &[&str], secured: Secured) -> Self {
        Self::on_ports(flags, secured, free_port(), free_port())
    }

    fn on_ports(flags: &[&str], secured: Secured, client_port: u16, peer_port: u16) -> Self {
        let data = etcd_data();
        let flags: Vec<String> = flags.iter().map(|&f| f.to_owned()).collect();
        let client = url(&secured, client_port);
        let child = spawn(data.path(), &client, peer_port, &flags);
        let etcd = Self { child, data, client_port, peer_port, flags, secured };
        etcd.wait_until_healthy();
        etcd
    }

    /// Kills it without warning; its data stays.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it where it stands.
    pub fn stop(&self) {
        signal(&self.child, "STOP");
    }

    /// Lets a stopped one go on.
    pub fn resume(&self) {
        signal(&self.child, "CONT");
    }

    /// Starts it again on the same data and ports.
    pub fn restart(&mut self) {
        self.child = spawn(self.data.path(), &self.endpoint(), self.peer_port, &self.flags);
        self.wait_until_healthy();
    }

    /// Another etcd, with data and an identity of its own, on the ports of `gone`, which was
    /// killed.
    pub fn in_place_of(gone: &TestEtcd) -> Self {
        Self::on_ports(&[], gone.secured.clone(), gone.client_port, free_port())
    }

    /// A channel to it, for something in between. Needs a runtime.
    pub fn channel(&self) -> WireChannel {
        wire::to_member(&self.endpoint())
    }

    /// From now on etcdctl is told this name and password.
    pub fn authenticate(&mut self, user: &str) {
        self.secured.etcdctl.push(format!("--user={user}"));
    }

    /// Saves all it stores to a file, and returns the path.
    pub fn save_snapshot(&self) -> PathBuf {
        let path = self.data.path().join("snapshot.db");
        self.etcdctl(&["snapshot", "save", path.to_str().unwrap()]);
        path
    }

    /// Puts what a snapshot holds in the place of what it stored. It must not run.
    pub fn restore(&mut self, snapshot: &Path) {
        let data = self.data.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let restored = program("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", snapshot.to_str().unwrap()])
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .output()
            .unwrap();
        assert!(restored.status.success(), "{restored:?}");
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        url(&self.secured, self.client_port)
    }

    /// Runs etcdctl against it and returns what it printed.
    pub fn etcdctl(&self, args: &[&str]) -> String {
        self.etcdctl_from(args, Stdio::null())
    }

    /// Runs etcdctl, which reads from a file what is too long for an argument.
    pub fn etcdctl_with(&self, args: &[&str], file: &Path) -> String {
        self.etcdctl_from(args, File::open(file).unwrap().into())
    }

    /// [`TestEtcd::etcdctl_with`], which may be refused.
    pub fn try_etcdctl_with(&self, args: &[&str], file: &Path) -> bool {
        self.run_etcdctl(args, File::open(file).unwrap().into()).status.success()
    }

    fn etcdctl_from(&self, args: &[&str], input: Stdio) -> String {
        let output = self.run_etcdctl(args, input);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
        text
    }

    fn run_etcdctl(&self, args: &[&str], input: Stdio) -> Output {
        program("etcdctl")
            .stdin(input)
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint()))
            .args(&self.secured.etcdctl)
            .args(args)
            .output()
            .expect("etcdctl is needed by the tests: apt-get install etcd-client")
    }

    /// Overwrites one value until etcd takes no more. What it says then counts for nothing.
    pub fn fill_with_history(&self) {
        let file = self.data.path().join("value");
        std::fs::write(&file, "x".repeat(1 << 20)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.etcdctl(&["alarm", "list"]).contains("NOSPACE") {
            assert!(Instant::now() < deadline, "no alarm was raised");
            self.try_etcdctl_with(&["put", "/junk"], &file);
        }
    }

    /// A handle to it.
    pub async fn connect(&self) -> Etcd {
        connect(self.endpoint(), Duration::from_secs(3)).await
    }

    /// A handle to it through `proxy`, that waits at most `request_timeout` for an answer.
    pub async fn connect_through(&self, proxy: &Proxy, request_timeout: Duration) -> Etcd {
        connect(proxy.endpoint(), request_timeout).await
    }

    /// A process of `role` named `name`, with a session of `ttl_seconds`, as `run` would make it.
    pub async fn life(&self, role: Role, name: &str, ttl_seconds: i64) -> Life {
        live(self.process(role, name, ttl_seconds).await).await.unwrap()
    }

    /// A process of `role` without a session.
    pub async fn process(&self, role: Role, name: &str, ttl_seconds: i64) -> Process {
        process(self.connect().await, role, name, ttl_seconds)
    }

    fn wait_until_healthy(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let healthy = program("etcdctl")
                .env("ETCDCTL_API", "3")
                .arg(format!("--endpoints={}", self.endpoint()))
                .args(&self.secured.etcdctl)
                .args(["endpoint", "health", "--command-timeout=2s"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .expect("etcdctl is needed by the tests: apt-get install etcd-client");
            if healthy.success() {
                return;
            }
            assert!(Instant::now() < deadline, "etcd did not become healthy within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Server for TestEtcd {
    fn endpoints(&self) -> Vec<String> {
        vec![self.endpoint()]
    }
}

impl Drop for TestEtcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `etcd` or `etcdctl`: of `NEXUS_ETCD_BIN_DIR`, or the installed one. Says once which it is.
pub fn program(name: &str) -> Command {
    static TOLD: std::sync::Once = std::sync::Once::new();
    let folder = std::env::var_os("NEXUS_ETCD_BIN_DIR").map(PathBuf::from);
    let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
    // Not by a macro: what those print is only shown when a test fails.
    let tell = || {
        let _ = writeln!(std::io::stderr(), "tests run on etcd {}", etcd_version());
    };
    if name == "etcd" {
        TOLD.call_once(tell);
    }
    Command::new(path)
}

/// Sends a process a signal (`TERM`, `STOP`, `CONT`).
pub fn signal(child: &Child, signal: &str) {
    let pid = child.id();
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
    assert!(sent.unwrap().success(), "{signal} to {pid}");
}

/// The version of the etcd that tests run on.
pub fn etcd_version() -> String {
    let folder = std::env::var_os("NEXUS_ETCD_BIN_DIR").map(PathBuf::from);
    let path = folder.map_or_else(|| PathBuf::from("etcd"), |folder| folder.join("etcd"));
    let output = Command::new(&path).arg("--version").output();
    let said = output.unwrap_or_else(|e| panic!("{}: {e}: make deps", path.display())).stdout;
    let text = String::from_utf8_lossy(&said).into_owned();
    text.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or("?").to_owned()
}

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    // Below those that the system gives to connections (from 32768 on unless told otherwise): one
    // of these would have it before whoever it is for, and an etcd whose port is taken ends.
    let port = || fastrand::u16(16_384..32_768);
    let mut ports = std::iter::repeat_with(port).take(1000);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// Waits until `condition` holds, and fails with `what` after `within`.
pub async fn eventually<F>(what: &str, within: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let deadline = Instant::now() + within;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A process of `role` named `name` on `etcd`, without a session.
fn process(etcd: Etcd, role: Role, name: &str, ttl_seconds: i64) -> Process {
    let instance = InstanceId::new(name).unwrap();
    let args = CommonArgs {
        etcd_endpoints: etcd.config().endpoints.clone(),
        etcd_ca_file: None,
        etcd_cert_file: None,
        etcd_key_file: None,
        etcd_username: None,
        etcd_password_file: None,
        root: Keyspace::default(),
        cluster_id: "local-cluster".parse().unwrap(),
        lease_ttl_seconds: ttl_seconds,
        partitions: 8,
        bucket_seconds: 3600,
        log_level: "info".to_owned(),
        log_format: LogFormat::Text,
    };
    Process {
        args: Arc::new(args),
        role,
        etcd,
        metrics: Arc::new(Metrics::new(role, &instance)),
        instance,
        apart: false,
        health: Arc::new(Health::default()),
        stop: CancellationToken::new(),
    }
}

/// A process of `role` named `name` on `etcd`, with a session of `ttl_seconds`.
pub async fn life_on(etcd: Etcd, role: Role, name: &str, ttl_seconds: i64) -> Life {
    try_life_on(etcd, role, name, ttl_seconds).await.unwrap()
}

/// [`life_on`], where etcd may fail.
///
/// # Errors
/// When the keyspace cannot be entered, or no session be had.
pub async fn try_life_on(
    etcd: Etcd,
    role: Role,
    name: &str,
    ttl_seconds: i64,
) -> anyhow::Result<Life> {
    live(process(etcd, role, name, ttl_seconds)).await
}

/// Gives a process a session.
async fn live(process: Process) -> anyhow::Result<Life> {
    let config: Config = process.enter_keyspace().await?.context("the process was stopped")?;
    let ttl = process.args.lease_ttl_seconds;
    let opened = Session::open(&process.etcd, process.role, process.instance.clone(), ttl).await;
    Ok(Life { process, config, session: Arc::new(opened?) })
}

/// A handle to the etcd at an endpoint, that waits at most `request_timeout` for an answer.
pub async fn connect(endpoint: String, request_timeout: Duration) -> Etcd {
    let keyspace = Keyspace::default();
    let security = Security::default();
    let config = EtcdConfig { endpoints: vec![endpoint], keyspace, request_timeout, security };
    Etcd::connect(config).await.unwrap()
}

fn url(secured: &Secured, port: u16) -> String {
    format!("{}://127.0.0.1:{port}", if secured.tls { "https" } else { "http" })
}

fn spawn(data: &Path, client: &str, peer_port: u16, flags: &[String]) -> Child {
    let peer = format!("http://127.0.0.1:{peer_port}");
    program("etcd")
        .arg(format!("--data-dir={}", data.join("data").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .args(["--logger=zap", "--log-level=error", "--snapshot-count=2000"])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is needed by the tests: apt-get install etcd-server")
}
