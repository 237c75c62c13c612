//! A session: one lease a process, kept alive off the data path.
//!
//! The keep-alive runs in a thread of its own with a runtime and a channel of its own, so that
//! neither compression nor bulk reads can starve it. Its acknowledgements are not proof of
//! ownership; they only tell when to stop trying.

use std::time::Duration;

use etcd_client::{Client, LeaseKeepAliveStream, LeaseKeeper};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::oneshot,
    time::{Instant, error::Elapsed, sleep, timeout},
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

/// Least time from one question to the next while none is answered.
const NEXT_MIN: Duration = Duration::from_millis(100);

/// The longest, where nothing that was asked can still be answered.
const AGAIN: Duration = Duration::from_millis(200);

/// Keep-alives go one way, and come back on the other.
type Stream = Box<(LeaseKeeper, LeaseKeepAliveStream)>;

/// How a member is asked.
enum Begin {
    /// By a stream that stands.
    With(Stream),
    /// By a new one, where we are logged in.
    LoggedIn,
    /// By a new one.
    Anew,
}

/// What it answered.
enum Beat {
    Renewed(Stream),
    /// There is no such lease.
    Gone,
    /// Nothing: the stream ended.
    Ended,
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
        // A lease is given up one second early: what is sent later would be refused anyway.
        let budget = self.ttl.saturating_sub(Duration::from_secs(1));
        let mut acknowledged = granted_at;
        let mut begin = Begin::LoggedIn;
        loop {
            let asking = self.ask(channels, lease, begin);
            let left = budget.saturating_sub(acknowledged.elapsed());
            let Ok(answer) = timeout(left, asking).await else {
                tracing::warn!(lease, "the lease could not be renewed in time");
                return;
            };
            let Some((sent_at, mut renewed)) = answer else {
                tracing::warn!(lease, "etcd says that the lease is gone");
                return;
            };
            acknowledged = sent_at;
            begin = if stays(&mut renewed, self.ttl / 4).await {
                Begin::With(renewed)
            } else {
                tracing::debug!(lease, "keep-alive stream broke");
                self.etcd.members().seen.doubt();
                channels.next();
                Begin::Anew
            };
        }
    }

    /// Asks one member after the other until one answers: when it was asked, and by which stream;
    /// none if the lease is gone. A member that knows no leader answers a question only a second
    /// after it knows one, and may have lost it again by then; so the next is asked soon, and those
    /// before may still answer.
    async fn ask(
        &self,
        channels: &mut Channels,
        lease: i64,
        begin: Begin,
    ) -> Option<(Instant, Stream)> {
        let patience = self.ttl / 5;
        // etcd takes long to check a password.
        let soon = channels.login.is_none().then_some(self.ttl / 40);
        let next = soon.map_or(patience, |soon| soon.max(NEXT_MIN));
        let mut tries = FuturesUnordered::new();
        tries.push(channels.beat(lease, begin, patience));
        loop {
            let pause = if tries.is_empty() { next.min(AGAIN) } else { next };
            tokio::select! {
                Some((member, sent_at, answer)) = tries.next() => match answer {
                    Ok(Ok(Beat::Renewed(stream))) => {
                        channels.at = member;
                        return Some((sent_at, stream));
                    }
                    Ok(Ok(Beat::Gone)) => return None,
                    Ok(Ok(Beat::Ended)) => tracing::debug!(lease, "keep-alive stream ended"),
                    Ok(Err(e)) => tracing::debug!(lease, error = %e, "keep-alive failed"),
                    Err(_) => tracing::debug!(lease, "keep-alive not answered in time"),
                },
                () = sleep(pause) => {
                    // Another etcd may be there when the connection stands again.
                    self.etcd.members().seen.doubt();
                    channels.next();
                    tries.push(channels.beat(lease, Begin::Anew, patience));
                }
            }
        }
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

    /// Asks one for as long as `patience`: which one, and when.
    fn beat(
        &self,
        lease: i64,
        begin: Begin,
        patience: Duration,
    ) -> impl Future<Output = (usize, Instant, Result<Result<Beat, etcd_client::Error>, Elapsed>)> + use<>
    {
        let (member, client) = (self.at, self.client());
        let (stream, login) = match begin {
            Begin::LoggedIn => (None, None),
            Begin::Anew => (None, self.login.clone()),
            Begin::With(stream) => (Some(stream), None),
        };
        async move {
            let sent_at = Instant::now();
            let answer = timeout(patience, beat(client, login, lease, stream)).await;
            (member, sent_at, answer)
        }
    }

    async fn log_in(&self, after: Duration) -> Result<(), Error> {
        let Some(login) = &self.login else { return Ok(()) };
        let mut client = self.client();
        within(after, "log in to etcd", client.update_user(Some(login.clone()))).await
    }
}

/// Whether the stream outlives a pause, in which nothing is to be heard.
async fn stays(stream: &mut Stream, pause: Duration) -> bool {
    match timeout(pause, stream.1.message()).await {
        Err(_) | Ok(Ok(Some(_))) => true,
        Ok(Ok(None) | Err(_)) => false,
    }
}

/// One keep-alive.
async fn beat(
    mut client: Client,
    login: Option<Login>,
    lease: i64,
    stream: Option<Stream>,
) -> Result<Beat, etcd_client::Error> {
    if login.is_some() {
        client.update_user(login).await?;
    }
    let mut stream = match stream {
        Some(stream) => stream,
        None => match client.lease_keep_alive(lease).await {
            Ok(opened) => Box::new(opened),
            // How the client puts a first answer with no time left in it.
            Err(etcd_client::Error::LeaseKeepAliveError(e)) if e == "lease not found" => {
                return Ok(Beat::Gone);
            }
            Err(e) => return Err(e),
        },
    };
    stream.0.keep_alive().await?;
    Ok(match stream.1.message().await? {
        Some(answer) if answer.ttl() > 0 => Beat::Renewed(stream),
        Some(_) => Beat::Gone,
        None => Beat::Ended,
    })
}
