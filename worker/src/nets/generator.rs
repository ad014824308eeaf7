//! The generator G(I_f, I_m) -> u (science.md section 2).

use super::parameters::{LeafReader, Leaves};
use crate::ops::{ConvSpec, conv3d, leaky_norm, leaky_statistics, upsample_concat};
use burn::tensor::Tensor;
use libjrs::network::{CROP_A, CROP_B};

/// Batch statistics of every block in table order, each with the number of values behind a channel's mean.
pub type BatchStatistics = Vec<(Tensor<2>, usize)>;

/// Displacement in mm, \[n, 3, z-40, y-40, x-40\], for `images` = concat(I_f, I_m) \[n, 2, z, y, x\].
/// Components are along the grid's x, y, z. Also returns the batch statistics of the blocks.
pub fn generator(leaves: &Leaves, images: Tensor<5>) -> (Tensor<5>, BatchStatistics) {
    let mut layers = leaves.reader();
    let mut statistics = Vec::new();
    let mut block = |x, stride| block(&mut layers, x, stride, &mut statistics);

    let x0 = block(images, 1);
    let x1 = block(x0, 1); // skip A
    let x2 = block(x1.clone(), 2);
    let x3 = block(x2, 1);
    let x4 = block(x3, 1); // skip B
    let x5 = block(x4.clone(), 2);
    let x6 = block(x5, 1);
    let x7 = block(x6, 1);
    let x9 = upsample_concat(x7, x4, CROP_B);
    let x10 = block(x9, 1);
    let x11 = block(x10, 1);
    let x13 = upsample_concat(x11, x1, CROP_A);
    let x14 = block(x13, 1);
    let x15 = block(x14, 1);
    let u = conv3d(x15, layers.kernel(), layers.vector(), ConvSpec { stride: 1, padding: 0 });
    (u, statistics)
}

/// Conv3d 3x3x3 -> LeakyReLU -> BatchNorm; padding 1 only at stride 2.
pub(super) fn block(
    layers: &mut LeafReader<'_>,
    x: Tensor<5>,
    stride: usize,
    statistics: &mut BatchStatistics,
) -> Tensor<5> {
    let spec = ConvSpec { stride, padding: stride - 1 };
    let y = conv3d(x, layers.kernel(), layers.vector(), spec);
    let batch = leaky_statistics(y.clone());
    let [n, _, d, h, w] = y.dims();
    statistics.push((batch.clone(), n * d * h * w));
    leaky_norm(y, layers.vector(), layers.vector(), batch)
}
