//! The seam below the etcd client: endpoints that are no address.

use std::{
    collections::HashMap,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tower::util::BoxCloneSyncService;

use crate::etcd::EtcdConfig;

/// A request as it is on the wire.
pub type WireRequest = http::Request<tonic::body::Body>;
/// An answer as it is on the wire.
pub type WireAnswer = http::Response<tonic::body::Body>;
/// What carries them: what an etcd client can be made of.
pub type WireChannel = BoxCloneSyncService<WireRequest, WireAnswer, tower::BoxError>;

const SCHEME: &str = "wire://";
static OPEN: LazyLock<Mutex<HashMap<String, WireChannel>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A channel that etcd clients find under an endpoint of its own, until it is dropped.
pub struct Wire {
    endpoint: String,
}

impl Wire {
    /// Gives `channel` an endpoint.
    pub fn to(channel: WireChannel) -> Self {
        let endpoint = format!("{SCHEME}{}", NEXT.fetch_add(1, Relaxed));
        OPEN.lock().unwrap().insert(endpoint.clone(), channel);
        Self { endpoint }
    }

    /// What to give as etcd's endpoint.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn channel(endpoint: &str) -> Option<WireChannel> {
        if !endpoint.starts_with(SCHEME) {
            return None;
        }
        OPEN.lock().unwrap().get(endpoint).cloned()
    }

    /// Whether all endpoints are wires.
    pub(crate) fn leads_nowhere_else(config: &EtcdConfig) -> bool {
        config.endpoints.iter().all(|endpoint| endpoint.starts_with(SCHEME))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        OPEN.lock().unwrap().remove(&self.endpoint);
    }
}

/// A channel to a member of a real etcd, opened when it is first used.
pub(super) fn to_member(endpoint: &str) -> WireChannel {
    let channel = tonic::transport::Endpoint::from_shared(endpoint.to_owned()).unwrap();
    let carried = tower::service_fn({
        let channel = channel.connect_lazy();
        move |request: WireRequest| {
            let channel = channel.clone();
            async move { Ok(tower::ServiceExt::oneshot(channel, request).await?) }
        }
    });
    BoxCloneSyncService::new(carried)
}
