//! What etcd has told so far, and whether what it tells now can follow from it.
//!
//! etcd's revision only grows. One that was restored from a snapshot, or replaced, has another
//! cluster id or begins again at a lower revision; everything a process remembers is then about
//! another past. The guards of a commit compare revisions, so they could hold by accident.

use std::sync::Mutex;

use etcd_client::ResponseHeader;
use tokio_util::sync::CancellationToken;

use super::error::Error;

/// The newest state that was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    state: Mutex<State>,
    regressed: CancellationToken,
}

#[derive(Debug, Default, Clone)]
struct State {
    cluster: u64,
    revision: i64,
    term: u64,
    /// Doubts so far, and how many of them an answer has ended.
    doubts: u64,
    settled: u64,
    breach: Option<String>,
}

impl Seen {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // Nothing panics while it holds the lock; a poisoned one would hold the same state.
        look(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The highest revision seen. An answer to a request that is sent from now on has this one
    /// or a higher.
    pub(super) fn revision(&self) -> i64 {
        self.with(|state| state.revision)
    }

    /// The newest term: it grows with every election.
    pub(super) fn term(&self) -> u64 {
        self.with(|state| state.term)
    }

    /// Takes note of a term.
    pub(super) fn note_term(&self, term: u64) {
        self.with(|state| state.term = state.term.max(term));
    }

    /// A connection broke, or an answer was strange: look before writing.
    pub(super) fn doubt(&self) {
        self.with(|state| state.doubts += 1);
    }

    /// Whether to look first.
    pub(super) fn doubted(&self) -> bool {
        self.with(|state| state.doubted())
    }

    /// How often it was doubted so far: a look that begins now ends these, and no later ones.
    pub(super) fn doubts(&self) -> u64 {
        self.with(|state| state.doubts)
    }

    /// Takes note of the answer to a request before which `floor` had been seen. A lower
    /// revision is only doubted: some versions of etcd answer reads from the past.
    pub(super) fn note(&self, header: Option<&ResponseHeader>, floor: i64) -> Result<(), Error> {
        let Some(header) = header else { return self.check() };
        self.with(|state| {
            state.term = state.term.max(header.raft_term());
            state.take(header.cluster_id(), header.revision(), floor);
        });
        self.check()
    }

    /// Ends the first `doubts` doubts with an answer that cannot be from the past.
    pub(super) fn settle(
        &self,
        header: Option<&ResponseHeader>,
        floor: i64,
        doubts: u64,
    ) -> Result<(), Error> {
        let Some(header) = header else { return self.check() };
        self.with(|state| {
            state.take(header.cluster_id(), header.revision(), floor);
            state.settle(header.revision(), floor, doubts);
        });
        self.check()
    }

    /// Fails for ever once etcd was found to be another.
    pub(super) fn check(&self) -> Result<(), Error> {
        let breach = self.with(|state| state.breach.clone());
        let Some(what) = breach else { return Ok(()) };
        self.regressed.cancel();
        Err(Error::Regressed { what })
    }

    /// Cancelled when etcd was found to be another.
    pub(super) fn regressed(&self) -> &CancellationToken {
        &self.regressed
    }
}

impl State {
    fn take(&mut self, cluster: u64, revision: i64, floor: i64) {
        if self.cluster != 0 && cluster != self.cluster {
            self.breach.get_or_insert(format!(
                "it was cluster {:x}, it is cluster {cluster:x}",
                self.cluster
            ));
            return;
        }
        self.cluster = cluster;
        self.revision = self.revision.max(revision);
        self.doubts += u64::from(revision < floor);
    }

    fn doubted(&self) -> bool {
        self.doubts > self.settled
    }

    fn settle(&mut self, revision: i64, floor: i64, doubts: u64) {
        self.settled = self.settled.max(doubts);
        if revision < floor {
            self.breach.get_or_insert(format!(
                "it had reached revision {floor}, it is back at revision {revision}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_revision_is_doubted_then_fatal_and_another_cluster_is_fatal_at_once() {
        let mut state = State::default();
        let check = |state: &State, revision, doubted, broken: bool| {
            let found = (state.revision, state.doubted(), state.breach.is_some());
            assert_eq!(found, (revision, doubted, broken));
        };
        state.take(7, 10, 0);
        check(&state, 10, false, false);
        // An answer that was overtaken by another: nothing had been seen when it was asked for.
        state.take(7, 9, 8);
        check(&state, 10, false, false);
        state.take(7, 9, 10);
        check(&state, 10, true, false);
        let mut stale = state.clone();
        stale.settle(10, 10, 1);
        check(&stale, 10, false, false);
        // A connection that broke while somebody looked: what was seen was before that.
        let mut again = state.clone();
        again.doubts += 1;
        again.settle(10, 10, 1);
        check(&again, 10, true, false);
        let mut restored = state.clone();
        restored.settle(9, 10, 1);
        check(&restored, 10, false, true);
        state.take(8, 11, 10);
        assert_eq!(state.breach.as_deref(), Some("it was cluster 7, it is cluster 8"));
    }
}
