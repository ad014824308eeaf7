//! Which samples make up a step, and which rank computes which of them.
//!
//! Step `s` consumes positions `[sB, (s+1)B)` of the run's sample order, cut into `M` canonical micro-batches. The cut
//! belongs to the run (batch normalisation sees micro-batches), the assignment to ranks only to the moment: that is
//! why the same model comes out of any number of workers.

use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;

use crate::error::{Error, Result};

/// How the samples of a step are cut: `batch` samples in `count` micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatches {
    batch: NonZeroU64,
    count: NonZeroUsize,
}

/// One micro-batch of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// Its place within the step, from 0; statistics are combined in this order.
    pub index: usize,
    /// The positions in the run's sample order that it consumes.
    pub positions: Range<u64>,
}

impl MicroBatches {
    /// `batch` samples a step in `count` micro-batches, whose sizes differ by at most one.
    ///
    /// # Errors
    /// If either is zero or there are more micro-batches than samples.
    pub fn new(batch: u64, count: usize) -> Result<Self> {
        let both = NonZeroU64::new(batch).zip(NonZeroUsize::new(count));
        both.filter(|_| count as u64 <= batch).map(|(batch, count)| Self { batch, count }).ok_or_else(|| {
            Error::input(
                format!("a batch of {batch} cannot be cut into {count} micro-batches"),
                "Use at least one micro-batch and at most one for each sample",
            )
        })
    }

    /// Samples in a step.
    pub fn batch(&self) -> u64 {
        self.batch.get()
    }

    /// Micro-batches in a step.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// The micro-batches of `step` in their canonical order.
    ///
    /// # Errors
    /// If the positions exceed 64 bits.
    pub fn of_step(&self, step: u64) -> Result<Vec<MicroBatch>> {
        let end = step.checked_add(1).and_then(|next| next.checked_mul(self.batch()));
        let end = end.ok_or_else(|| {
            Error::input(
                format!("step {step} with {} samples a step is beyond 64 bits", self.batch),
                "Check the step's number",
            )
        })?;
        let first = end - self.batch();
        let parts = Parts { total: self.batch(), count: self.count() as u64 };
        let micro_batch = |index: usize| {
            let part = parts.part(index as u64);
            MicroBatch { index, positions: first + part.start..first + part.end }
        };
        Ok((0..self.count()).map(micro_batch).collect())
    }

    /// The indices of the micro-batches that each of `ranks` ranks computes: contiguous, in rank order, balanced to one.
    /// With more ranks than micro-batches some ranges are empty; such a rank still takes part in collectives.
    pub fn assign(&self, ranks: NonZeroUsize) -> Vec<Range<usize>> {
        let parts = Parts { total: self.count() as u64, count: ranks.get() as u64 };
        let of_rank = |rank: usize| {
            let part = parts.part(rank as u64);
            part.start as usize..part.end as usize
        };
        (0..ranks.get()).map(of_rank).collect()
    }
}

/// `total` things in `count` contiguous parts whose sizes differ by at most one.
struct Parts {
    total: u64,
    count: u64,
}

impl Parts {
    fn part(&self, index: u64) -> Range<u64> {
        self.boundary(index)..self.boundary(index + 1)
    }

    /// floor(index * total / count), in 128 bits because the product may not fit into 64.
    fn boundary(&self, index: u64) -> u64 {
        (u128::from(index) * u128::from(self.total) / u128::from(self.count)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn balanced(sizes: impl Iterator<Item = u64> + Clone) -> bool {
        sizes.clone().max().unwrap_or(0) - sizes.min().unwrap_or(0) <= 1
    }

    fn cut() -> impl Strategy<Value = MicroBatches> {
        (1..200_u64).prop_flat_map(|batch| {
            (1..=batch as usize).prop_map(move |count| MicroBatches::new(batch, count).unwrap())
        })
    }

    proptest! {
        #[test]
        fn a_step_consumes_each_of_its_positions_once(cut in cut(), step in 0..1_u64 << 40) {
            let parts = cut.of_step(step).unwrap();
            let mut next = step * cut.batch();
            for (index, part) in parts.iter().enumerate() {
                prop_assert_eq!(part.index, index);
                prop_assert_eq!(part.positions.start, next);
                prop_assert!(!part.positions.is_empty());
                next = part.positions.end;
            }
            prop_assert_eq!(next, (step + 1) * cut.batch());
            prop_assert!(balanced(parts.iter().map(|part| part.positions.end - part.positions.start)));
        }

        #[test]
        fn every_micro_batch_has_one_rank(cut in cut(), ranks in 1..300_usize) {
            let assigned = cut.assign(NonZeroUsize::new(ranks).unwrap());
            prop_assert_eq!(assigned.len(), ranks);
            let all: Vec<usize> = assigned.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..cut.count()).collect::<Vec<_>>());
            prop_assert!(balanced(assigned.iter().map(|range| range.len() as u64)));
        }
    }

    #[test]
    fn three_ranks_share_eight_micro_batches() {
        let cut = MicroBatches::new(16, 8).unwrap();
        assert_eq!(cut.assign(NonZeroUsize::new(3).unwrap()), [0..2, 2..5, 5..8]);
        let last = &cut.of_step(2).unwrap()[7];
        assert_eq!(*last, MicroBatch { index: 7, positions: 46..48 });
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (batch, count) in [(0, 1), (1, 0), (0, 0), (4, 5)] {
            assert!(MicroBatches::new(batch, count).is_err(), "{batch} {count}");
        }
        let cut = MicroBatches::new(2, 1).unwrap();
        assert!(cut.of_step(u64::MAX / 2 - 1).is_ok());
        assert!(cut.of_step(u64::MAX / 2).is_err());
        assert!(cut.of_step(u64::MAX).is_err());
    }
}
