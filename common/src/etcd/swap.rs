//! One write that needs no claim: of what is wanted, not of what was moved.

use etcd_client::{Compare, CompareOp, KvClient, Txn, TxnOp, TxnOpResponse};

use super::{
    client::{Etcd, one},
    commit::Position,
    error::Error,
};

impl Etcd {
    /// Puts `value` at a position (or deletes it, without one) if it is as it was seen and none of
    /// the keys `absent` is there. The revision of the write; none when it was not made.
    ///
    /// For what somebody wants (sources): samples are only moved by a
    /// [`Commit`](super::Commit). A try without an answer is sent again; if that finds what was
    /// wanted already there, it counts as written.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn swap(
        &self,
        position: &Position,
        value: Option<Vec<u8>>,
        absent: &[String],
    ) -> Result<Option<i64>, Error> {
        let Position { key, mod_revision } = position;
        let mut compares =
            vec![Compare::mod_revision(key.as_str(), CompareOp::Equal, *mod_revision)];
        let free = |key: &String| Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
        compares.extend(absent.iter().map(free));
        let write = match &value {
            Some(value) => TxnOp::put(key.as_str(), value.clone(), None),
            None => TxnOp::delete(key.as_str(), None),
        };
        let txn =
            Txn::new().when(compares).and_then([write]).or_else([TxnOp::get(key.as_str(), None)]);
        let send = |mut kv: KvClient| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        };
        let answer = self.read(&format!("write {key}"), send).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() {
            return Ok(Some(revision));
        }
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(got) => one(got),
            _ => None,
        });
        Ok(match (found, value) {
            (Some(entry), Some(value)) if entry.value == value => Some(entry.mod_revision),
            (None, None) => Some(revision),
            _ => None,
        })
    }
}
