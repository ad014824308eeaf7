//! The ring over TCP: the stand-in for NCCL on machines without GPUs, as Gloo is for PyTorch.
//!
//! A worker listens at one address for its whole life ([`Rendezvous`]). For each generation it connects to the next rank
//! and waits for the rank before; both show that they know the generation's key. Messages carry their generation,
//! step and a checksum (`frame`). Each connection has a thread, which gives or awaits signs of life (`link`).

mod frame;
mod link;
mod rendezvous;
mod traffic;

pub use link::TcpLink;
pub use rendezvous::{Group, Rendezvous};
pub use traffic::Traffic;

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

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
