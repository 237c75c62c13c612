//! How requests and answers are told.

use std::fmt;

use etcd_client::proto::{
    PbCompare, PbRangeResponse, PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnResponse,
};
use prost::Message;

use super::frame::{Answer, Asks, Call};

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.asks {
            Asks::Range(range) => {
                write!(f, "read {}", key(&range.key))?;
                if !range.range_end.is_empty() {
                    write!(f, "..")?;
                }
                if range.revision > 0 {
                    write!(f, " at {}", range.revision)?;
                }
                Ok(())
            }
            Asks::Txn(txn) => write!(f, "{}", transaction(txn)),
            Asks::Other => f.write_str(self.method()),
        }
    }
}

impl Call {
    /// What became of it.
    pub(super) fn outcome(&self, answer: &Answer) -> String {
        if let Some(status) = answer.status() {
            return format!("refused, {}", status.message());
        }
        match &self.asks {
            Asks::Range(_) => match PbRangeResponse::decode(answer.message()) {
                Ok(range) => format!("{} keys at {}", range.kvs.len(), answer.revision()),
                Err(error) => error.to_string(),
            },
            Asks::Txn(_) => match PbTxnResponse::decode(answer.message()) {
                Ok(txn) if txn.succeeded => format!("done at {}", answer.revision()),
                Ok(_) => format!("not done at {}", answer.revision()),
                Err(error) => error.to_string(),
            },
            Asks::Other => format!("done at {}", answer.revision()),
        }
    }
}

fn key(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.strip_prefix("/telemetry/").unwrap_or(&text).to_owned()
}

fn transaction(txn: &PbTxnRequest) -> String {
    let compares: Vec<String> = txn.compare.iter().map(compare).collect();
    let ops: Vec<String> =
        txn.success.iter().filter_map(|op| op.request.as_ref()).map(operation).collect();
    match compares.is_empty() {
        true => ops.join(", "),
        false => format!("if {}: {}", compares.join(", "), ops.join(", ")),
    }
}

fn compare(compare: &PbCompare) -> String {
    let sign = ["=", ">", "<", "≠"].get(compare.result as usize).copied().unwrap_or("?");
    let (what, to) = match &compare.target_union {
        Some(PbTargetUnion::CreateRevision(r)) => ("created", r.to_string()),
        Some(PbTargetUnion::ModRevision(r)) => ("at", r.to_string()),
        Some(PbTargetUnion::Version(v)) => ("version", v.to_string()),
        Some(PbTargetUnion::Lease(l)) => ("lease", l.to_string()),
        Some(PbTargetUnion::Value(v)) => ("value", String::from_utf8_lossy(v).into_owned()),
        None => ("nothing", String::new()),
    };
    format!("{} {what} {sign} {to}", key(&compare.key))
}

fn operation(op: &PbTxnOpRequest) -> String {
    match op {
        PbTxnOpRequest::RequestRange(range) => format!("read {}", key(&range.key)),
        PbTxnOpRequest::RequestPut(put) => format!("put {}", key(&put.key)),
        PbTxnOpRequest::RequestDeleteRange(delete) if delete.range_end.is_empty() => {
            format!("delete {}", key(&delete.key))
        }
        PbTxnOpRequest::RequestDeleteRange(delete) => {
            format!("delete {} up to {}", key(&delete.key), key(&delete.range_end))
        }
        PbTxnOpRequest::RequestTxn(txn) => format!("({})", transaction(txn)),
    }
}
