//! The ring over TCP: the stand-in for NCCL on machines without GPUs, as Gloo is for PyTorch.
//!
//! A worker listens at one address for its whole life ([`Rendezvous`]). For each generation it connects to the next rank
//! and waits for the rank before; both show that they know the generation's key. Messages carry their generation,
//! step and a checksum (`frame`).

mod frame;
mod rendezvous;

pub use rendezvous::{Group, Rendezvous};

use super::ring::{Link, Message};
use super::{Cause, Failure};
use frame::{Credential, read_frame, write_frame};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io::{BufReader, ErrorKind};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A message that cannot be handed to the kernel for so long goes to a peer that stopped reading.
const STUCK: Duration = Duration::from_secs(60);

/// Ends all waiting on a group's connections, from any thread. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Abort(Arc<Mutex<AbortState>>);

#[derive(Debug, Default)]
struct AbortState {
    pulled: bool,
    streams: Vec<TcpStream>,
}

impl Abort {
    /// Whatever waits on the group's connections fails at once, on this side and on the neighbours'.
    pub fn pull(&self) {
        let mut state = self.0.lock().expect("no panic while held");
        state.pulled = true;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // it may be gone already
        }
    }

    /// Whether someone pulled.
    pub fn pulled(&self) -> bool {
        self.0.lock().expect("no panic while held").pulled
    }

    fn watch(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut state = self.0.lock().expect("no panic while held");
        let stream = stream.try_clone()?;
        if state.pulled {
            let _ = stream.shutdown(Shutdown::Both);
        } else {
            state.streams.push(stream);
        }
        Ok(())
    }

    /// Lets go of the connections, so that closing them elsewhere closes them.
    fn forget(&self) {
        self.0.lock().expect("no panic while held").streams.clear();
    }
}

/// Connections to the neighbours.
pub struct TcpLink {
    neighbours: [usize; 2],
    credential: Credential,
    /// Frames for the next rank, written by a thread, because two neighbours that both write large messages before they
    /// read would wait for each other.
    next: Sender<Message>,
    /// The connection that they are written to, only to look at.
    next_stream: TcpStream,
    before: BufReader<TcpStream>,
    abort: Abort,
}

impl TcpLink {
    fn new(
        neighbours: [usize; 2],
        credential: Credential,
        next: TcpStream,
        before: TcpStream,
        abort: Abort,
    ) -> std::io::Result<Self> {
        for stream in [&next, &before] {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(STUCK))?;
            abort.watch(stream)?;
        }
        let next_stream = next.try_clone()?;
        let (sender, frames) = channel::<Message>();
        std::thread::Builder::new().name("collective".into()).spawn(move || {
            let mut next = next;
            // Ends when the link is dropped, with everything written, or when the peer is gone, which the ring notices.
            while let Ok(message) = frames.recv() {
                if write_frame(&mut next, credential, &message).is_err() {
                    let _ = next.shutdown(Shutdown::Both);
                    return;
                }
            }
        })?;
        Ok(Self { neighbours, credential, next: sender, next_stream, before: BufReader::new(before), abort })
    }

    fn failure(&self, cause: Cause, peer: usize, reason: String) -> Failure {
        if self.abort.pulled() {
            return Failure::aborted();
        }
        Failure { cause, suspect: Some(peer), reason }
    }
}

impl Link for TcpLink {
    fn transport(&self) -> &'static str {
        "TCP (stand-in for NCCL)"
    }

    fn broken(&mut self) -> Option<Failure> {
        let [before, next] = self.neighbours;
        let peer = [(before, self.before.get_ref()), (next, &self.next_stream)]
            .into_iter()
            .find_map(|(peer, stream)| closed(stream).then_some(peer))?;
        Some(self.failure(Cause::Lost, peer, "it closed the connection".into()))
    }

    fn send(&mut self, message: Message) -> Result<(), Failure> {
        let gone = |_| self.failure(Cause::Lost, self.neighbours[1], "its connection is closed".into());
        self.next.send(message).map_err(gone)
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, Failure> {
        let started = Instant::now();
        read_frame(&mut self.before, self.credential, deadline).map_err(|error| {
            let (cause, reason) = match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                    (Cause::Late, format!("nothing came for {:.1} s", started.elapsed().as_secs_f64()))
                }
                ErrorKind::InvalidData => (Cause::Garbled, error.to_string()),
                ErrorKind::UnexpectedEof => (Cause::Lost, "it closed the connection".into()),
                _ => (Cause::Lost, error.to_string()),
            };
            self.failure(cause, self.neighbours[0], reason)
        })
    }
}

/// Whether the other end of a connection is gone and all it sent was read.
fn closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut byte, flags) {
        Ok((0, _)) => true,
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => false,
        Err(_) => true,
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.abort.forget();
    }
}
