//! A step shared between ranks: who computes what, and how it becomes one gradient.
//!
//! A step has M canonical micro-batches, which belong to the run. A rank computes some of them; gradients are added
//! exactly, everything else is put in the micro-batches' order. So the result has the same bits whoever computed what.

use crate::batch::Patches;
use crate::collective::{Cause, Collective, Failure};
use crate::device::read;
use crate::gradients::{Mean, mean};
use burn::tensor::{Device, Tensor};
use bytemuck::Pod;
use std::ops::Range;

/// One rank's part of a step.
#[derive(Debug, Clone)]
pub struct Share<'p> {
    /// Micro-batches of the step, M.
    pub count: usize,
    /// Those of this rank; may be empty.
    pub mine: Range<usize>,
    /// Their patches, one micro-batch after the other.
    pub patches: Patches<'p>,
}

impl<'p> Share<'p> {
    /// All of a step's `patches` for one worker, cut into micro-batches of `size`.
    pub fn whole(patches: Patches<'p>, size: usize) -> Self {
        let count = patches.len().div_ceil(size);
        Self { count, mine: 0..count, patches }
    }

    /// Number and patches of each micro-batch.
    pub fn micro_batches(&self) -> impl Iterator<Item = (usize, Patches<'p>)> {
        let size = self.patches.len() / self.mine.len().max(1);
        let patches = self.patches;
        self.mine.clone().enumerate().map(move |(i, number)| (number, patches.part(i * size, size)))
    }
}

/// Where a rank is within a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for patches.
    Data,
    /// Computing gradients.
    Forward,
    /// Adding them up with the other ranks.
    Reduce,
    /// Updating the networks.
    Apply,
    /// Everything of the step is done; it is about to count.
    Commit,
    /// Judging the generator on validation pairs.
    Validate,
}

/// The program around a step: sees where it is, and may wish to stop after it.
pub trait Watch {
    /// A phase begins.
    fn enter(&self, phase: Phase);
    /// Whether this rank wants all ranks to stop together after this step.
    fn stop(&self) -> bool;
}

/// Nobody watches.
impl Watch for () {
    fn enter(&self, _: Phase) {}

    fn stop(&self) -> bool {
        false
    }
}

/// The ranks that take a step together, and who watches this one.
pub struct Group<'g> {
    /// All ranks.
    pub collective: &'g mut dyn Collective,
    /// The program around this one.
    pub watch: &'g dyn Watch,
}

/// An update that all ranks made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Updated<L> {
    /// Mean losses of the micro-batches.
    pub losses: L,
    /// Whether a rank wants to stop now.
    pub stop: bool,
}

/// What one micro-batch contributes, on the device that computed it.
pub struct Contribution {
    /// Its number in the step.
    pub micro_batch: usize,
    /// Gradient for all parameters.
    pub gradient: Tensor<1>,
    /// Losses and batch statistics: whatever is combined in order. All of a step have the same length.
    pub report: Tensor<1>,
}

/// A step's contributions, combined; the same on every rank.
pub struct Combined {
    /// Mean gradient of the micro-batches.
    pub gradient: Tensor<1>,
    /// Their reports, in order.
    pub reports: Vec<Vec<f32>>,
    /// Whether any rank wants to stop after this step.
    pub stop: bool,
}

impl Group<'_> {
    /// This rank's contributions, one micro-batch after the other for as long as the group stands.
    ///
    /// # Errors
    /// If the group breaks meanwhile.
    pub fn compute(
        &mut self,
        share: &Share<'_>,
        gradient: impl Fn(usize, Patches<'_>) -> Contribution,
    ) -> Result<Vec<Contribution>, Failure> {
        share
            .micro_batches()
            .map(|(number, patches)| {
                self.collective.check()?;
                Ok(gradient(number, patches))
            })
            .collect()
    }

    /// Combines the contributions of all ranks to a step of `count` micro-batches over `parameters` values. The result is
    /// on `device`.
    ///
    /// # Errors
    /// If the collective fails.
    pub fn combine(
        &mut self,
        count: usize,
        parameters: usize,
        contributions: &[Contribution],
        device: &Device,
    ) -> Result<Combined, Failure> {
        self.watch.enter(Phase::Reduce);
        let gradients: Vec<Tensor<1>> = contributions.iter().map(|c| c.gradient.clone()).collect();
        let wish = self.watch.stop();
        let Mean { gradient, stop } = mean(self.collective, &gradients, parameters, count, wish, device)?;

        let own = reports(contributions)?;
        let own = contributions.iter().zip(&own).map(|(c, report)| (c.micro_batch, &report[..]));
        let reports = collect(self.collective, count, own)?;
        self.watch.enter(Phase::Apply);
        Ok(Combined { gradient, reports, stop })
    }
}

/// The reports of all `contributions`, read from their device at once.
fn reports(contributions: &[Contribution]) -> Result<Vec<Vec<f32>>, Failure> {
    let Some(first) = contributions.first() else { return Ok(Vec::new()) };
    let length = first.report.dims()[0];
    let all = read(Tensor::cat(contributions.iter().map(|c| c.report.clone()).collect(), 0))?;
    Ok(all.chunks(length).map(<[f32]>::to_vec).collect())
}

/// Values that belong to one of `count` numbered parts of a work, brought together in the order of their numbers.
///
/// # Errors
/// If the collective fails, or the ranks disagree about who computes what.
pub fn collect<'v, T: Pod>(
    collective: &mut dyn Collective,
    count: usize,
    parts: impl Iterator<Item = (usize, &'v [T])>,
) -> Result<Vec<Vec<T>>, Failure> {
    let mut said = Vec::new();
    for (number, values) in parts {
        let values: &[u8] = bytemuck::cast_slice(values);
        said.extend((number as u32).to_le_bytes());
        said.extend((values.len() as u32).to_le_bytes());
        said.extend(values);
    }
    let mut all = vec![None; count];
    for (rank, said) in collective.gather(said)?.iter().enumerate() {
        let mut rest = &said[..];
        while !rest.is_empty() {
            let (number, values) = part(&mut rest).ok_or_else(|| unshared(rank, 0, "came cut short"))?;
            let place = all.get_mut(number).filter(|place| place.is_none());
            *place.ok_or_else(|| unshared(rank, number, "came twice or is not of this step"))? = Some(values);
        }
    }
    let missing = all.iter().position(Option::is_none);
    missing.map_or(Ok(()), |number| Err(unshared(0, number, "was computed by no rank")))?;
    Ok(all.into_iter().flatten().collect())
}

/// Takes one part off the front of what a rank said.
fn part<T: Pod>(rest: &mut &[u8]) -> Option<(usize, Vec<T>)> {
    let mut word = || {
        let (word, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        Some(u32::from_le_bytes(*word) as usize)
    };
    let (number, length) = (word()?, word()?);
    let (values, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    length.is_multiple_of(size_of::<T>()).then(|| (number, bytemuck::pod_collect_to_vec(values)))
}

/// Ranks that disagree about who computes what.
fn unshared(rank: usize, number: usize, problem: &str) -> Failure {
    let reason = format!("part {number} of the work {problem}");
    Failure { cause: Cause::Garbled, suspect: Some(rank), reason }
}
