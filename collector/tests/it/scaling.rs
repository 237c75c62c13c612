//! More and fewer collectors while data flows.

use std::time::{Duration, Instant};

use nexus_common::testing::{
    Fleet, eventually,
    truth::{Historian, assert_settles_to, audited, held, owners},
};

/// Partitions of a new keyspace, as `limits` says.
const PARTITIONS: usize = nexus_common::limits::PARTITIONS_DEFAULT as usize;

#[tokio::test]
async fn collectors_scale_from_one_to_four_to_two_without_a_gap() {
    let mut fleet = Fleet::new(&[
        ("LEASE_TTL_SECONDS", "10"),
        ("COMMIT_AGE_MS", "200"),
        ("BATCH_SIZE", "500"),
        ("BACKLOG_MAX", "2"),
    ]);
    let file = fleet.generate("telemetry.csv", 180);
    fleet.stream("streamer", &file, &[]);
    let historian = Historian::follow(&fleet).await;
    let etcd = fleet.etcd.connect().await;
    let scale = async |fleet: &mut Fleet, names: &[&str]| {
        let begun = Instant::now();
        let running = fleet.names();
        for name in names.iter().filter(|name| !running.iter().any(|known| known == *name)) {
            fleet.collect(name, &[]);
        }
        for name in fleet.names() {
            if name != "streamer" && !names.contains(&name.as_str()) {
                let (status, _) = fleet.terminate(&name).await;
                assert!(status.success(), "{name}: {status}");
            }
        }
        let share = PARTITIONS / names.len();
        eventually("all partitions are owned, evenly", Duration::from_secs(20), async || {
            let owners = owners(&etcd, "partitions/").await;
            owners.len() == PARTITIONS && names.iter().all(|name| held(&owners, name) == share)
        })
        .await;
        println!("{} collectors share evenly after {:?}", names.len(), begun.elapsed());
    };
    scale(&mut fleet, &["a"]).await;
    scale(&mut fleet, &["a", "b", "c", "d"]).await;
    scale(&mut fleet, &["b", "d"]).await;
    let report = audited(&etcd).await;
    assert!(report.lanes_done < report.lanes, "all was over before it was scaled");
    assert_settles_to(&mut fleet, &file, Duration::from_secs(60)).await;
    historian.assert_sound();
}
