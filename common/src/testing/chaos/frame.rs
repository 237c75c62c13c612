//! Requests and answers of etcd's KV service, as they are framed on the wire: a flag, a length,
//! a protobuf message.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use etcd_client::proto::{
    PbCompactionResponse, PbRangeRequest, PbRangeResponse, PbTxnOpRequest, PbTxnRequest,
    PbTxnResponse,
};
use http::{HeaderMap, request::Parts};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use prost::Message;
use tokio_stream::StreamExt;
use tonic::{Status, body::Body};

use super::super::wire::{WireAnswer, WireRequest};

/// Bytes before a message.
const PREFIX: usize = 5;

/// A point in the past.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) revision: i64,
    /// Whether the answer's header tells the old revision, too.
    pub(super) says_so: bool,
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.says_so { "says so" } else { "says it is new" };
        write!(f, "as of revision {}, {said}", self.revision)
    }
}

/// A request that can be sent again.
#[derive(Clone)]
pub(super) struct Call {
    parts: Parts,
    body: Bytes,
    pub(super) asks: Asks,
}

/// What it asks for.
#[derive(Clone)]
pub(super) enum Asks {
    Range(PbRangeRequest),
    Txn(PbTxnRequest),
    Other,
}

impl Call {
    pub(super) async fn read(request: WireRequest) -> Result<Self, tower::BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let message = body.get(PREFIX..).unwrap_or_default();
        let asks = match parts.uri.path().rsplit('/').next() {
            Some("Range") => Asks::Range(PbRangeRequest::decode(message)?),
            Some("Txn") => Asks::Txn(PbTxnRequest::decode(message)?),
            _ => Asks::Other,
        };
        Ok(Self { parts, body, asks })
    }

    pub(super) fn method(&self) -> &str {
        self.parts.uri.path().rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn to_wire(&self) -> WireRequest {
        WireRequest::from_parts(self.parts.clone(), Body::new(Full::new(self.body.clone())))
    }

    /// Whether it may change something.
    pub(super) fn writes(&self) -> bool {
        let reads = |op: &_| matches!(op, PbTxnOpRequest::RequestRange(_));
        match &self.asks {
            Asks::Range(_) => false,
            Asks::Txn(txn) => !txn.success.iter().filter_map(|op| op.request.as_ref()).all(reads),
            Asks::Other => true,
        }
    }

    /// The same read at an earlier revision. One that names its revision stays as it is.
    pub(super) fn of_the_past(&self, past: &Past) -> Self {
        let mut call = self.clone();
        match &mut call.asks {
            Asks::Range(range) if range.revision == 0 => {
                range.revision = past.revision;
                call.body = framed(range);
            }
            Asks::Txn(txn) => {
                for op in &mut txn.success {
                    if let Some(PbTxnOpRequest::RequestRange(range)) = &mut op.request
                        && range.revision == 0
                    {
                        range.revision = past.revision;
                    }
                }
                call.body = framed(txn);
            }
            _ => {}
        }
        call
    }

    /// The answer with the header that it would have had then, if the past says so.
    pub(super) fn as_if_then(&self, answer: Answer, past: &Past) -> Answer {
        if !past.says_so {
            return answer;
        }
        let message = answer.message();
        let body = match &self.asks {
            Asks::Range(_) => PbRangeResponse::decode(message).map(|mut range| {
                range.header.iter_mut().for_each(|h| h.revision = past.revision);
                framed(&range)
            }),
            Asks::Txn(_) => PbTxnResponse::decode(message).map(|mut txn| {
                txn.header.iter_mut().for_each(|h| h.revision = past.revision);
                framed(&txn)
            }),
            Asks::Other => return answer,
        };
        match body {
            Ok(body) => Answer { body, ..answer },
            Err(_) => answer,
        }
    }
}

/// An answer, whole.
pub(super) struct Answer {
    headers: HeaderMap,
    body: Bytes,
    trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) async fn read(answer: WireAnswer) -> Result<Self, tower::BoxError> {
        let (parts, body) = answer.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Self { headers: parts.headers, body: body.to_bytes(), trailers })
    }

    pub(super) fn refused(status: &Status) -> Self {
        let (parts, ()) = status.clone().into_http::<()>().into_parts();
        Self { headers: parts.headers, body: Bytes::new(), trailers: None }
    }

    pub(super) fn into_wire(self) -> WireAnswer {
        let trailers = self.trailers;
        let whole = Full::new(self.body).with_trailers(async move { trailers.map(Ok) });
        let mut answer = WireAnswer::new(Body::new(whole));
        *answer.headers_mut() = self.headers;
        answer
    }

    pub(super) fn message(&self) -> &[u8] {
        self.body.get(PREFIX..).unwrap_or_default()
    }

    /// The status, if it is not OK.
    pub(super) fn status(&self) -> Option<Status> {
        [Some(&self.headers), self.trailers.as_ref()]
            .into_iter()
            .flatten()
            .find_map(Status::from_header_map)
            .filter(|status| status.code() != tonic::Code::Ok)
    }

    pub(super) fn is_refused(&self) -> bool {
        self.status().is_some()
    }

    /// The revision in its header: the first field of every answer.
    pub(super) fn revision(&self) -> i64 {
        let header = PbCompactionResponse::decode(self.message()).ok().and_then(|a| a.header);
        header.map_or(0, |header| header.revision)
    }
}

fn framed(message: &impl Message) -> Bytes {
    let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
    body.put_u8(0);
    body.put_u32(message.encoded_len() as u32);
    body.put_slice(&message.encode_to_vec());
    body.freeze()
}

/// A body whose frames each wait for `until` first.
pub(super) fn held_up<F>(body: Body, until: impl Fn() -> F + Send + 'static) -> Body
where
    F: Future<Output = ()> + Send + 'static,
{
    let frames = BodyStream::new(body).then(move |frame| {
        let wait = until();
        async move {
            wait.await;
            frame
        }
    });
    Body::new(StreamBody::new(frames))
}
