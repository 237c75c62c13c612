//! An etcd of three members on loopback, each of which can be killed, stopped and brought back.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Server, free_port, life_on, program};
use crate::{
    etcd::{Etcd, EtcdConfig, Security},
    keyspace::Keyspace,
    model::Role,
    runtime::Life,
};

const MEMBERS: usize = 3;

/// Three members. Killed when dropped; their data goes with them.
pub struct TestCluster {
    members: Vec<Member>,
    data: TempDir,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl TestCluster {
    /// Starts them and waits until they have a leader.
    pub fn start() -> Self {
        let member = |_| Member { client_port: free_port(), peer_port: free_port(), child: None };
        let members = (0..MEMBERS).map(member).collect();
        let mut cluster = Self { members, data: tempfile::tempdir().unwrap() };
        for index in 0..MEMBERS {
            cluster.spawn(index);
        }
        (0..MEMBERS).for_each(|index| cluster.wait_until_healthy(index));
        cluster
    }

    /// How many.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// URL of one.
    pub fn endpoint(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[index].client_port)
    }

    /// A handle that knows all members.
    pub async fn connect(&self) -> Etcd {
        Etcd::connect(self.config()).await.unwrap()
    }

    /// A process of `role` named `name`, with a session of `ttl_seconds`, as `run` would make it,
    /// whose list of members begins with member `first`.
    pub async fn life(&self, role: Role, name: &str, ttl_seconds: i64, first: usize) -> Life {
        let mut config = self.config();
        config.endpoints.rotate_left(first);
        let etcd = Etcd::connect(config).await.unwrap();
        life_on(etcd, role, name, ttl_seconds).await
    }

    /// How to reach all of them.
    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: self.endpoints(),
            keyspace: Keyspace::default(),
            request_timeout: Duration::from_secs(5),
            security: Security::default(),
        }
    }

    /// Which one leads. Waits until one does.
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            for index in (0..self.members.len()).filter(|&i| self.members[i].child.is_some()) {
                let args = ["endpoint", "status", "--write-out=fields", "--command-timeout=1s"];
                let Some(status) = self.etcdctl(index, &args) else { continue };
                let field = |name: &str| {
                    let line = status.lines().find(|line| line.starts_with(name));
                    line.and_then(|line| line.split(" : ").nth(1)).map(str::to_owned)
                };
                let (member, leader) = (field("\"MemberID\""), field("\"Leader\""));
                if member.is_some() && member == leader {
                    return index;
                }
            }
            assert!(Instant::now() < deadline, "no member leads");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills one without warning; its data stays.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks one to end, and waits until it has.
    pub fn terminate(&mut self, index: usize) {
        self.signal(index, "TERM");
        self.members[index].child.take().unwrap().wait().unwrap();
    }

    /// Starts one again on its data, and waits until it answers.
    pub fn restart(&mut self, index: usize) {
        self.spawn(index);
        self.wait_until_healthy(index);
    }

    /// Stops one where it stands.
    pub fn stop(&self, index: usize) {
        self.signal(index, "STOP");
    }

    /// Lets a stopped one go on.
    pub fn resume(&self, index: usize) {
        self.signal(index, "CONT");
    }

    fn signal(&self, index: usize, signal: &str) {
        let pid = self.members[index].child.as_ref().unwrap().id();
        let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status();
        assert!(sent.unwrap().success(), "{signal} to member {index}");
    }

    fn spawn(&mut self, index: usize) {
        let peer = |m: &Member| format!("http://127.0.0.1:{}", m.peer_port);
        let name = |i: usize| format!("member-{i}");
        let all: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(i, m)| format!("{}={}", name(i), peer(m)))
            .collect();
        let (client, peer) = (self.endpoint(index), peer(&self.members[index]));
        let child = program("etcd")
            .arg(format!("--name={}", name(index)))
            .arg(format!("--data-dir={}", self.data.path().join(name(index)).display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={}", all.join(",")))
            .args(["--logger=zap", "--log-level=error", "--snapshot-count=2000", "--pre-vote=true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is needed by the tests: apt-get install etcd-server");
        self.members[index].child = Some(child);
    }

    fn wait_until_healthy(&self, index: usize) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.etcdctl(index, &["endpoint", "health", "--command-timeout=2s"]).is_none() {
            assert!(Instant::now() < deadline, "member {index} is not healthy within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What etcdctl says, or nothing if it fails.
    fn etcdctl(&self, index: usize, args: &[&str]) -> Option<String> {
        let output = program("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint(index)))
            .args(args)
            .stderr(Stdio::null())
            .output()
            .expect("etcdctl is needed by the tests: apt-get install etcd-client");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Server for TestCluster {
    fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|m| m.child.as_mut()) {
            let _ = child.kill(); // also ends a stopped one
            let _ = child.wait();
        }
    }
}
