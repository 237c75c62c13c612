//! HTTP for every process: an accept loop of our own, because nothing that is sent, or not sent,
//! by whoever connects may hold on to what others need.

mod bounds;
mod stream;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use bounds::Place;
pub use bounds::{Connections, ConnectionsMax};
use stream::Bounded;

/// How long a client may take for a TLS handshake, or for the head of a request. Also how long
/// a connection may be idle.
pub const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Most headers of a request: browsers and proxies send about thirty.
const HEADERS_MAX: usize = 100;
/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Requests at once over one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// How often a silent HTTP/2 connection is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long nothing is accepted after the system refused a connection for want of something
/// (file descriptors): at once it would only refuse again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Bytes the system may hold for one client that takes nothing (Linux doubles it for its own
/// needs). Left alone it would grow to some MiB, and a thousand such clients would slow down the
/// TCP of the whole machine.
const SEND_BUFFER: u32 = 128 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Gives the TLS of a new connection: certificates may change under a running process.
pub type TlsOfNow = Arc<dyn Fn() -> TlsAcceptor + Send + Sync>;

/// How to serve.
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// Speaks TLS, if given.
    pub tls: Option<TlsOfNow>,
    /// Connections, counted and bounded.
    pub connections: Connections,
}

/// Serves `router` until `stop`, then lets running requests finish. Returns the bound address
/// (for port 0) and the task, which ends once every connection has.
///
/// # Errors
/// When the address cannot be bound: names it.
pub async fn serve(
    listen: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    serve_with(listen, router, stop, ServeOptions::default()).await
}

/// Like [`serve`], otherwise than by default.
///
/// A connection that was upgraded (a WebSocket) still counts, and the task ends only after it:
/// whoever drives it must end it when `stop` is cancelled.
///
/// # Errors
/// When the address cannot be bound: names it.
pub async fn serve_with(
    listen: SocketAddr,
    router: Router,
    stop: CancellationToken,
    options: ServeOptions,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr().context("read the bound address")?;
    let server = Arc::new(Server { router, stop, options, http: http() });
    Ok((address, tokio::spawn(server.run(listener))))
}

/// Listens; connections inherit the size of the send buffer.
fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Another process may have left connections behind at this port.
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(listen)?;
    socket.listen(BACKLOG)
}

fn http() -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(HEAD_WITHIN);
    http
}

struct Server {
    router: Router,
    stop: CancellationToken,
    options: ServeOptions,
    http: Builder<TokioExecutor>,
}

impl Server {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                // Bounded with the connections; what ended is not kept.
                Some(_) = tasks.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(place) = self.options.connections.place(peer.ip()) {
                        tasks.spawn(Arc::clone(&self).connection(stream, peer.ip(), place));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
        }
        drop(listener);
        while tasks.join_next().await.is_some() {}
        // Those that were upgraded.
        self.options.connections.all_ended().await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: IpAddr, place: Place) {
        // Answers are written whole; waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        let ended = match &self.options.tls {
            None => self.speak(Bounded::new(stream, place)).await,
            Some(tls) => match timeout(HEAD_WITHIN, tls().accept(stream)).await {
                Ok(Ok(stream)) => self.speak(Bounded::new(stream, place)).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err("no TLS handshake in time".into()),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, error, "a connection ended early");
        }
    }

    async fn speak<S>(
        &self,
        stream: Bounded<S>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let service = TowerToHyperService::new(self.router.clone());
        let speaking = self.http.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(speaking);
        tokio::select! {
            ended = speaking.as_mut() => return ended,
            () = self.stop.cancelled() => {}
        }
        speaking.as_mut().graceful_shutdown();
        speaking.await
    }
}
