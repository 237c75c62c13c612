//! An etcd of three members on loopback, each of which can be killed, stopped and brought back.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Server, etcd_data, free_port, life_on, program};
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
    /// Address it listens on.
    host: String,
    /// Command that runs it elsewhere (in another network).
    by: Vec<String>,
    /// How often its data was replaced.
    life: u32,
    child: Option<Child>,
}

impl TestCluster {
    /// Starts them and waits until they have a leader.
    pub fn start() -> Self {
        Self::start_on((0..MEMBERS).map(|_| ("127.0.0.1".to_owned(), Vec::new())))
    }

    /// The same, each on an address of its own, run by a command that puts it there.
    pub fn start_on(places: impl IntoIterator<Item = (String, Vec<String>)>) -> Self {
        let member = |(host, by)| Member {
            client_port: free_port(),
            peer_port: free_port(),
            host,
            by,
            life: 0,
            child: None,
        };
        let members = places.into_iter().map(member).collect();
        let mut cluster = Self { members, data: etcd_data() };
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
        self.members[index].url(self.members[index].client_port)
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

    /// Whether every member answers what only a member of a majority can.
    pub fn all_answer(&self) -> bool {
        let health = ["endpoint", "health", "--command-timeout=1s"];
        (0..self.members.len()).all(|index| self.etcdctl(index, &health).is_some())
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

    /// Takes the place of one that is lost with its data: the others forget it, and a new member
    /// with no data joins them on the same ports.
    pub fn replace(&mut self, index: usize) {
        let other = (index + 1) % self.members.len();
        let listed = self.etcdctl(other, &["member", "list"]).expect("a majority lives");
        let named = |line: &&str| line.contains(&format!(" {}, ", self.name(index)));
        let id = listed.lines().find(named).and_then(|line| line.split(',').next()).unwrap();
        self.etcdctl(other, &["member", "remove", id]).expect("the member is removed");
        let _ = std::fs::remove_dir_all(self.data.path().join(self.name(index)));
        self.members[index].life += 1;
        let peer = self.members[index].url(self.members[index].peer_port);
        let add = ["member", "add", &self.name(index), &format!("--peer-urls={peer}")];
        let deadline = Instant::now() + Duration::from_secs(30);
        // The others may not yet know each other well enough to let one more in.
        while self.etcdctl(other, &add).is_none() {
            assert!(Instant::now() < deadline, "no member can be added");
            std::thread::sleep(Duration::from_millis(200));
        }
        self.restart(index);
    }

    fn name(&self, index: usize) -> String {
        match self.members[index].life {
            0 => format!("member-{index}"),
            life => format!("member-{index}-{life}"),
        }
    }

    /// Starts all that were killed again, and waits until they answer.
    pub fn restart_all(&mut self) {
        let gone = |&i: &usize| self.members[i].child.is_none();
        let gone: Vec<usize> = (0..self.members.len()).filter(gone).collect();
        gone.iter().for_each(|&index| self.spawn(index));
        gone.iter().for_each(|&index| self.wait_until_healthy(index));
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
        super::signal(self.members[index].child.as_ref().unwrap(), signal);
    }

    fn spawn(&mut self, index: usize) {
        let peer = |m: &Member| m.url(m.peer_port);
        let all: Vec<String> = (0..self.members.len())
            .map(|i| format!("{}={}", self.name(i), peer(&self.members[i])))
            .collect();
        let member = &self.members[index];
        let (client, peer, name) = (self.endpoint(index), peer(member), self.name(index));
        let state = if member.life == 0 { "new" } else { "existing" };
        let mut command = match &member.by[..] {
            [] => program("etcd"),
            [by, rest @ ..] => {
                let mut command = std::process::Command::new(by);
                command.args(rest).arg(program("etcd").get_program());
                command
            }
        };
        let child = command
            .arg(format!("--name={name}"))
            .arg(format!("--data-dir={}", self.data.path().join(&name).display()))
            .arg(format!("--initial-cluster-state={state}"))
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

impl Member {
    fn url(&self, port: u16) -> String {
        format!("http://{}:{port}", self.host)
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
