//! From patches to tensors: both directions of every pair, side by side in one batch.
//!
//! ```text
//!  Cutter -> Samples --patches()--> Patches --batch(), real_pairs()--> tensors
//!            Host: patches, cut        `host`: as numbers, then uploaded
//!            Device: where they are    `cube`: from scans that lie on the device
//! ```

#[cfg(feature = "cube")]
mod cube;
mod host;
mod samples;

pub use samples::{Cutter, Samples, Scans};

use crate::config::RealSegmentation;
use burn::tensor::{Device, Tensor};
use jrs_data::sampling::Patch;

/// One micro-batch of `n` patch pairs as `2n` registration problems: first G(f, m), then G(m, f) \[paper:
/// symmetric training\]. `P` is the patch edge and `Q = P - 40` the output edge.
pub struct Batch {
    /// concat(I_f, I_m), \[2n, 2, P, P, P\].
    pub images: Tensor<5>,
    /// What Φ is applied to: I_m, then one-hot labels where the system uses them, \[2n, 1 + organs, P, P, P\].
    /// The **whole** patch, because cropping first would lose content.
    pub source: Tensor<5>,
    /// I_f on the output grid, \[2n, 1, Q, Q, Q\].
    pub fixed: Tensor<5>,
    /// One-hot S_f on the output grid, \[2n, organs, Q, Q, Q\].
    pub fixed_masks: Option<Tensor<5>>,
}

/// What only critic updates need.
pub struct RealPair {
    /// Θ(I_f), \[2n, 1, Q, Q, Q\].
    pub image: Tensor<5>,
    /// Union of the organs of S_f, \[2n, 1, Q, Q, Q\].
    pub mask: Option<Tensor<5>>,
}

/// The patches of some samples, cut or to be cut.
#[derive(Debug, Clone, Copy)]
pub enum Patches<'p> {
    /// Cut on the host.
    Host(&'p [Patch]),
    /// To be cut on the device of the batch.
    #[cfg(feature = "cube")]
    Device(&'p [samples::Cut]),
}

impl<'p> Patches<'p> {
    /// How many there are.
    pub fn len(self) -> usize {
        match self {
            Self::Host(patches) => patches.len(),
            #[cfg(feature = "cube")]
            Self::Device(cuts) => cuts.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Those from `first` on, `count` of them.
    pub fn part(self, first: usize, count: usize) -> Self {
        match self {
            Self::Host(patches) => Self::Host(&patches[first..first + count]),
            #[cfg(feature = "cube")]
            Self::Device(cuts) => Self::Device(&cuts[first..first + count]),
        }
    }

    /// Their tensors; `organs` are the label ids that become channels, empty for systems without contours. `blur` widens
    /// their edges (see [`crate::contours::one_hot`]).
    ///
    /// # Panics
    /// If there are no patches, or those of a device are wanted on another kind of device.
    pub fn batch(self, organs: &[u8], blur: usize, device: &Device) -> Batch {
        match self {
            Self::Host(patches) => host::batch(patches, organs, blur, device),
            #[cfg(feature = "cube")]
            Self::Device(cuts) => cube::batch(cuts, organs, blur, device),
        }
    }

    /// The real pairs (I_f, Θ(I_f), S_f) of a critic update; Θ is drawn for `seed` and the sample.
    ///
    /// # Panics
    /// As [`Patches::batch`].
    pub fn real_pairs(
        self,
        organs: &[u8],
        segmentation: RealSegmentation,
        seed: u64,
        device: &Device,
    ) -> RealPair {
        match self {
            Self::Host(patches) => host::real_pairs(patches, organs, segmentation, seed, device),
            #[cfg(feature = "cube")]
            Self::Device(cuts) => cube::real_pairs(cuts, organs, segmentation, device),
        }
    }
}
