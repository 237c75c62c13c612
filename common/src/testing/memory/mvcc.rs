//! The state of an etcd: keys with their past, leases, what may be asked of them. No I/O, no
//! clock: whoever holds it says what time it is.

use std::collections::{BTreeMap, BTreeSet};

use etcd_client::proto::{
    PbCompare, PbDeleteRequest, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse,
    PbRangeRequest, PbRangeResponse, PbResponseHeader, PbResponseOp, PbTargetUnion, PbTxnOpRequest,
    PbTxnOpResponse, PbTxnRequest, PbTxnRequestOp, PbTxnResponse,
};
use tonic::{Code, Status};

use super::refusal::{self, Refusal};

/// Most operations (and compares) in a transaction.
const TXN_OPS_MAX: usize = 128;
/// Event types of the protocol.
const PUT: i32 = 0;
const DELETE: i32 = 1;

/// What one write changed.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its revision.
    pub revision: i64,
    /// In the order of the operations.
    pub events: Vec<PbEvent>,
}

/// A lease: how long, until when, for which keys.
#[derive(Debug, Clone)]
struct Lease {
    ttl_seconds: i64,
    expires_ms: u64,
    keys: BTreeSet<Vec<u8>>,
}

/// A key at a revision: there, or gone.
#[derive(Debug, Clone)]
struct Version {
    revision: i64,
    kv: Option<PbKeyValue>,
}

/// Keys, past and leases.
#[derive(Debug)]
pub(super) struct Mvcc {
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    /// Every write so far, whatever was compacted: what a judge reads afterwards.
    pub(super) history: Vec<Change>,
    /// Writes are refused.
    pub(super) out_of_space: bool,
}

impl Default for Mvcc {
    fn default() -> Self {
        Self {
            // A new etcd is at revision 1.
            revision: 1,
            compacted: -1,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: 1000,
            history: Vec::new(),
            out_of_space: false,
        }
    }
}

impl Mvcc {
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    pub(super) fn header(&self) -> PbResponseHeader {
        PbResponseHeader { cluster_id: 1, member_id: 1, revision: self.revision, raft_term: 2 }
    }

    /// The revision that an operation in a transaction sees, after what the ones before it did.
    fn seen(&self, revision: i64, events: &[PbEvent]) -> i64 {
        if events.is_empty() { self.revision } else { revision }
    }

    fn headed(&self, revision: i64) -> Option<PbResponseHeader> {
        Some(PbResponseHeader { revision, ..PbResponseHeader::default() })
    }

    pub(super) fn range(&self, request: &PbRangeRequest) -> Result<PbRangeResponse, Status> {
        check_range(request)?;
        self.check_revision(request.revision)?;
        let mut answer = self.look(request);
        answer.header = Some(self.header());
        Ok(answer)
    }

    fn check_revision(&self, revision: i64) -> Result<(), Status> {
        match revision {
            r if r > self.revision => Err(refusal::of(Refusal::FutureRevision)),
            r if r > 0 && r < self.compacted => Err(refusal::of(Refusal::Compacted)),
            _ => Ok(()),
        }
    }

    fn look(&self, request: &PbRangeRequest) -> PbRangeResponse {
        let at = if request.revision > 0 { request.revision } else { i64::MAX };
        let limit = usize::try_from(request.limit).ok().filter(|l| *l > 0).unwrap_or(usize::MAX);
        let mut answer = PbRangeResponse::default();
        for kv in self.live(&request.key, &request.range_end, at) {
            answer.count += 1;
            if request.count_only || answer.kvs.len() >= limit {
                answer.more |= !request.count_only;
                continue;
            }
            let mut kv = kv.clone();
            if request.keys_only {
                kv.value.clear();
            }
            answer.kvs.push(kv);
        }
        answer
    }

    /// What stood in a range at a revision.
    fn live<'a>(
        &'a self,
        key: &'a [u8],
        range_end: &'a [u8],
        at: i64,
    ) -> impl Iterator<Item = &'a PbKeyValue> {
        self.keys
            .range(key.to_vec()..)
            .take_while(move |(k, _)| within(k, key, range_end))
            .filter_map(move |(_, versions)| {
                versions.iter().rev().find(|v| v.revision <= at).and_then(|v| v.kv.as_ref())
            })
    }

    fn current(&self, key: &[u8]) -> Option<&PbKeyValue> {
        self.keys.get(key).and_then(|versions| versions.last()).and_then(|v| v.kv.as_ref())
    }

    pub(super) fn put(&mut self, request: PbPutRequest) -> Result<PbPutResponse, Status> {
        check_put(&request)?;
        self.check_put_now(&request)?;
        if self.out_of_space {
            return Err(refusal::of(Refusal::NoSpace));
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut answer = self.apply_put(request, revision, &mut events);
        self.commit(revision, events);
        answer.header = Some(self.header());
        Ok(answer)
    }

    fn check_put_now(&self, request: &PbPutRequest) -> Result<(), Status> {
        if (request.ignore_value || request.ignore_lease) && self.current(&request.key).is_none() {
            return Err(refusal::of(Refusal::KeyNotFound));
        }
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(refusal::of(Refusal::NoLease));
        }
        Ok(())
    }

    fn apply_put(
        &mut self,
        request: PbPutRequest,
        revision: i64,
        events: &mut Vec<PbEvent>,
    ) -> PbPutResponse {
        let old = self.current(&request.key).cloned();
        let mut kv = PbKeyValue {
            create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.as_ref().map_or(0, |old| old.version) + 1,
            key: request.key,
            value: request.value,
            lease: request.lease,
        };
        if let Some(old) = &old {
            if request.ignore_value {
                kv.value.clone_from(&old.value);
            }
            if request.ignore_lease {
                kv.lease = old.lease;
            }
            if let Some(lease) = self.leases.get_mut(&old.lease) {
                lease.keys.remove(&kv.key);
            }
        }
        if let Some(lease) = self.leases.get_mut(&kv.lease) {
            lease.keys.insert(kv.key.clone());
        }
        self.write(kv.key.clone(), revision, Some(kv.clone()));
        events.push(PbEvent { r#type: PUT, kv: Some(kv), prev_kv: old.clone() });
        PbPutResponse { header: self.headed(revision), prev_kv: old.filter(|_| request.prev_kv) }
    }

    pub(super) fn delete(&mut self, request: &PbDeleteRequest) -> Result<PbDeleteResponse, Status> {
        check_key(&request.key)?;
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let mut answer = self.apply_delete(request, revision, &mut events);
        self.commit(revision, events);
        answer.header = Some(self.header());
        Ok(answer)
    }

    fn apply_delete(
        &mut self,
        request: &PbDeleteRequest,
        revision: i64,
        events: &mut Vec<PbEvent>,
    ) -> PbDeleteResponse {
        let gone: Vec<PbKeyValue> =
            self.live(&request.key, &request.range_end, i64::MAX).cloned().collect();
        let deleted = gone.len() as i64;
        for kv in &gone {
            self.forget(kv, revision, events);
        }
        let prev_kvs = if request.prev_kv { gone } else { Vec::new() };
        let header = self.headed(self.seen(revision, events));
        PbDeleteResponse { header, deleted, prev_kvs }
    }

    fn forget(&mut self, kv: &PbKeyValue, revision: i64, events: &mut Vec<PbEvent>) {
        if let Some(lease) = self.leases.get_mut(&kv.lease) {
            lease.keys.remove(&kv.key);
        }
        self.write(kv.key.clone(), revision, None);
        let gone =
            PbKeyValue { key: kv.key.clone(), mod_revision: revision, ..PbKeyValue::default() };
        events.push(PbEvent { r#type: DELETE, kv: Some(gone), prev_kv: Some(kv.clone()) });
    }

    fn write(&mut self, key: Vec<u8>, revision: i64, kv: Option<PbKeyValue>) {
        let versions = self.keys.entry(key).or_default();
        // Within a transaction the last write of a key is what remains of it.
        if versions.last().is_some_and(|v| v.revision == revision) {
            versions.pop();
        }
        versions.push(Version { revision, kv });
    }

    fn commit(&mut self, revision: i64, events: Vec<PbEvent>) {
        if !events.is_empty() {
            self.revision = revision;
            self.history.push(Change { revision, events });
        }
    }

    pub(super) fn txn(&mut self, request: PbTxnRequest) -> Result<PbTxnResponse, Status> {
        check_txn(&request)?;
        let writes = request.success.iter().chain(&request.failure).any(puts);
        if self.out_of_space && writes {
            return Err(refusal::of(Refusal::NoSpace));
        }
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { request.success } else { request.failure };
        for op in &ops {
            if let Some(PbTxnOpRequest::RequestPut(put)) = &op.request {
                self.check_put_now(put)?;
            }
        }
        for op in &ops {
            if let Some(PbTxnOpRequest::RequestRange(range)) = &op.request {
                self.check_revision(range.revision)?;
            }
        }
        let (revision, mut events) = (self.revision + 1, Vec::new());
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops.into_iter().filter_map(|op| op.request) {
            let response = self.apply(op, revision, &mut events);
            responses.push(PbResponseOp { response: Some(response) });
        }
        self.commit(revision, events);
        Ok(PbTxnResponse { header: Some(self.header()), succeeded, responses })
    }

    fn apply(
        &mut self,
        op: PbTxnOpRequest,
        revision: i64,
        events: &mut Vec<PbEvent>,
    ) -> PbTxnOpResponse {
        match op {
            PbTxnOpRequest::RequestRange(range) => {
                let mut answer = self.look(&range);
                answer.header = self.headed(self.seen(revision, events));
                PbTxnOpResponse::ResponseRange(answer)
            }
            PbTxnOpRequest::RequestPut(put) => {
                PbTxnOpResponse::ResponsePut(self.apply_put(put, revision, events))
            }
            PbTxnOpRequest::RequestDeleteRange(delete) => {
                PbTxnOpResponse::ResponseDeleteRange(self.apply_delete(&delete, revision, events))
            }
            // `check_txn` let none through.
            PbTxnOpRequest::RequestTxn(_) => PbTxnOpResponse::ResponseTxn(PbTxnResponse::default()),
        }
    }

    fn holds(&self, compare: &PbCompare) -> bool {
        let found = self.current(&compare.key);
        let number = |of: fn(&PbKeyValue) -> i64| found.map_or(0, of);
        let order = match &compare.target_union {
            Some(PbTargetUnion::Version(v)) => number(|kv| kv.version).cmp(v),
            Some(PbTargetUnion::CreateRevision(r)) => number(|kv| kv.create_revision).cmp(r),
            Some(PbTargetUnion::ModRevision(r)) => number(|kv| kv.mod_revision).cmp(r),
            Some(PbTargetUnion::Lease(l)) => number(|kv| kv.lease).cmp(l),
            Some(PbTargetUnion::Value(value)) => match found {
                Some(kv) => kv.value.cmp(value),
                // A key that is not there has no value to compare.
                None => return false,
            },
            None => return false,
        };
        match compare.result {
            0 => order.is_eq(),
            1 => order.is_gt(),
            2 => order.is_lt(),
            _ => order.is_ne(),
        }
    }

    /// Forgets what was before `revision`.
    pub(super) fn compact(&mut self, revision: i64) -> Result<(), Status> {
        if revision <= self.compacted {
            return Err(refusal::of(Refusal::Compacted));
        }
        if revision > self.revision {
            return Err(refusal::of(Refusal::FutureRevision));
        }
        self.compacted = revision;
        self.keys.retain(|_, versions| {
            let kept = versions.iter().rposition(|v| v.revision <= revision).unwrap_or(0);
            versions.drain(..kept);
            !(versions.len() == 1 && versions[0].kv.is_none() && versions[0].revision <= revision)
        });
        Ok(())
    }

    /// What a watch that begins at `from` has to be told of what already happened.
    pub(super) fn since(&self, from: i64) -> &[Change] {
        let at = self.history.partition_point(|change| change.revision < from);
        &self.history[at..]
    }

    pub(super) fn grant(&mut self, id: i64, ttl_seconds: i64, now_ms: u64) -> Result<i64, Status> {
        if self.out_of_space {
            return Err(refusal::of(Refusal::NoSpace));
        }
        if self.leases.contains_key(&id) {
            return Err(refusal::of(Refusal::LeaseExists));
        }
        let id = if id == 0 { self.next_lease } else { id };
        self.next_lease += 1;
        // With the default election time-out etcd grants no shorter one.
        let ttl_seconds = ttl_seconds.max(2);
        let expires_ms = now_ms + ttl_seconds.unsigned_abs() * 1000;
        self.leases.insert(id, Lease { ttl_seconds, expires_ms, keys: BTreeSet::new() });
        Ok(id)
    }

    pub(super) fn ttl(&self, id: i64) -> Option<i64> {
        self.leases.get(&id).map(|lease| lease.ttl_seconds)
    }

    /// Its TTL, or none when there is no such lease (any more).
    pub(super) fn keep_alive(&mut self, id: i64, now_ms: u64) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        lease.expires_ms = now_ms + lease.ttl_seconds.unsigned_abs() * 1000;
        Some(lease.ttl_seconds)
    }

    pub(super) fn revoke(&mut self, id: i64) -> Result<(), Status> {
        let Some(lease) = self.leases.remove(&id) else {
            return Err(refusal::of(Refusal::NoLease));
        };
        let (revision, mut events) = (self.revision + 1, Vec::new());
        for key in &lease.keys {
            if let Some(kv) = self.current(key).cloned() {
                self.forget(&kv, revision, &mut events);
            }
        }
        self.commit(revision, events);
        Ok(())
    }

    /// Ends the leases whose time is over.
    pub(super) fn expire(&mut self, now_ms: u64) {
        let over: Vec<i64> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.expires_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            // It was there a line ago.
            let _ = self.revoke(id);
        }
    }
}

/// Whether `key` is in the range that etcd writes as a key and an end.
pub(super) fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        [] => key == start,
        [0] => key >= start,
        _ => key >= start && key < end,
    }
}

fn puts(op: &PbTxnRequestOp) -> bool {
    matches!(op.request, Some(PbTxnOpRequest::RequestPut(_)))
}

fn check_key(key: &[u8]) -> Result<(), Status> {
    if key.is_empty() { Err(refusal::of(Refusal::NoKey)) } else { Ok(()) }
}

fn check_range(request: &PbRangeRequest) -> Result<(), Status> {
    if request.sort_order != 0 || request.sort_target != 0 {
        return Err(Status::new(Code::Unimplemented, "the etcd in memory does not sort"));
    }
    check_key(&request.key)
}

fn check_put(request: &PbPutRequest) -> Result<(), Status> {
    check_key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(refusal::of(Refusal::ValueProvided));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(refusal::of(Refusal::LeaseProvided));
    }
    Ok(())
}

fn check_txn(request: &PbTxnRequest) -> Result<(), Status> {
    let longest = request.compare.len().max(request.success.len()).max(request.failure.len());
    if longest > TXN_OPS_MAX {
        return Err(refusal::of(Refusal::TooManyOps));
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(refusal::of(Refusal::NoKey));
    }
    if request.compare.iter().any(|compare| !compare.range_end.is_empty()) {
        return Err(Status::new(Code::Unimplemented, "the etcd in memory compares single keys"));
    }
    for op in request.success.iter().chain(&request.failure).filter_map(|op| op.request.as_ref()) {
        match op {
            PbTxnOpRequest::RequestRange(range) => check_range(range)?,
            PbTxnOpRequest::RequestPut(put) => check_put(put)?,
            PbTxnOpRequest::RequestDeleteRange(delete) => check_key(&delete.key)?,
            PbTxnOpRequest::RequestTxn(_) => {
                let what = "the etcd in memory has no nested transactions";
                return Err(Status::new(Code::Unimplemented, what));
            }
        }
    }
    check_overlap(&request.success)?;
    check_overlap(&request.failure)
}

/// No key is written twice, or written and deleted, by one transaction.
fn check_overlap(ops: &[PbTxnRequestOp]) -> Result<(), Status> {
    let mut put: BTreeSet<&[u8]> = BTreeSet::new();
    for op in ops.iter().filter_map(|op| op.request.as_ref()) {
        if let PbTxnOpRequest::RequestPut(request) = op
            && !put.insert(&request.key)
        {
            return Err(refusal::of(Refusal::DuplicateKey));
        }
    }
    for op in ops.iter().filter_map(|op| op.request.as_ref()) {
        if let PbTxnOpRequest::RequestDeleteRange(request) = op
            && put
                .range(request.key.as_slice()..)
                .next()
                .is_some_and(|key| within(key, &request.key, &request.range_end))
        {
            return Err(refusal::of(Refusal::DuplicateKey));
        }
    }
    Ok(())
}
