//! Local normalised cross-correlation of two images on one grid, with its gradient.

use rayon::prelude::*;

/// Standard deviation below which contrast counts as noise, in normalised intensity (7.5 HU). Its square is added to
/// the local variances and covariance: flat or noisy places neither divide by zero nor steer, and equal images still
/// have the largest value, 1 (as in the structure term of SSIM). The images come smoothed, so it is about what that leaves of a
/// scanner's noise; `docs/method.md` has what other values give.
const NOISE: f32 = 0.0075;

/// 1 - mean over voxels of cov² / (var_f var_m) in cubic windows (Avants et al. 2008), prepared for one fixed image.
/// All three moments have the square of [`NOISE`] added.
pub struct LocalNcc {
    size: [usize; 3],
    radius: usize,
    /// 1 / number of voxels in each voxel's window.
    per_window: Vec<f32>,
    fixed: Vec<f32>,
    fixed_mean: Vec<f32>,
    /// Variance plus noise.
    fixed_variance: Vec<f32>,
}

impl LocalNcc {
    /// Windows are `2 radius + 1` voxels wide and cut at the border.
    pub fn new(fixed: Vec<f32>, size: [usize; 3], radius: usize) -> Self {
        let empty = Vec::new;
        let mut ncc =
            Self { size, radius, per_window: empty(), fixed, fixed_mean: empty(), fixed_variance: empty() };
        ncc.per_window = ncc.sum(&vec![1.0; ncc.fixed.len()]);
        ncc.per_window.par_iter_mut().for_each(|n| *n = 1.0 / *n);
        ncc.fixed_mean = ncc.mean(&ncc.fixed);
        let squares: Vec<f32> = ncc.fixed.par_iter().map(|f| f * f).collect();
        ncc.fixed_variance = ncc.mean(&squares);
        let means = ncc.fixed_mean.par_iter();
        ncc.fixed_variance
            .par_iter_mut()
            .zip(means)
            .for_each(|(v, m)| *v = (*v - m * m).max(0.0) + NOISE * NOISE);
        ncc
    }

    /// The loss against `moving`, and its gradient by every moving value.
    pub fn loss(&self, moving: &[f32]) -> (f64, Vec<f32>) {
        let moving_mean = self.mean(moving);
        let squares: Vec<f32> = moving.par_iter().map(|m| m * m).collect();
        let mut steer_m = self.mean(&squares); // becomes b
        let products: Vec<f32> = moving.par_iter().zip(&self.fixed).map(|(m, f)| m * f).collect();
        let mut steer_f = self.mean(&products); // becomes a
        // Per window p with n voxels: d cc / d m_q = a (f_q - mean_f) - b (m_q - mean_m), with
        // a = 2 cov / (n var_f var_m) and b = a cov / var_m; so each voxel needs the sums of a, a mean_f, b, b mean_m.
        let plane = self.size[0] * self.size[1];
        let sums: Vec<f64> = steer_f
            .par_chunks_mut(plane)
            .zip(steer_m.par_chunks_mut(plane))
            .enumerate()
            .map(|(z, (a, b))| {
                let mut sum = 0.0;
                for i in 0..plane {
                    let p = z * plane + i;
                    let mean = moving_mean[p];
                    let variance = (b[i] - mean * mean).max(0.0) + NOISE * NOISE;
                    let covariance = a[i] - self.fixed_mean[p] * mean + NOISE * NOISE;
                    let per_fixed = covariance / (self.fixed_variance[p] * variance);
                    sum += (covariance * per_fixed) as f64;
                    a[i] = 2.0 * per_fixed * self.per_window[p];
                    b[i] = a[i] * covariance / variance;
                }
                sum
            })
            .collect();
        let voxels = moving.len() as f64;
        let product = |a: &[f32], b: &[f32]| a.par_iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f32>>();
        let constant: Vec<f32> = {
            let (of_fixed, of_moving) =
                (product(&steer_f, &self.fixed_mean), product(&steer_m, &moving_mean));
            of_moving.par_iter().zip(&of_fixed).map(|(m, f)| m - f).collect()
        };
        let [a, b, c] = [steer_f, steer_m, constant].map(|values| self.sum(&values));
        let scale = (-1.0 / voxels) as f32;
        let gradient = (0..moving.len())
            .into_par_iter()
            .map(|q| scale * (self.fixed[q] * a[q] - moving[q] * b[q] + c[q]))
            .collect();
        (1.0 - sums.iter().sum::<f64>() / voxels, gradient)
    }

    fn mean(&self, values: &[f32]) -> Vec<f32> {
        let mut out = self.sum(values);
        out.par_iter_mut().zip(&self.per_window).for_each(|(v, w)| *v *= w);
        out
    }

    /// Sums over the window, one axis after another.
    fn sum(&self, values: &[f32]) -> Vec<f32> {
        let [nx, ny, nz] = self.size;
        let (plane, r) = (nx * ny, self.radius);
        let mut planar = vec![0.0f32; values.len()];
        planar.par_chunks_mut(plane).zip(values.par_chunks(plane)).for_each(|(out, from)| {
            let mut rows = vec![0.0f32; plane];
            for (to, row) in rows.chunks_exact_mut(nx).zip(from.chunks_exact(nx)) {
                to.copy_from_slice(row);
                for d in 1..=r.min(nx - 1) {
                    to[d..].iter_mut().zip(row).for_each(|(t, v)| *t += v);
                    to[..nx - d].iter_mut().zip(&row[d..]).for_each(|(t, v)| *t += v);
                }
            }
            for (y, to) in out.chunks_exact_mut(nx).enumerate() {
                for near in y.saturating_sub(r)..(y + r + 1).min(ny) {
                    to.iter_mut().zip(&rows[near * nx..][..nx]).for_each(|(t, v)| *t += v);
                }
            }
        });
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(plane).enumerate().for_each(|(z, to)| {
            for near in z.saturating_sub(r)..(z + r + 1).min(nz) {
                to.iter_mut().zip(&planar[near * plane..][..plane]).for_each(|(t, v)| *t += v);
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + seed).sin() * (i as f32 * 0.011 + seed).cos()).collect()
    }

    #[test]
    fn loss_is_the_definition() {
        let size = [7, 6, 5];
        let (f, m) = (image(210, 0.0), image(210, 1.0));
        let mut cc = 0.0f64;
        for i in 0..210usize {
            let p = [i % 7, i / 7 % 6, i / 42];
            let near: Vec<usize> = (0..210usize)
                .filter(|&j| [j % 7, j / 7 % 6, j / 42].iter().zip(&p).all(|(a, b)| a.abs_diff(*b) <= 1))
                .collect();
            let mean = |v: &dyn Fn(usize) -> f64| near.iter().map(|&j| v(j)).sum::<f64>() / near.len() as f64;
            let (f, m) = (|j: usize| f[j] as f64, |j: usize| m[j] as f64);
            let noise = (NOISE as f64).powi(2);
            let covariance = mean(&|j| f(j) * m(j)) - mean(&f) * mean(&m) + noise;
            let variance = |v: &dyn Fn(usize) -> f64| mean(&|j| v(j) * v(j)) - mean(v).powi(2) + noise;
            cc += covariance.powi(2) / (variance(&f) * variance(&m)) / 210.0;
        }
        let (loss, _) = LocalNcc::new(f, size, 1).loss(&m);
        assert!((loss - (1.0 - cc)).abs() < 1e-5, "{loss} and {}", 1.0 - cc);
    }

    #[test]
    fn equal_images_lose_little_and_gradient_matches_finite_differences() {
        let size = [12, 9, 8];
        let n = 12 * 9 * 8;
        let (f, m) = (image(n, 0.0), image(n, 0.4));
        let ncc = LocalNcc::new(f.clone(), size, 2);
        assert!(ncc.loss(&f).0.abs() < 1e-5);
        let (_, gradient) = ncc.loss(&m);
        for i in [0, 5, 100, 431, 640, n - 1] {
            let (mut up, mut down) = (m.clone(), m.clone());
            up[i] += 0.01;
            down[i] -= 0.01;
            let expected = (ncc.loss(&up).0 - ncc.loss(&down).0) / 0.02;
            let error = (gradient[i] as f64 - expected).abs();
            assert!(error < 2e-2 * expected.abs() + 1e-6, "{i}: {} and {expected}", gradient[i]);
        }
    }
}
