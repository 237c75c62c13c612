//! A session: one lease a process, kept alive off the data path.
//!
//! The keep-alive runs in a thread of its own with a runtime and a channel of its own, so that
//! neither compression nor bulk reads can starve it. Its acknowledgements are not proof of
//! ownership; they only tell when to stop trying.

use std::time::Duration;

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{client::Etcd, connect::Login, error::Error, members::within};
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
            etcd: etcd.clone(),
            ttl: Duration::from_secs(ttl_seconds.unsigned_abs()),
            lost: lost.clone(),
            stop: stop.clone(),
            ended: ended.clone(),
        };
        keeper.start(granted)?;
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
    etcd: Etcd,
    ttl: Duration,
    lost: CancellationToken,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Keeper {
    fn start(self, granted: oneshot::Sender<Result<i64, Error>>) -> Result<(), Error> {
        #[cfg(feature = "testing")]
        if crate::testing::Wire::leads_nowhere_else(self.etcd.config()) {
            // On the caller's clock, which a test may have stopped.
            tokio::spawn(async move {
                self.keep(granted).await;
                self.ended.cancel();
            });
            return Ok(());
        }
        std::thread::Builder::new()
            .name("etcd-session".to_owned())
            .spawn(move || self.run(granted))
            .map(|_| ())
            .map_err(|e| Error::request("start the session thread", etcd_client::Error::IoError(e)))
    }

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
        let (mut channels, lease) = match self.grant().await {
            Ok(lease) => lease,
            Err(e) => {
                let _ = granted.send(Err(e));
                return;
            }
        };
        if granted.send(Ok(lease)).is_err() {
            let _ = timeout(Duration::from_secs(1), channels.client().lease_revoke(lease)).await;
            return;
        }
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.etcd.regressed().cancelled() => {}
            () = self.renew(&mut channels, lease, sent_at) => {}
        }
        self.lost.cancel();
        if self.etcd.regressed().is_cancelled() {
            // Not the etcd that granted it.
            return;
        }
        // Also after a loss: the lease may still stand, and our claims with it.
        let _ = timeout(Duration::from_secs(2), channels.client().lease_revoke(lease)).await;
    }

    async fn grant(&self) -> Result<(Channels, i64), Error> {
        let channels = Channels::open(&self.etcd).await?;
        let seconds = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
        let after = self.etcd.config().request_timeout;
        channels.log_in(after).await?;
        let mut client = channels.client();
        let grant = client.lease_grant(seconds, None);
        let answer = within(after, "grant a lease", grant).await?;
        let lease = answer.id();
        Ok((channels, lease))
    }

    /// Returns when the lease is gone, or so close to it that no write could be acknowledged.
    async fn renew(&self, channels: &mut Channels, lease: i64, granted_at: Instant) {
        // A lease is given up one second early: what is sent later would be refused anyway. A
        // pause of a quarter and tries of a fifth: when a member falls silent right after an
        // answer, there is time for three tries, one at each of three members.
        let budget = self.ttl.saturating_sub(Duration::from_secs(1));
        let mut acknowledged = granted_at;
        let mut stream: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
        while acknowledged.elapsed() < budget {
            let sent_at = Instant::now();
            let mut client = channels.client();
            match timeout(self.ttl / 5, beat(&mut client, lease, &mut stream)).await {
                Ok(Ok(Some(ttl))) if ttl > 0 => {
                    acknowledged = sent_at;
                    if stays(&mut stream, self.ttl / 4).await {
                        continue;
                    }
                    tracing::debug!(lease, "keep-alive stream broke");
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
            // Another etcd may be there when the connection stands again.
            self.etcd.members().seen.doubt();
            sleep(Duration::from_millis(200)).await;
            channels.next();
            if let Err(error) = channels.log_in(self.ttl / 5).await {
                tracing::debug!(lease, %error, "could not log in");
            }
        }
        tracing::warn!(lease, "the lease could not be renewed in time");
    }
}

/// The session's own channels, one to a member; one of them is used until it fails.
struct Channels {
    list: Vec<Client>,
    at: usize,
    login: Option<Login>,
}

impl Channels {
    /// Begins with the member that answers everything else.
    async fn open(etcd: &Etcd) -> Result<Self, Error> {
        let (list, login) = (etcd.config().channels().await?, etcd.config().login()?);
        Ok(Self { list, at: etcd.members().current(), login })
    }

    fn client(&self) -> Client {
        // `channels` never gives none.
        self.list[self.at % self.list.len()].clone()
    }

    fn next(&mut self) {
        self.at = (self.at + 1) % self.list.len();
    }

    async fn log_in(&self, after: Duration) -> Result<(), Error> {
        let Some(login) = &self.login else { return Ok(()) };
        let mut client = self.client();
        within(after, "log in to etcd", client.update_user(Some(login.clone()))).await
    }
}

/// Whether the stream outlives a pause, in which nothing is to be heard.
async fn stays(stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>, pause: Duration) -> bool {
    let Some((_, answers)) = stream else { return false };
    match timeout(pause, answers.message()).await {
        Err(_) | Ok(Ok(Some(_))) => true,
        Ok(Ok(None) | Err(_)) => false,
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
