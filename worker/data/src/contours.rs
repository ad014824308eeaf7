//! Label maps as channels for the Dice loss.

use rayon::prelude::*;

/// One channel per organ of a cubic patch of `edge` voxels: 1 inside, 0 outside, then averaged over cubes of
/// 2·`blur` + 1 voxels.
///
/// Without blur (the paper) the gradient of the Dice loss lives on the one layer of voxels where the moving contour
/// is now; with it, contours pull from further away.
pub fn one_hot(labels: &[u8], organs: &[u8], edge: usize, blur: usize) -> Vec<f32> {
    let channel = |organ: &u8| {
        let mut mask: Vec<f32> = labels.iter().map(|l| f32::from(u8::from(l == organ))).collect();
        if blur > 0 && labels.contains(organ) {
            for stride in [1, edge, edge * edge] {
                mask = box_mean(&mask, edge, stride, blur);
            }
        }
        mask
    };
    organs.par_iter().map(channel).collect::<Vec<_>>().concat()
}

/// Mean over 2·`radius` + 1 voxels along one axis, border voxels repeated outwards.
fn box_mean(values: &[f32], edge: usize, stride: usize, radius: usize) -> Vec<f32> {
    let width = (2 * radius + 1) as f32;
    let mut out = vec![0.0; values.len()];
    for start in (0..values.len()).filter(|i| (i / stride).is_multiple_of(edge)) {
        let at = |i: isize| values[start + i.clamp(0, edge as isize - 1) as usize * stride];
        let r = radius as isize;
        for i in 0..edge as isize {
            out[start + i as usize * stride] = (i - r..=i + r).map(at).sum::<f32>() / width;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_masks() {
        let labels = [0, 1, 2, 2, 0, 1, 3, 0];
        let expected = [0., 1., 0., 0., 0., 1., 0., 0., 0., 0., 1., 1., 0., 0., 0., 0.];
        assert_eq!(one_hot(&labels, &[1, 2], 2, 0), expected);
    }

    #[test]
    fn blur_spreads_a_voxel_over_a_cube() {
        let edge = 7;
        let mut labels = vec![0u8; edge * edge * edge];
        labels[(3 * edge + 3) * edge + 3] = 5;
        let blurred = one_hot(&labels, &[5], edge, 1);
        for (i, v) in blurred.iter().enumerate() {
            let inside = [i % edge, i / edge % edge, i / edge / edge].iter().all(|p| (2..=4).contains(p));
            let expected = if inside { 1.0 / 27.0 } else { 0.0 };
            assert!((v - expected).abs() < 1e-6, "voxel {i}: {v}");
        }
        assert!((blurred.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
