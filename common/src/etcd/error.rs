//! What went wrong with etcd, and the one place that answers: may it have been applied, and is
//! trying again useful?

use std::time::Duration;

use crate::keyspace::{KeyError, ValueError};

/// A request to etcd that gave no answer we can use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time.
    #[error("{attempt}: no answer from etcd within {after:?}")]
    Timeout {
        /// What was attempted.
        attempt: String,
        /// How long we waited.
        after: Duration,
    },
    /// etcd or the way to it said no.
    #[error("{attempt}: {}", brief(source))]
    Request {
        /// What was attempted.
        attempt: String,
        /// What the client said.
        source: Box<etcd_client::Error>,
    },
    /// The revision asked for is gone.
    #[error("{attempt}: revision {revision} was compacted away")]
    Compacted {
        /// What was attempted.
        attempt: String,
        /// The revision asked for.
        revision: i64,
    },
    /// A write was sent and its result could not be found out in time. It may be applied, or
    /// still become applied; its guards keep it from being applied twice.
    #[error("{attempt}: sent, but whether it was applied could not be found out")]
    Undecided {
        /// What was attempted.
        attempt: String,
        /// The last thing that went wrong.
        #[source]
        last: Box<Error>,
    },
    /// The session under which it was attempted is over.
    #[error("{attempt}: the session is lost")]
    SessionLost {
        /// What was attempted.
        attempt: String,
    },
    /// A transaction that etcd's limits would refuse.
    #[error("{attempt}: {what} is {value}, etcd takes at most {max}")]
    TooLarge {
        /// What was attempted.
        attempt: String,
        /// Operations, compares or bytes.
        what: &'static str,
        /// How many.
        value: usize,
        /// How many are possible.
        max: usize,
    },
    /// A flag or a file that cannot be used.
    #[error("{what}")]
    Config {
        /// Which, and why.
        what: String,
    },
    /// etcd is not the one it was: restored from a snapshot, or replaced.
    #[error(
        "etcd was restored from a snapshot or replaced: {what}. What this process remembers is of \
         another past, so it writes nothing more. Stop every instance, see that this is the etcd \
         you want, then start them: each reads anew where its work stands"
    )]
    Regressed {
        /// What was seen.
        what: String,
    },
    /// A value that is not what its key promises.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A key that is not ours.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Says of a failed write whether it may have been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It may have been, or may still be: only a compare or a read of its position tells.
    Unknown,
    /// It was not; trying again later may help.
    NotAppliedRetry,
    /// It was not, and the same request never will be.
    Refused,
    /// It was not: its lease is gone.
    LeaseGone,
}

impl Error {
    /// Wraps a client error.
    pub(crate) fn request(attempt: &str, source: etcd_client::Error) -> Self {
        Error::Request { attempt: attempt.to_owned(), source: Box::new(source) }
    }

    /// What became of the write that failed so.
    pub fn fate(&self) -> Fate {
        match self {
            Error::Timeout { .. } | Error::Undecided { .. } => Fate::Unknown,
            Error::Request { source, .. } => match &**source {
                etcd_client::Error::GRpcStatus(status) => {
                    fate_of(status.code() as i32, status.message())
                }
                etcd_client::Error::InvalidArgs(_)
                | etcd_client::Error::InvalidUri(_)
                | etcd_client::Error::Utf8Error(_) => Fate::Refused,
                _ => Fate::Unknown,
            },
            Error::SessionLost { .. } => Fate::LeaseGone,
            Error::Compacted { .. } | Error::TooLarge { .. } => Fate::Refused,
            Error::Config { .. } | Error::Regressed { .. } => Fate::Refused,
            Error::Value(_) | Error::Key(_) => Fate::Refused,
        }
    }

    pub(super) fn is_compacted(&self) -> bool {
        let Error::Request { source, .. } = self else { return false };
        matches!(&**source, etcd_client::Error::GRpcStatus(s) if s.message().contains("compacted"))
    }

    /// Whether the member lives and only had another leader elected meanwhile.
    pub(super) fn is_leader_changed(&self) -> bool {
        let Error::Request { source, .. } = self else { return false };
        matches!(&**source, etcd_client::Error::GRpcStatus(s) if s.message().contains("leader changed"))
    }

    /// Whether logging in (again) may help.
    pub(super) fn wants_login(&self) -> bool {
        let Error::Request { source, .. } = self else { return false };
        let etcd_client::Error::GRpcStatus(status) = &**source else { return false };
        let wants = ["user name is empty", "invalid auth token", "revision of auth store is old"];
        wants.iter().any(|text| status.message().contains(text))
    }

    /// Whether etcd refuses writes because its space is used up.
    pub fn is_no_space(&self) -> bool {
        let Error::Request { source, .. } = self else { return false };
        matches!(&**source, etcd_client::Error::GRpcStatus(s) if s.message().contains("database space exceeded"))
    }
}

/// gRPC codes as etcd 3.4 to 3.6 and tonic use them. tonic's own time-out is `Cancelled`;
/// `database space exceeded` is raised after the transaction was applied.
fn fate_of(code: i32, message: &str) -> Fate {
    match code {
        5 if message.contains("lease not found") => Fate::LeaseGone,
        3 | 7 | 9 | 11 | 12 | 16 => Fate::Refused,
        8 if message.contains("larger than max") => Fate::Refused,
        2 if message.contains("too many requests") => Fate::NotAppliedRetry,
        2 if message.contains("raft proposal dropped") => Fate::NotAppliedRetry,
        _ => Fate::Unknown,
    }
}

/// The part of a client error that helps a reader: code and message, without metadata.
fn brief(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => {
            let mut text = format!("{:?}: {}", status.code(), status.message());
            let mut cause = std::error::Error::source(status);
            // Transport errors hide the useful part ("connection refused") some levels down.
            for _ in 0..6 {
                let Some(inner) = cause else { break };
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            text
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_definite_refusal_counts_as_not_applied() {
        let check = |code: i32, message: &str, expected: Fate| {
            assert_eq!(fate_of(code, message), expected, "{code} {message}");
        };
        check(1, "Timeout expired", Fate::Unknown);
        check(4, "deadline exceeded", Fate::Unknown);
        check(8, "etcdserver: mvcc: database space exceeded", Fate::Unknown);
        check(8, "grpc: received message larger than max", Fate::Refused);
        check(14, "etcdserver: leader changed", Fate::Unknown);
        check(2, "etcdserver: too many requests", Fate::NotAppliedRetry);
        check(2, "stream broken", Fate::Unknown);
        check(3, "etcdserver: too many operations in txn request", Fate::Refused);
        check(5, "etcdserver: requested lease not found", Fate::LeaseGone);
    }
}
