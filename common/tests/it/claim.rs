//! Who has an item, and since when.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use nexus_common::{
    etcd::{Claim, Error},
    keyspace::{ClaimItem, Claimant, Key, from_json},
    model::Role,
    testing::TestEtcd,
};

use crate::given::{claimed, lane};

#[tokio::test]
async fn of_two_sessions_that_race_for_fifty_items_each_item_has_exactly_one_owner() {
    let server = TestEtcd::start();
    let lives = [
        server.life(Role::Streamer, "one", 10).await,
        server.life(Role::Streamer, "two", 10).await,
    ];
    let tries = (0..50).flat_map(|shard| lives.iter().map(move |life| (shard, life)));
    let taken = join_all(tries.map(|(shard, life)| async move {
        let item = ClaimItem::Shard(lane(shard));
        let claim = Claim::take(&life.process.etcd, &life.session, item).await.unwrap();
        claim.map(|claim| (claim, life.process.instance.clone()))
    }))
    .await;
    let mut owners = BTreeMap::new();
    for (claim, instance) in taken.into_iter().flatten() {
        let entry = lives[0].process.etcd.get(claim.key()).await.unwrap().unwrap();
        let claimant: Claimant = from_json(&entry.key, &entry.value).unwrap();
        assert_eq!((claimant.instance, entry.create_revision), (instance, claim.create_revision()));
        assert_ne!(entry.lease, 0);
        assert!(owners.insert(claim.item().clone(), claim.create_revision()).is_none());
    }
    assert_eq!(owners.len(), 50);
}

#[tokio::test]
async fn a_released_item_can_be_taken_again_and_its_fence_only_grows() {
    let server = TestEtcd::start();
    let one = server.life(Role::Collector, "one", 10).await;
    let two = server.life(Role::Collector, "two", 10).await;
    let etcd = &one.process.etcd;
    let first = claimed(&one, ClaimItem::Janitor).await;
    // Neither another session nor its own can take what is taken.
    assert!(Claim::take(etcd, &two.session, ClaimItem::Janitor).await.unwrap().is_none());

    first.clone().release(etcd).await.unwrap();
    let second = claimed(&two, ClaimItem::Janitor).await;
    assert!(second.create_revision() > first.create_revision());

    // A late release of the first does not touch the second.
    first.release(etcd).await.unwrap();
    let key = etcd.keyspace().key(&Key::Claim(ClaimItem::Janitor));
    let entry = etcd.get(&key).await.unwrap().expect("the second claim stands");
    assert_eq!(entry.create_revision, second.create_revision());
}

#[tokio::test]
async fn a_claim_under_a_dead_lease_says_that_the_session_is_lost() {
    let server = TestEtcd::start();
    let life = server.life(Role::Collector, "one", 60).await;
    server.etcdctl(&["lease", "revoke", &format!("{:x}", life.session.lease())]);
    let taken = Claim::take(&life.process.etcd, &life.session, ClaimItem::Janitor).await;
    assert!(matches!(taken, Err(Error::SessionLost { .. })), "{taken:?}");
}
