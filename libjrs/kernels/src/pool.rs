//! Reuse of large scratch buffers.
//!
//! A freshly mapped buffer costs as much as the arithmetic done in it (the kernel zeroes every page), so
//! buffers go back to a pool and come out again with their pages in place.

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
    idle: Mutex<Vec<Vec<f32>>>,
}

/// The pool of this crate's own scratch buffers. [`Pool::clear`] it to give memory back between volumes.
pub static SCRATCH: Pool = Pool::new();

impl Pool {
    /// An empty pool.
    pub const fn new() -> Self {
        Self { idle: Mutex::new(Vec::new()) }
    }

    /// A buffer of `len` values, **whose contents are whatever an earlier user left** (or zeros).
    pub fn take(&self, len: usize) -> Buffer<'_> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // `idle` is sorted by length: the first that fits is the best fit.
        let fit = idle.partition_point(|data| data.len() < len);
        let data = if fit < idle.len() && idle[fit].len() <= 4 * len.max(1024) {
            idle.remove(fit)
        } else {
            drop(idle);
            vec![0.0; len] // straight from the allocator's zero pages
        };
        Buffer { data, len, pool: self }
    }

    /// Frees all idle buffers.
    pub fn clear(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn give(&self, data: Vec<f32>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = idle.partition_point(|other| other.len() < data.len());
        idle.insert(at, data);
        if idle.len() > KEPT {
            idle.remove(0);
        }
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
