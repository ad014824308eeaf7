//! From sums to voxels: activation, and the head.

use crate::activation::{Activation, Head};
use crate::shared::SharedMut;
use crate::simd::Simd;

use super::plane::{BLOCK, Plane};

/// Where results go.
#[derive(Debug)]
pub enum Output<'a, 'p> {
    /// One plane per output plane, the input of a next convolution.
    Planes(Vec<&'a mut Plane<'p>>),
    /// Through the head, to one `[z][y][x]` array per component with planes of `edges`.
    Displacement {
        /// The head, which takes 16 channels.
        head: &'a Head,
        /// y, x.
        edges: [usize; 2],
        /// The components.
        u: [&'a mut [f32]; 3],
    },
}

/// The same, for tasks that write at disjoint places.
pub(super) enum Target<'a> {
    Planes { planes: Vec<SharedMut<'a>>, pitch: usize, block: usize },
    Displacement { head: &'a Head, edges: [usize; 2], u: [SharedMut<'a>; 3] },
}

impl<'a> Output<'a, '_> {
    /// Number of planes and their edges.
    pub(super) fn shape(&self) -> (usize, [usize; 2]) {
        match self {
            Self::Planes(planes) => (planes.len(), planes[0].edges()),
            Self::Displacement { edges, u, .. } => (u[0].len() / (edges[0] * edges[1]), *edges),
        }
    }

    pub(super) fn check(&self, c_out: usize) {
        match self {
            Self::Planes(planes) => {
                let edges = planes[0].edges();
                assert!(planes.iter().all(|plane| (plane.channels(), plane.edges()) == (c_out, edges)));
            }
            Self::Displacement { edges, u, .. } => {
                assert_eq!(c_out, BLOCK, "the head takes 16 channels");
                let len = u[0].len();
                assert!(len.is_multiple_of(edges[0] * edges[1]) && u.iter().all(|u| u.len() == len), "head");
            }
        }
    }

    pub(super) fn target(self) -> Target<'a> {
        match self {
            Self::Planes(planes) => {
                let (pitch, first) = (planes[0].pitch(), planes[0].at(0, 0, 0));
                let block = if planes[0].blocks() > 1 { planes[0].at(1, 0, 0) - first } else { 0 };
                let planes = planes
                    .into_iter()
                    .map(|plane| SharedMut::new(&mut plane.values_mut()[first..]))
                    .collect();
                Target::Planes { planes, pitch, block }
            }
            Self::Displacement { head, edges, u } => {
                Target::Displacement { head, edges, u: u.map(SharedMut::new) }
            }
        }
    }
}

/// [`Activation`] of a block of output channels, in vectors.
#[derive(Clone, Copy)]
pub(super) struct Lanes<'a> {
    activation: &'a Activation,
    channel: usize,
}

impl<'a> Lanes<'a> {
    pub fn of(activation: &'a Activation, block: usize) -> Self {
        Self { activation, channel: block * BLOCK }
    }

    /// The `v`-th vector of the block's values, from its sums.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions; the block has that vector.
    #[inline(always)]
    pub unsafe fn apply<S: Simd>(&self, sums: S::V, v: usize) -> S::V {
        let Activation { bias, slope, scale, shift } = self.activation;
        let at = self.channel + v * S::LANES;
        // SAFETY: each has a value per output channel (`Convolution::new`).
        unsafe {
            let value = S::add(sums, S::load(bias.as_ptr().add(at)));
            // max is LeakyReLU for slopes from 0 to 1.
            let active = S::max(S::mul(S::splat(*slope), value), value);
            S::fma(S::load(scale.as_ptr().add(at)), active, S::load(shift.as_ptr().add(at)))
        }
    }
}

impl Target<'_> {
    /// Writes voxel (z, y, x) of a block of channels.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions; `V` vectors are a block; no other task writes that voxel.
    #[inline(always)]
    pub unsafe fn write<S: Simd, const V: usize>(
        &self,
        block: usize,
        [z, y, x]: [usize; 3],
        values: [S::V; V],
    ) {
        // SAFETY: as the caller promises; the slices are checked.
        unsafe {
            match self {
                Self::Planes { planes, pitch, block: step } => {
                    let to = planes[z].slice(block * step + y * pitch + x * BLOCK, BLOCK);
                    for v in 0..V {
                        S::store(to.as_mut_ptr().add(v * S::LANES), values[v]);
                    }
                }
                Self::Displacement { head, edges, u } => {
                    for c in 0..3 {
                        let weight = head.weight[c].as_ptr();
                        let mut dot = S::mul(S::load(weight), values[0]);
                        for v in 1..V {
                            dot = S::fma(S::load(weight.add(v * S::LANES)), values[v], dot);
                        }
                        u[c].slice((z * edges[0] + y) * edges[1] + x, 1)[0] = head.bias[c] + S::sum(dot);
                    }
                }
            }
        }
    }
}
