//! The threads that ask targets, and how many questions are on their way.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

/// Most targets a shard asks at the same time: each has a thread.
const ASKED_MAX: usize = 32;
/// Most targets asked at the same time by all shards of a process: threads and answers in memory.
const ASKED_BY_ALL_MAX: usize = 128;
/// Part of both that targets may take which let us wait in vain last time: a rack that is down
/// must not keep the others from being asked.
const HUNG_PART: usize = 2;

/// The threads of a process that ask. Not those that tokio has for everything that blocks: one
/// that has its answer is not free at once, so a burst of questions starts more than are on their
/// way, up to 512, and an allocator keeps memory for each.
pub(crate) struct Askers {
    /// There until it is dropped.
    threads: Option<Runtime>,
    asked: AtomicUsize,
    hung: AtomicUsize,
}

/// A question on its way, however it ends; of one to a target that hung, its shard's count.
struct OnItsWay {
    askers: Arc<Askers>,
    hung: Option<Arc<AtomicUsize>>,
}

impl Askers {
    /// Threads are started when they are needed.
    pub(crate) fn new() -> io::Result<Self> {
        let mut threads = Builder::new_current_thread();
        let threads = threads.thread_name("ask").max_blocking_threads(ASKED_BY_ALL_MAX).build()?;
        Ok(Self { threads: Some(threads), asked: AtomicUsize::new(0), hung: AtomicUsize::new(0) })
    }

    /// Whether a shard that waits for `waits` replies may ask one more target. `hung`: it let us
    /// wait in vain last time, and how many such the shard is asking.
    pub(crate) fn has_room(&self, waits: usize, hung: Option<&Arc<AtomicUsize>>) -> bool {
        let hung_room = hung.is_none_or(|of_shard| {
            of_shard.load(Relaxed) < ASKED_MAX / HUNG_PART
                && self.hung.load(Relaxed) < ASKED_BY_ALL_MAX / HUNG_PART
        });
        hung_room && waits < ASKED_MAX && self.asked.load(Relaxed) < ASKED_BY_ALL_MAX
    }

    /// Asks in a thread; `hung` as for [`Askers::has_room`].
    pub(crate) fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        replies: &mut JoinSet<T>,
        hung: Option<&Arc<AtomicUsize>>,
        question: impl FnOnce() -> T + Send + 'static,
    ) {
        let Some(threads) = &self.threads else { return };
        let on_its_way = OnItsWay::new(Arc::clone(self), hung.cloned());
        let question = move || {
            let reply = question();
            drop(on_its_way);
            reply
        };
        replies.spawn_blocking_on(question, threads.handle());
    }
}

impl Drop for Askers {
    /// Nobody waits for answers that are on their way.
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

impl OnItsWay {
    fn new(askers: Arc<Askers>, hung: Option<Arc<AtomicUsize>>) -> Self {
        askers.asked.fetch_add(1, Relaxed);
        if let Some(of_shard) = &hung {
            askers.hung.fetch_add(1, Relaxed);
            of_shard.fetch_add(1, Relaxed);
        }
        Self { askers, hung }
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.askers.asked.fetch_sub(1, Relaxed);
        if let Some(of_shard) = &self.hung {
            self.askers.hung.fetch_sub(1, Relaxed);
            of_shard.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{PoisonError, RwLock};

    use super::*;

    /// Asks as often as said; whoever is asked answers once `gate` is open, and tells how many
    /// were asked with it.
    fn ask(
        askers: &Arc<Askers>,
        hung: Option<&Arc<AtomicUsize>>,
        times: usize,
        gate: &Arc<RwLock<()>>,
    ) -> JoinSet<usize> {
        let now = Arc::new(AtomicUsize::new(0));
        let mut replies = JoinSet::new();
        for _ in 0..times {
            let (now, gate) = (Arc::clone(&now), Arc::clone(gate));
            askers.ask(&mut replies, hung, move || {
                let with_it = now.fetch_add(1, Relaxed) + 1;
                drop(gate.read().unwrap_or_else(PoisonError::into_inner));
                now.fetch_sub(1, Relaxed);
                with_it
            });
        }
        replies
    }

    #[tokio::test]
    async fn as_many_threads_ask_as_questions_may_be_on_their_way() {
        let askers = Arc::new(Askers::new().unwrap());
        let gate = Arc::new(RwLock::new(()));
        let shut = gate.write().unwrap();
        let replies = ask(&askers, None, 2 * ASKED_BY_ALL_MAX, &gate);
        assert!(!askers.has_room(0, None));
        drop(shut);
        let together = replies.join_all().await;
        assert_eq!(together.len(), 2 * ASKED_BY_ALL_MAX);
        assert!(together.iter().all(|many| *many <= ASKED_BY_ALL_MAX), "{together:?}");
        assert!(askers.has_room(ASKED_MAX - 1, None));
        assert!(!askers.has_room(ASKED_MAX, None));
    }

    #[tokio::test]
    async fn those_that_hung_leave_room_for_the_others() {
        let askers = Arc::new(Askers::new().unwrap());
        let (of_shard, of_other) = (Arc::default(), Arc::default());
        let gate = Arc::new(RwLock::new(()));
        let shut = gate.write().unwrap();
        let replies = ask(&askers, Some(&of_shard), ASKED_MAX / HUNG_PART, &gate);
        assert!(!askers.has_room(0, Some(&of_shard)));
        assert!(askers.has_room(0, Some(&of_other)));
        assert!(askers.has_room(0, None));
        drop(shut);
        replies.join_all().await;
        assert!(askers.has_room(0, Some(&of_shard)));
    }

    #[tokio::test]
    async fn a_question_that_panics_is_on_its_way_no_more() {
        let askers = Arc::new(Askers::new().unwrap());
        let of_shard = Arc::new(AtomicUsize::new(0));
        let mut replies = JoinSet::new();
        askers.ask(&mut replies, Some(&of_shard), || panic!("as a reader could"));
        assert!(replies.join_next().await.unwrap().unwrap_err().is_panic());
        let left = [&askers.asked, &askers.hung, &of_shard].map(|count| count.load(Relaxed));
        assert_eq!(left, [0; 3]);
    }
}
