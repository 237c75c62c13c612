//! The members of etcd: one is asked until it fails, then the next.
//!
//! The client library's balancer goes on sending a part of all requests to members that are
//! gone. So every member has channels of its own here, all requests and watches go to one of
//! them, and a member that does not answer is left as soon as another does.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, GetResponse, KvClient, LeaseGrantResponse, PutResponse,
    ResponseHeader, StatusResponse, Txn, TxnOp, TxnResponse, WatchClient,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    connect::{EtcdConfig, Login},
    error::{Error, Fate},
    seen::Seen,
};

/// Largest answer that is decoded: 64 messages of the largest size, or a full watch batch.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// After how long without an answer the other members are asked whether they live: longer than
/// a slow disk takes, shorter than an election.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// How often they are asked again.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a member may take to show that it lives.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// An answer that says which etcd gave it, and at which revision.
pub(super) trait Headed {
    fn headed(&self) -> Option<&ResponseHeader>;
}

macro_rules! headed {
    ($($answer:ty),*) => {
        $(impl Headed for $answer {
            fn headed(&self) -> Option<&ResponseHeader> {
                self.header()
            }
        })*
    };
}
headed!(GetResponse, PutResponse, TxnResponse, StatusResponse, LeaseGrantResponse);

/// A member's channels: a bulk read never delays a watch.
struct Member {
    data: Client,
    watch: Client,
}

/// All members.
pub(super) struct Members {
    list: Vec<Member>,
    /// Which one is asked.
    current: watch::Sender<usize>,
    request_timeout: Duration,
    /// A key of ours, for questions about etcd itself.
    probe_key: String,
    login: Option<Login>,
    probing: Mutex<()>,
    pub(super) seen: Seen,
}

impl Members {
    pub(super) async fn connect(config: &EtcdConfig, probe_key: String) -> Result<Self, Error> {
        let (data, watch) = (config.channels().await?, config.channels().await?);
        let list: Vec<Member> =
            data.into_iter().zip(watch).map(|(data, watch)| Member { data, watch }).collect();
        // Processes begin at different members, so that none carries all of them.
        let first = std::process::id() as usize % list.len().max(1);
        Ok(Self {
            list,
            current: watch::Sender::new(first),
            request_timeout: config.request_timeout,
            probe_key,
            login: config.login()?,
            probing: Mutex::new(()),
            seen: Seen::default(),
        })
    }

    /// Which member is asked now.
    pub(super) fn current(&self) -> usize {
        *self.current.borrow()
    }

    /// The present member's channel, for what is asked outside of [`Members::ask`].
    pub(super) fn client(&self) -> Result<Client, Error> {
        self.seen.check()?;
        self.list.get(self.current()).map(|member| member.data.clone()).ok_or_else(no_member)
    }

    /// A channel to each member.
    pub(super) fn clients(&self) -> impl Iterator<Item = Client> {
        self.list.iter().map(|member| member.data.clone())
    }

    /// Asks the present member once. It is left for the next one when it fails, or when another
    /// lives and it does not answer.
    pub(super) async fn ask<T: Headed, F>(
        &self,
        attempt: &str,
        request: impl Fn(KvClient) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let kv = |client: &Client| client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        self.ask_client(attempt, |client| request(kv(client))).await
    }

    /// [`Members::ask`], with the whole client.
    pub(super) async fn ask_client<T: Headed, F>(
        &self,
        attempt: &str,
        request: impl Fn(&Client) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.seen.check()?;
        if self.seen.doubted() {
            // Rare, and large: not a part of every future.
            Box::pin(self.settle()).await?;
        }
        let (answer, from_the_past) = self.ask_member(attempt, request).await?;
        if from_the_past {
            Box::pin(self.settle()).await?;
        }
        Ok(answer)
    }

    /// The answer, and whether it is of a lower revision than was seen before it was asked for.
    async fn ask_member<T: Headed, F>(
        &self,
        attempt: &str,
        request: impl Fn(&Client) -> F,
    ) -> Result<(T, bool), Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let at = self.current();
        let Some(member) = self.list.get(at) else { return Err(no_member()) };
        let floor = self.seen.revision();
        let mut sent = self.sent(at, attempt, request(&member.data)).await;
        if sent.as_ref().is_err_and(Error::wants_login) && self.login.is_some() {
            Box::pin(self.log_in(&member.data)).await?;
            sent = self.sent(at, attempt, request(&member.data)).await;
        }
        match sent {
            Ok(answer) => {
                let header = answer.headed();
                let from_the_past = header.is_some_and(|header| header.revision() < floor);
                self.seen.note(header, floor)?;
                Ok((answer, from_the_past))
            }
            Err(error) => {
                // Not the member's failure: another leader was elected while we waited, or
                // whoever found it silent has left it already.
                let outlived =
                    matches!(&error, Error::Timeout { after, .. } if *after < self.request_timeout);
                let elected = outlived || error.is_leader_changed();
                if error.fate() == Fate::Unknown && !error.is_no_space() && !elected {
                    self.leave(at);
                }
                Err(error)
            }
        }
    }

    async fn sent<T>(
        &self,
        at: usize,
        attempt: &str,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Error> {
        let (begun, term) = (Instant::now(), self.seen.term());
        tokio::select! {
            answer = within(self.request_timeout, attempt, Box::pin(request)) => answer,
            () = Box::pin(self.outlived(at, term)) => {
                let (attempt, after) = (attempt.to_owned(), begun.elapsed());
                Err(Error::Timeout { attempt, after })
            }
        }
    }

    /// Asks no more of member `at`, unless it is left already. A broken connection may mean that
    /// another etcd will be there when it stands again.
    pub(super) fn leave(&self, at: usize) {
        self.seen.doubt();
        let next = (at + 1) % self.list.len().max(1);
        self.go_to(at, next);
    }

    fn go_to(&self, at: usize, next: usize) {
        let moved = self.current.send_if_modified(|current| {
            let moves = *current == at && next != at;
            if moves {
                *current = next;
            }
            moves
        });
        if moved {
            tracing::debug!(from = at, to = next, "asking another member of etcd");
        }
    }

    /// Returns when another member than `at` is the one to ask.
    pub(super) async fn left(&self, at: usize) {
        let mut current = self.current.subscribe();
        // The sender lives as long as `self`.
        let _ = current.wait_for(|current| *current != at).await;
    }

    /// Returns when there is nothing to wait for any more at member `at`: it was left (and this
    /// sees to it when it is silent and another is not), or another leader was elected since
    /// term `sent_in`. A write that was on its way to the old leader is lost then, and the member
    /// that passed it on does not know.
    async fn outlived(&self, at: usize, sent_in: u64) {
        let looks = async {
            sleep(SLOW_AFTER).await;
            while self.seen.term() <= sent_in {
                // One question for all who wait.
                if let Ok(_probing) = self.probing.try_lock()
                    && let Some(next) = self.better_than(at).await
                {
                    self.seen.doubt();
                    self.go_to(at, next);
                }
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = self.left(at) => {}
            () = looks => {}
        }
    }

    /// A member that lives, if `at` does not.
    async fn better_than(&self, at: usize) -> Option<usize> {
        if self.list.len() < 2 {
            return None;
        }
        let mut probes: FuturesUnordered<_> =
            (0..self.list.len()).map(|i| async move { (i, self.lives(i).await) }).collect();
        let mut better = None;
        while let Some((index, lives)) = probes.next().await {
            match (index == at, lives) {
                (true, true) => return None,
                (false, true) => better = better.or(Some(index)),
                (_, false) => {}
            }
        }
        better
    }

    /// Whether a member answers what only a member of a majority can.
    async fn lives(&self, index: usize) -> bool {
        let Some(member) = self.list.get(index) else { return false };
        let mut kv = member.data.kv_client();
        let options = GetOptions::new().with_count_only();
        let answer = kv.get(self.probe_key.as_str(), Some(options));
        match timeout(PROBE_WITHIN, answer).await {
            Ok(Ok(answer)) => {
                self.seen.note_term(answer.header().map_or(0, ResponseHeader::raft_term));
                true
            }
            // It would have to log in first; that it says so shows that it lives.
            Ok(Err(e)) => Error::request("", e).fate() == Fate::Refused,
            Err(_) => false,
        }
    }

    /// Finds out whether this is still the etcd that it was.
    async fn settle(&self) -> Result<(), Error> {
        let (floor, doubts) = (self.seen.revision(), self.seen.doubts());
        let key = self.probe_key.as_str();
        let attempt = "look whether etcd is still the same";
        let read = |client: &Client| {
            let mut kv = client.kv_client();
            async move { kv.get(key, Some(GetOptions::new().with_count_only())).await }
        };
        let (read, stale): (GetResponse, bool) = self.ask_member(attempt, read).await?;
        if !stale {
            return self.seen.settle(read.header(), floor, doubts);
        }
        let doubts = self.seen.doubts(); // the stale read was one
        // A read may be stale. What goes through etcd's log cannot be: a transaction that could
        // write, if a key had a create revision that none has.
        let ordered = |client: &Client| {
            let mut kv = client.kv_client();
            let never = Compare::create_revision(key, CompareOp::Equal, -1);
            let txn = Txn::new().when([never]).and_then([TxnOp::delete(key, None)]);
            async move { kv.txn(txn).await }
        };
        match self.ask_member::<TxnResponse, _>(attempt, ordered).await {
            Ok((answer, _)) => self.seen.settle(answer.header(), floor, doubts),
            // One who may only read has only the read.
            Err(e) if e.fate() == Fate::Refused => self.seen.settle(read.header(), floor, doubts),
            Err(e) => Err(e),
        }
    }

    /// The present member's channel for watches, and which member that is.
    pub(super) async fn watch_channel(&self) -> Result<(WatchClient, usize), Error> {
        self.seen.check()?;
        let at = self.current();
        let Some(member) = self.list.get(at) else { return Err(no_member()) };
        // A watch tells of a missing login only after it was opened.
        Box::pin(self.log_in(&member.watch)).await?;
        Ok((member.watch.watch_client(), at))
    }

    async fn log_in(&self, client: &Client) -> Result<(), Error> {
        let Some(login) = &self.login else { return Ok(()) };
        let mut client = client.clone();
        let logged_in = client.update_user(Some(login.clone()));
        within(self.request_timeout, "log in to etcd", logged_in).await
    }
}

fn no_member() -> Error {
    Error::Config { what: "no endpoint of etcd was given".to_owned() }
}

/// The outer time-out that the client library does not have.
pub(super) async fn within<T>(
    after: Duration,
    attempt: &str,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match timeout(after, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::request(attempt, source)),
        Err(_) => Err(Error::Timeout { attempt: attempt.to_owned(), after }),
    }
}
