//! A claim: the right to work on an item, told by the create revision of its key.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Entry, Etcd, one},
    error::{Error, Fate},
    session::Session,
};
use crate::keyspace::{ClaimItem, Key};

/// An item that was ours when its key was created. Whether it still is, only the compare in a
/// [`super::Commit`] tells.
#[derive(Debug, Clone)]
pub struct Claim {
    item: ClaimItem,
    key: Arc<str>,
    create_revision: i64,
    session_lost: CancellationToken,
}

impl Claim {
    /// Takes `item` if nobody has it. `None` when somebody has.
    ///
    /// # Errors
    /// When etcd does not answer, or the session's lease is gone.
    pub async fn take(
        etcd: &Etcd,
        session: &Session,
        item: ClaimItem,
    ) -> Result<Option<Claim>, Error> {
        let key = etcd.keyspace().key(&Key::Claim(item.clone()));
        let attempt = format!("claim {key}");
        let ours = |entry: Entry| {
            let mine = entry.lease == session.lease() && entry.value == session.claim_value();
            mine.then(|| Claim {
                item: item.clone(),
                key: Arc::from(key.as_str()),
                create_revision: entry.create_revision,
                session_lost: session.lost().clone(),
            })
        };
        let options = PutOptions::new().with_lease(session.lease());
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key.as_str(), session.claim_value(), Some(options)),
                TxnOp::get(key.as_str(), None),
            ])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let sent = etcd
            .ask(&attempt, |mut kv| {
                let txn = txn.clone();
                async move { kv.txn(txn).await }
            })
            .await;
        match sent {
            Ok(answer) => Ok(answer.op_responses().into_iter().find_map(|r| match r {
                TxnOpResponse::Get(got) => one(got).and_then(ours),
                _ => None,
            })),
            Err(e) if e.fate() == Fate::LeaseGone => Err(Error::SessionLost { attempt }),
            // It may have been applied: the key itself says whose it is.
            Err(e) if e.fate() == Fate::Unknown => Ok(etcd.get(&key).await?.and_then(ours)),
            Err(e) => Err(e),
        }
    }

    /// What is claimed.
    pub fn item(&self) -> &ClaimItem {
        &self.item
    }

    /// The claim's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The fence: grows with every new claim on the item.
    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }

    /// Whether the session behind it is known to be lost. False proves nothing.
    pub fn is_lost(&self) -> bool {
        self.session_lost.is_cancelled()
    }

    pub(crate) fn guard(&self) -> Compare {
        Compare::create_revision(&*self.key, CompareOp::Equal, self.create_revision)
    }

    /// Gives the item back, if it is still ours.
    ///
    /// # Errors
    /// When etcd does not answer: the lease's end gives it back then.
    pub async fn release(self, etcd: &Etcd) -> Result<(), Error> {
        let attempt = format!("release {}", self.key);
        let mut last = None;
        // Deleting under the guard may be repeated; three tries cover a member that is gone.
        for _ in 0..3 {
            let sent = etcd.ask(&attempt, |mut kv| {
                let ops = [TxnOp::delete(&*self.key, None)];
                let txn = Txn::new().when([self.guard()]).and_then(ops);
                async move { kv.txn(txn).await }
            });
            match sent.await {
                Ok(_) => return Ok(()),
                Err(e) => last = Some(e),
            }
        }
        last.map_or(Ok(()), Err)
    }
}
