//! A connection's bytes, with bounds that HTTP itself does not set.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{HEAD_WITHIN, bounds::Place};

/// Bytes after which the protocol is known (HTTP/2 begins with 24 that are always the same) and
/// its own time limits hold.
const KNOWN_AFTER: usize = 24;
/// How long a client may take not one byte of what is sent to it.
const TAKE_WITHIN: Duration = Duration::from_secs(30);

/// How much, and how long, is still read of a peer that goes on sending after the last answer:
/// closing before it is read would take the answer from it.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_millis(500);

/// A stream whose first bytes must come soon and whose peer must take what is sent. Holds the
/// connection's place for as long as it lives, also when it became a WebSocket.
pub(super) struct Bounded<S> {
    stream: S,
    read: usize,
    first: Option<Pin<Box<Sleep>>>,
    stalled: Option<Pin<Box<Sleep>>>,
    shut: bool,
    dropped: usize,
    linger: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, place: Place) -> Self {
        let first = Some(Box::pin(sleep(HEAD_WITHIN)));
        let (stalled, linger) = (None, None);
        Self { stream, read: 0, first, stalled, shut: false, dropped: 0, linger, _place: place }
    }

    /// What a write came to; one that waits too long fails.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(TAKE_WITHIN)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(first) = &mut self.first {
            if polled.is_pending() {
                ready!(first.as_mut().poll(cx));
                let error = io::Error::new(io::ErrorKind::TimedOut, "no request came");
                return Poll::Ready(Err(error));
            }
            self.read += buf.filled().len() - before;
            if self.read >= KNOWN_AFTER {
                self.first = None;
            }
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> Bounded<S> {
    /// Reads what is still coming, if something is; ready when that is over.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        while self.dropped < LINGER_BYTES {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.dropped += buf.filled().len();
                }
                Poll::Pending if self.dropped > 0 => {
                    let linger = self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER)));
                    return linger.as_mut().poll(cx);
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
            ready!(self.written(cx, shut))?;
            self.shut = true;
        }
        self.poll_linger(cx).map(Ok)
    }
}
