//! Reuse of large scratch buffers.
//!
//! A freshly mapped buffer costs as much as the arithmetic done in it (the kernel zeroes every page), so
//! buffers go back to a pool and come out again with their pages in place.
//!
//! What a pool holds in the end depends on the order of what was asked of it. A [`Ledger`] goes through the same rule with lengths
//! alone, so that it can be known beforehand.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Most buffers that a pool keeps (a run in planes has hundreds at work); the smallest are let go first.
const KEPT: usize = 512;

/// A set of idle buffers, shared by threads.
///
/// ```
/// let pool = jrs_kernels::pool::Pool::new();
/// let first = pool.take(1000);
/// let address = first.as_ptr();
/// drop(first);
/// assert_eq!(pool.take(900).as_ptr(), address);
/// ```
#[derive(Debug, Default)]
pub struct Pool {
    shelf: Mutex<Shelf<Vec<f32>>>,
}

/// The pool of this crate's own scratch buffers. [`Pool::clear`] it to give memory back between volumes.
pub static SCRATCH: Pool = Pool::new();

impl Pool {
    /// An empty pool.
    pub const fn new() -> Self {
        Self { shelf: Mutex::new(Shelf::new()) }
    }

    /// A buffer of `len` values, **whose contents are whatever an earlier user left** (or zeros).
    pub fn take(&self, len: usize) -> Buffer<'_> {
        let idle = self.shelf.lock().unwrap_or_else(PoisonError::into_inner).take(len);
        // Otherwise straight from the allocator's zero pages.
        Buffer { data: idle.unwrap_or_else(|| vec![0.0; len]), len, pool: self }
    }

    /// Frees all idle buffers.
    pub fn clear(&self) {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Most values that this pool's buffers, at work and idle, had at one time since it was made or cleared.
    pub fn peak(&self) -> usize {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).peak
    }

    /// What this pool has now, to try out what else would be asked of it.
    pub fn ledger(&self) -> Ledger {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = shelf.idle.iter().map(Length::length).collect();
        Ledger { shelf: Shelf { idle, held: shelf.held, peak: shelf.peak } }
    }

    fn give(&self, data: Vec<f32>) {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner).give(data);
    }
}

/// A buffer of a [`Pool`]; it returns there when dropped. Use as a slice.
#[derive(Debug)]
pub struct Buffer<'a> {
    /// At its full length, so that reuse never fills anything in.
    data: Vec<f32>,
    len: usize,
    pool: &'a Pool,
}

impl Deref for Buffer<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.data));
    }
}

/// A [`Pool`] without buffers: what would it hold?
///
/// ```
/// let mut ledger = jrs_kernels::pool::Ledger::default();
/// let small = ledger.take(1000);
/// ledger.give(small);
/// let large = ledger.take(2000);
/// let again = ledger.take(900);
/// assert_eq!((large, again, ledger.peak()), (2000, 1000, 3000));
/// ```
#[derive(Debug, Default)]
pub struct Ledger {
    shelf: Shelf<usize>,
}

impl Ledger {
    /// The length of the buffer that a pool would hand out for `len` values. Give it back with [`Ledger::give`].
    #[must_use]
    pub fn take(&mut self, len: usize) -> usize {
        self.shelf.take(len).unwrap_or(len)
    }

    /// Back to the pool, with the length that [`Ledger::take`] said.
    pub fn give(&mut self, length: usize) {
        self.shelf.give(length);
    }

    /// Most values held at one time, see [`Pool::peak`].
    pub fn peak(&self) -> usize {
        self.shelf.peak
    }
}

/// Buffers, or their lengths alone.
trait Length {
    fn length(&self) -> usize;
}

impl Length for Vec<f32> {
    fn length(&self) -> usize {
        self.len()
    }
}

impl Length for usize {
    fn length(&self) -> usize {
        *self
    }
}

/// The rule: which idle buffer is taken, and which are kept.
#[derive(Debug, Default)]
struct Shelf<T> {
    /// In order of length.
    idle: Vec<T>,
    /// Values of all buffers, at work and idle.
    held: usize,
    peak: usize,
}

impl<T: Length> Shelf<T> {
    const fn new() -> Self {
        Self { idle: Vec::new(), held: 0, peak: 0 }
    }

    /// An idle buffer for `len` values; `None` if one has to be made.
    fn take(&mut self, len: usize) -> Option<T> {
        // The first that fits is the best fit.
        let fit = self.idle.partition_point(|buffer| buffer.length() < len);
        if self.idle.get(fit).is_some_and(|buffer| buffer.length() <= 4 * len.max(1024)) {
            return Some(self.idle.remove(fit));
        }
        self.held += len;
        self.peak = self.peak.max(self.held);
        None
    }

    fn give(&mut self, buffer: T) {
        let at = self.idle.partition_point(|other| other.length() < buffer.length());
        self.idle.insert(at, buffer);
        if self.idle.len() > KEPT {
            self.held -= self.idle.remove(0).length();
        }
    }

    fn clear(&mut self) {
        self.held -= self.idle.drain(..).map(|buffer| buffer.length()).sum::<usize>();
        self.peak = self.held;
    }
}
