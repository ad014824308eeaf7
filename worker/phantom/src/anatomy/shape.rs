//! Signed distances of simple solids, and an index that says which solids matter near a point.
//!
//! Distances are negative inside, in mm. Ellipsoids and tapered rods use first-order approximations,
//! which are right near the surface, where they are used.

use libjrs::geometry::Point;

/// A solid.
#[derive(Debug, Clone)]
pub enum Shape {
    /// An ellipsoid.
    Ellipsoid {
        /// Its middle.
        center: Point,
        /// Semi-axes, mm.
        radii: [f64; 3],
        /// Unit directions of the semi-axes (rows).
        axes: [[f64; 3]; 3],
    },
    /// A rod with round ends.
    Rod {
        /// One end of the axis.
        a: Point,
        /// The other end.
        b: Point,
        /// Radius at `a`, mm.
        ra: f64,
        /// Radius at `b`, mm.
        rb: f64,
    },
    /// A triangle with round edges.
    Plate {
        /// Corners of the middle surface.
        corners: [Point; 3],
        /// Half the thickness, mm.
        half: f64,
    },
    /// Part of a spherical shell.
    Cup {
        /// Middle of the sphere.
        center: Point,
        /// Inner radius, mm.
        inner: f64,
        /// Outer radius, mm.
        outer: f64,
        /// Unit direction of the closed side.
        axis: Point,
        /// The shell covers directions whose cosine with `axis` is above this.
        cosine: f64,
    },
    /// A bent slab across the midline: a segment in the sagittal plane with linear size.
    Wedge {
        /// First end (y, z).
        from: [f64; 2],
        /// Second end (y, z).
        to: [f64; 2],
        /// Half thickness at both ends, mm.
        thickness: [f64; 2],
        /// Half width (x) at both ends, mm.
        width: [f64; 2],
    },
}

impl Shape {
    /// An axis-aligned ellipsoid.
    pub fn ellipsoid(center: Point, radii: [f64; 3]) -> Self {
        Shape::Ellipsoid { center, radii, axes: libjrs::geometry::IDENTITY }
    }

    /// An ellipsoid turned by `about_z` degrees in the axial plane and then `about_x` in the sagittal one.
    pub fn turned(center: Point, radii: [f64; 3], about_z: f64, about_x: f64) -> Self {
        let (sz, cz) = about_z.to_radians().sin_cos();
        let (sx, cx) = about_x.to_radians().sin_cos();
        let axes = [[cz, sz, 0.0], [-sz * cx, cz * cx, sx], [sz * sx, -cz * sx, cx]];
        Shape::Ellipsoid { center, radii, axes }
    }

    /// A tapered rod.
    pub fn rod(a: Point, b: Point, ra: f64, rb: f64) -> Self {
        Shape::Rod { a, b, ra, rb }
    }

    /// The mirror image in the midline.
    pub fn mirrored(&self) -> Self {
        let flip = |p: Point| [-p[0], p[1], p[2]];
        match self.clone() {
            Shape::Ellipsoid { center, radii, axes } => {
                Shape::Ellipsoid { center: flip(center), radii, axes: axes.map(flip) }
            }
            Shape::Rod { a, b, ra, rb } => Shape::Rod { a: flip(a), b: flip(b), ra, rb },
            Shape::Plate { corners, half } => Shape::Plate { corners: corners.map(flip), half },
            Shape::Cup { center, inner, outer, axis, cosine } => {
                Shape::Cup { center: flip(center), inner, outer, axis: flip(axis), cosine }
            }
            wedge @ Shape::Wedge { .. } => wedge,
        }
    }

    /// Signed distance, mm.
    #[inline]
    pub fn distance(&self, p: Point) -> f64 {
        match self {
            Shape::Ellipsoid { center, radii, axes } => {
                let d = sub(p, *center);
                ellipsoid([dot(axes[0], d), dot(axes[1], d), dot(axes[2], d)], *radii)
            }
            Shape::Rod { a, b, ra, rb } => {
                let (ab, ap) = (sub(*b, *a), sub(p, *a));
                let t = (dot(ab, ap) / dot(ab, ab)).clamp(0.0, 1.0);
                let d = [ap[0] - t * ab[0], ap[1] - t * ab[1], ap[2] - t * ab[2]];
                norm(d) - (ra + t * (rb - ra))
            }
            Shape::Plate { corners, half } => triangle(p, corners) - half,
            Shape::Cup { center, inner, outer, axis, cosine } => {
                let d = sub(p, *center);
                let r = norm(d);
                let shell = (r - outer).max(inner - r);
                shell.max(cosine * r - dot(d, *axis))
            }
            Shape::Wedge { from, to, thickness, width } => {
                let (ab, ap) = ([to[0] - from[0], to[1] - from[1]], [p[1] - from[0], p[2] - from[1]]);
                let t = ((ab[0] * ap[0] + ab[1] * ap[1]) / (ab[0] * ab[0] + ab[1] * ab[1])).clamp(0.0, 1.0);
                let across = ((ap[0] - t * ab[0]).powi(2) + (ap[1] - t * ab[1]).powi(2)).sqrt();
                let round = 4.0;
                let u = p[0].abs() - (width[0] + t * (width[1] - width[0])) + round;
                let v = across - (thickness[0] + t * (thickness[1] - thickness[0])) + round;
                let outside = (u.max(0.0).powi(2) + v.max(0.0).powi(2)).sqrt();
                outside + u.max(v).min(0.0) - round
            }
        }
    }
}

/// First-order signed distance of an ellipsoid centred at 0 with axes along x, y, z.
#[inline]
pub fn ellipsoid(d: Point, radii: [f64; 3]) -> f64 {
    let k0 = norm([d[0] / radii[0], d[1] / radii[1], d[2] / radii[2]]);
    let k1 = norm([d[0] / (radii[0] * radii[0]), d[1] / (radii[1] * radii[1]), d[2] / (radii[2] * radii[2])]);
    if k1 < 1e-12 { -radii[0].min(radii[1]).min(radii[2]) } else { k0 * (k0 - 1.0) / k1 }
}

/// Unsigned distance to a triangle.
fn triangle(p: Point, [a, b, c]: &[Point; 3]) -> f64 {
    let (ab, bc, ca) = (sub(*b, *a), sub(*c, *b), sub(*a, *c));
    let (pa, pb, pc) = (sub(p, *a), sub(p, *b), sub(p, *c));
    let normal = cross(ab, sub(*c, *a));
    let inside = dot(cross(ab, normal), pa) <= 0.0
        && dot(cross(bc, normal), pb) <= 0.0
        && dot(cross(ca, normal), pc) <= 0.0;
    if inside {
        return dot(normal, pa).abs() / norm(normal);
    }
    let edge = |e: Point, q: Point| {
        let t = (dot(e, q) / dot(e, e)).clamp(0.0, 1.0);
        norm([q[0] - t * e[0], q[1] - t * e[1], q[2] - t * e[2]])
    };
    edge(ab, pa).min(edge(bc, pb)).min(edge(ca, pc))
}

/// Minimum of two distances, rounded over about `k` mm (polynomial smooth minimum).
#[inline]
pub fn smooth_min(a: f64, b: f64, k: f64) -> f64 {
    let h = (k - (a - b).abs()).max(0.0) / k;
    a.min(b) - h * h * k * 0.25
}

/// Rises smoothly from 0 at `t <= 0` to 1 at `t >= 1`.
#[inline]
pub fn smoothstep(t: f64) -> f64 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// `a - b`.
#[inline]
pub fn sub(a: Point, b: Point) -> Point {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}

/// `a + b`.
#[inline]
pub fn add(a: Point, b: Point) -> Point {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

/// Scalar product.
#[inline]
pub fn dot(a: Point, b: Point) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// Length.
#[inline]
pub fn norm(a: Point) -> f64 {
    dot(a, a).sqrt()
}

fn cross(a: Point, b: Point) -> Point {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

/// Which shapes can be within a few mm of a point: one short list per cell of a coarse grid, so that a
/// voxel asks 3 shapes instead of 100.
#[derive(Debug, Clone)]
pub struct Index {
    start: Vec<u32>,
    members: Vec<u16>,
}

const LOW: Point = [-250.0, -220.0, -280.0];
const HIGH: Point = [250.0, 200.0, 300.0];
const CELL: f64 = 12.0;
/// Shapes farther than this from every point of a cell are left out of its list.
const REACH: f64 = 7.0;

impl Index {
    /// Lists the `shapes` for every cell.
    pub fn new(shapes: &[Shape]) -> Self {
        let [nx, ny, nz] = cells();
        let mut start = Vec::with_capacity(nx * ny * nz + 1);
        let mut members = Vec::new();
        // Half the diagonal of a cell, with room for distances that are only first order.
        let within = 1.25 * CELL * 0.5 * 3f64.sqrt() + REACH;
        for k in 0..nz {
            for j in 0..ny {
                for i in 0..nx {
                    start.push(members.len() as u32);
                    let center = [
                        LOW[0] + (i as f64 + 0.5) * CELL,
                        LOW[1] + (j as f64 + 0.5) * CELL,
                        LOW[2] + (k as f64 + 0.5) * CELL,
                    ];
                    let near = |(n, s): (usize, &Shape)| (s.distance(center) < within).then_some(n as u16);
                    members.extend(shapes.iter().enumerate().filter_map(near));
                }
            }
        }
        start.push(members.len() as u32);
        Self { start, members }
    }

    /// Numbers of the shapes that may be near `p` (none outside the indexed box).
    #[inline]
    pub fn near(&self, p: Point) -> &[u16] {
        let size = cells();
        let mut at = [0usize; 3];
        for axis in 0..3 {
            let cell = (p[axis] - LOW[axis]) / CELL;
            if !(cell >= 0.0 && cell < size[axis] as f64) {
                return &[];
            }
            at[axis] = cell as usize;
        }
        let cell = at[0] + size[0] * (at[1] + size[1] * at[2]);
        &self.members[self.start[cell] as usize..self.start[cell + 1] as usize]
    }
}

fn cells() -> [usize; 3] {
    std::array::from_fn(|a| ((HIGH[a] - LOW[a]) / CELL).ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_known_points() {
        let ball = Shape::ellipsoid([1.0, 2.0, 3.0], [5.0; 3]);
        assert!((ball.distance([9.0, 2.0, 3.0]) - 3.0).abs() < 1e-12);
        let rod = Shape::rod([0.0; 3], [10.0, 0.0, 0.0], 2.0, 2.0);
        assert!((rod.distance([5.0, 0.0, 7.0]) - 5.0).abs() < 1e-12);
        let plate = Shape::Plate { corners: [[0.0; 3], [10.0, 0.0, 0.0], [0.0, 10.0, 0.0]], half: 1.0 };
        assert!((plate.distance([2.0, 2.0, 4.0]) - 3.0).abs() < 1e-12);
        assert!((plate.distance([-3.0, 0.0, 4.0]) - 4.0).abs() < 1e-12);
    }

    #[test]
    fn index_never_misses_a_near_shape() {
        let shapes = [
            Shape::turned([30.0, -12.0, 40.0], [30.0, 9.0, 60.0], 25.0, 10.0),
            Shape::rod([-80.0, 0.0, 0.0], [-60.0, 40.0, 90.0], 4.0, 9.0),
        ];
        let index = Index::new(&shapes);
        for n in 0..20_000u32 {
            // A low-discrepancy walk through the box.
            let f = |g: f64| (f64::from(n) * g).fract();
            let p =
                [-120.0 + 240.0 * f(0.754_877), -80.0 + 160.0 * f(0.569_840), -40.0 + 170.0 * f(0.618_034)];
            for (k, shape) in shapes.iter().enumerate() {
                if shape.distance(p) < 2.0 {
                    assert!(index.near(p).contains(&(k as u16)), "{p:?} misses shape {k}");
                }
            }
        }
    }
}
