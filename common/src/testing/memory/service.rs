//! etcd's services, answered out of the state.

use std::pin::Pin;

use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbCompactionRequest, PbCompactionResponse,
    PbDefragmentRequest, PbDefragmentResponse, PbDeleteRequest, PbDeleteResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbKvService, PbLeaseGrantRequest, PbLeaseGrantResponse,
    PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest, PbLeaseLeasesResponse,
    PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseTimeToLiveRequest,
    PbLeaseTimeToLiveResponse, PbMaintenanceService, PbMoveLeaderRequest, PbMoveLeaderResponse,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest, PbStatusResponse, PbTxnRequest,
    PbTxnResponse, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{MemoryEtcd, Watcher};

/// Answers that wait for a reader of a stream. One that lets more pile up is cut off.
const STREAM_ANSWERS_MAX: usize = 4096;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What is answered to a request that only a real etcd can serve.
pub(super) fn not_here(what: &str) -> Status {
    Status::unimplemented(format!("the etcd in memory has no {what}"))
}

#[async_trait]
impl PbKvService for MemoryEtcd {
    type RangeStreamStream = Answers<PbRangeStreamResponse>;

    async fn range(
        &self,
        request: Request<PbRangeRequest>,
    ) -> Result<Response<PbRangeResponse>, Status> {
        self.state().mvcc.range(request.get_ref()).map(Response::new)
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(not_here("RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        self.change(|mvcc| mvcc.put(request.into_inner())).map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        self.change(|mvcc| mvcc.delete(request.get_ref())).map(Response::new)
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        self.change(|mvcc| mvcc.txn(request.into_inner())).map(Response::new)
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        self.change(|mvcc| mvcc.compact(request.get_ref().revision))?;
        Ok(Response::new(PbCompactionResponse { header: Some(self.header()) }))
    }
}

#[async_trait]
impl PbLeaseService for MemoryEtcd {
    type LeaseKeepAliveStream = Answers<PbLeaseKeepAliveResponse>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let (PbLeaseGrantRequest { ttl, id }, now) = (request.into_inner(), self.now_ms());
        let id = self.change(|mvcc| mvcc.grant(id, ttl, now))?;
        let ttl = self.state().mvcc.ttl(id).unwrap_or_default();
        let header = Some(self.header());
        Ok(Response::new(PbLeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.change(|mvcc| mvcc.revoke(request.get_ref().id))?;
        Ok(Response::new(PbLeaseRevokeResponse { header: Some(self.header()) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let etcd = self.clone();
        let answers = request.into_inner().map(move |request| {
            let (id, now) = (request?.id, etcd.now_ms());
            let ttl = etcd.change(|mvcc| mvcc.keep_alive(id, now)).unwrap_or(0);
            Ok(PbLeaseKeepAliveResponse { header: Some(etcd.header()), id, ttl })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        Err(not_here("LeaseTimeToLive"))
    }

    async fn lease_leases(
        &self,
        _: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        Err(not_here("LeaseLeases"))
    }
}

#[async_trait]
impl PbWatchService for MemoryEtcd {
    type WatchStream = Answers<PbWatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (to, answers) = mpsc::channel(STREAM_ANSWERS_MAX);
        let etcd = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let mut next_id = 0;
            while let Some(Ok(request)) = requests.next().await {
                etcd.watch_request(request, &mut next_id, &to);
            }
            etcd.state().watchers.retain(|watcher| !watcher.to.same_channel(&to));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl MemoryEtcd {
    fn watch_request(
        &self,
        request: PbWatchRequest,
        next_id: &mut i64,
        to: &mpsc::Sender<Result<PbWatchResponse, Status>>,
    ) {
        let mut state = self.state();
        let header = state.mvcc.header();
        let answer = PbWatchResponse { header: Some(header), ..Default::default() };
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                let watch_id = *next_id;
                *next_id += 1;
                let created = PbWatchResponse { watch_id, created: true, ..answer.clone() };
                // A stream that is full or closed ends with its reader.
                let _ = to.try_send(Ok(created));
                let compact_revision = state.mvcc.compacted();
                if create.start_revision > 0 && create.start_revision < compact_revision {
                    let gone =
                        PbWatchResponse { watch_id, canceled: true, compact_revision, ..answer };
                    let _ = to.try_send(Ok(gone));
                    return;
                }
                let from = match create.start_revision {
                    0 => header.revision + 1,
                    from => from,
                };
                let watcher = Watcher {
                    id: watch_id,
                    key: create.key,
                    range_end: create.range_end,
                    prev_kv: create.prev_kv,
                    from,
                    to: to.clone(),
                };
                if watcher.told(state.mvcc.since(from), &state.mvcc) {
                    state.watchers.push(watcher);
                }
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => {
                let ours = |w: &Watcher| w.id == cancel.watch_id && w.to.same_channel(to);
                state.watchers.retain(|watcher| !ours(watcher));
                let watch_id = cancel.watch_id;
                let _ = to.try_send(Ok(PbWatchResponse { watch_id, canceled: true, ..answer }));
            }
            Some(PbWatchRequestUnion::ProgressRequest(_)) | None => {
                let _ = to.try_send(Ok(PbWatchResponse { watch_id: -1, ..answer }));
            }
        }
    }
}

#[async_trait]
impl PbMaintenanceService for MemoryEtcd {
    type SnapshotStream = Answers<PbSnapshotResponse>;

    async fn alarm(&self, _: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        Err(not_here("Alarm"))
    }

    async fn status(
        &self,
        _: Request<PbStatusRequest>,
    ) -> Result<Response<PbStatusResponse>, Status> {
        let header = Some(self.header());
        Ok(Response::new(PbStatusResponse { header, leader: 1, ..Default::default() }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(not_here("Defragment"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(not_here("Hash"))
    }

    async fn hash_kv(
        &self,
        _: Request<PbHashKvRequest>,
    ) -> Result<Response<PbHashKvResponse>, Status> {
        Err(not_here("HashKV"))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_here("Snapshot"))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(not_here("MoveLeader"))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(not_here("Downgrade"))
    }
}
