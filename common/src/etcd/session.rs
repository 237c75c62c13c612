//! A session: one lease a process, kept alive off the data path.
//!
//! The keep-alive runs in a thread of its own with a runtime and a channel of its own, so that
//! neither compression nor bulk reads can starve it. Its acknowledgements are not proof of
//! ownership; they only tell when to stop trying.

use std::time::{Duration, Instant};

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Etcd, EtcdConfig, within},
    error::Error,
};
use crate::{
    keyspace::{Claimant, to_json},
    model::{InstanceId, Role},
};

/// A live lease. Dropping it revokes the lease in the background.
pub struct Session {
    lease: i64,
    claimant: Claimant,
    lost: CancellationToken,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Session {
    /// Grants a lease of `ttl_seconds` and keeps it alive until closed or lost.
    ///
    /// # Errors
    /// When no lease can be had.
    pub async fn open(
        etcd: &Etcd,
        role: Role,
        instance: InstanceId,
        ttl_seconds: i64,
    ) -> Result<Self, Error> {
        let (granted, answer) = oneshot::channel();
        let [lost, stop, ended] = std::array::from_fn(|_| CancellationToken::new());
        let keeper = Keeper {
            config: etcd.config().clone(),
            ttl: Duration::from_secs(ttl_seconds.unsigned_abs()),
            lost: lost.clone(),
            stop: stop.clone(),
            ended: ended.clone(),
        };
        std::thread::Builder::new()
            .name("etcd-session".to_owned())
            .spawn(move || keeper.run(granted))
            .map_err(|e| {
                Error::request("start the session thread", etcd_client::Error::IoError(e))
            })?;
        let lease = answer
            .await
            .unwrap_or_else(|_| Err(Error::SessionLost { attempt: "grant a lease".to_owned() }))?;
        // The lease id is new for every session, so it tells two lives apart.
        let claimant = Claimant { role, instance, nonce: format!("{lease:x}") };
        Ok(Self { lease, claimant, lost, stop, ended })
    }

    /// The lease.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Who we are in claims.
    pub fn claimant(&self) -> &Claimant {
        &self.claimant
    }

    pub(crate) fn claim_value(&self) -> Vec<u8> {
        to_json(&self.claimant)
    }

    /// Cancelled when the lease is, or must be taken to be, gone.
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Revokes the lease (best effort, at most three seconds). Whatever was claimed under it is
    /// free at once; without this it is when the lease expires.
    pub async fn revoke(&self) {
        self.stop.cancel();
        if timeout(Duration::from_secs(3), self.ended.cancelled()).await.is_err() {
            tracing::warn!("the lease could not be revoked in time; it will expire");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Keeper {
    config: EtcdConfig,
    ttl: Duration,
    lost: CancellationToken,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Keeper {
    fn run(self, granted: oneshot::Sender<Result<i64, Error>>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(self.keep(granted)),
            Err(e) => {
                let error = etcd_client::Error::IoError(e);
                let _ = granted.send(Err(Error::request("start the session's runtime", error)));
            }
        }
        self.ended.cancel();
    }

    async fn keep(&self, granted: oneshot::Sender<Result<i64, Error>>) {
        let sent_at = Instant::now();
        let (mut client, lease) = match self.grant().await {
            Ok(lease) => lease,
            Err(e) => {
                let _ = granted.send(Err(e));
                return;
            }
        };
        if granted.send(Ok(lease)).is_err() {
            let _ = timeout(Duration::from_secs(1), client.lease_revoke(lease)).await;
            return;
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.renew(client.clone(), lease, sent_at) => {}
        }
        self.lost.cancel();
        // Also after a loss: the lease may still stand, and our claims with it.
        let _ = timeout(Duration::from_secs(2), client.lease_revoke(lease)).await;
    }

    async fn grant(&self) -> Result<(Client, i64), Error> {
        let mut client = self.config.channel().await?;
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = client.lease_grant(seconds, None);
        let answer = within(self.config.request_timeout, "grant a lease", grant).await?;
        let lease = answer.id();
        Ok((client, lease))
    }

    /// Returns when the lease is gone, or so close to it that no write could be acknowledged.
    async fn renew(&self, mut client: Client, lease: i64, granted_at: Instant) {
        // A lease is given up one second early: what is sent later would be refused anyway.
        let budget = self.ttl.saturating_sub(Duration::from_secs(1));
        let mut acknowledged = granted_at;
        let mut stream: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
        while acknowledged.elapsed() < budget {
            let sent_at = Instant::now();
            match timeout(self.ttl / 4, beat(&mut client, lease, &mut stream)).await {
                Ok(Ok(Some(ttl))) if ttl > 0 => {
                    acknowledged = sent_at;
                    sleep(self.ttl / 3).await;
                    continue;
                }
                Ok(Ok(Some(_))) => {
                    tracing::warn!(lease, "etcd says that the lease is gone");
                    return;
                }
                Ok(Ok(None)) => tracing::debug!(lease, "keep-alive stream ended"),
                Ok(Err(e)) => tracing::debug!(lease, error = %e, "keep-alive failed"),
                Err(_) => tracing::debug!(lease, "keep-alive not answered in time"),
            }
            stream = None;
            sleep(Duration::from_millis(200)).await;
        }
        tracing::warn!(lease, "the lease could not be renewed in time");
    }
}

/// One keep-alive; the TTL etcd answers, or none when the stream ended.
async fn beat(
    client: &mut Client,
    lease: i64,
    stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>,
) -> Result<Option<i64>, etcd_client::Error> {
    if stream.is_none() {
        *stream = match client.lease_keep_alive(lease).await {
            Ok(opened) => Some(opened),
            // How the client puts a first answer with no time left in it.
            Err(etcd_client::Error::LeaseKeepAliveError(e)) if e == "lease not found" => {
                return Ok(Some(0));
            }
            Err(e) => return Err(e),
        };
    }
    let Some((keeper, answers)) = stream else { return Ok(None) };
    keeper.keep_alive().await?;
    Ok(answers.message().await?.map(|answer| answer.ttl()))
}
