//! A wire that can be cut: between a client and etcd, below everything of ours.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

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
}

#[derive(Default)]
struct State {
    requests_held: bool,
    answers_held: bool,
    /// Both ends of what is connected now.
    connections: Vec<TcpStream>,
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
        for end in state.connections.drain(..) {
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
            let cuts = {
                let mut state = self.state.lock().unwrap();
                if state.closed {
                    return;
                }
                state.connections.push(client.try_clone().unwrap());
                state.connections.push(server.try_clone().unwrap());
                state.cuts
            };
            let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
            self.copy(ends.0, ends.1, Direction::Requests, cuts);
            self.copy(server, client, Direction::Answers, cuts);
        }
    }

    fn copy(self: &Arc<Self>, from: TcpStream, to: TcpStream, direction: Direction, cuts: u64) {
        let wire = Arc::clone(self);
        thread::spawn(move || {
            let (mut from, mut to) = (from, to);
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if !wire.may_pass(direction, cuts) || to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
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
        let state = self.changed.wait_while(self.state.lock().unwrap(), held).unwrap();
        state.cuts == cuts
    }
}
