//! The view as a fold over two watches. Pure: what came in, in which order, decides all.
//!
//! *Truth* (retention, progress, sources) says which samples exist. *Places* (commits, inventory)
//! say where they lie: a commit only moves samples, so it may be applied late, but never before
//! the progress that brought what it moves. Such commits are held back.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use nexus_common::{
    keyspace::{
        BlockName, ClusterRecord, CommitSummary, GpuRecord, HostRecord, LaneMove, Progress,
        Retired, Source,
    },
    model::{BucketId, ClusterId, Gpu, GpuId, HostName, Lane, PartitionId, SourceId},
};

use super::{
    arrival::{Arrived, HostNews},
    snapshot::{Cluster, GpuPlace, GpuState, Host, QueuedPart, Snapshot},
};

/// One change of what exists.
#[derive(Debug)]
pub enum TruthChange {
    /// A shard was read further; the messages it enqueued.
    Progress(Lane, Box<Progress>, Vec<Arrived>),
    /// A shard is gone.
    ShardGone(Lane),
    /// A source came, changed or went.
    Source(SourceId, Option<Source>),
    /// History begins here now.
    Floor(BucketId),
    /// What left with a bucket.
    Retired(BucketId, Option<Retired>),
}

/// One change of where things are.
#[derive(Debug)]
pub enum PlaceChange {
    /// A commit.
    Commit(PartitionId, CommitSummary),
    /// A cluster was seen.
    Cluster(ClusterId, ClusterRecord),
    /// A host was seen.
    Host(ClusterId, HostName, HostRecord),
    /// A GPU was seen, or its description is gone.
    Gpu(ClusterId, HostName, GpuId, Option<GpuRecord>),
}

/// Why the view must be loaded again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The watch missed a commit.
    #[error("commit {expected} of partition {partition} was missed, {found} came")]
    Commit {
        /// Whose commits.
        partition: PartitionId,
        /// Number that had to come.
        expected: u64,
        /// Number that came.
        found: u64,
    },
    /// Progress is not as it was left.
    #[error("lane {lane} went from message {from} to {to} with {got} messages in hand")]
    Progress {
        /// The lane.
        lane: Lane,
        /// Next message before.
        from: u64,
        /// Next message now.
        to: u64,
        /// Messages that were found.
        got: usize,
    },
}

/// What a message in hand is made of, for when it leaves.
#[derive(Debug)]
struct Note {
    seq: u64,
    samples: u64,
    bytes: u64,
    readable: bool,
    cluster: Option<ClusterId>,
    hosts: Vec<HostName>,
}

/// The state and how it changes.
#[derive(Debug)]
pub struct Fold {
    now: Snapshot,
    messages: BTreeMap<Lane, VecDeque<Note>>,
    commits: BTreeMap<PartitionId, u64>,
    held: VecDeque<(i64, PartitionId, CommitSummary)>,
}

impl Fold {
    /// Nothing yet, at `revision`; a load fills it.
    pub fn new(revision: i64) -> Self {
        Self {
            now: Snapshot::empty(revision),
            messages: BTreeMap::new(),
            commits: BTreeMap::new(),
            held: VecDeque::new(),
        }
    }

    /// The state. A clone of it can be published.
    pub fn now(&self) -> &Snapshot {
        &self.now
    }

    /// Commits that wait for the progress that brought what they move.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Applies one whole revision of truth, then the commits that waited for it.
    ///
    /// # Errors
    /// When something was missed.
    pub fn truth(&mut self, revision: i64, changes: Vec<TruthChange>) -> Result<(), Lost> {
        for change in changes {
            match change {
                TruthChange::Progress(lane, progress, arrived) => {
                    self.progress(lane, *progress, arrived)?;
                }
                TruthChange::ShardGone(lane) => self.shard_gone(&lane)?,
                TruthChange::Source(id, Some(source)) => {
                    Arc::make_mut(&mut self.now.sources).insert(id, source);
                }
                TruthChange::Source(id, None) => {
                    Arc::make_mut(&mut self.now.sources).remove(&id);
                }
                TruthChange::Floor(floor) => self.raise_floor(floor),
                TruthChange::Retired(bucket, Some(retired)) => {
                    Arc::make_mut(&mut self.now.retired).insert(bucket, retired);
                }
                TruthChange::Retired(bucket, None) => {
                    Arc::make_mut(&mut self.now.retired).remove(&bucket);
                }
            }
        }
        self.now.revision = self.now.revision.max(revision);
        self.release()
    }

    /// Takes what one revision of places brought.
    ///
    /// # Errors
    /// When a commit was missed.
    pub fn places(&mut self, revision: i64, changes: Vec<PlaceChange>) -> Result<(), Lost> {
        for change in changes {
            match change {
                PlaceChange::Commit(partition, summary) => {
                    self.held.push_back((revision, partition, summary));
                }
                PlaceChange::Cluster(cluster, record) => {
                    self.cluster(&cluster).created_at = Some(record.created_at);
                }
                PlaceChange::Host(cluster, host, record) => {
                    self.host(&cluster, &host).created_at = Some(record.created_at);
                }
                PlaceChange::Gpu(cluster, host, id, Some(record)) => {
                    self.describe(&cluster, &host, gpu_of(id, record));
                }
                PlaceChange::Gpu(cluster, host, id, None) => self.forget(&cluster, &host, &id),
            }
        }
        self.release()
    }

    /// A block that a load found.
    pub fn found_block(&mut self, name: BlockName) {
        if name.bucket >= self.now.floor {
            let (end, cluster, host) = (name.end, name.cluster.clone(), name.host.clone());
            let host = self.host(&cluster, &host);
            Arc::make_mut(&mut host.blocks).insert(Arc::new(name));
            host.newest = host.newest.max(Some(end.as_millis()));
        }
    }

    /// How far a shard had been read when it was loaded.
    pub fn found_progress(&mut self, lane: Lane, progress: Progress) {
        self.now.lanes.insert(lane, Arc::new(progress));
    }

    /// The last commit of a partition when it was loaded.
    pub fn found_commit(&mut self, partition: PartitionId, number: u64) {
        self.commits.insert(partition, number);
    }

    /// A message in hand.
    pub fn arrived(&mut self, message: Arrived) {
        let Arrived { lane, seq, samples, bytes, content } = message;
        let queue = &mut self.now.queue;
        queue.messages += 1;
        queue.samples += samples;
        queue.bytes += bytes;
        let mut note =
            Note { seq, samples, bytes, readable: true, cluster: None, hosts: Vec::new() };
        match content {
            Ok(content) => {
                let cluster = content.cluster;
                for (name, sections) in content.hosts {
                    let host = self.host(&cluster, &name);
                    let newest = sections.iter().map(|s| s.end().as_millis()).max();
                    host.newest = host.newest.max(newest);
                    let part = QueuedPart { seq, sections };
                    let lane = host.queue.entry(lane.clone()).or_default();
                    Arc::make_mut(lane).push_back(part);
                    note.hosts.push(name);
                }
                content.news.into_iter().for_each(|news| self.news(&cluster, news));
                note.cluster = Some(cluster);
            }
            Err(reason) => {
                tracing::warn!(%lane, seq, reason, "a message cannot be read");
                queue.unreadable_samples += samples;
                note.readable = false;
            }
        }
        self.messages.entry(lane).or_default().push_back(note);
    }

    /// Newest values of a host.
    pub fn news(&mut self, cluster: &ClusterId, news: HostNews) {
        for gpu in &news.gpus {
            self.describe(cluster, &news.host, gpu.clone());
        }
        let host = self.host(cluster, &news.host);
        for one in &news.series {
            match one.gpu {
                None => {
                    Arc::make_mut(&mut host.own).put(&one.metric, &one.labels, one.at, one.value);
                }
                Some(index) => {
                    let id = news.gpus.get(index as usize).map(|gpu| &gpu.id);
                    if let Some(gpu) = id.and_then(|id| host.gpus.get_mut(id)) {
                        let latest = &mut Arc::make_mut(gpu).latest;
                        latest.put(&one.metric, &one.labels, one.at, one.value);
                    }
                }
            }
        }
    }

    /// Latest values and descriptions of a host that were known before a load.
    pub fn remember(&mut self, cluster: &ClusterId, name: &HostName, before: &Host) {
        for gpu in before.gpus.values() {
            self.describe(cluster, name, gpu.about.clone());
            if let Some(known) = self.host(cluster, name).gpus.get_mut(&gpu.about.id) {
                Arc::make_mut(known).latest = gpu.latest.clone();
            }
        }
        self.host(cluster, name).own = Arc::clone(&before.own);
    }

    /// Forgets remembered values of what retention deleted meanwhile.
    pub fn forget_retired(&mut self) {
        let floor = self.now.floor.clone();
        for cluster in self.now.clusters.values_mut() {
            for host in Arc::make_mut(cluster).hosts.values_mut() {
                cut(Arc::make_mut(host), &floor);
            }
        }
    }

    fn progress(
        &mut self,
        lane: Lane,
        progress: Progress,
        arrived: Vec<Arrived>,
    ) -> Result<(), Lost> {
        let from = self.now.lanes.get(&lane).map_or(0, |p| p.next);
        let to = progress.next;
        let contiguous = arrived.iter().map(|m| m.seq).eq(from..to);
        if to < from || !contiguous {
            return Err(Lost::Progress { lane, from, to, got: arrived.len() });
        }
        arrived.into_iter().for_each(|message| self.arrived(message));
        self.now.lanes.insert(lane, Arc::new(progress));
        Ok(())
    }

    /// A withdrawn shard with messages in hand: what became of them only a load can tell.
    fn shard_gone(&mut self, lane: &Lane) -> Result<(), Lost> {
        let from = self.now.lanes.remove(lane).map_or(0, |p| p.next);
        let got = self.messages.get(lane).map_or(0, VecDeque::len);
        if got > 0 {
            return Err(Lost::Progress { lane: lane.clone(), from, to: 0, got });
        }
        Ok(())
    }

    /// Applies held commits in their order, as long as truth has caught up with them.
    fn release(&mut self) -> Result<(), Lost> {
        while let Some((_, _, summary)) = self.held.front() {
            let next = |lane: &Lane| self.now.lanes.get(lane).map_or(0, |p| p.next);
            if summary.lanes.iter().any(|moved| moved.to > next(&moved.lane())) {
                return Ok(());
            }
            let Some((revision, partition, summary)) = self.held.pop_front() else { break };
            self.commit(partition, &summary)?;
            self.now.places_revision = self.now.places_revision.max(revision);
        }
        Ok(())
    }

    fn commit(&mut self, partition: PartitionId, summary: &CommitSummary) -> Result<(), Lost> {
        let last = self.commits.entry(partition).or_insert(0);
        let expected = *last + 1;
        if summary.number != expected {
            return Err(Lost::Commit { partition, expected, found: summary.number });
        }
        *last = expected;
        summary.lanes.iter().for_each(|moved| self.take_out(moved));
        for name in CommitSummary::names(&summary.removed) {
            let host = self.host(&name.cluster, &name.host);
            Arc::make_mut(&mut host.blocks).remove(&name);
        }
        CommitSummary::names(&summary.added).for_each(|name| self.found_block(name));
        Ok(())
    }

    fn take_out(&mut self, moved: &LaneMove) {
        let lane = moved.lane();
        let Some(notes) = self.messages.get_mut(&lane) else { return };
        let mut gone = Vec::new();
        while notes.front().is_some_and(|note| note.seq < moved.to) {
            gone.extend(notes.pop_front());
        }
        if notes.is_empty() {
            self.messages.remove(&lane);
        }
        for note in gone {
            let queue = &mut self.now.queue;
            queue.messages -= 1;
            queue.samples -= note.samples;
            queue.bytes -= note.bytes;
            queue.unreadable_samples -= if note.readable { 0 } else { note.samples };
            let Some(cluster) = note.cluster else { continue };
            for name in note.hosts {
                let host = self.host(&cluster, &name);
                let Some(parts) = host.queue.get_mut(&lane) else { continue };
                let parts_now = Arc::make_mut(parts);
                while parts_now.front().is_some_and(|part| part.seq <= note.seq) {
                    parts_now.pop_front();
                }
                if parts_now.is_empty() {
                    host.queue.remove(&lane);
                }
            }
        }
    }

    /// Blocks below the floor are not served from now on, be they deleted yet or not. Latest
    /// values older than all that is left of their host go with them.
    fn raise_floor(&mut self, floor: BucketId) {
        for cluster in self.now.clusters.values_mut() {
            let touched: Vec<HostName> = cluster
                .hosts
                .iter()
                .filter(|(_, host)| host.blocks.iter().any(|b| b.bucket < floor))
                .map(|(name, _)| name.clone())
                .collect();
            for name in touched {
                if let Some(host) = Arc::make_mut(cluster).hosts.get_mut(&name) {
                    cut(Arc::make_mut(host), &floor);
                }
            }
        }
        self.now.floor = floor;
    }

    fn cluster(&mut self, cluster: &ClusterId) -> &mut Cluster {
        Arc::make_mut(self.now.clusters.entry(cluster.clone()).or_default())
    }

    fn host(&mut self, cluster: &ClusterId, host: &HostName) -> &mut Host {
        Arc::make_mut(self.cluster(cluster).hosts.entry(host.clone()).or_default())
    }

    fn describe(&mut self, cluster: &ClusterId, host: &HostName, gpu: Gpu) {
        let known = self.host(cluster, host).gpus.get(&gpu.id);
        if known.is_some_and(|known| known.about == gpu) {
            return;
        }
        let place = GpuPlace { cluster: cluster.clone(), host: host.clone(), gpu: gpu.id.clone() };
        let index = Arc::make_mut(&mut self.now.gpus);
        for text in [gpu.id.as_str(), gpu.uuid.as_str()] {
            if !text.is_empty() {
                index.entry(text.to_owned()).or_default().insert(place.clone());
            }
        }
        match self.host(cluster, host).gpus.get_mut(&gpu.id) {
            Some(known) => Arc::make_mut(known).about = gpu,
            None => {
                let state = GpuState { about: gpu, latest: super::snapshot::Latest::default() };
                let id = state.about.id.clone();
                self.host(cluster, host).gpus.insert(id, Arc::new(state));
            }
        }
    }

    fn forget(&mut self, cluster: &ClusterId, host: &HostName, id: &GpuId) {
        let gone = self.host(cluster, host).gpus.remove(id);
        let Some(gone) = gone else { return };
        let place = GpuPlace { cluster: cluster.clone(), host: host.clone(), gpu: id.clone() };
        let index = Arc::make_mut(&mut self.now.gpus);
        for text in [id.as_str(), gone.about.uuid.as_str()] {
            if let Some(places) = index.get_mut(text) {
                places.remove(&place);
                if places.is_empty() {
                    index.remove(text);
                }
            }
        }
    }
}

fn cut(host: &mut Host, floor: &BucketId) {
    Arc::make_mut(&mut host.blocks).retain(|block| block.bucket >= *floor);
    let span = host.span();
    host.newest = span.map(|(_, newest)| newest);
    let oldest = span.map_or(i64::MAX, |(oldest, _)| oldest);
    Arc::make_mut(&mut host.own).forget_before(oldest);
    for gpu in host.gpus.values_mut() {
        if gpu.latest.iter().any(|(_, _, at, _)| at < oldest) {
            Arc::make_mut(gpu).latest.forget_before(oldest);
        }
    }
}

fn gpu_of(id: GpuId, record: GpuRecord) -> Gpu {
    Gpu {
        id,
        uuid: record.uuid,
        index: record.index,
        device: record.device,
        model: record.model,
        driver: record.driver,
        mig_profile: record.mig_profile,
    }
}
