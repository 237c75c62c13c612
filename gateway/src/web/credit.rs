//! How much may be on its way to a client that has not shown that it reads. Pure.
//!
//! What a client does not read ends in its buffers and the system's, where it is told late and
//! costs those who do read. So pings go along with what is sent; WebSocket clients answer them in
//! the order of what they read, and an answer shows how far that is.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Bytes on their way at first: some dozens of updates, and a thousand clients that never read
/// take 16 MiB of the system, not 256.
const FIRST: u64 = 16 * 1024;
/// Bytes on their way to a client that reads: as much as the system's buffer holds, with its
/// doubling; more would wait here instead. 2.5 MB/s at a round trip of 100 ms.
const MOST: u64 = 256 * 1024;
/// How soon a ping has to be answered for more to be sent at once: what a slow line takes longer
/// for would only be told late.
const SOON: Duration = Duration::from_secs(1);

/// What one client may still be sent.
#[derive(Debug)]
pub(crate) struct Credit {
    window: u64,
    sent: u64,
    read: u64,
    /// What had been sent when pings were that have no answer yet, and when; each is behind the one
    /// before by a quarter of a window, so there are a few.
    asked: VecDeque<(u64, Instant)>,
    used_up: Option<Instant>,
}

impl Credit {
    /// For a client that was not sent anything.
    pub(crate) fn new() -> Self {
        Self { window: FIRST, sent: 0, read: 0, asked: VecDeque::new(), used_up: None }
    }

    /// Whether more may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.used_up.is_none()
    }

    /// Since when nothing more may be sent.
    pub(crate) fn used_up(&self) -> Option<Instant> {
        self.used_up
    }

    /// Counts what is sent. Returns what a ping behind it has to carry, if it is time for one.
    pub(crate) fn sent(&mut self, bytes: usize, now: Instant) -> Option<[u8; 8]> {
        self.sent += bytes as u64;
        if self.sent - self.read >= self.window {
            self.used_up.get_or_insert(now);
        }
        let asked = self.asked.back().map_or(self.read, |(sent, _)| *sent);
        (self.sent - asked >= self.window / 4).then(|| {
            self.asked.push_back((self.sent, now));
            self.sent.to_be_bytes()
        })
    }

    /// Takes an answer. Whether it is one: what answers none of these pings changes nothing.
    pub(crate) fn answered(&mut self, carried: &[u8], now: Instant) -> bool {
        let Ok(read) = carried.try_into().map(u64::from_be_bytes) else { return false };
        // Clients may answer only the last of several.
        let known = self.asked.iter().enumerate().find(|(_, (sent, _))| *sent == read);
        let Some((index, (_, at))) = known else { return false };
        if now.duration_since(*at) <= SOON {
            self.window = (self.window * 2).min(MOST);
        }
        self.asked.drain(..=index);
        self.read = read;
        if self.sent - self.read < self.window {
            self.used_up = None;
        }
        true
    }
}

/// Whether a client that was sent all it may be has read nothing of it for too long.
pub(crate) fn is_stuck(credit: &Credit, within: Duration, now: Instant) -> bool {
    credit.used_up.is_some_and(|since| now.duration_since(since) >= within)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 400;

    /// Sends frames until no more may be sent: how many bytes, and what the pings carried.
    fn fill(credit: &mut Credit) -> (usize, Vec<[u8; 8]>) {
        let (mut bytes, mut pings) = (0, Vec::new());
        while credit.is_open() {
            pings.extend(credit.sent(FRAME, Instant::now()));
            bytes += FRAME;
        }
        (bytes, pings)
    }

    #[test]
    fn who_never_answers_is_sent_16_kib() {
        let mut credit = Credit::new();
        let (bytes, pings) = fill(&mut credit);
        assert!((FIRST as usize..FIRST as usize + FRAME).contains(&bytes), "{bytes}");
        assert!(!pings.is_empty());
    }

    #[test]
    fn who_answers_is_sent_more_and_more_up_to_256_kib() {
        let mut credit = Credit::new();
        let mut most = 0;
        for _ in 0..10 {
            let (bytes, pings) = fill(&mut credit);
            most = bytes;
            for ping in pings {
                assert!(credit.answered(&ping, Instant::now()));
            }
            assert!(credit.is_open(), "the last ping is never further back than a quarter of it");
        }
        assert!((MOST as usize / 2..MOST as usize + FRAME).contains(&most), "{most}");
    }

    #[test]
    fn an_answer_to_the_last_ping_is_one_to_all_and_each_counts_once() {
        let mut credit = Credit::new();
        let (_, pings) = fill(&mut credit);
        let (first, last) = (pings[0], pings[pings.len() - 1]);
        assert_ne!(first, last);
        assert!(
            !credit.answered(b"", Instant::now())
                && !credit.answered(&[7; 8], Instant::now())
                && !credit.is_open()
        );
        assert!(credit.answered(&last, Instant::now()) && credit.is_open());
        assert!(
            !credit.answered(&first, Instant::now()) && !credit.answered(&last, Instant::now())
        );
    }

    #[test]
    fn who_answers_late_is_sent_no_more_at_once() {
        let (mut credit, begin) = (Credit::new(), Instant::now());
        for _ in 0..10 {
            let ping = credit.sent(FIRST as usize, begin).unwrap();
            assert!(!credit.is_open());
            let late = begin + SOON + Duration::from_millis(1);
            assert!(credit.answered(&ping, late) && credit.is_open());
        }
        assert_eq!(credit.window, FIRST);
    }

    #[test]
    fn one_frame_larger_than_all_is_sent_and_asked_about() {
        let mut credit = Credit::new();
        let ping = credit.sent(MOST as usize, Instant::now()).unwrap();
        assert!(!credit.is_open());
        assert!(credit.answered(&ping, Instant::now()) && credit.is_open());
    }

    #[test]
    fn stuck_is_who_answers_nothing_for_long() {
        let (mut credit, begin, within) = (Credit::new(), Instant::now(), Duration::from_secs(5));
        let ping = credit.sent(MOST as usize, begin).unwrap();
        assert!(!is_stuck(&credit, within, begin + Duration::from_millis(4999)));
        assert!(is_stuck(&credit, within, begin + within));
        credit.answered(&ping, Instant::now());
        assert!(!is_stuck(&credit, within, begin + within));
    }
}
