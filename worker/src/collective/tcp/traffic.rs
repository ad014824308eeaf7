//! Bytes counted where they pass the socket: what the collective really costs the network, headers and signs of life with it.

use std::io::{Read, Result, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that a worker's collectives have sent and received, over all its generations. Clones are the same counters.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Bytes handed to the kernel.
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Bytes taken from the kernel.
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// `stream`, with everything that passes it counted.
    pub(super) fn count<S>(&self, stream: S) -> Counted<S> {
        Counted { stream, traffic: self.clone() }
    }
}

/// A stream whose bytes are counted.
pub(super) struct Counted<S> {
    stream: S,
    traffic: Traffic,
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let count = self.stream.read(bytes)?;
        self.traffic.0.received.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.stream.write(bytes)?;
        self.traffic.0.sent.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush()
    }
}
