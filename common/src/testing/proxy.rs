//! A wire that can be cut: between a client and etcd, below everything of ours.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;

/// Pieces on their way in one direction of a connection: 64 KiB each at most, more than etcd's
/// own windows let through.
const ON_THE_WAY_MAX: usize = 256;

/// What goes wrong on a wire by itself. A *piece* is what one read of the socket gives: mostly
/// one request or answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The same gives the same numbers.
    pub seed: u64,
    /// Part of the pieces that are lost, and their connection with them: what was asked may have
    /// been done.
    pub lost: f64,
    /// Part of the pieces that come late, with all behind them.
    pub delayed: f64,
    /// By how much, at most.
    pub delay_max: Duration,
    /// What every piece takes, at least and at most.
    pub latency: (Duration, Duration),
}

/// What went wrong so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCount {
    /// Pieces lost, each with its connection.
    pub lost: u64,
    /// Pieces delayed beyond their latency.
    pub delayed: u64,
    /// Connections cut from outside ([`Proxy::cut`]).
    pub cut: u64,
    /// Pieces held back from outside, and then passed or dropped.
    pub held: u64,
}

impl FaultCount {
    /// All of them.
    pub fn sum(self) -> u64 {
        self.lost + self.delayed + self.cut + self.held
    }
}

/// Forwards TCP to etcd, until told to hold something back or to cut. Its threads are the
/// system's, so that a test that blocks its runtime does not stop the wire.
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<Wire>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Answers,
}

#[derive(Default)]
struct Wire {
    state: Mutex<State>,
    changed: Condvar,
    faults: Mutex<Faults>,
    connections: AtomicU64,
    lost: AtomicU64,
    delayed: AtomicU64,
    cut: AtomicU64,
    held: AtomicU64,
}

#[derive(Default)]
struct State {
    requests_held: bool,
    answers_held: bool,
    /// Both ends of what is connected now, by number.
    connections: BTreeMap<u64, [TcpStream; 2]>,
    /// Counts cuts: what was held back when one came is dropped.
    cuts: u64,
    closed: bool,
}

impl Proxy {
    /// Begins to forward a free loopback port to `upstream` (`http://127.0.0.1:2379`).
    pub fn start(upstream: &str) -> Self {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Wire::default());
        let accepting = Arc::clone(&wire);
        thread::spawn(move || accepting.accept(&listener, upstream));
        Self { address, wire }
    }

    /// [`Proxy::start`], on a wire where things go wrong.
    pub fn faulty(upstream: &str, faults: Faults) -> Self {
        let proxy = Self::start(upstream);
        proxy.set_faults(faults);
        proxy
    }

    /// From now on these go wrong, on connections that are there and on new ones.
    pub fn set_faults(&self, faults: Faults) {
        *self.wire.faults.lock().unwrap() = faults;
    }

    /// What went wrong so far.
    pub fn count(&self) -> FaultCount {
        let Wire { lost, delayed, cut, held, .. } = &*self.wire;
        let [lost, delayed, cut, held] = [lost, delayed, cut, held].map(|n| n.load(Relaxed));
        FaultCount { lost, delayed, cut, held }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests reach etcd; from now on nothing that etcd says comes back.
    pub fn hold_answers(&self) {
        self.wire.state.lock().unwrap().answers_held = true;
    }

    /// From now on nothing reaches etcd.
    pub fn hold_requests(&self) {
        self.wire.state.lock().unwrap().requests_held = true;
    }

    /// Lets through what was held back, and all that follows.
    pub fn pass(&self) {
        let mut state = self.wire.state.lock().unwrap();
        (state.requests_held, state.answers_held) = (false, false);
        self.wire.changed.notify_all();
    }

    /// Closes every connection and drops what was held back. New connections pass.
    pub fn cut(&self) {
        let mut state = self.wire.state.lock().unwrap();
        (state.requests_held, state.answers_held) = (false, false);
        state.cuts += 1;
        let connections = std::mem::take(&mut state.connections);
        self.wire.cut.fetch_add(connections.len() as u64, Relaxed);
        for end in connections.into_values().flatten() {
            // An end that is closed already is as good.
            let _ = end.shutdown(Shutdown::Both);
        }
        self.wire.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wire.state.lock().unwrap().closed = true;
        self.cut();
        // Wakes the accepting thread, which then ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Wire {
    fn accept(self: Arc<Self>, listener: &TcpListener, upstream: SocketAddr) {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            // etcd may be down: closing is what it would do.
            let Ok(server) = TcpStream::connect(upstream) else { continue };
            let number = self.connections.fetch_add(1, Relaxed);
            let cuts = {
                let mut state = self.state.lock().unwrap();
                if state.closed {
                    return;
                }
                let ends = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                state.connections.insert(number, ends);
                state.cuts
            };
            let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
            self.copy(ends.0, ends.1, Direction::Requests, (number, cuts));
            self.copy(server, client, Direction::Answers, (number, cuts));
        }
    }

    fn copy(
        self: &Arc<Self>,
        from: TcpStream,
        to: TcpStream,
        direction: Direction,
        (number, cuts): (u64, u64),
    ) {
        let (pieces, arriving) = sync_channel(ON_THE_WAY_MAX);
        let (ends, wire) = ((from.try_clone().unwrap(), to.try_clone().unwrap()), Arc::clone(self));
        thread::spawn(move || {
            wire.send(from, &pieces, number, direction);
            drop(pieces);
        });
        let wire = Arc::clone(self);
        thread::spawn(move || {
            wire.arrive(to, &arriving, direction, cuts);
            let _ = ends.0.shutdown(Shutdown::Both);
            let _ = ends.1.shutdown(Shutdown::Both);
            wire.state.lock().unwrap().connections.remove(&number);
        });
    }

    /// Reads until the end, or until something is lost.
    fn send(
        &self,
        mut from: TcpStream,
        pieces: &SyncSender<(Instant, Vec<u8>)>,
        number: u64,
        direction: Direction,
    ) {
        let stream = 2 * number + u64::from(direction == Direction::Answers);
        let mut random = Rng::with_seed(self.faults.lock().unwrap().seed.wrapping_add(stream));
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let faults = *self.faults.lock().unwrap();
            if random.f64() < faults.lost {
                self.lost.fetch_add(1, Relaxed);
                return;
            }
            let (least, most) = faults.latency;
            let mut takes = least + (most - least).mul_f64(random.f64());
            if random.f64() < faults.delayed {
                self.delayed.fetch_add(1, Relaxed);
                takes += faults.delay_max.mul_f64(random.f64());
            }
            if pieces.send((Instant::now() + takes, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    }

    /// Writes every piece when its time has come.
    fn arrive(
        &self,
        mut to: TcpStream,
        pieces: &Receiver<(Instant, Vec<u8>)>,
        direction: Direction,
        cuts: u64,
    ) {
        for (at, piece) in pieces {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if !self.may_pass(direction, cuts) || to.write_all(&piece).is_err() {
                return;
            }
        }
    }

    /// Waits while `direction` is held back. False after a cut.
    fn may_pass(&self, direction: Direction, cuts: u64) -> bool {
        let held = |state: &mut State| {
            let held = match direction {
                Direction::Requests => state.requests_held,
                Direction::Answers => state.answers_held,
            };
            held && state.cuts == cuts
        };
        let mut state = self.state.lock().unwrap();
        if held(&mut state) {
            self.held.fetch_add(1, Relaxed);
        }
        let state = self.changed.wait_while(state, held).unwrap();
        state.cuts == cuts
    }
}
