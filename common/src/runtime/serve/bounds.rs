//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::watch;

use super::super::Metrics;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionsMax {
    /// In all. One that waits costs about 20 KiB.
    pub all: usize,
    /// From one address. This machine's own is not bounded: a proxy there speaks for everybody.
    pub of_one: usize,
}

impl Default for ConnectionsMax {
    /// For the ports that only a scraper and a supervisor ask.
    fn default() -> Self {
        Self { all: 256, of_one: 64 }
    }
}

/// Connections, counted and bounded; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    max: ConnectionsMax,
    of: Mutex<HashMap<IpAddr, usize>>,
    all: watch::Sender<usize>,
    open: Gauge,
    refused: Counter,
}

impl Connections {
    /// None yet.
    pub fn new(max: ConnectionsMax) -> Self {
        Self(Arc::new(Shared { max, ..Shared::default() }))
    }

    /// Registers what is counted with a process' metrics.
    pub fn register(&self, metrics: &Metrics) {
        let (open, refused) = (self.0.open.clone(), self.0.refused.clone());
        metrics.with_registry(|r| {
            r.register("http_connections", "Open connections, WebSockets too", open);
            let help = "Connections closed at once because there were too many";
            r.register("http_connections_refused", help, refused);
        });
    }

    /// A place for one more; none if there are too many. It is free again when it is dropped.
    pub(super) fn place(&self, peer: IpAddr) -> Option<Place> {
        let ConnectionsMax { all, of_one } = self.0.max;
        let peer = peer.to_canonical();
        let mut of = self.0.of.lock().ok()?;
        let here = of.get(&peer).copied().unwrap_or(0);
        if *self.0.all.borrow() >= all || (here >= of_one && !peer.is_loopback()) {
            drop(of);
            self.0.refused.inc();
            tracing::debug!(%peer, here, "too many connections, one is refused");
            return None;
        }
        of.insert(peer, here + 1);
        self.0.all.send_modify(|all| *all += 1);
        self.0.open.inc();
        Some(Place { connections: self.clone(), peer })
    }

    /// Waits until there are none.
    pub(super) async fn all_ended(&self) {
        // The sender lives as long as this handle.
        let _ = self.0.all.subscribe().wait_for(|all| *all == 0).await;
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let shared = &self.connections.0;
        if let Ok(mut of) = shared.of.lock()
            && let Some(here) = of.get_mut(&self.peer)
        {
            *here -= 1;
            if *here == 0 {
                of.remove(&self.peer);
            }
        }
        shared.all.send_modify(|all| *all -= 1);
        shared.open.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_in_all_or_from_one_address_are_refused_until_one_ends() {
        let connections = Connections::new(ConnectionsMax { all: 4, of_one: 2 });
        let (a, b, here): (IpAddr, IpAddr, IpAddr) = (
            "10.0.0.1".parse().unwrap(),
            "::ffff:10.0.0.1".parse().unwrap(),
            [127, 0, 0, 1].into(),
        );
        let first = connections.place(a).unwrap();
        let _second = connections.place(b).unwrap();
        assert!(connections.place(a).is_none(), "the same address, however it is written");
        drop(first);
        let _again = connections.place(b).unwrap();
        let _own = (connections.place(here).unwrap(), connections.place(here).unwrap());
        assert!(connections.place(here).is_none(), "four in all");
        assert_eq!(connections.0.refused.get(), 2);
        assert_eq!(connections.0.open.get(), 4);
    }

    #[tokio::test]
    async fn waiting_for_the_end_ends_with_the_last() {
        let connections = Connections::default();
        let place = connections.place([127, 0, 0, 1].into());
        let waiting = connections.all_ended();
        tokio::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(place);
        waiting.await;
        assert!(connections.0.of.lock().unwrap().is_empty());
    }
}
