//! A pool of claimed work: takes a fair share of the items, works on each, gives back.
//!
//! No coordinator: every instance watches its peers and the claims, plans by
//! [`crate::assign::plan`], and etcd decides who has an item.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;

use super::process::Life;
use crate::{
    assign,
    etcd::{Change, Claim, Entry, Error, Event, RangeRead, follow},
    keyspace::{ClaimItem, Claimant, Instance, InstanceState, Key, Keyspace, from_json},
    model::InstanceId,
};

/// How long an item nobody works on waits for whom the plan names, before anybody may take it.
const ORPHAN_AFTER: Duration = Duration::from_secs(2);
/// How often the claims are listed besides being watched: some etcd versions lose events.
const RECONCILE_EVERY: Duration = Duration::from_secs(15);
/// How often the plan is looked at without an event.
const TICK: Duration = Duration::from_millis(250);
/// How long an item whose work ended by itself is left alone before it is taken again.
const REST: Duration = Duration::from_secs(1);

/// One claimed item, handed to the work function.
pub struct Work {
    /// The claim to commit under.
    pub claim: Claim,
    /// Cancelled when the item shall be given back: finish what is in flight and return.
    pub leave: CancellationToken,
    /// Set by the work when it has begun: what has not is given back first.
    pub busy: Arc<AtomicBool>,
}

struct Running {
    /// Of the claim it works under.
    create_revision: i64,
    leave: CancellationToken,
    busy: Arc<AtomicBool>,
}

/// Works on `items` (all of one kind, whose claims begin with `claims`, such as
/// `claims/partitions/`) until the process shall stop or the session is lost; then everything is given back.
///
/// `work` runs once for each claim. When it returns, the claim is released; if the item is
/// still there, it will be claimed again.
pub async fn work_on<F>(
    life: &Life,
    claims: &str,
    items: watch::Receiver<BTreeSet<ClaimItem>>,
    work: impl Fn(Work) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    turn(Pool::new(life, claims, items, false), work).await;
}

/// As [`work_on`], with items that nobody else counts on or waits for: what only this instance may
/// work on, or who is where it is. All that are free are claimed; nothing is given back to others.
pub async fn work_alone_on<F>(
    life: &Life,
    claims: &str,
    items: watch::Receiver<BTreeSet<ClaimItem>>,
    work: impl Fn(Work) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    turn(Pool::new(life, claims, items, true), work).await;
}

/// Turns the pool until the process shall stop or the session is lost.
async fn turn<F>(mut pool: Pool<'_>, work: impl Fn(Work) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let stop = pool.life.process.stop.child_token();
    let lost = pool.life.session.lost().clone();
    let watches = stop.child_token();
    let (mut members, mut claims) = pool.follow(&watches);
    let mut tick = interval(TICK);
    let mut reconcile = interval(RECONCILE_EVERY);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = lost.cancelled() => break,
            event = members.recv() => pool.on_members(event),
            event = claims.recv() => pool.on_claims(event),
            Ok(()) = pool.items.changed() => {}
            Some(done) = pool.running_tasks.join_next() => pool.on_ended(done.ok()).await,
            _ = reconcile.tick() => pool.reconcile().await,
            _ = tick.tick() => {}
        }
        pool.act(&work).await;
    }
    watches.cancel();
    pool.give_back_all(lost).await;
}

struct Pool<'a> {
    life: &'a Life,
    me: InstanceId,
    claims_prefix: String,
    /// The items are not shared with other members.
    alone: bool,
    items: watch::Receiver<BTreeSet<ClaimItem>>,
    members: BTreeSet<InstanceId>,
    owners: BTreeMap<ClaimItem, InstanceId>,
    listed: (bool, bool),
    free_since: BTreeMap<ClaimItem, Instant>,
    rests_until: BTreeMap<ClaimItem, Instant>,
    running: BTreeMap<ClaimItem, Running>,
    running_tasks: JoinSet<Claim>,
    counted: i64,
}

impl<'a> Pool<'a> {
    fn new(
        life: &'a Life,
        claims: &str,
        items: watch::Receiver<BTreeSet<ClaimItem>>,
        alone: bool,
    ) -> Self {
        Self {
            life,
            me: life.process.instance.clone(),
            claims_prefix: claims.to_owned(),
            alone,
            items,
            members: BTreeSet::new(),
            owners: BTreeMap::new(),
            listed: (false, false),
            free_since: BTreeMap::new(),
            rests_until: BTreeMap::new(),
            running: BTreeMap::new(),
            running_tasks: JoinSet::new(),
            counted: 0,
        }
    }

    fn keyspace(&self) -> &Keyspace {
        self.life.process.etcd.keyspace()
    }

    fn follow(&self, stop: &CancellationToken) -> (mpsc::Receiver<Event>, mpsc::Receiver<Event>) {
        let start = |path: &str| {
            // Membership changes are rare and claims change in bursts of at most all items.
            let (tell, events) = mpsc::channel(64);
            let etcd = self.life.process.etcd.clone();
            let range = self.keyspace().prefix(path);
            tokio::spawn(follow(etcd, range, tell, stop.clone()));
            events
        };
        (start(&format!("instances/{}/", self.life.process.role)), start(&self.claims_prefix))
    }

    fn on_members(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Snapshot { entries, .. }) => {
                self.members.clear();
                self.listed.0 = true;
                entries.iter().for_each(|entry| self.member(entry));
            }
            Some(Event::Changes { changes, .. }) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.member(&entry),
                        Change::Delete(key, _) => {
                            if let Ok(Key::Instance(_, id)) = self.keyspace().parse(&key) {
                                self.members.remove(&id);
                            }
                        }
                    }
                }
            }
            Some(Event::Alive) | None => {}
        }
    }

    fn member(&mut self, entry: &Entry) {
        match from_json::<Instance>(&entry.key, &entry.value) {
            Ok(instance) if instance.state == InstanceState::Active && !instance.apart => {
                self.members.insert(instance.instance);
            }
            Ok(instance) => {
                self.members.remove(&instance.instance);
            }
            Err(error) => tracing::warn!(%error, "an instance that cannot be read is left out"),
        }
    }

    fn on_claims(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Snapshot { revision, entries }) => self.replace_owners(&entries, revision),
            Some(Event::Changes { changes, .. }) => {
                for change in changes {
                    match change {
                        Change::Put(entry) => self.owner(&entry),
                        Change::Delete(key, revision) => {
                            if let Ok(Key::Claim(item)) = self.keyspace().parse(&key) {
                                self.owners.remove(&item);
                                self.leave_if_lost(&item, None, revision);
                            }
                        }
                    }
                }
            }
            Some(Event::Alive) | None => {}
        }
    }

    fn replace_owners(&mut self, entries: &[Entry], revision: i64) {
        self.owners.clear();
        self.listed.1 = true;
        entries.iter().for_each(|entry| self.owner(entry));
        for item in self.running.keys().filter(|item| !self.owners.contains_key(item)) {
            self.leave_if_lost(item, None, revision);
        }
    }

    /// Ends work whose claim no longer stood at `revision`, where one of create revision
    /// `standing` did or none: its next write would be refused, but it may not have one to do,
    /// and until then nobody would work on the item.
    fn leave_if_lost(&self, item: &ClaimItem, standing: Option<i64>, revision: i64) {
        let Some(running) = self.running.get(item) else { return };
        let is_later = revision > running.create_revision;
        if is_later && standing != Some(running.create_revision) && !running.leave.is_cancelled() {
            tracing::info!(%item, "the claim was taken from us, its work ends");
            running.leave.cancel();
        }
    }

    fn owner(&mut self, entry: &Entry) {
        if entry.lease == 0 {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            tracing::error!(key, "a claim without a lease will never end: delete it by hand");
        }
        let parsed = self.keyspace().parse(&entry.key);
        match (parsed, from_json::<Claimant>(&entry.key, &entry.value)) {
            (Ok(Key::Claim(item)), Ok(claimant)) => {
                self.leave_if_lost(&item, Some(entry.create_revision), entry.mod_revision);
                self.owners.insert(item, claimant.instance);
            }
            _ => tracing::warn!("a claim that cannot be read is left out"),
        }
    }

    async fn reconcile(&mut self) {
        let range = self.keyspace().prefix(&self.claims_prefix);
        match self.life.process.etcd.range(&range, RangeRead::default()).await {
            Ok(listing) => self.replace_owners(&listing.entries, listing.revision),
            Err(error) => tracing::debug!(%error, "could not list the claims"),
        }
    }

    async fn act<F>(&mut self, work: &impl Fn(Work) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.listed != (true, true) {
            return;
        }
        let items = self.items.borrow_and_update().clone();
        let now = Instant::now();
        self.rests_until.retain(|_, until| *until > now);
        // What we hold counts as ours even before the watch has told us.
        for item in self.running.keys() {
            self.owners.entry(item.clone()).or_insert_with(|| self.me.clone());
        }
        let idle: BTreeSet<ClaimItem> =
            items.iter().filter(|item| self.is_idle(item)).cloned().collect();
        self.free_since.retain(|item, _| idle.contains(item));
        self.leave_unwanted(&items);
        let myself = BTreeSet::from([self.me.clone()]);
        let members = if self.alone { &myself } else { &self.members };
        let plan = assign::plan(&self.me, members, &items, &self.owners);
        self.leave_surplus(plan.surplus);
        let mut wanted = plan.claim;
        for item in idle {
            let since = *self.free_since.entry(item.clone()).or_insert(now);
            // Spread over a second, so that not all take the same orphan at once.
            let spread = Duration::from_millis(assign::score(&item, &self.me) % 1000);
            if now - since > ORPHAN_AFTER + spread && !wanted.contains(&item) {
                wanted.push(item);
            }
        }
        wanted.retain(|item| {
            !self.rests_until.contains_key(item) && !self.running.contains_key(item)
        });
        for item in wanted {
            // An etcd that hangs over one claim must not keep us from leaving before the next.
            if self.life.process.stop.is_cancelled() || self.life.session.lost().is_cancelled() {
                break;
            }
            self.take(item, work).await;
        }
        self.count_claims();
    }

    /// Whether nobody works on `item`: it is free, or it is ours and we do not know of it. The
    /// latter happens when a claim was applied and its answer lost, or a release not applied:
    /// our lease would hold it for ever. Claiming again then finds the claim that stands.
    fn is_idle(&self, item: &ClaimItem) -> bool {
        match self.owners.get(item) {
            None => true,
            Some(owner) => *owner == self.me && !self.running.contains_key(item),
        }
    }

    /// Several pools of a process share one figure.
    fn count_claims(&mut self) {
        let held = self.running.len() as i64;
        self.life.process.metrics.figures.claims.fetch_add(held - self.counted, Relaxed);
        self.counted = held;
    }

    async fn take<F>(&mut self, item: ClaimItem, work: &impl Fn(Work) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match Claim::take(&self.life.process.etcd, &self.life.session, item.clone()).await {
            Ok(Some(claim)) => {
                tracing::debug!(%item, "claimed");
                let (leave, busy) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
                let running = Running {
                    create_revision: claim.create_revision(),
                    leave: leave.clone(),
                    busy: Arc::clone(&busy),
                };
                self.running.insert(item, running);
                let done = work(Work { claim: claim.clone(), leave, busy });
                self.running_tasks.spawn(async move {
                    done.await;
                    claim
                });
            }
            // Somebody was quicker; the watch will tell who.
            Ok(None) => {
                self.free_since.remove(&item);
                self.rests_until.insert(item, Instant::now() + TICK);
            }
            // Told by etcd, before the next keep-alive would.
            Err(Error::SessionLost { .. }) => self.life.session.lost().cancel(),
            Err(error) => {
                tracing::warn!(%item, %error, "could not claim, trying again");
                self.rests_until.insert(item, Instant::now() + REST);
            }
        }
    }

    /// Items that are no longer there need no work.
    fn leave_unwanted(&self, items: &BTreeSet<ClaimItem>) {
        for (item, running) in &self.running {
            if !items.contains(item) {
                running.leave.cancel();
            }
        }
    }

    /// Gives back what others should have: first what has not begun, then what suits us least.
    fn leave_surplus(&self, surplus: usize) {
        let leaving = self.running.values().filter(|r| r.leave.is_cancelled()).count();
        let mut stay: Vec<_> =
            self.running.iter().filter(|(_, r)| !r.leave.is_cancelled()).collect();
        stay.sort_by_cached_key(|(item, r)| (r.busy.load(Relaxed), assign::score(item, &self.me)));
        for (item, running) in stay.into_iter().take(surplus.saturating_sub(leaving)) {
            tracing::debug!(%item, "giving back");
            running.leave.cancel();
        }
    }

    async fn on_ended(&mut self, claim: Option<Claim>) {
        let Some(claim) = claim else {
            tracing::error!("a task panicked; its claims are dropped with the session");
            self.life.session.lost().cancel();
            return;
        };
        let item = claim.item().clone();
        let asked = self.running.remove(&item).is_some_and(|r| r.leave.is_cancelled());
        if let Err(error) = claim.release(&self.life.process.etcd).await {
            tracing::warn!(%item, %error, "could not release; the lease's end will");
        }
        if self.owners.get(&item) == Some(&self.me) {
            self.owners.remove(&item);
        }
        if !asked {
            self.rests_until.insert(item, Instant::now() + REST);
        }
    }

    async fn give_back_all(mut self, lost: CancellationToken) {
        for running in self.running.values() {
            running.leave.cancel();
        }
        while let Some(done) = self.running_tasks.join_next().await {
            // After a lost session there is nothing to release: the lease's end did.
            if !lost.is_cancelled() {
                self.on_ended(done.ok()).await;
            }
        }
    }
}
