//! One claimed partition: wait until it is worth a commit, take, commit; merge when idle.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use nexus_common::{
    crash_point,
    etcd::{Error, Outcome},
    keyspace::ClaimItem,
    model::{Lane, PartitionId},
    queue::{Consumer, Received},
    runtime::{Life, Work},
    store::{Description, Inventory, Writer},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    args::Args,
    backlog::{Backlog, Heads},
    merge::MergeJobs,
    plan::{self, Opened, Plan, PlanError},
};

/// Messages taken from one lane at a time: bounds what is in memory with the lanes of a commit.
const MESSAGES_A_LANE: usize = 64;
/// Pause after something failed.
const PAUSE: Duration = Duration::from_millis(500);
/// First pause after a round that found things other than they should be, and how many in a row
/// (some fifteen seconds) are more than a stale read or a lost race.
const STALE_PAUSE: Duration = Duration::from_millis(10);
const TELL_STALE_AFTER: u32 = 32;

/// What a partition's work needs.
pub(crate) struct Partition {
    pub(crate) life: Life,
    pub(crate) args: Arc<Args>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) merges: Arc<MergeJobs>,
}

/// Why a round did not commit.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Etcd(#[from] Error),
    #[error("plan a commit")]
    Plan(#[from] PlanError),
    #[error("a thread of ours panicked")]
    Thread(#[from] tokio::task::JoinError),
}

impl Partition {
    /// Works until asked to leave, fenced, or out of session.
    pub(crate) async fn serve(self, work: Work) {
        let ClaimItem::Partition(partition) = *work.claim.item() else { return };
        let shares = Shares { life: &self.life, backlog: 0, lag_ms: 0 };
        let gone = async {
            tokio::select! {
                () = work.leave.cancelled() => {}
                () = self.life.session.lost().cancelled() => {}
            }
        };
        // A commit in hand is finished: `gone` is only looked at between rounds.
        self.rounds(partition, &work, shares, std::pin::pin!(gone)).await;
    }

    async fn rounds(
        &self,
        partition: PartitionId,
        work: &Work,
        mut shares: Shares<'_>,
        mut gone: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) {
        let Some((mut consumer, mut writer)) = self.open(partition, work).await else { return };
        let mut heads = self.backlog.of(partition);
        let (mut since, mut stale) = (Since::default(), 0);
        loop {
            let due = {
                let known = heads.borrow_and_update();
                let waiting = Waiting::of(
                    &known,
                    |lane| (consumer.next(lane), consumer.samples(lane)),
                    &mut since,
                );
                shares.set(&waiting);
                waiting.due(&self.args)
            };
            let wait = match due {
                Due::Now => Duration::ZERO,
                Due::In(wait) => wait,
                Due::Never => Duration::from_secs(3600),
            };
            if wait > Duration::ZERO {
                let job = self.merges.next(partition);
                tokio::select! {
                    () = &mut gone => return,
                    changed = heads.changed() => { if changed.is_err() { return } }
                    () = sleep(wait) => {}
                    job = job => {
                        work.busy.store(true, Relaxed);
                        let merged = job.run(&self.life, &mut consumer, &mut writer).await;
                        if !self.goes_on(merged.map_err(RoundError::from), &mut stale).await { return }
                    }
                }
                continue;
            }
            work.busy.store(true, Relaxed);
            let known = heads.borrow().clone();
            let round = self.round(&mut consumer, &mut writer, &known).await;
            if !self.goes_on(round, &mut stale).await || gone_now(&mut gone).await {
                return;
            }
        }
    }

    async fn open(&self, partition: PartitionId, work: &Work) -> Option<(Consumer, Writer)> {
        let consumer = Consumer::open(&self.life, work.claim.clone(), partition).await;
        match (consumer, Writer::open(&self.life).await) {
            (Ok(consumer), Ok(writer)) => Some((consumer, writer)),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%partition, %error, "could not open the partition, giving it back");
                None
            }
        }
    }

    /// Whether the partition is still ours to work on. `stale` counts rounds in a row that found
    /// things other than they should be.
    async fn goes_on(&self, round: Result<Outcome, RoundError>, stale: &mut u32) -> bool {
        match round {
            Ok(Outcome::Committed { .. }) => {
                *stale = 0;
                true
            }
            Ok(Outcome::Stale) => {
                *stale += 1;
                if stale.is_multiple_of(TELL_STALE_AFTER) {
                    tracing::error!(
                        times = *stale,
                        "nothing can be committed: messages or the retention floor are not as they should be, see /audit"
                    );
                }
                sleep(STALE_PAUSE * (1 << (*stale).min(6))).await;
                !self.life.session.lost().is_cancelled()
            }
            Ok(Outcome::Fenced) | Err(RoundError::Etcd(Error::SessionLost { .. })) => {
                tracing::info!("the partition is somebody else's now");
                false
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(error = format!("{error:#}"), "could not commit, trying again");
                sleep(PAUSE).await;
                !self.life.session.lost().is_cancelled()
            }
        }
    }

    /// Takes what waits and commits it.
    async fn round(
        &self,
        consumer: &mut Consumer,
        writer: &mut Writer,
        heads: &Heads,
    ) -> Result<Outcome, RoundError> {
        let mut taken: Vec<Received> = Vec::new();
        for (lane, head) in heads {
            let next = consumer.next(lane);
            if head.next > next && taken.len() < MESSAGES_A_LANE {
                taken.extend(consumer.receive(lane, next, MESSAGES_A_LANE).await?);
            }
        }
        if taken.is_empty() {
            // Progress was seen, but a (stale) read does not show the messages yet.
            consumer.read_again().await?;
            return Ok(Outcome::Stale);
        }
        self.commit(consumer, writer, taken).await
    }

    async fn commit(
        &self,
        consumer: &mut Consumer,
        writer: &mut Writer,
        taken: Vec<Received>,
    ) -> Result<Outcome, RoundError> {
        let mut bytes_max = usize::MAX;
        loop {
            let messages = taken.clone();
            let inventory = Arc::clone(&self.inventory);
            let prepared = spawn_blocking(move || prepare(messages, bytes_max, &inventory));
            let (plan, news) = prepared.await??;
            for description in &news {
                self.inventory.describe(description).await?;
            }
            let Plan { intake, blocks } = &plan;
            for (index, reason) in &intake.dead {
                let message = &intake.messages[*index];
                tracing::error!(lane = %message.lane, seq = message.seq, reason, "dead letter");
            }
            match writer.commit(consumer, intake, blocks).await {
                // What it makes can be larger than what it takes: take half.
                Err(Error::TooLarge { .. }) if intake.messages.len() > 1 => {
                    bytes_max = intake.messages.iter().map(|m| m.bytes.len()).sum::<usize>() / 2;
                }
                Ok(outcome) => {
                    if matches!(outcome, Outcome::Committed { .. }) {
                        self.life.process.metrics.dead_letters.inc_by(intake.dead.len() as u64);
                    }
                    return Ok(outcome);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Opens as many messages as fit and plans their commit, with what they tell of hosts that is not
/// in the inventory. CPU-heavy.
fn prepare(
    messages: Vec<Received>,
    bytes_max: usize,
    inventory: &Inventory,
) -> Result<(Plan, Vec<Description>), PlanError> {
    let open = |message| plan::open(message, |cluster, s| inventory.is_described(cluster, s));
    let mut opened: Vec<Opened> = messages.into_iter().map(open).collect();
    let fitting = plan::fitting(&opened, bytes_max);
    if fitting < opened.len() {
        crash_point!("commit.split");
        opened.truncate(fitting);
    }
    let news = opened.iter_mut().flat_map(|o| std::mem::take(&mut o.news)).collect();
    Ok((plan::plan(opened)?, news))
}

async fn gone_now(gone: &mut std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
    tokio::select! {
        biased;
        () = gone => true,
        () = std::future::ready(()) => false,
    }
}

/// By lane: the message to take next, and since when it has waited. A head tells when it last
/// grew, which in a steady flow is always just now.
type Since = BTreeMap<Lane, (u64, Instant)>;

/// What waits in a partition.
struct Waiting {
    messages: u64,
    samples: u64,
    oldest: Option<Instant>,
    ended: bool,
}

/// When to commit.
enum Due {
    Now,
    In(Duration),
    Never,
}

impl Waiting {
    /// `taken` tells of a lane how many messages and samples were taken.
    fn of(heads: &Heads, taken: impl Fn(&Lane) -> (u64, u64), since: &mut Since) -> Self {
        let mut waiting = Self { messages: 0, samples: 0, oldest: None, ended: false };
        for (lane, head) in heads {
            let (next, samples) = taken(lane);
            let messages = head.next.saturating_sub(next);
            if messages == 0 {
                since.remove(lane);
                continue;
            }
            waiting.messages += messages;
            waiting.samples += head.samples.saturating_sub(samples);
            waiting.ended |= head.done;
            let (first, at) = since.entry(lane.clone()).or_insert((next, head.grew_at));
            if *first != next {
                (*first, *at) = (next, head.grew_at);
            }
            waiting.oldest = Some(waiting.oldest.map_or(*at, |oldest| oldest.min(*at)));
        }
        waiting
    }

    /// By size, count or age; at once when a lane has ended and nothing more will come.
    fn due(&self, args: &Args) -> Due {
        let Some(oldest) = self.oldest else { return Due::Never };
        let age = Duration::from_millis(args.commit_age_ms);
        let full = self.messages >= args.commit_messages || self.samples >= args.commit_samples;
        match age.checked_sub(oldest.elapsed()) {
            Some(wait) if !full && !self.ended && !wait.is_zero() => Due::In(wait),
            _ => Due::Now,
        }
    }
}

/// This partition's share of the process' figures, taken back when it ends.
struct Shares<'a> {
    life: &'a Life,
    backlog: u64,
    lag_ms: u64,
}

impl Shares<'_> {
    fn set(&mut self, waiting: &Waiting) {
        let figures = &self.life.process.metrics.figures;
        figures.backlog.fetch_add(waiting.messages, Relaxed);
        figures.backlog.fetch_sub(self.backlog, Relaxed);
        self.backlog = waiting.messages;
        let lag = waiting.oldest.map_or(0, |at| at.elapsed().as_millis() as u64);
        // The largest of the partitions; whoever had it takes it back.
        if lag >= figures.lag_ms.load(Relaxed) || self.lag_ms == figures.lag_ms.load(Relaxed) {
            figures.lag_ms.store(lag, Relaxed);
        }
        self.lag_ms = lag;
    }
}

impl Drop for Shares<'_> {
    fn drop(&mut self) {
        self.set(&Waiting { messages: 0, samples: 0, oldest: None, ended: false });
    }
}

#[cfg(test)]
mod tests {
    use nexus_common::model::ShardId;

    use super::*;

    #[test]
    fn the_age_of_a_lane_that_keeps_growing_is_that_of_its_oldest_message() {
        use crate::backlog::Head;
        let lane: Lane = Lane { source: "s".parse().unwrap(), shard: ShardId(0) };
        let begun = Instant::now();
        let mut since = Since::default();
        let mut check = |next, taken, grown_after_ms, expected_ms: Option<u64>| {
            let grew_at = begun + Duration::from_millis(grown_after_ms);
            let head = Head { next, samples: 10 * next, done: false, grew_at };
            let heads = Heads::from([(lane.clone(), head)]);
            let waiting = Waiting::of(&heads, |_| (taken, 10 * taken), &mut since);
            let expected = expected_ms.map(|ms| begun + Duration::from_millis(ms));
            assert_eq!(waiting.oldest, expected, "{next} of which {taken} are taken");
            assert_eq!((waiting.messages, waiting.samples), (next - taken, 10 * (next - taken)));
        };
        check(1, 0, 100, Some(100));
        check(2, 0, 200, Some(100));
        check(3, 2, 300, Some(300));
        check(4, 2, 400, Some(300));
        check(4, 4, 400, None);
        check(5, 4, 500, Some(500));
    }

    #[test]
    fn a_commit_is_due_by_size_by_count_by_age_and_at_the_end_of_a_lane() {
        use clap::Parser;
        let cli = crate::args::Cli::try_parse_from(["c", "--commit-age-ms", "60000"]).unwrap();
        let crate::args::Asked::Run(args) = cli.asked() else { panic!("not `run`") };
        let check = |messages, samples, ended, expected: bool| {
            let oldest = (messages > 0).then(Instant::now);
            let waiting = Waiting { messages, samples, oldest, ended };
            assert_eq!(matches!(waiting.due(&args), Due::Now), expected);
        };
        check(0, 0, false, false);
        check(1, 10, false, false);
        check(1, 10, true, true);
        check(args.commit_messages, 10, false, true);
        check(1, args.commit_samples, false, true);
    }
}
