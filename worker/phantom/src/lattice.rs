//! A smooth displacement on a lattice: uniform cubic B-splines, twice differentiable everywhere.
//!
//! A scan's pull-back map *is* such a lattice (sampled from the analytic motion), so its value and its
//! Jacobian are exact wherever they are asked for. Affine maps are reproduced exactly.

use libjrs::geometry::{Point, invert, mat_vec};
use rayon::prelude::*;

/// Displacement `d(x)` of the map `x -> x + d(x)`, mm.
#[derive(Debug, Clone)]
pub struct Lattice {
    origin: Point,
    step: f64,
    size: [usize; 3],
    nodes: Vec<[f64; 3]>,
}

impl Lattice {
    /// Samples `displacement` every `step` mm over the box `low..high` (plus the spline's support).
    pub fn sample(
        low: Point,
        high: Point,
        step: f64,
        displacement: impl Fn(Point) -> [f64; 3] + Sync,
    ) -> Self {
        let origin: Point = std::array::from_fn(|a| low[a] - step);
        let size: [usize; 3] = std::array::from_fn(|a| ((high[a] - low[a]) / step).ceil() as usize + 4);
        let [nx, ny, nz] = size;
        let mut nodes = vec![[0.0; 3]; nx * ny * nz];
        nodes.par_chunks_mut(nx * ny).enumerate().for_each(|(k, slice)| {
            for j in 0..ny {
                for i in 0..nx {
                    let at = [i as f64, j as f64, k as f64];
                    slice[i + nx * j] = displacement(std::array::from_fn(|a| origin[a] + step * at[a]));
                }
            }
        });
        Self { origin, step, size, nodes }
    }

    /// `x + d(x)`, or `None` outside the lattice.
    #[inline]
    pub fn map(&self, x: Point) -> Option<Point> {
        let (base, f) = self.locate(x)?;
        let [wx, wy, wz] = f.map(weights);
        let mut d = [0.0; 3];
        for k in 0..4 {
            for j in 0..4 {
                let row = base + self.size[0] * (j + self.size[1] * k);
                let w = wz[k] * wy[j];
                for (i, node) in self.nodes[row..row + 4].iter().enumerate() {
                    let w = w * wx[i];
                    for a in 0..3 {
                        d[a] += w * node[a];
                    }
                }
            }
        }
        Some([x[0] + d[0], x[1] + d[1], x[2] + d[2]])
    }

    /// The mapped point and the Jacobian matrix of the map.
    #[inline]
    pub fn map_with_jacobian(&self, x: Point) -> Option<(Point, [[f64; 3]; 3])> {
        let (base, f) = self.locate(x)?;
        let [wx, wy, wz] = f.map(weights);
        let [sx, sy, sz] = f.map(slopes);
        let mut d = [0.0; 3];
        let mut jacobian = [[0.0; 3]; 3];
        for k in 0..4 {
            for j in 0..4 {
                let row = base + self.size[0] * (j + self.size[1] * k);
                let (mut value, mut slope) = ([0.0; 3], [0.0; 3]);
                for (i, node) in self.nodes[row..row + 4].iter().enumerate() {
                    for a in 0..3 {
                        value[a] += wx[i] * node[a];
                        slope[a] += sx[i] * node[a];
                    }
                }
                let (w, y, z) = (wz[k] * wy[j], wz[k] * sy[j], sz[k] * wy[j]);
                for a in 0..3 {
                    d[a] += w * value[a];
                    jacobian[a][0] += w * slope[a];
                    jacobian[a][1] += y * value[a];
                    jacobian[a][2] += z * value[a];
                }
            }
        }
        for a in 0..3 {
            for c in 0..3 {
                jacobian[a][c] = jacobian[a][c] / self.step + f64::from(u8::from(a == c));
            }
        }
        Some(([x[0] + d[0], x[1] + d[1], x[2] + d[2]], jacobian))
    }

    /// Solves `map(y) = target` by Newton's method from `start`; `None` if it leaves the lattice or does
    /// not converge to 0.001 mm.
    #[inline]
    pub fn solve(&self, target: Point, start: Point) -> Option<Point> {
        let mut y = start;
        for _ in 0..16 {
            let (value, jacobian) = self.map_with_jacobian(y)?;
            let residual = [target[0] - value[0], target[1] - value[1], target[2] - value[2]];
            if residual.iter().all(|r| r.abs() < 1e-3) {
                return Some(y);
            }
            let step = mat_vec(&invert(&jacobian)?, residual);
            // A long step has left the region where the linear model holds: shorten it.
            let length = (step[0] * step[0] + step[1] * step[1] + step[2] * step[2]).sqrt();
            let damp = if length > 10.0 { 10.0 / length } else { 1.0 };
            for a in 0..3 {
                y[a] += damp * step[a];
            }
        }
        None
    }

    /// The map along a line of constant y and z, for whole rows of voxels.
    pub fn row(&self, y: f64, z: f64) -> Option<Row> {
        let (base, f) = self.locate([self.origin[0] + self.step, y, z])?;
        let base = base - base % self.size[0];
        let (wy, wz) = (weights(f[1]), weights(f[2]));
        let mut nodes = vec![[0.0; 3]; self.size[0]];
        for k in 0..4 {
            for j in 0..4 {
                let row = base + self.size[0] * (j + self.size[1] * k);
                let w = wz[k] * wy[j];
                for (sum, node) in nodes.iter_mut().zip(&self.nodes[row..row + self.size[0]]) {
                    for a in 0..3 {
                        sum[a] += w * node[a];
                    }
                }
            }
        }
        Some(Row { origin: self.origin[0], step: self.step, y, z, nodes })
    }

    /// Smallest Jacobian determinant at the nodes where `inside` holds for the mapped point.
    pub fn least_jacobian(&self, inside: impl Fn(Point) -> bool + Sync) -> f64 {
        let [nx, ny, nz] = self.size;
        (1..nz - 2)
            .into_par_iter()
            .map(|k| {
                let mut least = f64::INFINITY;
                for j in 1..ny - 2 {
                    for i in 1..nx - 2 {
                        let at = [i as f64, j as f64, k as f64];
                        let x = std::array::from_fn(|a| self.origin[a] + self.step * (at[a] + 1e-6));
                        if let Some((to, jacobian)) = self.map_with_jacobian(x)
                            && inside(to)
                        {
                            least = least.min(libjrs::geometry::determinant(&jacobian));
                        }
                    }
                }
                least
            })
            .reduce(|| f64::INFINITY, f64::min)
    }

    /// Number of the first node of the support and the place within the cell.
    #[inline]
    fn locate(&self, x: Point) -> Option<(usize, [f64; 3])> {
        let mut cell = [0usize; 3];
        let mut f = [0.0; 3];
        for a in 0..3 {
            let t = (x[a] - self.origin[a]) / self.step;
            if !(t >= 1.0 && t < (self.size[a] - 2) as f64) {
                return None;
            }
            cell[a] = t as usize;
            f[a] = t - cell[a] as f64;
        }
        Some((cell[0] - 1 + self.size[0] * (cell[1] - 1 + self.size[1] * (cell[2] - 1)), f))
    }
}

/// See [`Lattice::row`].
pub struct Row {
    origin: f64,
    step: f64,
    y: f64,
    z: f64,
    nodes: Vec<[f64; 3]>,
}

impl Row {
    /// The mapped point at `x`, or `None` outside the lattice.
    #[inline]
    pub fn map(&self, x: f64) -> Option<Point> {
        let t = (x - self.origin) / self.step;
        if !(t >= 1.0 && t < (self.nodes.len() - 2) as f64) {
            return None;
        }
        let cell = t as usize;
        let w = weights(t - cell as f64);
        let mut p = [x, self.y, self.z];
        for (i, node) in self.nodes[cell - 1..cell + 3].iter().enumerate() {
            for a in 0..3 {
                p[a] += w[i] * node[a];
            }
        }
        Some(p)
    }
}

/// Uniform cubic B-spline weights.
#[inline]
fn weights(t: f64) -> [f64; 4] {
    let (s, t2) = (1.0 - t, t * t);
    let t3 = t2 * t;
    [
        s * s * s / 6.0,
        (3.0 * t3 - 6.0 * t2 + 4.0) / 6.0,
        (3.0 * t2 - 3.0 * t3 + 3.0 * t + 1.0) / 6.0,
        t3 / 6.0,
    ]
}

/// Their derivatives.
#[inline]
fn slopes(t: f64) -> [f64; 4] {
    let (s, t2) = (1.0 - t, t * t);
    [-0.5 * s * s, 1.5 * t2 - 2.0 * t, 0.5 + t - 1.5 * t2, 0.5 * t2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use libjrs::geometry::distance;

    fn wavy() -> Lattice {
        Lattice::sample([-40.0; 3], [40.0; 3], 5.0, |p| {
            [3.0 * (p[1] / 15.0).sin() + 2.0, -2.0 * (p[2] / 18.0).cos(), 0.05 * p[0] + (p[1] / 20.0).sin()]
        })
    }

    #[test]
    fn affine_displacement_is_exact() {
        let lattice =
            Lattice::sample([-20.0; 3], [20.0; 3], 7.0, |p| [0.1 * p[1] + 2.0, -0.2 * p[0], 0.3 * p[2]]);
        let p = [3.3, -11.2, 17.9];
        let expected = [p[0] + 0.1 * p[1] + 2.0, p[1] - 0.2 * p[0], 1.3 * p[2]];
        assert!(distance(lattice.map(p).unwrap(), expected) < 1e-10);
    }

    #[test]
    fn jacobian_matches_finite_differences() {
        let lattice = wavy();
        let p = [4.4, -7.1, 12.3];
        let (_, jacobian) = lattice.map_with_jacobian(p).unwrap();
        for c in 0..3 {
            let (mut high, mut low) = (p, p);
            high[c] += 1e-4;
            low[c] -= 1e-4;
            let (high, low) = (lattice.map(high).unwrap(), lattice.map(low).unwrap());
            for a in 0..3 {
                assert!((jacobian[a][c] - (high[a] - low[a]) / 2e-4).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn solve_inverts_and_rows_agree() {
        let lattice = wavy();
        let y = [6.0, -12.0, 9.0];
        let target = lattice.map(y).unwrap();
        assert!(distance(lattice.solve(target, target).unwrap(), y) < 2e-3);
        let row = lattice.row(y[1], y[2]).unwrap();
        assert!(distance(row.map(y[0]).unwrap(), target) < 1e-10);
        assert!(lattice.map([500.0, 0.0, 0.0]).is_none());
    }
}
