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
