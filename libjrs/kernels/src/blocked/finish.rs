//! From sums to voxels: activation, and the head.

use std::ops::Range;

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

/// The same, for tasks that write at disjoint places. Planes from the border in front of their first row on.
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
                let (pitch, first) = (planes[0].pitch(), planes[0].at(0, 0, -1));
                let block = if planes[0].blocks() > 1 { planes[0].at(1, 0, -1) - first } else { 0 };
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

/// [`Activation`] of a block of output channels, in `V` vectors.
#[derive(Clone, Copy)]
pub(super) struct Finish<S: Simd, const V: usize> {
    bias: [S::V; V],
    slope: S::V,
    scale: [S::V; V],
    shift: [S::V; V],
}

impl<S: Simd, const V: usize> Finish<S, V> {
    /// For the `block`-th channels.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions; `V` vectors are a block.
    #[inline(always)]
    pub unsafe fn of(activation: &Activation, block: usize) -> Self {
        let Activation { bias, slope, scale, shift } = activation;
        // SAFETY: the caller has S; 16 values are cut out of each.
        unsafe {
            let mut finish = Self {
                bias: [S::splat(0.0); V],
                slope: S::splat(*slope),
                scale: [S::splat(0.0); V],
                shift: [S::splat(0.0); V],
            };
            for (to, from) in
                [(&mut finish.bias, bias), (&mut finish.scale, scale), (&mut finish.shift, shift)]
            {
                let from = from[block * BLOCK..][..BLOCK].as_ptr();
                for v in 0..V {
                    to[v] = S::load(from.add(v * S::LANES));
                }
            }
            finish
        }
    }

    /// A voxel's values from its sums.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions.
    #[inline(always)]
    pub unsafe fn apply(&self, sums: [S::V; V]) -> [S::V; V] {
        let mut values = sums;
        for v in 0..V {
            // SAFETY: the caller has S.
            unsafe {
                let value = S::add(sums[v], self.bias[v]);
                // max is LeakyReLU for slopes from 0 to 1.
                let active = S::max(S::mul(self.slope, value), value);
                values[v] = S::fma(self.scale[v], active, self.shift[v]);
            }
        }
        values
    }
}

impl Target<'_> {
    /// Writes the border in front of some rows of a block of channels.
    ///
    /// # Safety
    /// No other task writes it.
    pub unsafe fn border(&self, block: usize, z: usize, rows: Range<usize>) {
        if let Self::Planes { planes, pitch, block: step } = self {
            for y in rows {
                // SAFETY: as the caller promises; the slice is checked.
                unsafe { planes[z].slice(block * step + y * pitch, BLOCK).fill(0.0) };
            }
        }
    }

    /// Writes voxels (z, y, x), (z, y, x + 1) and so on of a block of channels, whose values lie one after another.
    ///
    /// # Safety
    /// The processor must have `S`'s instructions; `V` vectors are a block; no other task writes those voxels.
    #[inline(always)]
    pub unsafe fn write<S: Simd, const V: usize>(
        &self,
        block: usize,
        [z, y, x]: [usize; 3],
        sums: &[[f32; BLOCK]],
        finish: &Finish<S, V>,
    ) {
        // SAFETY: as the caller promises; the slices are checked.
        unsafe {
            match self {
                Self::Planes { planes, pitch, block: step } => {
                    let to = planes[z].slice(block * step + y * pitch + (1 + x) * BLOCK, sums.len() * BLOCK);
                    for i in 0..sums.len() {
                        let values = finish.apply(load::<S, V>(&sums[i]));
                        for v in 0..V {
                            S::store(to.as_mut_ptr().add(i * BLOCK + v * S::LANES), values[v]);
                        }
                    }
                }
                Self::Displacement { head, edges, u } => {
                    let at = (z * edges[0] + y) * edges[1] + x;
                    let to = u.each_ref().map(|u| u.slice(at, sums.len()));
                    for i in 0..sums.len() {
                        let values = finish.apply(load::<S, V>(&sums[i]));
                        for c in 0..3 {
                            let weight = head.weight[c].as_ptr();
                            let mut dot = S::mul(S::load(weight), values[0]);
                            for v in 1..V {
                                dot = S::fma(S::load(weight.add(v * S::LANES)), values[v], dot);
                            }
                            to[c][i] = head.bias[c] + S::sum(dot);
                        }
                    }
                }
            }
        }
    }
}

/// A voxel's 16 values.
///
/// # Safety
/// The processor must have `S`'s instructions; `V` vectors are a block.
#[inline(always)]
unsafe fn load<S: Simd, const V: usize>(from: &[f32; BLOCK]) -> [S::V; V] {
    // SAFETY: what the caller promises.
    unsafe {
        let mut values = [S::splat(0.0); V];
        for v in 0..V {
            values[v] = S::load(from.as_ptr().add(v * S::LANES));
        }
        values
    }
}
