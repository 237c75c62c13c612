//! How etcd says no: code and text, as the real one's `api/v3rpc/rpctypes/error.go` has them.

use tonic::{Code, Status};

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    NoKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    Compacted,
    FutureRevision,
    NoSpace,
    NoLease,
    LeaseExists,
}

/// The answer that tells it.
pub(super) fn of(refusal: Refusal) -> Status {
    let (code, text) = match refusal {
        Refusal::NoKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
        Refusal::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
        Refusal::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
        Refusal::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
        Refusal::TooManyOps => {
            (Code::InvalidArgument, "etcdserver: too many operations in txn request")
        }
        Refusal::DuplicateKey => {
            (Code::InvalidArgument, "etcdserver: duplicate key given in txn request")
        }
        Refusal::Compacted => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        }
        Refusal::FutureRevision => {
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
        }
        Refusal::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        Refusal::NoLease => (Code::NotFound, "etcdserver: requested lease not found"),
        Refusal::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
    };
    Status::new(code, text)
}
