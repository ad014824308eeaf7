//! Θ: the small random change that makes a "well registered" image for the critic out of the fixed one
//! (science.md section 5). real = (I_f, Θ(I_f), S_f): without Θ the critic could ask for identical noise.

use rand::Rng;
use rand_distr::{Distribution, Normal, StandardNormal};

/// Standard deviation of the added noise, in normalised intensity.
const NOISE_STD: f32 = 0.04;
/// Range of the smoothing kernel's σ, voxels.
const SMOOTHING_SIGMA: [f32; 2] = [0.25, 0.75];
/// Range of ln(gamma).
const LOG_GAMMA: f32 = 0.4;
/// Largest displacement of the random field, voxels of 1 mm in the paper's setting.
const MAX_DISPLACEMENT: f32 = 0.5;
/// Control points per axis of the random field: smooth over about a third of the patch.
pub const CONTROL_POINTS: usize = 4;

/// One draw of Θ's parts. Each is chosen with probability one half, at least one always.
#[derive(Debug, Clone, PartialEq)]
pub struct Theta {
    /// Noise is added: see [`Theta::noise`].
    pub noise: bool,
    /// σ of the smoothing in voxels: see [`smoothing_kernel`].
    pub smoothing: Option<f32>,
    /// Power of the intensity, which is from 0 to 1 for that.
    pub gamma: Option<f32>,
    /// Displacements (x, y, z) in voxels of [`CONTROL_POINTS`] points along each axis, x fastest, the outer ones on the border.
    pub field: Option<Vec<[f32; 3]>>,
}

impl Theta {
    /// Draws which parts apply and their parameters.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let mut chosen = [false; 4];
        while !chosen.contains(&true) {
            chosen = std::array::from_fn(|_| rng.random_bool(0.5));
        }
        let [noise, smoothing, gamma, field] = chosen;
        Self {
            noise,
            smoothing: smoothing.then(|| rng.random_range(SMOOTHING_SIGMA[0]..SMOOTHING_SIGMA[1])),
            gamma: gamma.then(|| rng.random_range(-LOG_GAMMA..LOG_GAMMA).exp()),
            field: field.then(|| control_field(rng)),
        }
    }

    /// Θ(I) of a cubic image of `edge` voxels with values in [-1, 1].
    pub fn image(&self, image: &[f32], edge: usize, rng: &mut impl Rng) -> Vec<f32> {
        let mut out = self.displace(image, edge);
        if let Some(sigma) = self.smoothing {
            out = smooth(&out, edge, sigma);
        }
        if let Some(gamma) = self.gamma {
            for v in &mut out {
                *v = ((*v + 1.0) / 2.0).clamp(0.0, 1.0).powf(gamma) * 2.0 - 1.0;
            }
        }
        if let Some(noise) = self.noise(out.len(), rng) {
            out.iter_mut().zip(noise).for_each(|(v, noise)| *v += noise);
        }
        out
    }

    /// What is added to each of so many voxels, if noise is: drawn after everything else.
    pub fn noise(&self, voxels: usize, rng: &mut impl Rng) -> Option<Vec<f32>> {
        let normal = Normal::new(0.0, NOISE_STD).expect("finite deviation");
        self.noise.then(|| (0..voxels).map(|_| normal.sample(rng)).collect())
    }

    /// The part of Θ that moves things, for masks (`real_segmentation = "theta"`).
    pub fn displace(&self, image: &[f32], edge: usize) -> Vec<f32> {
        let Some(control) = &self.field else { return image.to_vec() };
        let scale = (CONTROL_POINTS - 1) as f32 / (edge - 1) as f32;
        let mut out = Vec::with_capacity(image.len());
        for z in 0..edge {
            for y in 0..edge {
                for x in 0..edge {
                    let at = [x as f32 * scale, y as f32 * scale, z as f32 * scale];
                    let u = trilinear(control, CONTROL_POINTS, at, |a, b, t| {
                        std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t)
                    });
                    let read = [x as f32 + u[0], y as f32 + u[1], z as f32 + u[2]];
                    out.push(trilinear(image, edge, read, |a, b, t| a + (b - a) * t));
                }
            }
        }
        out
    }
}

/// Random displacements on a coarse control grid, the longest exactly [`MAX_DISPLACEMENT`].
fn control_field(rng: &mut impl Rng) -> Vec<[f32; 3]> {
    let mut field: Vec<[f32; 3]> =
        (0..CONTROL_POINTS.pow(3)).map(|_| std::array::from_fn(|_| rng.sample(StandardNormal))).collect();
    let longest = field.iter().map(|v| (v[0] * v[0] + v[1] * v[1] + v[2] * v[2]).sqrt()).fold(1e-6, f32::max);
    for v in &mut field {
        *v = v.map(|c| c * MAX_DISPLACEMENT / longest);
    }
    field
}

/// Trilinear interpolation in a cubic array with replicated border.
fn trilinear<T: Copy>(data: &[T], edge: usize, at: [f32; 3], mix: impl Fn(T, T, f32) -> T) -> T {
    let [(x0, x1, tx), (y0, y1, ty), (z0, z1, tz)] = at.map(|v| {
        let v = v.clamp(0.0, (edge - 1) as f32);
        let low = (v as usize).min(edge.saturating_sub(2));
        (low, (low + 1).min(edge - 1), v - low as f32)
    });
    let get = |x: usize, y: usize, z: usize| data[(z * edge + y) * edge + x];
    let row = |y, z| mix(get(x0, y, z), get(x1, y, z), tx);
    mix(mix(row(y0, z0), row(y1, z0), ty), mix(row(y0, z1), row(y1, z1), ty), tz)
}

/// Weights of the voxels from two before to two after.
pub fn smoothing_kernel(sigma: f32) -> [f32; 5] {
    let kernel: [f32; 5] = std::array::from_fn(|i| (-((i as f32 - 2.0) / sigma).powi(2) / 2.0).exp());
    let sum: f32 = kernel.iter().sum();
    kernel.map(|k| k / sum)
}

/// Separable Gaussian with replicated border; with σ below one voxel a radius of two is enough.
fn smooth(image: &[f32], edge: usize, sigma: f32) -> Vec<f32> {
    const RADIUS: isize = 2;
    let kernel = smoothing_kernel(sigma);
    let mut current = image.to_vec();
    for stride in [1, edge, edge * edge] {
        let mut next = vec![0.0; current.len()];
        for (i, v) in next.iter_mut().enumerate() {
            let position = (i / stride % edge) as isize;
            *v = (-RADIUS..=RADIUS)
                .map(|d| {
                    let to = (position + d).clamp(0, edge as isize - 1);
                    kernel[(d + RADIUS) as usize]
                        * current[(i as isize + (to - position) * stride as isize) as usize]
                })
                .sum();
        }
        current = next;
    }
    current
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    #[test]
    fn changes_a_little_and_is_reproducible() {
        let edge = 12;
        let image: Vec<f32> =
            (0..edge * edge * edge).map(|i| ((i % edge) as f32 / 6.0 - 1.0) * 0.5).collect();
        for k in 0..20 {
            let once = || {
                let mut rng = stream(3, Purpose::Theta, &[k]);
                let theta = Theta::draw(&mut rng);
                theta.image(&image, edge, &mut rng)
            };
            let changed = once();
            assert_eq!(changed, once());
            assert_ne!(changed, image);
            let mean =
                changed.iter().zip(&image).map(|(a, b)| (a - b).abs()).sum::<f32>() / image.len() as f32;
            assert!(mean < 0.3, "Θ is a small change, got {mean}");
        }
    }

    #[test]
    fn field_moves_at_most_half_a_voxel() {
        let mut rng = stream(3, Purpose::Theta, &[99]);
        let longest = control_field(&mut rng)
            .iter()
            .map(|v| v.iter().map(|c| c * c).sum::<f32>().sqrt())
            .fold(0.0, f32::max);
        assert!((longest - MAX_DISPLACEMENT).abs() < 1e-5);
    }
}
