//! Who should work on what: bounded-load rendezvous that leaves running work alone.
//!
//! Every instance computes the same plan from what it sees; views may differ for a moment, and
//! claims arbitrate. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{keyspace::ClaimItem, model::InstanceId};

/// What one instance should do next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Free items that are ours to claim, most preferred first.
    pub claim: Vec<ClaimItem>,
    /// How many of our items to give back.
    pub surplus: usize,
}

/// The fair share: nobody needs to hold more.
pub fn share(items: usize, members: usize) -> usize {
    items.div_ceil(members.max(1))
}

/// The rendezvous score of `member` for `item`: highest wins. Stable across versions.
pub fn score(item: &ClaimItem, member: &InstanceId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{item}\n{member}").as_bytes())
}

/// Plans for `me`, given the active `members`, all `items` and the `owners` of claimed ones.
///
/// Who holds no more than the fair share keeps it all. Free items go, in order, to the highest
/// scoring member below the share.
pub fn plan(
    me: &InstanceId,
    members: &BTreeSet<InstanceId>,
    items: &BTreeSet<ClaimItem>,
    owners: &BTreeMap<ClaimItem, InstanceId>,
) -> Plan {
    let share = share(items.len(), members.len());
    let mut load: BTreeMap<&InstanceId, usize> = members.iter().map(|m| (m, 0)).collect();
    for (_, owner) in owners.iter().filter(|(item, _)| items.contains(item)) {
        if let Some(held) = load.get_mut(owner) {
            *held += 1;
        }
    }
    let surplus = load.get(me).map_or(0, |held| held.saturating_sub(share));
    let mut claim = Vec::new();
    for item in items.iter().filter(|item| !owners.contains_key(item)) {
        let below = load.iter_mut().filter(|(_, held)| **held < share);
        let Some((winner, held)) = below.max_by_key(|(m, _)| (score(item, m), *m)) else {
            break;
        };
        *held += 1;
        if *winner == me {
            claim.push(item.clone());
        }
    }
    claim.sort_by_cached_key(|item| std::cmp::Reverse(score(item, me)));
    Plan { claim, surplus }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::PartitionId;

    fn members(n: usize) -> BTreeSet<InstanceId> {
        (0..n).map(|i| InstanceId::new(&format!("collector-{i}")).unwrap()).collect()
    }

    fn items(n: u16) -> BTreeSet<ClaimItem> {
        (0..n).map(|i| ClaimItem::Partition(PartitionId(i))).collect()
    }

    /// Lets all members follow their plans until nothing changes; returns moved items.
    fn settle(
        members: &BTreeSet<InstanceId>,
        items: &BTreeSet<ClaimItem>,
        owners: &mut BTreeMap<ClaimItem, InstanceId>,
    ) -> usize {
        let before = owners.clone();
        owners.retain(|_, owner| members.contains(owner));
        for _ in 0..10 {
            let seen = owners.clone();
            for me in members {
                let plan = plan(me, members, items, &seen);
                for item in plan.claim {
                    assert!(owners.insert(item, me.clone()).is_none(), "claimed twice");
                }
                let mine: Vec<_> =
                    owners.iter().filter(|(_, o)| *o == me).map(|(i, _)| i.clone()).collect();
                for item in mine.into_iter().take(plan.surplus) {
                    owners.remove(&item);
                }
            }
            if *owners == seen {
                break;
            }
        }
        owners.iter().filter(|(item, owner)| before.get(*item).is_some_and(|b| b != *owner)).count()
    }

    proptest! {
        #[test]
        fn every_item_finds_one_owner_and_nobody_more_than_the_share(
            n in 0u16..200, first in 1usize..9, second in 1usize..9,
        ) {
            let all = items(n);
            let mut owners = BTreeMap::new();
            for count in [first, second] {
                let members = members(count);
                settle(&members, &all, &mut owners);
                prop_assert_eq!(owners.len(), all.len());
                for me in &members {
                    let held = owners.values().filter(|o| *o == me).count();
                    prop_assert!(held <= share(all.len(), count));
                }
            }
        }
    }

    #[test]
    fn a_joining_member_moves_only_its_share() {
        let all = items(64);
        let mut owners = BTreeMap::new();
        settle(&members(2), &all, &mut owners);
        let moved = settle(&members(3), &all, &mut owners);
        assert!(moved <= share(64, 3), "{moved} moved");
    }

    #[test]
    fn a_leaving_member_moves_only_what_it_held() {
        let all = items(64);
        let mut owners = BTreeMap::new();
        settle(&members(4), &all, &mut owners);
        let gone = InstanceId::new("collector-3").unwrap();
        let held = owners.values().filter(|o| **o == gone).count();
        let moved = settle(&members(3), &all, &mut owners);
        assert_eq!(moved, held);
    }

    #[test]
    fn who_is_no_member_claims_nothing() {
        let me = InstanceId::new("stranger").unwrap();
        assert_eq!(plan(&me, &members(2), &items(4), &BTreeMap::new()), Plan::default());
    }
}
