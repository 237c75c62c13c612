//! A pool of processes shares items: joins, deaths and farewells move only what they must.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use nexus_common::{
    etcd::{Claim, Etcd, RangeRead},
    keyspace::{ClaimItem, Claimant, Key, from_json},
    model::{PartitionId, Role},
    runtime::{Life, Process, Work, run, work_on},
    testing::{TestEtcd, eventually},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const ITEMS: u16 = 8;
const PATIENCE: Duration = Duration::from_secs(20);

/// Who works on what, as the workers themselves see it.
#[derive(Default)]
struct Desk {
    working: Mutex<BTreeMap<ClaimItem, String>>,
    /// Items on which two worked at once.
    clashes: Mutex<Vec<ClaimItem>>,
}

/// Leaves the desk when the work ends, however it ends.
struct Seat {
    desk: Arc<Desk>,
    item: ClaimItem,
    name: String,
}

impl Seat {
    fn take(desk: &Arc<Desk>, item: &ClaimItem, name: &str) -> Self {
        let before = desk.working.lock().unwrap().insert(item.clone(), name.to_owned());
        if before.is_some() {
            desk.clashes.lock().unwrap().push(item.clone());
        }
        Self { desk: Arc::clone(desk), item: item.clone(), name: name.to_owned() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut working = self.desk.working.lock().unwrap();
        if working.get(&self.item) == Some(&self.name) {
            working.remove(&self.item);
        }
    }
}

struct Member {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn member(server: &TestEtcd, name: &str, desk: &Arc<Desk>) -> Member {
    member_that(server, name, desk, None).await
}

/// A member that `forgets` a claim: it was applied, and the answer never came.
async fn member_that(
    server: &TestEtcd,
    name: &str,
    desk: &Arc<Desk>,
    forgets: Option<ClaimItem>,
) -> Member {
    let process: Process = server.process(Role::Collector, name, 5).await;
    let (stop, desk, name) = (process.stop.clone(), Arc::clone(desk), name.to_owned());
    let items: BTreeSet<_> = (0..ITEMS).map(|p| ClaimItem::Partition(PartitionId(p))).collect();
    let pool = move |life: Life| {
        let (_, items) = watch::channel(items.clone());
        let (desk, name, forgets) = (Arc::clone(&desk), name.clone(), forgets.clone());
        async move {
            if let Some(item) = forgets {
                Claim::take(&life.process.etcd, &life.session, item).await?.unwrap();
            }
            let lost = life.session.lost().clone();
            let work = |work: Work| {
                let seat = Seat::take(&desk, work.claim.item(), &name);
                let lost = lost.clone();
                async move {
                    let _seat = seat;
                    tokio::select! {
                        () = work.leave.cancelled() => {}
                        () = lost.cancelled() => {}
                    }
                }
            };
            work_on(&life, "claims/partitions/", items, work).await;
            Ok(())
        }
    };
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    Member { stop, task: tokio::spawn(run(process, address, pool)) }
}

/// Item to owner, fence and lease, as etcd says.
async fn claims(etcd: &Etcd) -> BTreeMap<ClaimItem, (String, i64, i64)> {
    let range = etcd.keyspace().prefix("claims/partitions/");
    let listing = etcd.range(&range, RangeRead::default()).await.unwrap();
    let claim = |entry: nexus_common::etcd::Entry| {
        let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
        let Ok(Key::Claim(item)) = etcd.keyspace().parse(&entry.key) else { panic!("{entry:?}") };
        (item, (claimant.instance.to_string(), entry.create_revision, entry.lease))
    };
    listing.entries.into_iter().map(claim).collect()
}

/// Waits until each of `expected` holds so many items and nobody else holds one.
async fn held(etcd: &Etcd, expected: &[(&str, usize)]) {
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    eventually(&format!("{expected:?}"), PATIENCE, || async {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (owner, ..) in claims(etcd).await.into_values() {
            *counts.entry(owner).or_default() += 1;
        }
        counts == expected
    })
    .await;
}

/// Waits until the counts of items are these, whoever holds which.
async fn shared(etcd: &Etcd, members: usize, least: usize, most: usize) {
    let what = format!("{members} members hold {least} to {most} of {ITEMS} items each");
    eventually(&what, PATIENCE, || async {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (owner, ..) in claims(etcd).await.into_values() {
            *counts.entry(owner).or_default() += 1;
        }
        counts.len() == members
            && counts.values().sum::<usize>() == usize::from(ITEMS)
            && counts.values().all(|count| (least..=most).contains(count))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_items_fairly_and_a_change_moves_only_what_it_must() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let desk = Arc::new(Desk::default());
    let a = member(&server, "a", &desk).await;
    held(&etcd, &[("a", 8)]).await;
    let b = member(&server, "b", &desk).await;
    held(&etcd, &[("a", 4), ("b", 4)]).await;

    // A third joins: it gets its share, and whatever stays where it was was never let go.
    let before = claims(&etcd).await;
    let c = member(&server, "c", &desk).await;
    held(&etcd, &[("a", 3), ("b", 3), ("c", 2)]).await;
    let after = claims(&etcd).await;
    let untouched = before.iter().filter(|(item, claim)| after.get(*item) == Some(claim)).count();
    assert_eq!(untouched, 6);

    // One leaves: it gives back, and the others keep what they have.
    let before = after;
    c.stop.cancel();
    c.task.await.unwrap().unwrap();
    held(&etcd, &[("a", 4), ("b", 4)]).await;
    let after = claims(&etcd).await;
    let kept = before.iter().filter(|(item, claim)| after.get(*item) == Some(claim)).count();
    assert_eq!(kept, 6);
    assert!(etcd.get("/telemetry/instances/collector/c").await.unwrap().is_none());

    // All leave: nothing is claimed any more, and nobody ever worked on another's item.
    for member in [a, b] {
        member.stop.cancel();
        member.task.await.unwrap().unwrap();
    }
    assert!(claims(&etcd).await.is_empty());
    assert!(desk.working.lock().unwrap().is_empty());
    assert_eq!(*desk.clashes.lock().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_member_held_the_others_take_and_a_lost_session_begins_afresh() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let desk = Arc::new(Desk::default());
    let a = member(&server, "a", &desk).await;
    let b = member(&server, "b", &desk).await;
    let c = member(&server, "c", &desk).await;
    shared(&etcd, 3, 2, 3).await;

    // One dies without a word; its lease is revoked with it.
    c.task.abort();
    held(&etcd, &[("a", 4), ("b", 4)]).await;

    // Another only loses its session: its claims are gone, and it comes back under a new lease.
    let before = claims(&etcd).await;
    let lease = before.values().find(|(owner, ..)| owner == "b").unwrap().2;
    server.etcdctl(&["lease", "revoke", &format!("{lease:x}")]);
    eventually("b works under a new lease", PATIENCE, || async {
        let now = claims(&etcd).await;
        let of_b = now.values().filter(|(owner, ..)| owner == "b").collect::<Vec<_>>();
        now.len() == usize::from(ITEMS)
            && of_b.len() == 4
            && of_b.iter().all(|(_, _, l)| *l != lease)
    })
    .await;
    let after = claims(&etcd).await;
    for (item, (owner, fence, _)) in &after {
        let (was, old, _) = &before[item];
        assert!(if owner == was && owner == "a" { fence >= old } else { fence > old }, "{item}");
    }
    for member in [a, b] {
        member.stop.cancel();
        member.task.await.unwrap().unwrap();
    }
    assert!(claims(&etcd).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_ours_that_nobody_works_on_is_found_and_worked_on() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let desk = Arc::new(Desk::default());
    let forgotten = ClaimItem::Partition(PartitionId(3));
    let a = member_that(&server, "a", &desk, Some(forgotten.clone())).await;
    held(&etcd, &[("a", 8)]).await;
    let fence = claims(&etcd).await[&forgotten].1;
    eventually("all items are worked on", PATIENCE, || async {
        desk.working.lock().unwrap().len() == usize::from(ITEMS)
    })
    .await;
    assert_eq!(claims(&etcd).await[&forgotten].1, fence, "it was ours all the time");
    a.stop.cancel();
    a.task.await.unwrap().unwrap();
    assert!(claims(&etcd).await.is_empty());
}

#[tokio::test]
async fn work_without_a_write_ends_when_its_claim_is_deleted_and_begins_again() {
    let server = TestEtcd::start();
    let etcd = server.connect().await;
    let desk = Arc::new(Desk::default());
    let alone = member(&server, "alone", &desk).await;
    held(&etcd, &[("alone", usize::from(ITEMS))]).await;
    let before = claims(&etcd).await;
    let item = ClaimItem::Partition(PartitionId(3));
    server.etcdctl(&["del", &etcd.keyspace().key(&Key::Claim(item.clone()))]);
    eventually("it is claimed and worked on again", PATIENCE, || async {
        let now = claims(&etcd).await;
        let newer = now.get(&item).is_some_and(|claim| claim.1 > before[&item].1);
        newer && desk.working.lock().unwrap().len() == usize::from(ITEMS)
    })
    .await;
    let after = claims(&etcd).await;
    for (other, claim) in before.iter().filter(|(other, _)| **other != item) {
        assert_eq!(after[other], *claim, "{other} moved");
    }
    assert!(desk.clashes.lock().unwrap().is_empty());
    alone.stop.cancel();
    alone.task.await.unwrap().unwrap();
}
