//! The losses of science.md section 4 (equation 1 and 2 of the paper), as differentiable tensor expressions.
//!
//! Images and masks are \[n, c, z, y, x\]; every loss is averaged over the batch and returned as \[1\].

use crate::ops::sums::{mean, row_means, row_sums, sum};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Added to variances in [`ncc`], so that a constant patch has correlation 0 and a finite gradient.
const NCC_EPSILON: f32 = 1e-5;
/// Added to the denominator of [`soft_dice`].
const DICE_EPSILON: f32 = 1e-7;

/// How similar two images are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Similarity {
    /// Over the whole patch.
    Global,
    /// Mean over cubic windows (the authors' follow-up work).
    Local {
        /// Edge in voxels, odd.
        window: usize,
    },
}

/// Normalised cross-correlation, 1 for a perfect linear relation: cov / sqrt((var_a + ε)(var_b + ε)).
pub fn ncc(a: Tensor<5>, b: Tensor<5>, similarity: Similarity) -> Tensor<1> {
    match similarity {
        Similarity::Global => global_ncc(a, b),
        Similarity::Local { window } => local_ncc(a, b, window),
    }
}

fn global_ncc(a: Tensor<5>, b: Tensor<5>) -> Tensor<1> {
    let n = a.dims()[0];
    let flat = |t: Tensor<5>| -> Tensor<2> {
        let t = t.flatten::<2>(1, 4).reshape([n as i32, -1]);
        let mean = row_means(t.clone());
        t - mean
    };
    let (a, b) = (flat(a), flat(b));
    let covariance = row_means(a.clone() * b.clone());
    let var_a = row_means(a.square()) + NCC_EPSILON;
    let var_b = row_means(b.square()) + NCC_EPSILON;
    mean(covariance / (var_a * var_b).sqrt())
}

fn local_ncc(a: Tensor<5>, b: Tensor<5>, window: usize) -> Tensor<1> {
    let box_mean = |t: Tensor<5>| box_filter(t, window);
    let (mean_a, mean_b) = (box_mean(a.clone()), box_mean(b.clone()));
    let var_a = box_mean(a.clone().square()) - mean_a.clone().square() + NCC_EPSILON;
    let var_b = box_mean(b.clone().square()) - mean_b.clone().square() + NCC_EPSILON;
    let covariance = box_mean(a * b) - mean_a * mean_b;
    mean(covariance / (var_a * var_b).sqrt())
}

/// Mean over cubic windows that lie wholly inside, one axis at a time.
fn box_filter(t: Tensor<5>, window: usize) -> Tensor<5> {
    (2..5).fold(t, |t, axis| {
        let n = t.dims()[axis] - window + 1;
        let sum = (1..window).fold(t.clone().narrow(axis, 0, n), |sum, k| sum + t.clone().narrow(axis, k, n));
        sum / window as f32
    })
}

/// Soft Dice coefficient 2Σps / (Σp + Σs + ε) per organ channel, mean over the organs present in either patch
/// (an absent organ is left out, not counted as 0). 1, without a gradient, if no organ is present.
pub fn soft_dice(p: Tensor<5>, s: Tensor<5>) -> Tensor<1> {
    let total = channel_sums(p.clone()) + channel_sums(s.clone());
    mean_of_present(channel_sums(p * s), total)
}

/// Dice coefficient of contours that are soft themselves: 2Σps / (Σp² + Σs² + ε) (Milletari et al., V-Net, 3DV 2016,
/// section 3), averaged as in [`soft_dice`]. For masks of 0 and 1 the two are the same. For soft ones this is 1 where
/// p = s and nowhere else, while the other stays below 1 there and grows as p swells.
pub fn soft_dice_of_soft_contours(p: Tensor<5>, s: Tensor<5>) -> Tensor<1> {
    let total = channel_sums(p.clone().square()) + channel_sums(s.clone().square());
    mean_of_present(channel_sums(p * s), total)
}

/// Σ over the voxels of every channel, \[n, organs\].
fn channel_sums(t: Tensor<5>) -> Tensor<2> {
    let [n, organs, ..] = t.dims();
    row_sums(t.reshape([(n * organs) as i32, -1])).reshape([n, organs])
}

/// Mean of 2·overlap / (total + ε) over the channels that are not empty; how many there are stays on the device.
fn mean_of_present(overlap: Tensor<2>, total: Tensor<2>) -> Tensor<1> {
    let present = total.clone().without_autodiff().greater_elem(0.5).float();
    let present = if total.is_autodiff() { present.autodiff() } else { present };
    let count = sum(present.clone());
    let none = count.clone().clamp_max(1.0).neg() + 1.0;
    let dice = overlap * 2.0 / (total + DICE_EPSILON);
    sum(dice * present) / count.clamp_min(1.0) + none
}

/// Bending energy of `u` (mm) on a grid of `spacing` mm: mean over interior voxels and the three components of
/// u_xx² + u_yy² + u_zz² + 2u_xy² + 2u_xz² + 2u_yz², by compact second differences.
pub fn bending_energy(u: Tensor<5>, spacing: f32) -> Tensor<1> {
    let [_, _, d, h, w] = u.dims();
    let size = [d, h, w];
    // The interior shifted by -1, 0 or 1 voxel along each axis.
    let at = |shift: [isize; 3]| -> Tensor<5> {
        (0..3).fold(u.clone(), |t, a| t.narrow(a + 2, (1 + shift[a]) as usize, size[a] - 2))
    };
    let along = |axis: usize, step: isize| -> [isize; 3] {
        let mut s = [0; 3];
        s[axis] = step;
        s
    };
    let h2 = spacing * spacing;
    let centre = at([0; 3]) * 2.0;
    let mut energy = (0..3)
        .map(|a| ((at(along(a, 1)) + at(along(a, -1)) - centre.clone()) / h2).square())
        .reduce(|sum, term| sum + term)
        .expect("three axes");
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let corner = |sa: isize, sb: isize| {
            let mut s = [0; 3];
            (s[a], s[b]) = (sa, sb);
            at(s)
        };
        let mixed = (corner(1, 1) + corner(-1, -1) - corner(1, -1) - corner(-1, 1)) / (4.0 * h2);
        energy = energy + mixed.square() * 2.0;
    }
    mean(energy)
}

/// How the critic's score map becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Mean over the map.
    #[default]
    Mean,
    /// Sum over the map, mean over the batch (perhaps what the authors did: λ2 = 0.01 hints at it).
    Sum,
}

/// E[D(.)] of a score map \[n, 1, ...\].
pub fn expectation(scores: Tensor<5>, reduction: Reduction) -> Tensor<1> {
    let n = scores.dims()[0] as f32;
    match reduction {
        Reduction::Mean => mean(scores),
        Reduction::Sum => sum(scores) / n,
    }
}
