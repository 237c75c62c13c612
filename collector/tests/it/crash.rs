//! A process ends itself at every point where it matters; a successor goes on, and every row is
//! stored once.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use nexus_common::{
    etcd::Position,
    keyspace::Key,
    model::{BucketId, Role, Timestamp},
    testing::{
        Fleet, LOOK, Proxy, TestEtcd, assert_has_crash_points,
        truth::{
            Historian, assert_settles_to, audited, audited_until, held, is_settled, owners,
            source_rows,
        },
    },
};
use tokio::time::sleep;

use crate::space::QUOTA;

/// Cases at the same time: each mostly waits for a lease to end.
const AT_ONCE: usize = 4;
const WITHIN: Duration = Duration::from_secs(60);
/// Time to connect anew, and to have something on its way again.
const BETWEEN_CUTS: Duration = Duration::from_millis(500);
/// What `abort` ends with.
const SIGABRT: i32 = 6;

/// What leads a process to the point.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// It gets there by itself.
    Itself,
    /// Answers of etcd are lost.
    LostAnswers,
    /// Its claims are deleted.
    Unclaiming,
    /// Positions are written behind its back.
    Touching,
    /// History begins later.
    FloorMoved,
    /// etcd is full.
    NoSpace,
    /// Another file stands in the place of its source.
    AnotherFile,
    /// More hosts than fit in one commit.
    ManyHosts,
    /// Many small blocks.
    SmallBlocks,
    /// History that is too large.
    Retention,
}

/// Ends `role` when it gets to `point` the `nth` time, and lets another go on.
async fn check(role: Role, point: &str, nth: u32, by: By) {
    println!("{role} ends at {point}, the {nth}. time");
    let mut fleet = fleet(by);
    let file = match by {
        By::ManyHosts => fleet.generate_with("rows.csv", &["--hosts", "128", "--seconds", "16"]),
        // Leading a process there takes seconds, and rows must be left then.
        By::NoSpace | By::Touching | By::Unclaiming | By::LostAnswers => {
            fleet.generate("rows.csv", 400)
        }
        _ => fleet.generate("rows.csv", 60),
    };
    let historian = Historian::follow(&fleet).await;
    let wire = Proxy::start(&fleet.etcd.endpoint());
    let crash = format!("{point}:{nth}");
    let through = ["--etcd-endpoints", &wire.endpoint()];
    let mut flags = if by == By::LostAnswers { through.to_vec() } else { Vec::new() };
    if role == Role::Streamer {
        flags.extend(["--csv-file", file.to_str().unwrap()]);
    }
    let victim = format!("{role}-victim");
    let first = (role == Role::Collector) || by == By::AnotherFile;
    if !first {
        fleet.collect("collector", &[]);
    }
    fleet.start_in(role, &victim, &flags, &[("NEXUS_CRASH", &crash)]);
    if role == Role::Collector {
        by.prepare(&fleet, &victim).await;
        fleet.stream("streamer", &file, &[]);
    }
    let aside = by.lead(&mut fleet, &victim, &wire, &file).await;
    let status = fleet.wait_for_exit(&victim, WITHIN).await;
    assert_eq!(status.signal(), Some(SIGABRT), "{point}: {status}\n{}", fleet.log(&victim));
    assert!(fleet.log(&victim).contains(&format!("crash point {point}\n")), "{point}");
    let etcd = fleet.connect().await;
    let left = audited(&etcd).await;
    if by != By::Retention && by != By::SmallBlocks {
        assert!(!is_settled(&left), "{point}: nothing was left to a successor");
    }
    if let Some(aside) = aside {
        std::fs::rename(aside, &file).unwrap();
    }
    match role {
        Role::Streamer => fleet.stream("heir", &file, &[]),
        _ => fleet.collect("heir", &[]),
    }
    if by == By::Retention {
        // What is retired cannot be compared row by row; it is counted.
        let rows = source_rows(&file).len() as u64;
        let whole = audited_until(&etcd, point, WITHIN, |r| {
            is_settled(r) && r.samples.retired > left.samples.retired
        });
        let samples = whole.await.samples;
        assert_eq!((samples.accepted, samples.committed), (rows, rows), "{point}");
        assert_eq!(samples.stored + samples.retired, rows, "{point}");
    } else {
        assert_settles_to(&mut fleet, &file, WITHIN).await;
    }
    historian.assert_sound();
}

fn fleet(by: By) -> Fleet {
    // Streamers are not told of the quota: they shall not hold back before it is reached.
    let flag = format!("--quota-backend-bytes={QUOTA}");
    let etcd = if by == By::NoSpace { TestEtcd::with_flags(&[&flag]) } else { TestEtcd::start() };
    let mut env = vec![("LEASE_TTL_SECONDS", "3"), ("PARALLEL_SHARDS", "1")];
    env.extend(match by {
        By::ManyHosts => [("COMMIT_AGE_MS", "2000"), ("BATCH_SIZE", "500"), ("BACKLOG_MAX", "100")],
        By::SmallBlocks => [("COMMIT_AGE_MS", "1"), ("BATCH_SIZE", "20"), ("BACKLOG_MAX", "4")],
        // A streamer that is always about to write, whoever takes its messages.
        By::NoSpace => [("COMMIT_AGE_MS", "50"), ("BATCH_SIZE", "20"), ("BACKLOG_MAX", "100000")],
        _ => [("COMMIT_AGE_MS", "50"), ("BATCH_SIZE", "200"), ("BACKLOG_MAX", "2")],
    });
    match by {
        By::SmallBlocks => env.push(("MERGE_EVERY_SECONDS", "1")),
        By::Retention => env.extend([
            ("BUCKET_SECONDS", "1"),
            ("RETENTION_BYTES", "1"),
            ("RETENTION_EVERY_SECONDS", "1"),
        ]),
        _ => {}
    }
    Fleet::on(etcd, &env)
}

impl By {
    /// What a collector must meet before anything flows.
    async fn prepare(self, fleet: &Fleet, victim: &str) {
        if self != By::FloorMoved {
            return;
        }
        let etcd = fleet.connect().await;
        let all = usize::from(nexus_common::limits::PARTITIONS_DEFAULT);
        nexus_common::testing::eventually("it has everything", WITHIN, async || {
            held(&owners(&etcd, "partitions/").await, victim) == all
        })
        .await;
        let now = Timestamp::now().as_millis();
        let later = Timestamp::from_millis(now + 3_600_000).unwrap();
        let floor = BucketId::holding(later, 3600).as_str().as_bytes().to_vec();
        etcd.describe(&[(etcd.keyspace().key(&Key::Floor), floor)]).await.unwrap();
    }

    /// Goes on until the process has ended. Where the source was put aside, if it was.
    async fn lead(
        self,
        fleet: &mut Fleet,
        victim: &str,
        wire: &Proxy,
        file: &Path,
    ) -> Option<PathBuf> {
        let etcd = fleet.connect().await;
        let begun = Instant::now();
        let ended =
            |fleet: &Fleet| begun.elapsed() > WITHIN || fleet.log(victim).contains("crash point");
        match self {
            By::LostAnswers => {
                audited_until(&etcd, "data flows", WITHIN, |r| r.samples.committed > 0).await;
                while !ended(fleet) {
                    wire.hold_answers();
                    sleep(LOOK).await; // what is sent meanwhile is applied and not answered
                    wire.cut();
                    sleep(BETWEEN_CUTS).await;
                }
            }
            By::Unclaiming => {
                audited_until(&etcd, "data flows", WITHIN, |r| r.samples.committed > 0).await;
                let kind = if victim.starts_with("streamer") { "shards" } else { "partitions" };
                while !ended(fleet) {
                    // Stopped meanwhile, it wakes with writes that are due and claims that are
                    // gone: awake, it mostly hears of them before it writes.
                    fleet.signal(victim, "STOP");
                    let claims = format!("/telemetry/claims/{kind}/");
                    fleet.etcd.etcdctl(&["del", "--prefix", &claims]);
                    sleep(4 * LOOK).await;
                    fleet.signal(victim, "CONT");
                    sleep(BETWEEN_CUTS).await;
                }
            }
            By::Touching => {
                audited_until(&etcd, "data flows", WITHIN, |r| r.samples.committed > 0).await;
                while !ended(fleet) {
                    touch(&etcd).await;
                    sleep(LOOK).await;
                }
            }
            By::NoSpace => {
                audited_until(&etcd, "data flows", WITHIN, |r| r.samples.committed > 0).await;
                // Who would heal etcd before the victim meets its alarm stands still meanwhile.
                fleet.signal("collector", "STOP");
                fleet.etcd.fill_with_history();
                while !ended(fleet) {
                    sleep(LOOK).await;
                }
                fleet.signal("collector", "CONT");
            }
            By::AnotherFile => {
                // Nobody commits, so the first lane is full and the second shard not yet opened.
                audited_until(&etcd, "data flows", WITHIN, |r| r.messages == 2).await;
                let aside = file.with_extension("aside");
                std::fs::rename(file, &aside).unwrap();
                std::fs::write(file, "timestamp,hostname,uuid,temperature\n").unwrap();
                fleet.collect("collector", &[]);
                return Some(aside);
            }
            By::Itself | By::FloorMoved | By::ManyHosts | By::SmallBlocks | By::Retention => {}
        }
        None
    }
}

/// Writes what stands at every partition's position once more: its revision is another then.
async fn touch(etcd: &nexus_common::etcd::Etcd) {
    let commits = etcd.keyspace().prefix("commits/");
    let listed = etcd.range(&commits, nexus_common::etcd::RangeRead::default()).await.unwrap();
    for entry in listed.entries {
        let key = String::from_utf8(entry.key).unwrap();
        let position = Position { key, mod_revision: entry.mod_revision };
        // Only what still stands so: an older one would be a step back.
        etcd.swap(&position, Some(entry.value.to_vec()), &[]).await.unwrap();
    }
}

async fn check_all(role: Role, cases: &[(&'static str, u32, By)]) {
    assert_has_crash_points(role);
    let run = |&(point, nth, by): &(&'static str, u32, By)| check(role, point, nth, by);
    stream::iter(cases.iter().map(run)).for_each_concurrent(AT_ONCE, |case| case).await;
}

#[tokio::test]
async fn a_streamer_may_end_anywhere_on_its_way_to_the_queue() {
    let cases = [
        ("enqueue.before_send", 3, By::Itself),
        ("enqueue.in_flight", 3, By::Itself),
        ("enqueue.applied", 3, By::Itself),
        ("txn.before_resend", 1, By::LostAnswers),
        ("enqueue.fenced", 1, By::Unclaiming),
        ("txn.no_space", 1, By::NoSpace),
        ("source.changed", 1, By::AnotherFile),
    ];
    check_all(Role::Streamer, &cases).await;
}

#[tokio::test]
async fn a_collector_may_end_anywhere_on_its_way_to_the_store() {
    let cases = [
        ("commit.before_send", 3, By::Itself),
        ("commit.in_flight", 3, By::Itself),
        ("commit.applied", 3, By::Itself),
        ("txn.before_resend", 1, By::LostAnswers),
        ("commit.stale", 1, By::Touching),
        ("commit.fenced", 1, By::Unclaiming),
        ("commit.floor_moved", 1, By::FloorMoved),
        ("commit.split", 1, By::ManyHosts),
    ];
    check_all(Role::Collector, &cases).await;
}

#[tokio::test]
async fn a_collector_may_end_anywhere_while_it_merges_or_ends_history() {
    let cases = [
        ("merge.before_send", 1, By::SmallBlocks),
        ("merge.in_flight", 1, By::SmallBlocks),
        ("merge.applied", 1, By::SmallBlocks),
        ("retire.before_send", 1, By::Retention),
        ("retire.in_flight", 2, By::Retention),
        // The first moves the floor, the second begins to empty what lies below it.
        ("retire.applied", 1, By::Retention),
        ("retire.applied", 2, By::Retention),
    ];
    check_all(Role::Collector, &cases).await;
}
