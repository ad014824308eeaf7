//! Cubic B-splines on a control lattice: the smooth corrections that refinement searches among
//! (Rueckert et al. 1999, "Nonrigid registration using free-form deformations").

use rayon::prelude::*;

/// A lattice of control points over a voxel grid; control point j sits on voxel `(j - 1) * step`.
///
/// Coefficients are x fastest, like voxels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lattice {
    /// Voxels of the grid, x, y, z.
    pub voxels: [usize; 3],
    /// Voxels between control points.
    pub step: usize,
}

impl Lattice {
    /// Control points per axis: the four that reach each voxel.
    pub fn size(&self) -> [usize; 3] {
        self.voxels.map(|n| (n - 1) / self.step + 4)
    }

    /// Number of control points.
    pub fn len(&self) -> usize {
        self.size().iter().product()
    }

    /// Adds the spline with these `coefficients` to `out` (one value per voxel), times `factor`.
    pub fn add_to(&self, coefficients: &[f32], factor: f32, out: &mut [f32]) {
        let [nx, ny, _] = self.voxels;
        let [mx, my, _] = self.size();
        let weights = self.weights();
        out.par_chunks_mut(nx * ny).enumerate().for_each(|(z, slice)| {
            let mut plane = vec![0.0f32; mx * my];
            let (cell, w) = (z / self.step, weights[z % self.step]);
            for (k, w) in w.iter().enumerate() {
                let from = &coefficients[(cell + k) * mx * my..][..mx * my];
                plane.iter_mut().zip(from).for_each(|(p, c)| *p += w * factor * c);
            }
            let mut line = vec![0.0f32; mx];
            for (y, row) in slice.chunks_exact_mut(nx).enumerate() {
                line.fill(0.0);
                let (cell, w) = (y / self.step, weights[y % self.step]);
                for (k, w) in w.iter().enumerate() {
                    let from = &plane[(cell + k) * mx..][..mx];
                    line.iter_mut().zip(from).for_each(|(l, p)| *l += w * p);
                }
                for (cell, voxels) in row.chunks_mut(self.step).enumerate() {
                    let c = &line[cell..cell + 4];
                    for (value, w) in voxels.iter_mut().zip(&weights) {
                        *value += w[0] * c[0] + w[1] * c[1] + w[2] * c[2] + w[3] * c[3];
                    }
                }
            }
        });
    }

    /// The transpose of [`Lattice::add_to`]: from a gradient per voxel to a gradient per coefficient. Sums in a
    /// fixed order, so any number of threads gives the same bits.
    pub fn transpose(&self, gradient: &[f32]) -> Vec<f32> {
        let [nx, ny, nz] = self.voxels;
        let [mx, my, _] = self.size();
        let weights = self.weights();
        let mut planes = vec![0.0f32; mx * my * nz];
        planes.par_chunks_mut(mx * my).zip(gradient.par_chunks(nx * ny)).for_each(|(plane, slice)| {
            let mut line = vec![0.0f32; mx];
            for (y, row) in slice.chunks_exact(nx).enumerate() {
                line.fill(0.0);
                for (cell, voxels) in row.chunks(self.step).enumerate() {
                    for (value, w) in voxels.iter().zip(&weights) {
                        (0..4).for_each(|k| line[cell + k] += w[k] * value);
                    }
                }
                let (cell, w) = (y / self.step, weights[y % self.step]);
                for (k, w) in w.iter().enumerate() {
                    let to = &mut plane[(cell + k) * mx..][..mx];
                    to.iter_mut().zip(&line).for_each(|(p, l)| *p += w * l);
                }
            }
        });
        let mut out = vec![0.0f32; self.len()];
        out.par_chunks_mut(mx * my).enumerate().for_each(|(control, to)| {
            // Cells control - 3 ..= control reach this plane.
            let first = control.saturating_sub(3) * self.step;
            for z in first..((control + 1) * self.step).min(nz) {
                let w = weights[z % self.step][control - z / self.step];
                let from = &planes[z * mx * my..][..mx * my];
                to.iter_mut().zip(from).for_each(|(t, p)| *t += w * p);
            }
        });
        out
    }

    /// The same spline on the lattice of half the step over a grid of `finer.voxels` (Lane and Riesenfeld 1980).
    ///
    /// `self` and `finer` cover the same space: `finer.step` voxels of the finer grid are half of `self`'s spacing.
    pub fn subdivide(&self, coefficients: &[f32], finer: &Lattice) -> Vec<f32> {
        let (m, f) = (self.size(), finer.size());
        let mut values = coefficients.to_vec();
        let mut size = m;
        for axis in 0..3 {
            let mut to = size;
            to[axis] = f[axis];
            let stride: usize = size[..axis].iter().product();
            let mut out = vec![0.0f32; to.iter().product()];
            for (i, value) in out.iter_mut().enumerate() {
                let (inner, j, outer) = (i % stride, i / stride % to[axis], i / stride / to[axis]);
                let at = |q: usize| values[inner + stride * (q.min(m[axis] - 1) + m[axis] * outer)];
                let q = j.div_ceil(2);
                *value = if j % 2 == 1 {
                    0.125 * (at(q - 1) + 6.0 * at(q) + at(q + 1))
                } else {
                    0.5 * (at(q) + at(q + 1))
                };
            }
            (values, size) = (out, to);
        }
        values
    }

    /// Bending energy of the coefficients, with its gradient: mean over inner control points of
    /// c_xx² + c_yy² + c_zz² + 2 c_xy² + 2 c_xz² + 2 c_yz² with compact second differences at `spacing_mm` between
    /// control points (`science.md` section 4 has it on voxels; on the lattice it costs next to nothing).
    /// `gradient` is added to, times `weight`; the energy is returned without it.
    pub fn bending(&self, c: &[f32], spacing_mm: f64, weight: f64, gradient: &mut [f32]) -> f64 {
        let [mx, my, mz] = self.size();
        let stride = [1, mx, mx * my];
        let inner = ((mx - 2) * (my - 2) * (mz - 2)) as f64;
        let h2 = spacing_mm * spacing_mm;
        let mut energy = 0.0f64;
        for z in 1..mz - 1 {
            for y in 1..my - 1 {
                for i in (1..mx - 1).map(|x| x + mx * (y + my * z)) {
                    for a in 0..3 {
                        let (back, ahead) = (i - stride[a], i + stride[a]);
                        let d = (c[back] - 2.0 * c[i] + c[ahead]) as f64 / h2;
                        energy += d * d;
                        let g = (weight * 2.0 * d / (h2 * inner)) as f32;
                        gradient[back] += g;
                        gradient[i] -= 2.0 * g;
                        gradient[ahead] += g;
                        for b in a + 1..3 {
                            let corners =
                                [ahead + stride[b], ahead - stride[b], back + stride[b], back - stride[b]];
                            let d = (c[corners[0]] - c[corners[1]] - c[corners[2]] + c[corners[3]]) as f64
                                / (4.0 * h2);
                            energy += 2.0 * d * d;
                            let g = (weight * 4.0 * d / (4.0 * h2 * inner)) as f32;
                            gradient[corners[0]] += g;
                            gradient[corners[1]] -= g;
                            gradient[corners[2]] -= g;
                            gradient[corners[3]] += g;
                        }
                    }
                }
            }
        }
        energy / inner
    }

    /// Weights of the four control points of a cell at each of its voxels.
    fn weights(&self) -> Vec<[f32; 4]> {
        let at = |i: usize| {
            let t = i as f64 / self.step as f64;
            let s = 1.0 - t;
            [s * s * s, 3.0 * t * t * t - 6.0 * t * t + 4.0, 3.0 * s * s * s - 6.0 * s * s + 4.0, t * t * t]
                .map(|w| (w / 6.0) as f32)
        };
        (0..self.step).map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 1.7).sin()).collect()
    }

    #[test]
    fn transpose_is_the_transpose() {
        // <A c, g> = <c, A' g> for any c and g.
        let lattice = Lattice { voxels: [13, 9, 7], step: 4 };
        let (c, g) = (wave(lattice.len()), wave(13 * 9 * 7));
        let mut dense = vec![0.0; g.len()];
        lattice.add_to(&c, 1.0, &mut dense);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a * b) as f64).sum::<f64>();
        assert!((dot(&dense, &g) - dot(&c, &lattice.transpose(&g))).abs() < 1e-4);
    }

    #[test]
    fn linear_coefficients_give_a_linear_field() {
        // B-splines reproduce polynomials up to degree three; control j sits on voxel (j - 1) step.
        let lattice = Lattice { voxels: [17, 6, 5], step: 4 };
        let [mx, _, _] = lattice.size();
        let c: Vec<f32> = (0..lattice.len()).map(|i| 4.0 * ((i % mx) as f32 - 1.0)).collect();
        let mut dense = vec![0.0; 17 * 6 * 5];
        lattice.add_to(&c, 1.0, &mut dense);
        assert!(dense.iter().enumerate().all(|(i, v)| (v - (i % 17) as f32).abs() < 1e-5));
    }

    #[test]
    fn subdivision_keeps_the_spline() {
        let coarse = Lattice { voxels: [21, 19, 18], step: 8 };
        let fine = Lattice { voxels: [21, 19, 18], step: 4 };
        let c = wave(coarse.len());
        let (mut a, mut b) = (vec![0.0; 21 * 19 * 18], vec![0.0; 21 * 19 * 18]);
        coarse.add_to(&c, 1.0, &mut a);
        fine.add_to(&coarse.subdivide(&c, &fine), 1.0, &mut b);
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }

    #[test]
    fn bending_gradient_matches_finite_differences() {
        let lattice = Lattice { voxels: [9, 9, 9], step: 4 };
        let c = wave(lattice.len());
        let energy = |c: &[f32]| lattice.bending(c, 2.0, 1.0, &mut vec![0.0; c.len()]);
        let mut gradient = vec![0.0; c.len()];
        lattice.bending(&c, 2.0, 1.0, &mut gradient);
        for i in [0, 17, 62, 93, 124, 200] {
            let (mut up, mut down) = (c.clone(), c.clone());
            up[i] += 0.05;
            down[i] -= 0.05;
            let expected = (energy(&up) - energy(&down)) / 0.1; // exact for a quadratic
            assert!((gradient[i] as f64 - expected).abs() < 1e-5, "{i}: {} and {expected}", gradient[i]);
        }
    }
}
