//! The example is a program: three of it, one killed in the middle, and every step done once.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nexus_common::{
    etcd::{Entry, Etcd, RangeRead},
    keyspace::{KeyRange, Keyspace},
    testing::{TestEtcd, eventually},
};

const ITEMS: u64 = 6;
const TARGET: u64 = 250;
const STEPS: u64 = ITEMS * TARGET;

/// `cargo test` builds examples before it runs tests (`--test it` alone does not), next to this
/// program's folder.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let built = here.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    let program = built.join("elastic_worker");
    assert!(program.exists(), "{program:?} is missing: cargo build -p nexus-common --examples");
    program
}

/// Ends with the test, whatever becomes of it.
struct Worker(Child);

impl Worker {
    fn start(server: &TestEtcd, name: &str) -> Self {
        let child = Command::new(program())
            .args(["--root", "/jobs", "--instance-id", name, "--lease-ttl-seconds", "3"])
            .args(["--items", &ITEMS.to_string(), "--target", &TARGET.to_string()])
            .arg(format!("--etcd-endpoints={}", server.endpoint()))
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// SIGTERM; whether it left with 0, in time.
    fn leaves(mut self) -> bool {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn claims() -> KeyRange {
    "/jobs".parse::<Keyspace>().unwrap().prefix("claims/")
}

/// Counters, and steps.
async fn jobs(etcd: &Etcd) -> (Vec<Entry>, Vec<Entry>) {
    let range = KeyRange { start: b"/jobs/jobs/".to_vec(), end: b"/jobs/jobs0".to_vec() };
    let entries = etcd.range(&range, RangeRead::default()).await.unwrap().entries;
    entries.into_iter().partition(|e| e.key.iter().filter(|b| **b == b'/').count() == 4)
}

#[tokio::test]
async fn three_workers_one_of_them_killed_do_every_step_exactly_once() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let mut doomed = Worker::start(&server, "doomed");
    let others = [Worker::start(&server, "second"), Worker::start(&server, "third")];

    eventually(
        "the doomed worker is in the middle of its work",
        Duration::from_secs(30),
        || async {
            let (_, steps) = jobs(&etcd).await;
            let its = steps.iter().filter(|s| *s.value == *b"doomed").count();
            its > 50 && steps.len() > 200
        },
    )
    .await;
    doomed.0.kill().unwrap();
    doomed.0.wait().unwrap();
    // What it was in the middle of, somebody else must finish.
    let (counters, _) = jobs(&etcd).await;
    let claimed = etcd.range(&claims(), RangeRead::default()).await.unwrap().entries;
    let held = claimed.iter().filter(|c| String::from_utf8_lossy(&c.value).contains("doomed"));
    let items: Vec<_> = held.map(|c| c.key.rsplit(|b| *b == b'/').next().unwrap()).collect();
    let open = |c: &&Entry| *c.value != *TARGET.to_string().as_bytes();
    let its = counters.iter().filter(|c| items.iter().any(|item| c.key.ends_with(item)));
    assert!(its.filter(open).count() > 0, "killed too late to prove anything");

    eventually("every item is counted to its target", Duration::from_secs(30), || async {
        let (counters, _) = jobs(&etcd).await;
        let done = |c: &Entry| *c.value == *TARGET.to_string().as_bytes();
        counters.len() as u64 == ITEMS && counters.iter().all(done)
    })
    .await;
    let (_, steps) = jobs(&etcd).await;
    // A step that was done twice would have been written twice, or have another's number.
    assert_eq!(steps.len() as u64, STEPS);
    assert!(steps.iter().all(|step| step.create_revision == step.mod_revision));
    let revisions: BTreeSet<i64> = steps.iter().map(|step| step.mod_revision).collect();
    assert_eq!(revisions.len() as u64, STEPS, "one transaction a step");
    for worker in others {
        assert!(worker.leaves());
    }
    assert_eq!(etcd.range(&claims(), RangeRead::default()).await.unwrap().entries, []);
}
