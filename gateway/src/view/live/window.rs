//! The newest updates, for who was away for a moment and goes on from a revision.

use std::{collections::VecDeque, sync::Arc};

use nexus_common::block::Section;

use super::{point::LiveFilter, seat::Update};

/// Bytes of updates that are kept, encoded: minutes at 25,000 samples a second, of which each
/// takes about 3 bytes.
const BYTES_MAX: usize = 32 << 20;
/// What an update takes beyond its bytes.
const OVERHEAD: usize = 256;
/// Most updates that are looked at while nobody else can: a fraction of a millisecond.
const LOOKED_AT_MAX: usize = 4096;

/// Updates by revision, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Everything newer than this revision is here.
    after: i64,
    updates: VecDeque<Arc<Update>>,
    bytes: usize,
}

/// What comes next in a window.
#[derive(Debug)]
pub(super) enum Next {
    /// The revision that was asked for is not here any more.
    Gone,
    /// The updates of the next revision with anything that is wanted.
    Updates(Vec<Arc<Update>>),
    /// Nothing is wanted up to this revision, but there is more.
    More(i64),
    /// Nothing more.
    End,
}

impl Window {
    /// An empty one, as of a revision.
    pub(super) fn after(revision: i64) -> Self {
        Self { after: revision, ..Self::default() }
    }

    pub(super) fn push(&mut self, update: Arc<Update>) {
        self.bytes += cost(&update);
        // A copy that is not decoded: here, points would cost a hundred times as much.
        let Update { revision, cluster, host, sections, .. } = &*update;
        let (cluster, host) = (cluster.clone(), host.clone());
        let kept = Update::new(*revision, cluster, host, Arc::clone(sections));
        self.updates.push_back(Arc::new(kept));
        while self.bytes > BYTES_MAX {
            let Some(oldest) = self.updates.pop_front() else { break };
            self.bytes -= cost(&oldest);
            self.after = self.after.max(oldest.revision);
        }
    }

    /// What comes next behind revision `after` and not behind `until`.
    pub(super) fn next(&self, filter: &LiveFilter, after: i64, until: i64) -> Next {
        if after < self.after {
            return Next::Gone;
        }
        let start = self.updates.partition_point(|update| update.revision <= after);
        let mut found: Vec<Arc<Update>> = Vec::new();
        for (index, update) in self.updates.iter().skip(start).enumerate() {
            let ended = update.revision > until;
            if ended || found.first().is_some_and(|first| first.revision < update.revision) {
                break;
            }
            if found.is_empty() && index >= LOOKED_AT_MAX {
                // Of this revision something may still be wanted.
                return Next::More(update.revision - 1);
            }
            if filter.wants_host(&update.cluster, &update.host) {
                // Not the kept one: who decodes it must not make the window grow.
                let Update { revision, cluster, host, sections, .. } = &**update;
                let (cluster, host) = (cluster.clone(), host.clone());
                let copy = Update::new(*revision, cluster, host, Arc::clone(sections));
                found.push(Arc::new(copy));
            }
        }
        if found.is_empty() { Next::End } else { Next::Updates(found) }
    }
}

fn cost(update: &Update) -> usize {
    update.sections.iter().map(Section::byte_len).sum::<usize>() + OVERHEAD
}
