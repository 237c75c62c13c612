//! The one guarded write. A [`Commit`] can only be built from a [`Claim`] and a [`Position`];
//! etcd applies it only if the claim still stands and the position is as we last saw it.

use std::time::Duration;

use bytes::Bytes;
use etcd_client::{
    Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::{Instant, sleep};

use super::{
    claim::Claim,
    client::{Entry, Etcd, one},
    error::{Error, Fate},
};
use crate::{
    crash_point,
    keyspace::KeyRange,
    limits::{TXN_BYTES_MAX, TXN_OPS_MAX},
};

/// How long the outcome of an unanswered write is sought before giving up: longer than an etcd
/// election, shorter than a takeover makes pointless.
const RESOLVE_WITHIN: Duration = Duration::from_secs(20);

/// A key that says how far something got, and its last write as we saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The key.
    pub key: String,
    /// Revision of its last write; 0 when it does not exist yet.
    pub mod_revision: i64,
}

impl Position {
    /// Where `key` stands according to a read.
    pub fn seen(key: String, entry: Option<&Entry>) -> Self {
        Self { key, mod_revision: entry.map_or(0, |e| e.mod_revision) }
    }
}

/// What became of a commit.
#[derive(Debug)]
pub enum Outcome {
    /// Applied, exactly once.
    Committed {
        /// The revision it made: every advanced position is now at this one.
        revision: i64,
        /// What [`Commit::read`] asked for, in order; absent when the answer was lost and the
        /// commit was found applied afterwards.
        reads: Option<Vec<Option<Entry>>>,
    },
    /// Not applied: the claim is not ours any more.
    Fenced,
    /// Not applied: the claim stands, but a position (or another condition) is not as we saw it.
    Stale,
}

/// A transaction under both guards.
pub struct Commit<'a> {
    claim: &'a Claim,
    compares: Vec<Compare>,
    ops: Vec<TxnOp>,
    deletes: Vec<i64>,
    reads: usize,
    /// First position and the value it will have: tells whether an unanswered try was applied.
    witness: (String, Bytes),
    bytes: usize,
    key_overhead: usize,
}

impl<'a> Commit<'a> {
    /// Begins with the two guards: `claim` stands, `position` is as seen. The commit will write
    /// `value` there; it must differ from every value written there before.
    pub fn new(claim: &'a Claim, position: &Position, value: Vec<u8>) -> Self {
        let mut commit = Self {
            claim,
            compares: Vec::new(),
            ops: Vec::new(),
            deletes: Vec::new(),
            reads: 0,
            witness: (position.key.clone(), Bytes::from(value.clone())),
            bytes: 0,
            // Protobuf tags and lengths of one operation, generously.
            key_overhead: 32,
        };
        if !left_out!(NoClaim) {
            commit.compares.push(claim.guard());
        }
        commit.advance(position, value);
        commit
    }

    /// Moves one more position, under its guard.
    pub fn advance(&mut self, position: &Position, value: Vec<u8>) {
        self.require_unchanged(position);
        self.put(&position.key, value);
    }

    /// Only if `position` is as seen; it is not written.
    pub fn require_unchanged(&mut self, position: &Position) {
        if left_out!(NoPosition) {
            return;
        }
        self.bytes += position.key.len() + self.key_overhead;
        self.compares.push(Compare::mod_revision(
            position.key.as_str(),
            CompareOp::Equal,
            position.mod_revision,
        ));
    }

    /// Only if `key` exists and its value sorts before `bound`.
    pub fn require_value_below(&mut self, key: &str, bound: &str) {
        self.bytes += key.len() + bound.len() + self.key_overhead;
        self.compares.push(Compare::value(key, CompareOp::Less, bound));
    }

    /// Writes a key.
    pub fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        let value = value.into();
        self.bytes += key.len() + value.len() + self.key_overhead;
        self.ops.push(TxnOp::put(key, value, None));
    }

    /// Creates a key under a lease of its own, and only if it does not exist: else nothing of this
    /// commit is applied, and it is [`Outcome::Stale`]. If that lease is gone it is refused as if
    /// the session were lost, and nothing is applied either.
    pub fn create(&mut self, key: &str, value: impl Into<Vec<u8>>, lease: i64) {
        let value = value.into();
        self.bytes += 2 * (key.len() + self.key_overhead) + value.len();
        self.compares.push(Compare::create_revision(key, CompareOp::Equal, 0));
        self.ops.push(TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease))));
    }

    /// Deletes a range that holds exactly `expected` keys.
    pub fn delete(&mut self, range: &KeyRange, expected: i64) {
        self.bytes += range.start.len() + range.end.len() + self.key_overhead;
        let options = DeleteOptions::new().with_range(range.end.clone());
        self.ops.push(TxnOp::delete(range.start.clone(), Some(options)));
        self.deletes.push(expected);
    }

    /// Deletes one key that exists.
    pub fn delete_key(&mut self, key: &str) {
        self.bytes += key.len() + self.key_overhead;
        self.ops.push(TxnOp::delete(key, None));
        self.deletes.push(1);
    }

    /// Reads a key in the same transaction.
    pub fn read(&mut self, key: &str) {
        self.bytes += key.len() + self.key_overhead;
        self.ops.push(TxnOp::get(key, None));
        self.reads += 1;
    }

    /// Operations so far; at most [`TXN_OPS_MAX`].
    pub fn ops(&self) -> usize {
        self.ops.len().max(self.compares.len())
    }

    /// Size so far, in bytes; at most [`TXN_BYTES_MAX`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Applies it, and finds out whether it was applied when etcd does not say.
    ///
    /// An unanswered try is repeated byte for byte: the guards let it happen only once.
    ///
    /// # Errors
    /// `Undecided` when the outcome cannot be found out in time (then read the position again
    /// before doing anything), or a definite refusal.
    pub async fn run(self, etcd: &Etcd) -> Result<Outcome, Error> {
        let attempt = format!("commit {}", self.witness.0);
        self.check_limits(&attempt)?;
        let deadline = Instant::now() + RESOLVE_WITHIN;
        let (mut pause, mut unanswered) = (Duration::from_millis(20), false);
        loop {
            let sent = etcd
                .ask(&attempt, |mut kv| {
                    let txn = self.txn();
                    async move { kv.txn(txn).await }
                })
                .await;
            let error = match sent {
                Ok(answer) => return Ok(self.decide(&answer, unanswered)),
                Err(error) => error,
            };
            match error.fate() {
                Fate::Refused => return Err(error),
                Fate::LeaseGone => return Err(Error::SessionLost { attempt }),
                Fate::NotAppliedRetry => {}
                Fate::Unknown => unanswered = true,
            }
            if self.claim.is_lost() {
                return Err(Error::SessionLost { attempt });
            }
            if Instant::now() + pause > deadline {
                return Err(Error::Undecided { attempt, last: Box::new(error) });
            }
            if error.is_no_space() {
                crash_point!("txn.no_space");
            }
            tracing::debug!(error = %error, "unanswered commit, sending it again");
            sleep(pause).await;
            crash_point!("txn.before_resend");
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn check_limits(&self, attempt: &str) -> Result<(), Error> {
        let too_large = |what, value, max| {
            Err(Error::TooLarge { attempt: attempt.to_owned(), what, value, max })
        };
        if self.ops() > TXN_OPS_MAX {
            return too_large("operations", self.ops(), TXN_OPS_MAX);
        }
        if self.bytes > TXN_BYTES_MAX {
            return too_large("bytes", self.bytes, TXN_BYTES_MAX);
        }
        Ok(())
    }

    fn txn(&self) -> Txn {
        Txn::new().when(self.compares.clone()).and_then(self.ops.clone()).or_else([
            TxnOp::get(self.claim.key(), None),
            TxnOp::get(self.witness.0.as_str(), None),
        ])
    }

    fn decide(&self, answer: &TxnResponse, unanswered: bool) -> Outcome {
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            return self.committed(revision, answer.op_responses());
        }
        let mut found = answer.op_responses().into_iter().map(|r| match r {
            TxnOpResponse::Get(got) => one(got),
            _ => None,
        });
        let (claim, witness) = (found.next().flatten(), found.next().flatten());
        // An earlier try of ours won, if the position holds the very value we wanted to write:
        // it carries our claim's revision and a number that only grows.
        if let Some(entry) = witness.filter(|e| unanswered && e.value == self.witness.1) {
            return Outcome::Committed { revision: entry.mod_revision, reads: None };
        }
        match claim {
            Some(entry) if entry.create_revision == self.claim.create_revision() => Outcome::Stale,
            _ => Outcome::Fenced,
        }
    }

    fn committed(&self, revision: i64, responses: Vec<TxnOpResponse>) -> Outcome {
        let mut reads = Vec::with_capacity(self.reads);
        let mut expected = self.deletes.iter();
        for response in responses {
            match response {
                TxnOpResponse::Get(got) => reads.push(one(got)),
                // Under both guards this cannot be; if it is, somebody else writes here.
                TxnOpResponse::Delete(gone) if expected.next() != Some(&gone.deleted()) => {
                    tracing::error!(
                        key = self.witness.0,
                        deleted = gone.deleted(),
                        "invariant broken: a commit deleted another number of keys than it read"
                    );
                }
                _ => {}
            }
        }
        Outcome::Committed { revision, reads: Some(reads) }
    }
}
