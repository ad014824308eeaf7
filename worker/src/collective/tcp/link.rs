//! The connections to the neighbours, each served by a thread that never computes.
//!
//! The one that writes says every second that this process lives, the one that reads takes whatever comes at once and notices
//! silence, so that a network that fails is told from a neighbour that computes for long, at any time of a step.

use super::Abort;
use super::frame::{Credential, read_frame, write_frame, write_sign_of_life};
use super::traffic::{Counted, Traffic};
use crate::collective::ring::{Link, Message};
use crate::collective::{Cause, Failure};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io::{BufReader, Error, ErrorKind, Result};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A connection that has nothing else to carry carries a sign of life this often.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// A neighbour that is not heard for so long, or whose kernel acknowledges nothing for so long, is lost: less than the 5 s after
/// which the coordinator puts out a silent worker, so that the group is taken apart by then, and several signs of life,
/// so that a busy machine may miss some.
const SILENCE: Duration = Duration::from_secs(4);

/// Connections to the neighbours.
pub struct TcpLink {
    neighbours: [usize; 2],
    /// Messages for the next rank, written by a thread, because two neighbours that both write large messages before they
    /// read would wait for each other.
    next: Sender<Message>,
    /// The connection that they are written to, only to look at.
    next_stream: TcpStream,
    /// Messages of the rank before, read by a thread; closed when it is lost.
    before: Receiver<Message>,
    before_stream: TcpStream,
    /// Why nothing more comes from the rank before.
    lost: Arc<OnceLock<(Cause, String)>>,
    abort: Abort,
}

impl TcpLink {
    pub(super) fn new(
        neighbours: [usize; 2],
        credential: Credential,
        next: TcpStream,
        before: TcpStream,
        traffic: &Traffic,
        abort: Abort,
    ) -> Result<Self> {
        for stream in [&next, &before] {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(SILENCE))?;
            stream.set_read_timeout(Some(SILENCE))?;
            give_up_unacknowledged(stream)?;
            abort.watch(stream)?;
        }
        let (next_stream, before_stream) = (next.try_clone()?, before.try_clone()?);
        let (to_next, messages) = channel();
        let counting = traffic.clone();
        std::thread::Builder::new().name("collective-out".into()).spawn(move || {
            if write(&mut counting.count(&next), credential, &messages).is_err() {
                let _ = next.shutdown(Shutdown::Both); // so that `broken` sees it
            }
        })?;
        let (from_before, received) = channel();
        let lost = Arc::new(OnceLock::new());
        let (counting, reason) = (traffic.clone(), Arc::clone(&lost));
        std::thread::Builder::new().name("collective-in".into()).spawn(move || {
            let error = read(&mut BufReader::new(counting.count(&before)), credential, &from_before);
            reason.set(meaning(&error)).expect("nobody else sets it");
        })?;
        Ok(Self { neighbours, next: to_next, next_stream, before: received, before_stream, lost, abort })
    }

    /// What nothing more comes from the rank before means, once its thread has ended.
    fn loss(&self) -> Option<Failure> {
        let (cause, reason) = self.lost.get()?.clone();
        Some(self.failure(cause, self.neighbours[0], reason))
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
        let next = || {
            let reason = "the connection to it is gone".into();
            closed(&self.next_stream).then(|| self.failure(Cause::Lost, self.neighbours[1], reason))
        };
        self.loss().or_else(next)
    }

    fn send(&mut self, message: Message) -> std::result::Result<(), Failure> {
        let gone = |_| self.failure(Cause::Lost, self.neighbours[1], "its connection is closed".into());
        self.next.send(message).map_err(gone)
    }

    fn receive(&mut self, deadline: Instant) -> std::result::Result<Message, Failure> {
        let patience = deadline.saturating_duration_since(Instant::now());
        self.before.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Disconnected => self.loss().expect("the thread says why before it ends"),
            RecvTimeoutError::Timeout => {
                let reason = format!("nothing came for {:.1} s", patience.as_secs_f64());
                self.failure(Cause::Late, self.neighbours[0], reason)
            }
        })
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.abort.forget();
        // The thread that reads ends; the one that writes does when everything is written.
        let _ = self.before_stream.shutdown(Shutdown::Both); // it may be gone already
    }
}

/// Writes `messages`, and signs of life between them, until the link is dropped.
fn write(to: &mut Counted<&TcpStream>, credential: Credential, messages: &Receiver<Message>) -> Result<()> {
    loop {
        match messages.recv_timeout(SIGN_OF_LIFE) {
            Ok(message) => write_frame(to, credential, &message)?,
            Err(RecvTimeoutError::Timeout) => write_sign_of_life(to, credential)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Hands on messages until the connection ends, and returns why it did.
fn read(
    from: &mut BufReader<Counted<&TcpStream>>,
    credential: Credential,
    messages: &Sender<Message>,
) -> Error {
    loop {
        match read_frame(from, credential) {
            Ok(Some(message)) => {
                if messages.send(message).is_err() {
                    return ErrorKind::UnexpectedEof.into(); // the link was dropped: nobody asks why
                }
            }
            Ok(None) => {} // it lives
            Err(error) => return error,
        }
    }
}

/// Why nothing more is read.
fn meaning(error: &Error) -> (Cause, String) {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            (Cause::Lost, format!("it gave no sign of life for {} s", SILENCE.as_secs()))
        }
        ErrorKind::InvalidData => (Cause::Garbled, error.to_string()),
        ErrorKind::UnexpectedEof => (Cause::Lost, "it closed the connection".into()),
        _ => (Cause::Lost, error.to_string()),
    }
}

/// Ends a connection whose other side acknowledges nothing: what is sent lies in the kernel's buffer, which hides for a quarter
/// of an hour that it does not arrive.
fn give_up_unacknowledged(stream: &TcpStream) -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(stream, SILENCE.as_millis() as u32)?;
    Ok(())
}

/// Whether the other end of a connection is gone.
fn closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut byte, flags) {
        Ok((0, _)) => true,
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Collective;
    use crate::collective::tcp::{Group, Rendezvous};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// The address of a cable to `target`: nothing gets through any more once it is cut, and no connection ends for that.
    fn cable(target: String, cut: Arc<AtomicBool>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let near = listener.accept().unwrap().0;
            let far = TcpStream::connect(target).unwrap();
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let cut = Arc::clone(&cut);
                std::thread::spawn(move || {
                    let mut bytes = [0; 1024];
                    loop {
                        let count = from.read(&mut bytes).unwrap_or(0);
                        if cut.load(Ordering::Relaxed) {
                            std::thread::park(); // holds both ends
                        }
                        if count == 0 || to.write_all(&bytes[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    #[test]
    fn silence_is_noticed_by_a_rank_that_waits_for_nothing() {
        let listeners = [(); 2].map(|()| Rendezvous::listen("127.0.0.1:0").unwrap());
        let cut = Arc::new(AtomicBool::new(false));
        let mut addresses: Vec<String> = listeners.iter().map(|l| l.address().to_string()).collect();
        addresses[1] = cable(addresses[1].clone(), Arc::clone(&cut));
        let join = |rank: usize| {
            let addresses = addresses.clone();
            let group = Group { run: "test".into(), generation: 1, key: b"key".to_vec(), rank, addresses };
            listeners[rank].join(&group, Instant::now() + Duration::from_secs(5), &Abort::default()).unwrap()
        };
        let (_first, mut second) = std::thread::scope(|scope| {
            let second = scope.spawn(|| join(1));
            (join(0), second.join().unwrap())
        });
        // Nobody has anything to say for longer than silence may last.
        std::thread::sleep(SILENCE + SIGN_OF_LIFE);
        assert_eq!(second.check(), Ok(()));

        cut.store(true, Ordering::Relaxed);
        let clock = Instant::now();
        let failure = loop {
            if let Err(failure) = second.check() {
                break failure;
            }
            assert!(clock.elapsed() < 2 * SILENCE, "it was not noticed");
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((failure.cause, failure.suspect), (Cause::Lost, Some(0)), "{failure}");
        assert!(failure.reason.contains("no sign of life"), "{failure}");
    }
}
