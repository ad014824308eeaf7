//! Refinement at test time: gradient steps on the displacement of one pair of scans (`science.md` section 9).
//!
//! Adds a smooth correction, a cubic B-spline, to the network's field (or to zero: it needs no training), minimising
//! `(1 - local NCC) + λ bending energy` from coarse images and control points to fine ones. All gradients
//! are written by hand and checked against finite differences. Bending is that of the correction, so the network's own
//! field is kept wherever the images do not speak against it.

mod similarity;
mod spline;

use rayon::prelude::*;

use crate::progress::Progress;
use crate::{Error, Result};
use similarity::LocalNcc;
use spline::Lattice;

/// How to refine.
#[derive(Debug, Clone, PartialEq)]
pub struct RefineOptions {
    /// Gradient steps in all, shared among the resolutions.
    pub steps: usize,
    /// λ: weight of the bending energy (1/mm², on the control points) against 1 - NCC.
    pub bending_weight: f64,
    /// Distance of control points at the finest resolution, mm; rounded to 4, 8, 16, ... working voxels.
    pub control_mm: f64,
    /// Half the width of the NCC windows, voxels of each resolution.
    pub window_radius: usize,
    /// Resolutions that would need more working memory than this are left out, finest first.
    pub max_bytes: usize,
}

impl Default for RefineOptions {
    fn default() -> Self {
        Self { steps: 100, bending_weight: 100.0, control_mm: 8.0, window_radius: 3, max_bytes: usize::MAX }
    }
}

/// A refined displacement.
#[derive(Debug, Clone, PartialEq)]
pub struct Refined {
    /// Components x, y, z in mm along the index axes.
    pub u: [Vec<f32>; 3],
    /// What each resolution did, coarsest first.
    pub levels: Vec<LevelReport>,
}

/// One resolution of a refinement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelReport {
    /// Voxel edge, mm.
    pub voxel_mm: f64,
    /// Gradient steps done.
    pub steps: usize,
    /// 1 - NCC before the first step and after the last one.
    pub dissimilarity: [f64; 2],
}

/// Refines a displacement between two normalised images on one isotropic working grid of `size` = \[x, y, z\] voxels of
/// `spacing_mm`. `start` (mm along the index axes, pull-back) defaults to zero.
///
/// Deterministic: the same bits for any number of threads.
///
/// # Errors
/// [`Error::Input`] if lengths and sizes do not fit or no resolution fits into `max_bytes`; [`Error::Cancelled`].
pub fn refine(
    fixed: &[f32],
    moving: &[f32],
    size: [usize; 3],
    spacing_mm: f64,
    start: Option<[Vec<f32>; 3]>,
    options: &RefineOptions,
    progress: Progress,
) -> Result<Refined> {
    let voxels: usize = size.iter().product();
    let start = start.unwrap_or_else(|| std::array::from_fn(|_| vec![0.0; voxels]));
    if voxels == 0 || [fixed, moving, &start[0], &start[1], &start[2]].iter().any(|v| v.len() != voxels) {
        return Err(Error::input(
            format!("images or a start field that do not have one value for each of {size:?} voxels"),
            "resample both images and the field to one working grid",
        ));
    }
    let plan = levels(size, spacing_mm, options)?;
    let mut levels = Vec::new();
    let mut correction: Option<(Lattice, usize, [Vec<f32>; 3])> = None;
    progress.step("refine", 0, options.steps)?;
    for &LevelPlan { factor, control, steps } in &plan {
        let level_size = size.map(|n| n.div_ceil(factor));
        let lattice = Lattice { voxels: level_size, step: control / factor };
        let coefficients = match correction.take() {
            None => std::array::from_fn(|_| vec![0.0; lattice.len()]),
            Some((_, spacing, old)) if spacing == control => old,
            Some((coarser, _, old)) => old.map(|c| coarser.subdivide(&c, &lattice)),
        };
        let level = Level {
            size: level_size,
            voxel_mm: spacing_mm * factor as f64,
            similarity: LocalNcc::new(coarsened(fixed, size, factor), level_size, options.window_radius),
            moving: coarsened(moving, size, factor),
            start: start.each_ref().map(|u| decimated(u, size, factor)),
            lattice,
            bending_weight: options.bending_weight,
        };
        let done: usize = levels.iter().map(|l: &LevelReport| l.steps).sum();
        let (coefficients, dissimilarity) =
            level.descend(coefficients, steps, |n| progress.step("refine", done + n, options.steps))?;
        levels.push(LevelReport { voxel_mm: level.voxel_mm, steps, dissimilarity });
        correction = Some((lattice, control, coefficients));
    }
    let mut u = start;
    if let Some((_, control, coefficients)) = correction {
        // The finest lattice spelled in voxels of the working grid: the control points are the same.
        let lattice = Lattice { voxels: size, step: control };
        u.iter_mut().zip(&coefficients).for_each(|(u, c)| lattice.add_to(c, 1.0, u));
    }
    Ok(Refined { u, levels })
}

/// What [`refine`] computes: voxels times evaluations of the loss, over all resolutions.
///
/// # Errors
/// [`Error::Input`] if no resolution fits into `max_bytes`.
pub(crate) fn work(size: [usize; 3], spacing_mm: f64, options: &RefineOptions) -> Result<f64> {
    let of_level = |level: &LevelPlan| {
        let voxels: usize = size.map(|n| n.div_ceil(level.factor)).iter().product();
        (voxels * (level.steps + 1)) as f64
    };
    Ok(levels(size, spacing_mm, options)?.iter().map(of_level).sum())
}

/// Working voxels per level voxel, working voxels between control points, and steps.
struct LevelPlan {
    factor: usize,
    control: usize,
    steps: usize,
}

/// Bytes per level voxel that a level has in use at one time: images, start, displacement and NCC's sums.
const BYTES_PER_VOXEL: usize = 20 * size_of::<f32>();

/// Three resolutions, 4-2-1, of which the coarsest gets the most steps: they are cheap and catch large motion.
fn levels(size: [usize; 3], spacing_mm: f64, options: &RefineOptions) -> Result<Vec<LevelPlan>> {
    // At least four voxels of each resolution between control points, and powers of two, so that a lattice is kept or
    // halved from one resolution to the next.
    let finest = ((options.control_mm / spacing_mm).log2().round() as i32).clamp(2, 16);
    let control = |factor: usize| match factor {
        1 => 1usize << finest,
        2 => 1 << finest.max(3),
        _ => 2 << finest.max(3),
    };
    let fits = |factor: usize| {
        size.map(|n| n.div_ceil(factor)).iter().product::<usize>() * BYTES_PER_VOXEL <= options.max_bytes
    };
    let factors: Vec<usize> = [4, 2, 1].into_iter().filter(|&f| fits(f)).collect();
    let shares: &[usize] = match factors.len() {
        0 => {
            return Err(Error::input(
                format!("refinement of {size:?} voxels does not fit into {} bytes", options.max_bytes),
                "allow more memory or refine with 0 steps",
            ));
        }
        1 => &[100],
        2 => &[50, 50],
        _ => &[40, 40, 20],
    };
    let last = factors.len() - 1;
    let mut left = options.steps;
    let plan = factors.iter().zip(shares).enumerate().map(|(i, (&factor, share))| {
        let steps = if i == last { left } else { options.steps * share / 100 };
        left -= steps;
        LevelPlan { factor, control: control(factor), steps }
    });
    Ok(plan.collect())
}

/// One resolution of the problem.
struct Level {
    size: [usize; 3],
    voxel_mm: f64,
    similarity: LocalNcc,
    moving: Vec<f32>,
    /// mm.
    start: [Vec<f32>; 3],
    lattice: Lattice,
    bending_weight: f64,
}

impl Level {
    /// Adam (Kingma and Ba 2015) with cosine decay. Its step per coefficient is bounded from below by the mean
    /// gradient, so that control points in air, with next to no gradient, do not wander at full speed.
    /// Returns the coefficients with the least loss seen and 1 - NCC of the first and of those.
    fn descend(
        &self,
        mut c: [Vec<f32>; 3],
        steps: usize,
        mut step_done: impl FnMut(usize) -> Result<()>,
    ) -> Result<([Vec<f32>; 3], [f64; 2])> {
        const DECAY: [f64; 2] = [0.9, 0.99];
        let mut moments: [[Vec<f64>; 2]; 3] =
            std::array::from_fn(|_| std::array::from_fn(|_| vec![0.0; self.lattice.len()]));
        let mut first = None;
        let mut best: Option<(f64, f64, [Vec<f32>; 3])> = None;
        for step in 0..=steps {
            let (loss, dissimilarity, gradient) = self.evaluate(&c);
            first.get_or_insert(dissimilarity);
            if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
                best = Some((loss, dissimilarity, c.clone()));
            }
            if step == steps {
                break;
            }
            let rate = 0.4
                * self.voxel_mm
                * (0.55 + 0.45 * (std::f64::consts::PI * step as f64 / steps as f64).cos());
            let correct = DECAY.map(|d| 1.0 / (1.0 - d.powi(step as i32 + 1)));
            for (g, [m, v]) in gradient.iter().zip(&mut moments) {
                for (i, &g) in g.iter().enumerate() {
                    let g = g as f64;
                    m[i] = DECAY[0] * m[i] + (1.0 - DECAY[0]) * g;
                    v[i] = DECAY[1] * v[i] + (1.0 - DECAY[1]) * g * g;
                }
            }
            let mean_square =
                moments.iter().flat_map(|[_, v]| v).sum::<f64>() / (3 * self.lattice.len()) as f64;
            for (c, [m, v]) in c.iter_mut().zip(&moments) {
                for (i, c) in c.iter_mut().enumerate() {
                    let scale = ((v[i] + mean_square) * correct[1]).sqrt() + f64::MIN_POSITIVE;
                    *c -= (rate * m[i] * correct[0] / scale) as f32;
                }
            }
            step_done(step + 1)?;
        }
        let (_, last, c) = best.expect("the loop runs at least once");
        Ok((c, [first.unwrap_or(last), last]))
    }

    /// Loss, 1 - NCC alone, and the loss's gradient by the coefficients.
    fn evaluate(&self, c: &[Vec<f32>; 3]) -> (f64, f64, [Vec<f32>; 3]) {
        let mut u = self.start.clone();
        u.iter_mut().zip(c).for_each(|(u, c)| self.lattice.add_to(c, 1.0, u));
        let per_mm = (1.0 / self.voxel_mm) as f32;
        let warped = warp_and_slope(&self.moving, self.size, &mut u, per_mm);
        let (dissimilarity, steer) = self.similarity.loss(&warped);
        let mut bending = 0.0;
        let gradient: Vec<Vec<f32>> = u
            .iter_mut()
            .zip(c)
            .map(|(slope, c)| {
                slope.par_iter_mut().zip(&steer).for_each(|(s, g)| *s *= g);
                let mut gradient = self.lattice.transpose(slope);
                let control_mm = self.voxel_mm * self.lattice.step as f64;
                let weight = self.bending_weight / 3.0;
                bending += weight * self.lattice.bending(c, control_mm, weight, &mut gradient);
                gradient
            })
            .collect();
        let gradient = gradient.try_into().expect("three components");
        (dissimilarity + bending, dissimilarity, gradient)
    }
}

/// Reads `image` at x + u(x) (trilinear, border replicated) and replaces `u` by the slope there: the
/// derivative of the value by each component of `u`, where `per_mm` turns `u`'s unit into voxels.
fn warp_and_slope(image: &[f32], size: [usize; 3], u: &mut [Vec<f32>; 3], per_mm: f32) -> Vec<f32> {
    let [nx, ny, _] = size;
    let plane = nx * ny;
    let mut warped = vec![0.0f32; image.len()];
    let [ux, uy, uz] = u;
    let slices = ux.par_chunks_mut(plane).zip(uy.par_chunks_mut(plane)).zip(uz.par_chunks_mut(plane));
    warped.par_chunks_mut(plane).zip(slices).enumerate().for_each(|(z, (out, ((ux, uy), uz)))| {
        for (i, out) in out.iter_mut().enumerate() {
            let (x0, x1, tx, inside_x) = place((i % nx) as f32 + ux[i] * per_mm, size[0]);
            let (y0, y1, ty, inside_y) = place((i / nx) as f32 + uy[i] * per_mm, size[1]);
            let (z0, z1, tz, inside_z) = place(z as f32 + uz[i] * per_mm, size[2]);
            let at = |x: usize, y: usize, z: usize| image[x + nx * (y + ny * z)];
            let mix = |a: f32, b: f32, t: f32| a + t * (b - a);
            // Along x first: value and slope on each of the four edges of the cell.
            let (a00, b00) = (at(x0, y0, z0), at(x1, y0, z0));
            let (a10, b10) = (at(x0, y1, z0), at(x1, y1, z0));
            let (a01, b01) = (at(x0, y0, z1), at(x1, y0, z1));
            let (a11, b11) = (at(x0, y1, z1), at(x1, y1, z1));
            let (v00, v10, v01, v11) =
                (mix(a00, b00, tx), mix(a10, b10, tx), mix(a01, b01, tx), mix(a11, b11, tx));
            let (low, high) = (mix(v00, v10, ty), mix(v01, v11, ty));
            *out = mix(low, high, tz);
            ux[i] = inside_x * per_mm * mix(mix(b00 - a00, b10 - a10, ty), mix(b01 - a01, b11 - a11, ty), tz);
            uy[i] = inside_y * per_mm * mix(v10 - v00, v11 - v01, tz);
            uz[i] = inside_z * per_mm * (high - low);
        }
    });
    warped
}

/// Cell and fraction of a coordinate clamped to the axis; the last value is 0 where it was clamped, else 1.
fn place(p: f32, n: usize) -> (usize, usize, f32, f32) {
    let last = (n - 1) as f32;
    let clamped = p.max(0.0).min(last);
    let cell = clamped as usize;
    (cell, (cell + 1).min(n - 1), clamped - cell as f32, if p == clamped { 1.0 } else { 0.0 })
}

/// Symmetric weights along an axis: of a voxel, and of its neighbours one and two voxels away.
type Weights = [f32; 3];
/// (1 4 6 4 1)/16, before every second voxel is left out.
const BEFORE_HALVING: Weights = [0.375, 0.25, 0.0625];
/// (1 2 1)/4, for the finest resolution. Reading between voxels averages noise away, which local NCC takes for a better match:
/// unsmoothed, noisy images are pulled half a voxel apart even where nothing has moved. Once neighbours share their noise there
/// is little left to gain; of white noise of 8 HU this leaves 1.8.
const AGAINST_NOISE: Weights = [0.5, 0.25, 0.0];

/// The image at a resolution: smoothed, and every `factor`-th voxel of it. Level voxel i is voxel `factor i`.
fn coarsened(values: &[f32], size: [usize; 3], factor: usize) -> Vec<f32> {
    if factor == 1 {
        return smoothed(values, size, AGAINST_NOISE);
    }
    let (mut values, mut size, mut left) = (values.to_vec(), size, factor);
    while left > 1 {
        values = decimated(&smoothed(&values, size, BEFORE_HALVING), size, 2);
        size = size.map(|n| n.div_ceil(2));
        left /= 2;
    }
    values
}

/// Smoothed along all three axes, border replicated.
fn smoothed(values: &[f32], size: [usize; 3], [centre, near, far]: Weights) -> Vec<f32> {
    let mut values = values.to_vec();
    for axis in 0..3 {
        let stride: usize = size[..axis].iter().product();
        let n = size[axis];
        let from = &values;
        values = (0..from.len())
            .into_par_iter()
            .map(|i| {
                let p = i / stride % n;
                let at = |q: usize| from[i - p * stride + q.min(n - 1) * stride];
                let (back, back2) = (at(p.saturating_sub(1)), at(p.saturating_sub(2)));
                centre * at(p) + near * (back + at(p + 1)) + far * (back2 + at(p + 2))
            })
            .collect();
    }
    values
}

/// Every `factor`-th voxel.
fn decimated(values: &[f32], size: [usize; 3], factor: usize) -> Vec<f32> {
    let to = size.map(|n| n.div_ceil(factor));
    (0..to.iter().product())
        .into_par_iter()
        .map(|i| {
            let [x, y, z] = [i % to[0], i / to[0] % to[1], i / to[0] / to[1]].map(|p| p * factor);
            values[x + size[0] * (y + size[1] * z)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blobs of different sizes on a bright body, as normalised intensities.
    fn image(size: [usize; 3], shift: impl Fn([f64; 3]) -> [f64; 3]) -> Vec<f32> {
        let blobs: Vec<([f64; 3], f64, f64)> = (0..40)
            .map(|i| {
                // The fractional parts of multiples of square roots of primes fill the box evenly.
                let r =
                    |k: usize, n: f64| (f64::from(i + 1) * [0., 2f64, 3., 5., 7., 11.][k].sqrt()).fract() * n;
                let c = [r(1, size[0] as f64), r(2, size[1] as f64), r(3, size[2] as f64)];
                (c, 3.0 + r(4, 6.0), 0.4 * (r(5, 2.0) - 1.0))
            })
            .collect();
        let n: usize = size.iter().product();
        (0..n)
            .map(|i| {
                let p = [i % size[0], i / size[0] % size[1], i / size[0] / size[1]].map(|v| v as f64);
                let p = shift(p);
                let sum: f64 = blobs
                    .iter()
                    .map(|(c, r, a)| {
                        let d2: f64 = (0..3).map(|k| (p[k] - c[k]).powi(2)).sum();
                        a * (-d2 / (2.0 * r * r)).exp()
                    })
                    .sum();
                sum as f32
            })
            .collect()
    }

    fn wave_mm(p: [f64; 3], amplitude: f64) -> [f64; 3] {
        let w = |q: f64| (q / 48.0 * std::f64::consts::TAU).sin();
        [amplitude * w(p[1] + 5.0), 0.6 * amplitude * w(p[2] + 20.0), 0.5 * amplitude * w(p[0])]
    }

    const SIZE: [usize; 3] = [48, 40, 36];

    /// Mean distance between a field and the true one, mm, in the inner part.
    fn error(u: &[Vec<f32>; 3], truth: impl Fn([f64; 3]) -> [f64; 3]) -> f64 {
        let (mut sum, mut count) = (0.0, 0);
        for z in 6..SIZE[2] - 6 {
            for y in 6..SIZE[1] - 6 {
                for x in 6..SIZE[0] - 6 {
                    let i = x + SIZE[0] * (y + SIZE[1] * z);
                    let t = truth([x as f64, y as f64, z as f64]);
                    sum += (0..3).map(|a| (u[a][i] as f64 - t[a]).powi(2)).sum::<f64>().sqrt();
                    count += 1;
                }
            }
        }
        sum / count as f64
    }

    /// With fixed(x) = moving(x + u(x)), u is what must be found.
    fn pair() -> (Vec<f32>, Vec<f32>) {
        let fixed = image(SIZE, |p| {
            let u = wave_mm(p, 4.0);
            [p[0] + u[0], p[1] + u[1], p[2] + u[2]]
        });
        (fixed, image(SIZE, |p| p))
    }

    #[test]
    fn recovers_a_smooth_warp_from_zero() {
        let (fixed, moving) = pair();
        // The warp is sharper than organs move, so the images get more say.
        let options = RefineOptions { steps: 60, bending_weight: 1.0, ..Default::default() };
        let refined = refine(&fixed, &moving, SIZE, 1.0, None, &options, Progress::SILENT).unwrap();
        let before = error(&std::array::from_fn(|_| vec![0.0; fixed.len()]), |p| wave_mm(p, 4.0));
        let after = error(&refined.u, |p| wave_mm(p, 4.0));
        eprintln!("mean error {before:.2} -> {after:.2} mm, {:?}", refined.levels);
        assert!(after < 0.3 * before, "{before} -> {after}");
    }

    #[test]
    fn an_identical_pair_stays_put_and_a_good_start_is_kept() {
        let (fixed, moving) = pair();
        let options = RefineOptions { steps: 12, ..Default::default() };
        let same = refine(&moving, &moving, SIZE, 1.0, None, &options, Progress::SILENT).unwrap();
        assert!(same.u.iter().flatten().all(|v| v.abs() < 0.05));
        let truth: [Vec<f32>; 3] = std::array::from_fn(|a| {
            let p = |i: usize| [i % SIZE[0], i / SIZE[0] % SIZE[1], i / SIZE[0] / SIZE[1]].map(|v| v as f64);
            (0..fixed.len()).map(|i| wave_mm(p(i), 4.0)[a] as f32).collect()
        });
        let kept = refine(&fixed, &moving, SIZE, 1.0, Some(truth), &options, Progress::SILENT).unwrap();
        let after = error(&kept.u, |p| wave_mm(p, 4.0));
        assert!(after < 0.5, "{after} mm, {:?}", kept.levels);
    }

    /// Two scans of one patient who has not moved differ by their noise, white and of 8 HU here, and noise must not be
    /// registered. Unsmoothed the drift is 0.41 voxels, see [`AGAINST_NOISE`].
    #[test]
    fn noise_moves_nothing() {
        let clean = image(SIZE, |p| p);
        let scan = |stream: u64| -> Vec<f32> {
            // Uniform numbers of this standard deviation.
            let noise = jrs_tests::reference::uniform(stream, clean.len(), 0.008 * 3f64.sqrt(), 0.0);
            clean.iter().zip(noise).map(|(v, n)| v + n).collect()
        };
        let options = RefineOptions::default();
        let refined = refine(&scan(1), &scan(2), SIZE, 1.0, None, &options, Progress::SILENT).unwrap();
        let drift = error(&refined.u, |_| [0.0; 3]);
        eprintln!("mean drift {drift:.3} voxels, {:?}", refined.levels);
        assert!(drift < 0.1, "mean drift {drift} voxels");
    }

    #[test]
    fn gradient_of_the_whole_loss_matches_finite_differences() {
        let (fixed, moving) = pair();
        let lattice = Lattice { voxels: SIZE, step: 8 };
        let level = Level {
            size: SIZE,
            voxel_mm: 1.5,
            similarity: LocalNcc::new(fixed.clone(), SIZE, 3),
            moving,
            start: std::array::from_fn(|a| vec![0.3 * a as f32; fixed.len()]),
            lattice,
            bending_weight: 0.7,
        };
        let c: [Vec<f32>; 3] =
            std::array::from_fn(|a| (0..lattice.len()).map(|i| ((i + a) as f32 * 1.3).sin()).collect());
        let (_, _, gradient) = level.evaluate(&c);
        let mut worst: f64 = 0.0;
        let norm = gradient.iter().flatten().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        for (axis, i) in [(0, 211), (1, 300), (2, 123), (0, 400), (1, 77), (2, 350)] {
            let at = |d: f32| {
                let mut moved = c.clone();
                moved[axis][i] += d;
                level.evaluate(&moved).0
            };
            let expected = (at(0.05) - at(-0.05)) / 0.1;
            worst = worst.max((gradient[axis][i] as f64 - expected).abs());
        }
        assert!(
            worst < 0.01 * norm / (gradient[0].len() as f64).sqrt() * 3.0 + 1e-6,
            "{worst} of norm {norm}"
        );
    }

    #[test]
    fn same_bits_with_one_and_two_threads_and_cancel_works() {
        let (fixed, moving) = pair();
        let options = RefineOptions { steps: 6, ..Default::default() };
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| refine(&fixed, &moving, SIZE, 1.0, None, &options, Progress::SILENT).unwrap())
        };
        assert_eq!(with(1), with(2));
        let stop = std::sync::atomic::AtomicBool::new(true);
        let progress = Progress { report: None, cancel: Some(&stop) };
        let end = refine(&fixed, &moving, SIZE, 1.0, None, &options, progress);
        assert!(matches!(end, Err(Error::Cancelled)));
        let tight = RefineOptions { max_bytes: 1000, ..options };
        assert!(refine(&fixed, &moving, SIZE, 1.0, None, &tight, Progress::SILENT).is_err());
    }
}
