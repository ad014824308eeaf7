//! Levenberg-Marquardt on the robust squared difference, rigid or affine.

use rayon::prelude::*;

use super::level::{CHUNK, Level, Sample};
use super::{Kind, LEAST_OVERLAP};
use crate::geometry::{Affine, Point, mat_mul, mat_vec};
use crate::volume::Volume;

/// Differences of this many HU count half as much as small ones (Cauchy weight `1 / (1 + (r / k)²)`).
const ROBUST_HU: f64 = 80.0;
/// Angles and strains are solved for in units of 1/100 rad, which move a point 100 mm away by 1 mm.
const LEVER_MM: f64 = 100.0;
/// A step whose every parameter is below this (mm, at the lever) ends a level.
const SMALL_STEP_MM: f64 = 0.005;

/// `y = matrix (x - centre) + centre + translation`.
#[derive(Clone, Copy)]
pub(super) struct Motion {
    pub matrix: [[f64; 3]; 3],
    pub centre: Point,
    pub translation: [f64; 3],
}

impl Motion {
    pub fn affine(&self) -> Affine {
        let moved = mat_vec(&self.matrix, self.centre);
        let translation = std::array::from_fn(|a| self.centre[a] + self.translation[a] - moved[a]);
        Affine { matrix: self.matrix, translation }
    }

    /// Changed by a parameter step: 3 translations (mm), then 3 rotations or 9 strains (lever mm).
    fn stepped(&self, step: &[f64; 12], kind: Kind) -> Self {
        let change = match kind {
            Kind::Rigid => rotation([step[3], step[4], step[5]].map(|v| v / LEVER_MM)),
            Kind::Affine => std::array::from_fn(|r| {
                std::array::from_fn(|c| f64::from(u8::from(r == c)) + step[3 + 3 * r + c] / LEVER_MM)
            }),
        };
        Self {
            matrix: mat_mul(&change, &self.matrix),
            translation: std::array::from_fn(|a| self.translation[a] + step[a]),
            ..*self
        }
    }
}

/// The end of a refinement.
pub(super) struct Refined {
    pub motion: Motion,
    /// Mean robust squared difference, HU²; samples outside the moving image count as a middling difference.
    pub cost: f64,
}

/// Minimises the cost at one level; `None` if the start does not overlap enough.
pub(super) fn refine(level: &Level, start: Motion, kind: Kind, max_steps: usize) -> Option<Refined> {
    let parameters = match kind {
        Kind::Rigid => 6,
        Kind::Affine => 12,
    };
    let mut motion = start;
    let mut system = System::build(level, &motion, kind)?;
    let mut damping = 1e-3;
    for _ in 0..max_steps {
        let step = system.solve(parameters, damping)?;
        let candidate = motion.stepped(&step, kind);
        match System::build(level, &candidate, kind).filter(|s| s.cost < system.cost) {
            Some(better) => {
                motion = candidate;
                system = better;
                damping = (damping * 0.2).max(1e-6);
            }
            None => damping *= 10.0,
        }
        if step.iter().all(|s| s.abs() < SMALL_STEP_MM) || damping > 1e4 {
            break;
        }
    }
    Some(Refined { motion, cost: system.cost })
}

/// Normal equations of one linearisation.
#[derive(Clone)]
struct System {
    hessian: [[f64; 12]; 12],
    gradient: [f64; 12],
    cost: f64,
    inside: usize,
}

impl System {
    /// `None` if too few samples fall inside the moving image.
    fn build(level: &Level, motion: &Motion, kind: Kind) -> Option<Self> {
        let parts: Vec<System> = level
            .samples
            .par_chunks(CHUNK)
            .map(|samples| System::of_chunk(samples, &level.moving, motion, kind))
            .collect();
        let mut sum = System { hessian: [[0.0; 12]; 12], gradient: [0.0; 12], cost: 0.0, inside: 0 };
        for part in &parts {
            sum.cost += part.cost;
            sum.inside += part.inside;
            for r in 0..12 {
                sum.gradient[r] += part.gradient[r];
                (0..12).for_each(|c| sum.hessian[r][c] += part.hessian[r][c]);
            }
        }
        let total = level.samples.len();
        if (sum.inside as f64) < LEAST_OVERLAP * total as f64 || sum.inside == 0 {
            return None;
        }
        // Without a price for leaving the image, pushing the scans apart would lower the mean.
        let outside_cost = robust_cost(ROBUST_HU);
        sum.cost = (sum.cost + (total - sum.inside) as f64 * outside_cost) / total as f64;
        Some(sum)
    }

    fn of_chunk(samples: &[Sample], moving: &Volume<f32>, motion: &Motion, kind: Kind) -> Self {
        let mut system = System { hessian: [[0.0; 12]; 12], gradient: [0.0; 12], cost: 0.0, inside: 0 };
        for sample in samples {
            let offset = std::array::from_fn(|a| sample.point[a] - motion.centre[a]);
            let arm = mat_vec(&motion.matrix, offset);
            let at = std::array::from_fn(|a| arm[a] + motion.centre[a] + motion.translation[a]);
            let Some((value, g)) = value_and_gradient(moving, at) else { continue };
            let residual = value - f64::from(sample.value);
            let weight = 1.0 / (1.0 + (residual / ROBUST_HU).powi(2));
            system.inside += 1;
            system.cost += robust_cost(residual);

            let y = arm.map(|v| v / LEVER_MM);
            let mut j = [0.0; 12];
            j[..3].copy_from_slice(&g);
            let n = match kind {
                // d(omega x y)/d(omega): gradient . (omega x y) = omega . (y x gradient).
                Kind::Rigid => {
                    for a in 0..3 {
                        let (b, c) = ((a + 1) % 3, (a + 2) % 3);
                        j[3 + a] = y[b] * g[c] - y[c] * g[b];
                    }
                    6
                }
                Kind::Affine => {
                    (0..9).for_each(|i| j[3 + i] = g[i / 3] * y[i % 3]);
                    12
                }
            };
            for r in 0..n {
                let wj = weight * j[r];
                system.gradient[r] += wj * residual;
                for c in 0..=r {
                    system.hessian[r][c] += wj * j[c];
                }
            }
        }
        system
    }

    /// The damped step, by Cholesky's method; `None` if the equations say nothing (a constant image).
    fn solve(&self, n: usize, damping: f64) -> Option<[f64; 12]> {
        let mut l = self.hessian;
        let mean_diagonal = (0..n).map(|i| l[i][i]).sum::<f64>() / n as f64;
        for i in 0..n {
            l[i][i] += damping * (l[i][i] + 1e-3 * mean_diagonal);
        }
        for r in 0..n {
            for c in 0..=r {
                let sum = l[r][c] - (0..c).map(|k| l[r][k] * l[c][k]).sum::<f64>();
                if r == c {
                    if sum.is_nan() || sum <= 0.0 {
                        return None;
                    }
                    l[r][r] = sum.sqrt();
                } else {
                    l[r][c] = sum / l[c][c];
                }
            }
        }
        let mut x = [0.0; 12];
        for r in 0..n {
            x[r] = (-self.gradient[r] - (0..r).map(|k| l[r][k] * x[k]).sum::<f64>()) / l[r][r];
        }
        for r in (0..n).rev() {
            x[r] = (x[r] - (r + 1..n).map(|k| l[k][r] * x[k]).sum::<f64>()) / l[r][r];
        }
        Some(x)
    }
}

/// Cauchy's cost, whose derivative is the weighted residual.
fn robust_cost(residual: f64) -> f64 {
    0.5 * ROBUST_HU * ROBUST_HU * (residual / ROBUST_HU).powi(2).ln_1p()
}

/// Trilinear value and its gradient per mm; `None` outside the outer voxel centres.
fn value_and_gradient(image: &Volume<f32>, point: Point) -> Option<(f64, [f64; 3])> {
    let grid = &image.grid;
    let index = grid.to_index(point);
    let mut base = [0usize; 3];
    let mut f = [0.0; 3];
    for a in 0..3 {
        let last = grid.size[a] as f64 - 1.0;
        if !(index[a] >= 0.0 && index[a] <= last) || grid.size[a] < 2 {
            return None;
        }
        base[a] = (index[a] as usize).min(grid.size[a] - 2);
        f[a] = index[a] - base[a] as f64;
    }
    let start = grid.index(base[0], base[1], base[2]);
    let (sy, sz) = (grid.size[0], grid.size[0] * grid.size[1]);
    let v = |x: usize, y: usize, z: usize| f64::from(image.data[start + x + y * sy + z * sz]);
    // Along x first: value and slope on the four edges, then along y, then along z.
    let edge = |y, z| (v(0, y, z) + f[0] * (v(1, y, z) - v(0, y, z)), v(1, y, z) - v(0, y, z));
    let face = |z| {
        let ((a, da), (b, db)) = (edge(0, z), edge(1, z));
        (a + f[1] * (b - a), da + f[1] * (db - da), b - a)
    };
    let ((a, ax, ay), (b, bx, by)) = (face(0), face(1));
    let slopes = [ax + f[2] * (bx - ax), ay + f[2] * (by - ay), b - a];
    let per_axis = std::array::from_fn(|i| slopes[i] / grid.spacing[i]);
    Some((a + f[2] * (b - a), mat_vec(&grid.direction, per_axis)))
}

/// The rotation about `axis` by its length in radians (Rodrigues).
pub(super) fn rotation(axis: [f64; 3]) -> [[f64; 3]; 3] {
    let angle = (axis[0].powi(2) + axis[1].powi(2) + axis[2].powi(2)).sqrt();
    if angle < 1e-12 {
        return crate::geometry::IDENTITY;
    }
    let [x, y, z] = axis.map(|v| v / angle);
    let (s, c) = angle.sin_cos();
    let k = 1.0 - c;
    [
        [c + x * x * k, x * y * k - z * s, x * z * k + y * s],
        [y * x * k + z * s, c + y * y * k, y * z * k - x * s],
        [z * x * k - y * s, z * y * k + x * s, c + z * z * k],
    ]
}
