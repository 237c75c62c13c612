//! kill -9 at random, again and again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use nexus_common::testing::{
    Fleet, eventually,
    truth::{Historian, assert_settles_to, audited, held, is_settled, owners},
};
use tokio::time::sleep;

/// Between two kills.
const KILL_EVERY: Duration = Duration::from_millis(700);

/// The next of a sequence of numbers (splitmix64), below `bound`.
fn random(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % bound as u64) as usize
}

/// `CHURN_SEED`, to see a failure again, or the time.
fn seed() -> u64 {
    let given = std::env::var("CHURN_SEED").ok().map(|text| text.parse().unwrap());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = given.unwrap_or_else(now);
    println!("CHURN_SEED={seed}");
    seed
}

#[tokio::test]
async fn three_streamers_and_three_collectors_lose_and_double_nothing_under_kill_9() {
    // Eight messages of 500 rows a lane, then the streamer waits for the next commit: a flow that
    // lasts long enough to be interrupted.
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "300"),
        ("BATCH_SIZE", "500"),
        ("BACKLOG_MAX", "8"),
        ("PARALLEL_SHARDS", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 940);
    let start = |fleet: &mut Fleet, number: usize| match number {
        0..3 => fleet.stream(&format!("streamer-{number}"), &file, &[]),
        _ => fleet.collect(&format!("collector-{}", number - 3), &[]),
    };
    let name = |number: usize| match number {
        0..3 => format!("streamer-{number}"),
        _ => format!("collector-{}", number - 3),
    };
    (0..6).for_each(|number| start(&mut fleet, number));
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    let (mut state, begun) = (seed(), Instant::now());
    let (mut kills, mut audits, mut next_kill) = (0, 0, Instant::now() + KILL_EVERY);
    loop {
        // The law holds at every revision, not only in the end.
        let report = audited(&etcd).await;
        audits += 1;
        if is_settled(&report) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{report:#?}");
        if Instant::now() >= next_kill {
            let victim = random(&mut state, 6);
            fleet.kill(&name(victim));
            start(&mut fleet, victim);
            kills += 1;
            next_kill = Instant::now() + KILL_EVERY;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    assert_settles_to(&mut fleet, &file, Duration::from_secs(5)).await;
    let writes = historian.assert_sound();
    println!("{kills} kills, {audits} audits, {writes} writes of positions in {took:?}");
    assert!(kills >= 8, "too fast to be interrupted: {kills} kills in {took:?}");
}

/// A killed process gives nothing back: its claims end with its lease.
#[tokio::test]
async fn the_work_of_killed_processes_is_taken_over_when_their_leases_end() {
    let ttl = 3;
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "3"),
        ("COMMIT_AGE_MS", "300"),
        ("BATCH_SIZE", "800"),
        ("BACKLOG_MAX", "1"),
    ]);
    let file = fleet.generate("telemetry.csv", 120);
    for name in ["streamer-a", "streamer-b"] {
        fleet.stream(name, &file, &[]);
    }
    for name in ["collector-a", "collector-b"] {
        fleet.collect(name, &[]);
    }
    let etcd = fleet.etcd.connect().await;
    let roles =
        [("shards/", "streamer-a", "streamer-b"), ("partitions/", "collector-a", "collector-b")];
    let within = Duration::from_secs(20);
    for (kind, victim, heir) in roles {
        eventually("both work", within, async || {
            let owners = owners(&etcd, kind).await;
            held(&owners, victim) > 0 && held(&owners, heir) > 0
        })
        .await;
    }
    fleet.kill("streamer-a");
    fleet.kill("collector-a");
    let killed = Instant::now();
    let takeovers = roles.map(|(kind, victim, heir)| {
        let etcd = &etcd;
        async move {
            eventually("the heir has it all", within, async || {
                let owners = owners(etcd, kind).await;
                held(&owners, victim) == 0 && held(&owners, heir) == owners.len()
            })
            .await;
            let took = killed.elapsed();
            println!("takeover of {kind} {took:?} after kill -9, lease {ttl} s");
            assert!(took < Duration::from_secs(ttl + 4), "{took:?}");
        }
    });
    join_all(takeovers).await;
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
}
