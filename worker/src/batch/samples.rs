//! What a step's samples are before they are tensors.
//!
//! The CPU has patches cut on the feed's thread. A GPU keeps the scans and cuts for itself: it is told where, and given what is
//! drawn at random, which the same thread draws.

use super::Patches;
#[cfg(feature = "cube")]
use super::host::theta;
use crate::config::TrainConfig;
use crate::device::is_cube;
#[cfg(feature = "cube")]
use crate::theta::{Theta, smoothing_kernel};
use burn::tensor::Device;
use jrs_data::cache::PreparedPair;
use jrs_data::sampling::{Cropping, Patch, SampleId};
#[cfg(feature = "cube")]
use libjrs::network::MARGIN;
use rayon::prelude::*;
use std::sync::Arc;
#[cfg(feature = "cube")]
use std::sync::OnceLock;

/// The scans of a pair: in memory, and on the device that cuts patches from them, once it has.
#[derive(Debug)]
pub struct Scans {
    pub(super) pair: PreparedPair,
    #[cfg(feature = "cube")]
    pub(super) on_device: OnceLock<jrs_cube::patch::Volumes>,
}

impl From<PreparedPair> for Scans {
    fn from(pair: PreparedPair) -> Self {
        Self {
            pair,
            #[cfg(feature = "cube")]
            on_device: OnceLock::new(),
        }
    }
}

/// The samples of a step, ready to become a batch.
#[derive(Debug)]
pub enum Samples {
    /// Patches.
    Host(Vec<Patch>),
    /// Where the device will cut patches.
    #[cfg(feature = "cube")]
    Device(Vec<Cut>),
}

impl Samples {
    /// Of nothing.
    pub const NONE: Self = Self::Host(Vec::new());

    /// All of them.
    pub fn patches(&self) -> Patches<'_> {
        match self {
            Self::Host(patches) => Patches::Host(patches),
            #[cfg(feature = "cube")]
            Self::Device(cuts) => Patches::Device(cuts),
        }
    }
}

/// A patch that a device is to cut.
#[cfg(feature = "cube")]
#[derive(Debug)]
pub struct Cut {
    pub(super) scans: Arc<Scans>,
    /// Voxel x, y, z around which it is.
    pub(super) centre: [usize; 3],
    pub(super) shape: jrs_cube::patch::Shape,
    /// Θ of the sample, forward and backward; nothing for systems without a critic.
    pub(super) changes: Vec<Change>,
}

/// One draw of Θ with all that it needs.
#[cfg(feature = "cube")]
#[derive(Debug)]
pub(super) struct Change {
    theta: Theta,
    /// For each voxel of the output grid.
    noise: Option<Vec<f32>>,
}

#[cfg(feature = "cube")]
impl Change {
    /// As the kernels take it.
    pub(super) fn on_device(&self) -> jrs_cube::patch::Change<'_> {
        jrs_cube::patch::Change {
            field: self.theta.field.as_deref(),
            smoothing: self.theta.smoothing.map(smoothing_kernel),
            gamma: self.theta.gamma,
            noise: self.noise.as_deref(),
        }
    }
}

/// Makes samples of scans.
#[derive(Debug, Clone, Copy)]
pub struct Cutter {
    cropping: Cropping,
    /// Whether there is a critic, which sees Θ(I_f).
    #[cfg(feature = "cube")]
    critic: bool,
    on_device: bool,
}

impl Cutter {
    /// For the run of `config` on `device`; `full_scale` is the HU that become 1 in a patch.
    pub fn new(config: &TrainConfig, full_scale: f32, device: &Device) -> Self {
        let sampling = &config.sampling;
        Self {
            cropping: Cropping {
                seed: config.seed,
                edge: sampling.patch,
                full_scale,
                around_organs: sampling.around_organs,
            },
            #[cfg(feature = "cube")]
            critic: config.system.critic_channels().is_some(),
            on_device: is_cube(device),
        }
    }

    /// Samples `ids`, each with the scans that it is of.
    pub fn samples(&self, ids: &[SampleId], scans: &[Arc<Scans>]) -> Samples {
        let each = ids.par_iter().zip(scans);
        #[cfg(feature = "cube")]
        if self.on_device {
            return Samples::Device(each.map(|(&id, scans)| self.cut(id, scans)).collect());
        }
        debug_assert!(!self.on_device, "no such device in this build");
        Samples::Host(each.map(|(&id, scans)| self.cropping.crop(id, &scans.pair)).collect())
    }

    #[cfg(feature = "cube")]
    fn cut(&self, id: SampleId, scans: &Arc<Scans>) -> Cut {
        let Cropping { seed, edge, full_scale, .. } = self.cropping;
        let voxels = (edge - 2 * MARGIN).pow(3);
        let change = |direction| {
            let (theta, mut draws) = theta(seed, id, direction);
            Change { noise: theta.noise(voxels, &mut draws), theta }
        };
        Cut {
            scans: Arc::clone(scans),
            centre: self.cropping.centre(id, &scans.pair),
            shape: jrs_cube::patch::Shape { edge, margin: MARGIN, full_scale },
            changes: if self.critic { (0..2).map(change).collect() } else { Vec::new() },
        }
    }
}
