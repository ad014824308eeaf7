//! The PatchGAN critic D (science.md section 3).

use super::generator::{BatchStatistics, block};
use super::parameters::Leaves;
use crate::ops::{ConvSpec, conv3d};
use burn::tensor::Tensor;

/// Strides of the contracting path x0..x7, the generator's.
const STRIDES: [usize; 8] = [1, 1, 2, 1, 1, 2, 1, 1];

/// Score map \[n, 1, ...\] for `input` \[n, c, z, y, x\]; a 56^3 patch gives 7^3 scores, each seeing 35^3 voxels.
pub fn critic(leaves: &Leaves, input: Tensor<5>) -> (Tensor<5>, BatchStatistics) {
    let mut layers = leaves.reader();
    let mut statistics = Vec::new();
    let mut x = input;
    for stride in STRIDES {
        x = block(&mut layers, x, stride, &mut statistics);
    }
    (conv3d(x, layers.kernel(), layers.vector(), ConvSpec { stride: 1, padding: 0 }), statistics)
}
