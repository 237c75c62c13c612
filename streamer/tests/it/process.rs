//! One streamer under test, with a keyspace of its own.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nexus_common::{
    audit::{AuditReport, audit},
    etcd::{Etcd, EtcdConfig, Security},
    testing::{TestEtcd, signal},
};
use tempfile::TempDir;
use tokio::time::sleep;

/// Between two looks at a condition.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// For anything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A directory for files and logs, and a part of etcd, both for one case.
pub(crate) struct Case {
    pub(crate) etcd: Etcd,
    env: [(&'static str, String); 3],
    dir: TempDir,
}

impl Case {
    /// A case that keeps its keys below `root`.
    pub(crate) async fn new(server: &TestEtcd, root: &str) -> Self {
        let config = EtcdConfig {
            endpoints: vec![server.endpoint()],
            keyspace: root.parse().unwrap(),
            request_timeout: Duration::from_secs(3),
            security: Security::default(),
        };
        let env = [
            ("ETCD_ENDPOINTS", server.endpoint()),
            ("NEXUS_ROOT", root.to_owned()),
            ("LEASE_TTL_SECONDS", "3".to_owned()),
        ];
        let etcd = Etcd::connect(config).await.unwrap();
        Self { etcd, env, dir: tempfile::tempdir().unwrap() }
    }

    /// What a program of this case finds in its environment.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Waits until nobody works on any shard.
    pub(crate) async fn idle(&self) {
        let since = Instant::now();
        let range = self.etcd.keyspace().prefix("claims/shards/");
        while !self.etcd.range(&range, Default::default()).await.unwrap().entries.is_empty() {
            assert!(since.elapsed() < SOON, "a shard was not given back");
            sleep(LOOK).await;
        }
    }

    /// Where a file of this name is, or would be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Starts a streamer; its log goes on where an earlier one's ended.
    pub(crate) fn start(&self, flags: &[&str]) -> Streamer {
        self.start_with(flags, Stdio::null())
    }

    /// Likewise, with something at its standard input.
    pub(crate) fn start_with(&self, flags: &[&str], input: Stdio) -> Streamer {
        let log = self.path("streamer.log");
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_nexus-streamer"))
            .env_clear()
            .envs(self.env())
            .args(flags)
            .stdin(input)
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Streamer { child, log }
    }

    /// Audits until `condition` holds; every report must be clean.
    pub(crate) async fn audited_until(
        &self,
        what: &str,
        condition: impl Fn(&AuditReport) -> bool,
    ) -> AuditReport {
        let since = Instant::now();
        loop {
            let report = audit(&self.etcd).await.unwrap();
            assert!(report.clean, "{report:#?}");
            if condition(&report) {
                return report;
            }
            assert!(since.elapsed() < SOON, "not within {SOON:?}: {what}: {report:#?}");
            sleep(LOOK).await;
        }
    }
}

/// A running streamer. Killed when dropped; a failed test shows its log.
pub(crate) struct Streamer {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Streamer {
    /// Everything that streamers of this case logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log holds `text`.
    pub(crate) async fn wait_for_log(&self, text: &str) {
        let since = Instant::now();
        while !self.log().contains(text) {
            assert!(since.elapsed() < SOON, "not logged within {SOON:?}: {text:?}");
            sleep(LOOK).await;
        }
    }

    /// Kills it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end; it must, cleanly.
    pub(crate) async fn terminate(self) {
        signal(&self.child, "TERM");
        let status = self.wait().await;
        assert!(status.success(), "{status}");
    }

    /// Waits until it ends.
    pub(crate) async fn wait(mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < SOON, "it did not end within {SOON:?}");
            sleep(LOOK).await;
        }
    }
}

impl Drop for Streamer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}
