//! How the ranks of a generation find each other.

use super::frame::Credential;
use super::{Abort, TcpLink, Traffic};
use crate::collective::{Cause, Failure, Ring};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const MAGIC: [u8; 4] = *b"JRSh";
/// magic, generation, sender's rank, receiver's rank, proof.
const GREETING: usize = 4 + 8 + 4 + 4 + 32;
const WELCOME: u8 = 1;
const REFUSED: u8 = 2;
/// A stranger who connects and says nothing is dropped after this.
const GREETING_TIME: Duration = Duration::from_secs(2);
/// Greetings kept for a generation that this worker has not heard of yet.
const PARKED: usize = 64;
/// A rank whose host answers no attempt to connect for so long is out of reach. It need not be ready for that: every worker listens
/// from its start to its end.
const REACH: Duration = Duration::from_secs(3);
/// How often waiting looks whether it was aborted.
const TICK: Duration = Duration::from_millis(20);

/// Who is in a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name of the run.
    pub run: String,
    /// Number of the generation.
    pub generation: u64,
    /// What only its members know.
    pub key: Vec<u8>,
    /// This worker's rank.
    pub rank: usize,
    /// Where the ranks listen, `host:port` in rank order.
    pub addresses: Vec<String>,
}

/// A worker's own listening address, for all generations of its life.
pub struct Rendezvous {
    address: SocketAddr,
    arrivals: Arc<Arrivals>,
    traffic: Traffic,
}

#[derive(Default)]
struct Arrivals {
    parked: Mutex<VecDeque<(Greeting, TcpStream)>>,
    came: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Greeting {
    generation: u64,
    from: u32,
    to: u32,
    proof: [u8; 32],
}

impl Rendezvous {
    /// Listens at `address` (port 0 takes a free one).
    ///
    /// # Errors
    /// If the address cannot be listened at.
    pub fn listen(address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let arrivals = Arc::new(Arrivals::default());
        let park = Arc::clone(&arrivals);
        std::thread::Builder::new().name("rendezvous".into()).spawn(move || accept(&listener, &park))?;
        Ok(Self { address, arrivals, traffic: Traffic::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What has passed the connections of all its generations so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Connects the ring of `group` (at least two ranks). All of its ranks must call this before the deadline.
    pub fn join(&self, group: &Group, deadline: Instant, abort: &Abort) -> Result<Ring<TcpLink>, Failure> {
        let size = group.addresses.len();
        let (next, before) = ((group.rank + 1) % size, (group.rank + size - 1) % size);
        let mut to_next = self.call(group, next, deadline.min(Instant::now() + REACH), abort)?;
        let from_before = self.answer(group, before, deadline, abort)?;
        welcome(&mut to_next, next, deadline, abort)?;
        let link = TcpLink::new(
            [before, next],
            group.credential(),
            to_next,
            from_before,
            &self.traffic,
            abort.clone(),
        )
        .map_err(|error| lost(next, error.to_string()))?;
        Ok(Ring::new(group.rank, size, link))
    }

    /// A connection to the next rank, with our greeting sent.
    fn call(
        &self,
        group: &Group,
        next: usize,
        deadline: Instant,
        abort: &Abort,
    ) -> Result<TcpStream, Failure> {
        let address = &group.addresses[next];
        let greeting = Greeting {
            generation: group.generation,
            from: group.rank as u32,
            to: next as u32,
            proof: group.proof(),
        };
        loop {
            waiting(next, deadline, abort, &format!("no connection to {address}"))?;
            let connected = address.to_socket_addrs().and_then(|mut found| {
                let address = found.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
                stream.write_all(&greeting.to_bytes())?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => return Ok(stream),
                Err(_) => std::thread::sleep(TICK), // it may be about to listen
            }
        }
    }

    /// The connection from the rank before. Whoever greets with an older generation or without the key is refused.
    fn answer(
        &self,
        group: &Group,
        before: usize,
        deadline: Instant,
        abort: &Abort,
    ) -> Result<TcpStream, Failure> {
        let expected = Greeting {
            generation: group.generation,
            from: before as u32,
            to: group.rank as u32,
            proof: group.proof(),
        };
        let mut parked = self.arrivals.parked.lock().expect("no panic while held");
        loop {
            let mut found = None;
            parked.retain_mut(|(greeting, stream)| {
                if *greeting == expected {
                    found = stream.try_clone().ok();
                } else if greeting.generation <= group.generation {
                    let reason = if greeting.generation < group.generation { "stale" } else { "unknown" };
                    tracing::warn!(
                        generation = greeting.generation,
                        from = greeting.from,
                        reason,
                        "refused a connection to the collective"
                    );
                    let _ = stream.write_all(&[REFUSED]); // it is closed either way
                } else {
                    return true; // early: of a generation still to come
                }
                false
            });
            if let Some(mut stream) = found {
                match stream.write_all(&[WELCOME]) {
                    Ok(()) => return Ok(stream),
                    Err(_) => continue, // it gave up and will call again
                }
            }
            waiting(before, deadline, abort, "it did not connect")?;
            parked = self.arrivals.came.wait_timeout(parked, TICK).expect("no panic while held").0;
        }
    }
}

impl Group {
    fn proof(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"jrs collective 1");
        hash.update((self.run.len() as u64).to_le_bytes());
        hash.update(&self.run);
        hash.update(self.generation.to_le_bytes());
        hash.update(&self.key);
        hash.finalize().into()
    }

    /// What stands for (run, generation, key) in messages, where only those who know it see them.
    pub(crate) fn credential(&self) -> Credential {
        // Not the proof's own bytes: frames need not show what greetings prove.
        let hash = Sha256::digest(self.proof());
        hash[..8].try_into().expect("a digest has 32 bytes")
    }
}

impl Greeting {
    fn to_bytes(self) -> Vec<u8> {
        [
            &MAGIC[..],
            &self.generation.to_le_bytes(),
            &self.from.to_le_bytes(),
            &self.to.to_le_bytes(),
            &self.proof,
        ]
        .concat()
    }

    fn parse(bytes: &[u8; GREETING]) -> Option<Self> {
        let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        (bytes[..4] == MAGIC).then(|| Self {
            generation: u64::from_le_bytes(bytes[4..12].try_into().expect("eight bytes")),
            from: four(12),
            to: four(16),
            proof: bytes[20..].try_into().expect("32 bytes"),
        })
    }
}

fn accept(listener: &TcpListener, arrivals: &Arc<Arrivals>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            std::thread::sleep(TICK); // out of file descriptors, perhaps
            continue;
        };
        let arrivals = Arc::clone(arrivals);
        // One that says nothing must not keep others waiting. Without a thread it is dropped, and calls again.
        let _ = std::thread::Builder::new().name("greeting".into()).spawn(move || {
            let mut bytes = [0; GREETING];
            let heard =
                stream.set_read_timeout(Some(GREETING_TIME)).and_then(|()| stream.read_exact(&mut bytes));
            let (Ok(()), Some(greeting)) = (heard, Greeting::parse(&bytes)) else {
                tracing::warn!("refused a connection to the collective that did not greet");
                return;
            };
            let mut parked = arrivals.parked.lock().expect("no panic while held");
            if parked.len() == PARKED {
                parked.pop_front();
            }
            parked.push_back((greeting, stream));
            arrivals.came.notify_all();
        });
    }
}

/// Waits for the next rank's answer to our greeting.
fn welcome(stream: &mut TcpStream, next: usize, deadline: Instant, abort: &Abort) -> Result<(), Failure> {
    let mut answer = [0];
    loop {
        waiting(next, deadline, abort, "it did not answer")?;
        let heard = stream.set_read_timeout(Some(TICK)).and_then(|()| stream.read_exact(&mut answer));
        match heard {
            Ok(()) if answer[0] == WELCOME => return Ok(()),
            Ok(()) => {
                let reason = "it refused us: its generation is another".to_owned();
                return Err(Failure { cause: Cause::Garbled, suspect: Some(next), reason });
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(lost(next, error.to_string())),
        }
    }
}

/// An error once waiting for `peer` has to end.
fn waiting(peer: usize, deadline: Instant, abort: &Abort, what: &str) -> Result<(), Failure> {
    if abort.pulled() {
        let reason = "forming the group was aborted".to_owned();
        return Err(Failure { cause: Cause::Aborted, suspect: None, reason });
    }
    if Instant::now() >= deadline {
        return Err(Failure { cause: Cause::Late, suspect: Some(peer), reason: format!("{what} in time") });
    }
    Ok(())
}

fn lost(peer: usize, reason: String) -> Failure {
    Failure { cause: Cause::Lost, suspect: Some(peer), reason }
}
