//! Processes under test: the real binaries, started, signalled, killed, and never left behind.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;

use super::{Server, TestEtcd};
use crate::{
    etcd::{Etcd, EtcdConfig, Security},
    keyspace::Keyspace,
    model::Role,
};

/// Lines of each log that a failed test shows.
const LOG_LINES_SHOWN: usize = 60;
/// Between two looks at a condition.
pub const LOOK: Duration = Duration::from_millis(50);

/// An etcd, and the processes that work on it.
pub struct Fleet<S: Server = TestEtcd> {
    /// The etcd.
    pub etcd: S,
    dir: TempDir,
    env: Vec<(String, String)>,
    running: BTreeMap<String, Child>,
}

impl Fleet {
    /// An etcd without processes. Every process will get `env`.
    pub fn new(env: &[(&str, &str)]) -> Self {
        Self::on(TestEtcd::start(), env)
    }
}

impl<S: Server> Fleet<S> {
    /// The same on an etcd of one's own.
    pub fn on(etcd: S, env: &[(&str, &str)]) -> Self {
        let mut all = vec![("ETCD_ENDPOINTS".to_owned(), etcd.endpoints().join(","))];
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self { etcd, dir: tempfile::tempdir().unwrap(), env: all, running: BTreeMap::new() }
    }

    /// A handle to the etcd.
    pub async fn connect(&self) -> Etcd {
        let config = EtcdConfig {
            endpoints: self.etcd.endpoints(),
            keyspace: Keyspace::default(),
            request_timeout: Duration::from_secs(5),
            security: Security::default(),
        };
        Etcd::connect(config).await.unwrap()
    }

    /// A DCGM file of `seconds` × 4 hosts × 8 GPUs × 10 metrics rows.
    pub fn generate(&self, name: &str, seconds: u64) -> PathBuf {
        self.generate_with(name, &["--seconds", &seconds.to_string()])
    }

    /// A DCGM file as the generator's flags say.
    pub fn generate_with(&self, name: &str, flags: &[&str]) -> PathBuf {
        let path = self.dir.path().join(name);
        let output = Command::new(binary(Role::Streamer))
            .env_clear()
            .arg("generate")
            .args(flags)
            .arg("--output")
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "generate: {output:?}");
        path
    }

    /// Starts an instance. Its log goes on where an earlier life's ended.
    pub fn start(&mut self, role: Role, name: &str, flags: &[&str]) {
        self.start_in(role, name, flags, &[]);
    }

    /// [`Fleet::start`], with more in its environment.
    pub fn start_in(&mut self, role: Role, name: &str, flags: &[&str], env: &[(&str, &str)]) {
        self.spawn(role, name, flags, env, &[]);
    }

    /// [`Fleet::start`], by a command that runs it elsewhere (in another network).
    pub fn start_by(&mut self, by: &[String], role: Role, name: &str, flags: &[&str]) {
        self.spawn(role, name, flags, &[], by);
    }

    fn spawn(
        &mut self,
        role: Role,
        name: &str,
        flags: &[&str],
        env: &[(&str, &str)],
        by: &[String],
    ) {
        let log = File::options().create(true).append(true).open(self.log_path(name)).unwrap();
        let mut command = match by {
            [] => Command::new(binary(role)),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary(role));
                command
            }
        };
        let path = std::env::var_os("PATH").unwrap_or_default(); // where `by` is found
        let child = command
            .env_clear()
            .env("PATH", path)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(env.iter().copied())
            .args(["--instance-id", name])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let before = self.running.insert(name.to_owned(), child);
        assert!(before.is_none(), "{name} runs already");
    }

    /// Starts a streamer of `file`.
    pub fn stream(&mut self, name: &str, file: &Path, flags: &[&str]) {
        let mut all = vec!["--csv-file", file.to_str().unwrap()];
        all.extend(flags);
        self.start(Role::Streamer, name, &all);
    }

    /// Starts a collector.
    pub fn collect(&mut self, name: &str, flags: &[&str]) {
        self.start(Role::Collector, name, flags);
    }

    /// Kills without warning, and waits until it is gone.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.running.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, name: &str, signal: &str) {
        super::signal(&self.running[name], signal);
    }

    /// Asks it to end and waits: how it ended, and after how long.
    pub async fn terminate(&mut self, name: &str) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.signal(name, "TERM");
        let status = self.wait_for_exit(name, Duration::from_secs(15)).await;
        (status, asked.elapsed())
    }

    /// Waits until it ends by itself.
    pub async fn wait_for_exit(&mut self, name: &str, within: Duration) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.running.get_mut(name).unwrap().try_wait().unwrap() {
                self.running.remove(name);
                return status;
            }
            assert!(since.elapsed() < within, "{name} did not end within {within:?}");
            sleep(LOOK).await;
        }
    }

    /// All processes still run: none ended by itself.
    pub fn assert_alive(&mut self) {
        for (name, child) in &mut self.running {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{name} ended by itself: {ended:?}");
        }
    }

    /// Everything it logged, all lives together.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    /// Waits until its log holds `text`.
    pub async fn wait_for_log(&self, name: &str, text: &str, within: Duration) {
        let since = Instant::now();
        while !self.log(name).contains(text) {
            assert!(since.elapsed() < within, "{name} did not log {text:?} within {within:?}");
            sleep(LOOK).await;
        }
    }

    /// What all running ones logged.
    pub fn logs(&self) -> String {
        self.running.keys().map(|name| self.log(name)).collect()
    }

    /// Waits until one of them has logged `text`.
    pub async fn wait_for_logs(&self, text: &str, within: Duration) {
        let since = Instant::now();
        while !self.logs().contains(text) {
            assert!(since.elapsed() < within, "nobody logged {text:?} within {within:?}");
            sleep(LOOK).await;
        }
    }

    /// Processor time it has used, all threads, user and system.
    pub fn cpu(&self, name: &str) -> Duration {
        let pid = self.running[name].id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // Behind the command's name, which may hold anything: utime and stime are fields 14, 15.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // 100 ticks a second on every Linux
    }

    /// Largest resident memory so far, in bytes.
    pub fn peak_memory(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.running[name].id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// A metric of a running one, all its series together. `series` is how their lines begin
    /// (`nexus_txns_total{`) and `label` what they hold (`result="fenced"`).
    pub fn metric(&self, name: &str, series: &str, label: &str) -> f64 {
        let log = self.log(name);
        let life = log.rsplit(" starting ").next().unwrap();
        let address = life.split("address=").nth(1).and_then(|t| t.split(' ').next()).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(series) && line.contains(label));
        let figures = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        figures.fold(0.0, |sum, figure| sum + figure) // `sum` of none is -0
    }

    /// Names of the running ones.
    pub fn names(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    fn show_logs(&self) {
        let logs = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path());
        for path in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {} ({} lines)", path.display(), lines.len());
            for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES_SHOWN)) {
                println!("{line}");
            }
        }
    }
}

impl<S: Server> Drop for Fleet<S> {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill(); // also ends a stopped one
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

/// Fails unless the program of a role was built with crash points, which it is beside tests only.
pub fn assert_has_crash_points(role: Role) {
    let path = binary(role);
    let program = std::fs::read(&path).unwrap();
    let found = program.windows(11).any(|part| part == b"NEXUS_CRASH");
    assert!(found, "{} has no crash points: cargo test --workspace", path.display());
}

/// The program of a role: in `NEXUS_BIN_DIR`, or where cargo puts it beside the tests.
fn binary(role: Role) -> PathBuf {
    let folder = std::env::var_os("NEXUS_BIN_DIR").map(PathBuf::from).unwrap_or_else(|| {
        // A test runs in `deps`, a folder below the programs.
        let test = std::env::current_exe().unwrap();
        test.parent().and_then(Path::parent).unwrap().to_owned()
    });
    let path = folder.join(format!("nexus-{role}"));
    assert!(path.exists(), "{} is missing: cargo build --workspace", path.display());
    path
}
