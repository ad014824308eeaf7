//! Where every point of a scan comes from in the patient's reference anatomy.
//!
//! A scan is described by its **pull-back map** ψ: scan point -> template point, the composition
//! `rectum ∘ bladder ∘ nodes ∘ vesicles ∘ prostate ∘ shape ∘ skin ∘ pose`. Soft-tissue steps are scaled
//! by a weight that vanishes at bone. Magnitudes are those of the table "Motion between fractions" in
//! phantom.md.

use crate::anatomy::Anatomy;
use crate::anatomy::organs::gauge;
use crate::anatomy::shape::{add, ellipsoid, smoothstep, sub};
use crate::draw::{Draw, Purpose, WHOLE_PATIENT};
use crate::lattice::Lattice;
use libjrs::Grid;
use libjrs::geometry::{Point, mat_mul};
use rayon::prelude::*;

/// A patient: anatomy, the map from patient to template, and habits.
pub struct Patient {
    /// Number in the cohort.
    pub number: usize,
    /// Reference anatomy (template frame).
    pub anatomy: Anatomy,
    /// Factor from template to patient along each axis.
    pub scale: [f64; 3],
    shape: Lattice,
    bone: DistanceMap,
    habit: Habit,
}

/// Systematic differences between planning and treatment.
struct Habit {
    prostate: [f64; 3],
    prostate_turn: [f64; 3],
    vesicles: [f64; 3],
    bladder_log: f64,
    rectum_log: f64,
}

/// One scan's motion: what a map is built from.
#[derive(Debug, Clone)]
pub struct Motion {
    pose: Rigid,
    /// Prostate relative to bone: shift in mm (LR, AP, SI) as seen in the patient.
    pub prostate_shift: [f64; 3],
    prostate_turn: [f64; 3],
    vesicle_shift: [[f64; 3]; 2],
    vesicle_scale: f64,
    node_shift: [[f64; 3]; 2],
    /// Bladder volume asked for, mL.
    pub bladder_ml: f64,
    bladder_stretch: [f64; 3],
    /// Natural logarithm of the rectal calibre factor, overall and per height.
    rectum_log: f64,
    rectum_bumps: Vec<(f64, f64)>,
    skin: Lattice,
}

/// Rotation about a point, then a shift.
#[derive(Debug, Clone, Copy)]
struct Rigid {
    matrix: [[f64; 3]; 3],
    center: Point,
    shift: [f64; 3],
}

/// Bone distance on a coarse grid; smooth enough to steer motion.
struct DistanceMap {
    lattice: Lattice,
}

/// Distance from bone at which soft tissue moves freely, mm.
const BONE_REACH: f64 = 15.0;
/// Reach of the prostate's motion into the surrounding tissue, mm.
const PROSTATE_REACH: f64 = 28.0;
/// Corners of the region in which anatomy moves (patient and template frames), mm.
const LOW: Point = [-240.0, -190.0, -230.0];
const HIGH: Point = [240.0, 190.0, 270.0];
/// Box around the organs that move most, mm.
const CORE: [Point; 2] = [[-110.0, -110.0, -80.0], [110.0, 100.0, 150.0]];

impl Patient {
    /// The patient with this number in the cohort `seed`.
    pub fn new(seed: u64, number: usize) -> Self {
        let mut draw = Draw::new(seed, number, WHOLE_PATIENT, Purpose::Anatomy);
        let size = draw.gauss(0.0, 0.025);
        let scale = [(); 3].map(|()| 1.0 + size + draw.gauss(0.0, 0.015));
        let anatomy = Anatomy::draw(&mut draw, scale);
        // Bones, organs and muscles of no two patients have the same shape: a smooth field of a few mm.
        let shape = random_field(&mut draw, 48.0, [2.2, 2.2, 2.6]);
        let bone = DistanceMap::new(&anatomy);
        let mut draw = Draw::new(seed, number, WHOLE_PATIENT, Purpose::Systematic);
        let habit = Habit {
            prostate: draw.gauss3([0.6, 1.9, 1.7]),
            // About LR, AP, SI.
            prostate_turn: draw.gauss3([5.6, 2.2, 2.4]),
            vesicles: draw.gauss3([1.9, 2.9, 3.6]),
            // Bladders on treatment hold 189 mL in the mean after 282 mL at planning.
            bladder_log: draw.gauss(-0.38, 0.30),
            rectum_log: draw.gauss(0.0, 0.08),
        };
        Self { number, anatomy, scale, shape, bone, habit }
    }

    /// Motion of scan `scan` (0 is the planning scan: the reference state but for pose and calibre).
    pub fn motion(&self, seed: u64, scan: usize) -> Motion {
        let mut draw = Draw::new(seed, self.number, scan, Purpose::Motion);
        let treatment = f64::from(u8::from(scan > 0));
        let habit = &self.habit;
        let pose_turn = draw.gauss3([1.3, 1.0, 1.3]);
        let pose_shift = draw.gauss3([4.0, 4.0, 6.0]);
        let calibre = draw.normal();
        // Rectal area and the prostate's AP shift correlate with r = 0.82 (Mangar 2006): a full rectum
        // pushes the prostate forwards (-y).
        let forwards = -0.82 * calibre + (1.0f64 - 0.82 * 0.82).sqrt() * draw.normal();
        let random = [0.9 * draw.normal(), 1.9 * forwards, 1.7 * draw.normal()];
        let turn = draw.gauss3([6.1, 2.0, 2.8]);
        let vesicles = draw.gauss3([1.4, 2.7, 2.1]);
        let own: [[f64; 3]; 2] = [(); 2].map(|()| draw.gauss3([0.8, 1.2, 1.0]));
        let swing = draw.normal();
        let ratio = treatment * (habit.bladder_log + 0.48 * swing);
        let [_, planned] = self.bladder_reference();
        let bladder_ml =
            (planned * ratio.exp()).clamp(50.0f64.max(0.24 * planned), 640.0f64.min(2.4 * planned));
        Motion {
            pose: Rigid { matrix: rotation(pose_turn), center: [0.0; 3], shift: pose_shift },
            prostate_shift: std::array::from_fn(|a| treatment * (habit.prostate[a] + random[a])),
            prostate_turn: std::array::from_fn(|a| treatment * (habit.prostate_turn[a] + turn[a])),
            vesicle_shift: own
                .map(|own| std::array::from_fn(|a| treatment * (habit.vesicles[a] + vesicles[a] + own[a]))),
            vesicle_scale: 1.0 + treatment * draw.gauss(0.0, 0.07),
            node_shift: [(); 2].map(|()| draw.gauss3([0.8, 1.1, 0.9]).map(|v| treatment * v)),
            bladder_ml,
            bladder_stretch: [1.0; 3],
            rectum_log: treatment * habit.rectum_log + 0.17 * calibre,
            rectum_bumps: (0..4)
                .map(|n| (-35.0 + 32.0 * f64::from(n) + draw.between(-8.0, 8.0), draw.gauss(0.0, 0.14)))
                .collect(),
            skin: random_field(&mut draw, 60.0, [1.6, 2.2, 1.6]),
        }
    }

    /// Bladder volume of the reference state: template mL and patient mL.
    fn bladder_reference(&self) -> [f64; 2] {
        let r = self.anatomy.organs.bladder_radii;
        let template = 4.0 / 3.0 * std::f64::consts::PI * r[0] * r[1] * r[2] / 1000.0;
        [template, template * self.scale.iter().product::<f64>()]
    }

    /// The pull-back map of a scan as a lattice over `low..high` (scan frame) with nodes every `step` mm.
    ///
    /// The bladder is stretched until it holds the volume asked for; motion that would fold tissue is
    /// reduced until the map is invertible.
    pub fn pull_back(&self, motion: &mut Motion, low: Point, high: Point, step: f64) -> Lattice {
        let center = loop {
            self.fill_bladder(motion);
            let center = self.settle_prostate(motion);
            // Folding can only begin around the organs: a coarse look there decides.
            let look = Lattice::sample(CORE[0], CORE[1], 7.0, |x| sub(self.trace(motion, center, x), x));
            let in_body = |t: Point| self.anatomy.body.distances(t).0 < 0.0;
            if look.least_jacobian(in_body) > 0.15 {
                break center;
            }
            motion.soften(self.bladder_reference()[1]);
        };
        Lattice::sample(low, high, step, |x| sub(self.trace(motion, center, x), x))
    }

    /// [`Self::pull_back`] for all points of `grid` and the neighbourhood into which they can move.
    pub fn pull_back_over(&self, motion: &mut Motion, grid: &Grid, step: f64) -> Lattice {
        // Pose and motion of two scans together stay below this.
        const ROOM: f64 = 45.0;
        let last = grid.to_physical(grid.size.map(|n| n as f64 - 1.0));
        let low = grid.origin.map(|c| c - ROOM);
        let high = last.map(|c| c + ROOM);
        self.pull_back(motion, low, high, step)
    }

    /// Scan point to template point. `settled` is the residual shift of the prostate.
    fn trace(&self, motion: &Motion, settled: [f64; 3], x: Point) -> Point {
        let x = motion.pose.undo(x);
        let moved = motion.skin.map(x).map_or([0.0; 3], |y| sub(y, x));
        let t0 = self.to_template(x);
        let free = smoothstep(self.bone.at(t0) / BONE_REACH);
        // Skin and fat give way most near the surface; deep tissue has motions of its own.
        let skin = self.anatomy.body.distances(t0).0;
        let shallow = 0.25 + 0.75 * smoothstep((skin + 60.0) / 50.0);
        let t = add(t0, moved.map(|m| m * free * shallow));
        if skin > 40.0 {
            return t; // air that no organ reaches
        }
        self.soft(motion, settled, t, free)
    }

    /// Patient frame to template frame.
    fn to_template(&self, x: Point) -> Point {
        let scaled = std::array::from_fn(|a| x[a] / self.scale[a]);
        self.shape.map(scaled).unwrap_or(scaled)
    }

    /// The organ steps, in the template frame.
    fn soft(&self, motion: &Motion, settled: [f64; 3], t: Point, free: f64) -> Point {
        let organs = &self.anatomy.organs;
        let near = |distance: f64, reach: f64| free * (1.0 - smoothstep((distance - 1.5) / reach));
        let mut p = t;

        let weight = near(organs.prostate_far(p), PROSTATE_REACH);
        if weight > 0.0 {
            let rigid = Rigid {
                matrix: rotation(motion.prostate_turn),
                center: organs.prostate_center,
                shift: settled,
            };
            p = blend(p, rigid.undo(p), weight);
        }
        for side in 0..2 {
            let pieces = &organs.vesicles[side];
            let d = pieces.iter().map(|piece| piece.distance(t)).fold(f64::INFINITY, f64::min);
            // The root is held by the prostate: motion grows along the organ.
            let root = smoothstep((organs.prostate_far(t) + 2.0) / 12.0);
            let weight = near(d, 22.0) * root;
            if weight > 0.0 {
                let middle = organs.vesicle_middle(side);
                let shift = motion.vesicle_shift[side];
                let from =
                    std::array::from_fn(|a| middle[a] + (p[a] - middle[a] - shift[a]) / motion.vesicle_scale);
                p = blend(p, from, weight);
            }
            let weight = near(self.anatomy.vessels.region(t), 16.0)
                * if side == usize::from(t[0] > 0.0) { smoothstep(t[0].abs() / 20.0) } else { 0.0 };
            if weight > 0.0 {
                let shift = motion.node_shift[side];
                p = blend(p, sub(p, shift), weight);
            }
        }
        p = self.unfill(motion, p, free);
        self.relax_rectum(motion, p, free)
    }

    /// Bladder step: inside the bladder of the scan an affine map about its base, fading outside.
    fn unfill(&self, motion: &Motion, p: Point, free: f64) -> Point {
        let organs = &self.anatomy.organs;
        let (c, r, a) = (organs.bladder_center, organs.bladder_radii, organs.bladder_anchor);
        let from: Point = std::array::from_fn(|k| a[k] + (p[k] - a[k]) / motion.bladder_stretch[k]);
        let unit = |q: Point| -> Point { std::array::from_fn(|k| (q[k] - c[k]) / r[k]) };
        let q = gauge(unit(a), unit(from));
        let weight = fade(q, 2.6);
        // The prostate holds the bladder neck.
        let held = smoothstep((organs.prostate_far(p) + 4.0) / 16.0);
        blend(p, from, weight * free * (0.35 + 0.65 * held))
    }

    /// Rectum step: in every axial plane a widening about a point near the back wall.
    fn relax_rectum(&self, motion: &Motion, p: Point, free: f64) -> Point {
        let log = motion.rectum_log_at(p[2]);
        if log.abs() < 1e-6 {
            return p;
        }
        let organs = &self.anatomy.organs;
        let (c, r) = (organs.rectum_center(p[2]), organs.rectum_radii(p[2]));
        let anchor = [c[0], c[1] + 0.45 * r[1]];
        let calibre = log.exp();
        let from = [anchor[0] + (p[0] - anchor[0]) / calibre, anchor[1] + (p[1] - anchor[1]) / calibre];
        let unit = |q: [f64; 2]| [(q[0] - c[0]) / r[0], (q[1] - c[1]) / r[1]];
        let weight = fade(gauge(unit(anchor), unit(from)), 3.2);
        blend(p, [from[0], from[1], p[2]], weight * free)
    }

    /// Finds the stretch at which the bladder holds the volume asked for.
    fn fill_bladder(&self, motion: &mut Motion) {
        let [_, planned] = self.bladder_reference();
        let wanted = motion.bladder_ml;
        let mut log = (wanted / planned).ln();
        for _ in 0..4 {
            // The bladder grows upwards first: shares of the volume change in x, y, z.
            motion.bladder_stretch = [0.22, 0.26, 0.52].map(|share| (share * log).exp());
            let held = self.bladder_volume(motion);
            log += (wanted / held).ln();
            log = log.clamp(-2.2, 1.4);
        }
        motion.bladder_stretch = [0.22, 0.26, 0.52].map(|share| (share * log).exp());
    }

    /// Volume of the bladder in the patient frame, mL, on a 5 mm grid with soft edges.
    fn bladder_volume(&self, motion: &Motion) -> f64 {
        const STEP: f64 = 5.0;
        let organs = &self.anatomy.organs;
        let (c, r, s) = (organs.bladder_center, organs.bladder_radii, motion.bladder_stretch);
        let reach: [f64; 3] = std::array::from_fn(|a| self.scale[a] * (r[a] * s[a].max(1.0) + 12.0));
        let middle: Point = std::array::from_fn(|a| {
            self.scale[a] * (organs.bladder_anchor[a] + (c[a] - organs.bladder_anchor[a]) * s[a])
        });
        let n: [i32; 3] = std::array::from_fn(|a| (reach[a] / STEP).ceil() as i32);
        let slices: Vec<f64> = (-n[2]..=n[2])
            .into_par_iter()
            .map(|k| {
                let mut sum = 0.0;
                for j in -n[1]..=n[1] {
                    for i in -n[0]..=n[0] {
                        let x = add(middle, [STEP * f64::from(i), STEP * f64::from(j), STEP * f64::from(k)]);
                        let t = self.to_template(x);
                        let free = smoothstep(self.bone.at(t) / BONE_REACH);
                        let t = self.relax_rectum(motion, self.unfill(motion, t, free), free);
                        sum += (0.5 - ellipsoid(sub(t, c), r) / STEP).clamp(0.0, 1.0);
                    }
                }
                sum
            })
            .collect();
        slices.iter().sum::<f64>() * STEP.powi(3) / 1000.0
    }

    /// Shift that the prostate step must add so that, with what bladder and rectum already do, the
    /// prostate's centre moves by the amount asked for.
    fn settle_prostate(&self, motion: &Motion) -> [f64; 3] {
        let center = self.anatomy.organs.prostate_center;
        // Where bladder and rectum alone push the centre, by fixed-point iteration of their pull-back.
        let mut pushed = center;
        for _ in 0..12 {
            let free = smoothstep(self.bone.at(pushed) / BONE_REACH);
            let from = self.relax_rectum(motion, self.unfill(motion, pushed, free), free);
            pushed = add(pushed, sub(center, from).map(|d| 0.8 * d));
        }
        std::array::from_fn(|a| {
            (motion.prostate_shift[a] / self.scale[a] + center[a] - pushed[a]).clamp(-9.0, 9.0)
        })
    }
}

impl Motion {
    /// Log of the calibre factor at height `z`; the anal canal and the sigmoid end do not change.
    fn rectum_log_at(&self, z: f64) -> f64 {
        let bumps: f64 = self
            .rectum_bumps
            .iter()
            .map(|&(at, size)| {
                let t = (z - at) / 22.0;
                size / (1.0 + t * t).powi(2)
            })
            .sum();
        (self.rectum_log + bumps).clamp(-0.42, 0.45)
            * smoothstep((z + 62.0) / 26.0)
            * smoothstep((105.0 - z) / 40.0)
    }

    /// Takes a sixth off every soft motion.
    fn soften(&mut self, planned_ml: f64) {
        let keep = 5.0 / 6.0;
        for v in [&mut self.prostate_shift, &mut self.prostate_turn] {
            *v = v.map(|c| c * keep);
        }
        self.vesicle_shift = self.vesicle_shift.map(|v| v.map(|c| c * keep));
        self.vesicle_scale = 1.0 + (self.vesicle_scale - 1.0) * keep;
        self.bladder_ml = planned_ml * (self.bladder_ml / planned_ml).powf(keep);
        self.rectum_log *= keep;
        for bump in &mut self.rectum_bumps {
            bump.1 *= keep;
        }
    }
}

impl Rigid {
    fn undo(&self, x: Point) -> Point {
        let d = sub(sub(x, self.shift), self.center);
        // The inverse of a rotation is its transpose.
        let m = &self.matrix;
        let back = std::array::from_fn(|a| m[0][a] * d[0] + m[1][a] * d[1] + m[2][a] * d[2]);
        add(back, self.center)
    }
}

impl DistanceMap {
    fn new(anatomy: &Anatomy) -> Self {
        // Stored in the x component of a lattice, whose spline smooths the creases between bones.
        let lattice =
            Lattice::sample(LOW, HIGH, 8.0, |p| [anatomy.bones.far_distance(p).min(40.0), 0.0, 0.0]);
        Self { lattice }
    }

    fn at(&self, t: Point) -> f64 {
        self.lattice.map(t).map_or(40.0, |p| p[0] - t[0] - 2.0)
    }
}

/// 1 inside the gauge's unit, 0 beyond `reach`.
fn fade(q: f64, reach: f64) -> f64 {
    1.0 - smoothstep((q - 1.0) / (reach - 1.0))
}

fn blend(p: Point, q: Point, weight: f64) -> Point {
    std::array::from_fn(|a| p[a] + weight * (q[a] - p[a]))
}

/// A smooth random displacement with knots every `step` mm and about the given standard deviations.
fn random_field(draw: &mut Draw, step: f64, sd: [f64; 3]) -> Lattice {
    // The spline averages neighbouring knots: (sum of squared weights)^(3/2) is about 1/3 of the spread.
    let count: [usize; 3] = std::array::from_fn(|a| ((HIGH[a] - LOW[a]) / step).ceil() as usize + 4);
    let knots: Vec<[f64; 3]> =
        (0..count.iter().product()).map(|_| draw.gauss3(sd.map(|s| 3.0 * s))).collect();
    let at = |p: Point| {
        let n: [usize; 3] = std::array::from_fn(|a| ((p[a] - LOW[a]) / step + 1.0).round() as usize);
        knots[n[0] + count[0] * (n[1] + count[1] * n[2])]
    };
    Lattice::sample(LOW, HIGH, step, at)
}

/// Rotation by small angles in degrees about x (LR), y (AP) and z (SI).
fn rotation(degrees: [f64; 3]) -> [[f64; 3]; 3] {
    let [(sx, cx), (sy, cy), (sz, cz)] = degrees.map(|d| d.to_radians().sin_cos());
    let x = [[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]];
    let y = [[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]];
    let z = [[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]];
    mat_mul(&z, &mat_mul(&y, &x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotations_keep_lengths() {
        let m = rotation([5.0, -3.0, 8.0]);
        let v = libjrs::geometry::mat_vec(&m, [1.0, 2.0, 3.0]);
        assert!((v.iter().map(|c| c * c).sum::<f64>() - 14.0).abs() < 1e-12);
    }

    #[test]
    fn prostate_moves_as_asked_and_bone_not_at_all() {
        let patient = Patient::new(11, 3);
        let organs = &patient.anatomy.organs;
        let (low, high) = ([-150.0, -130.0, -110.0], [150.0, 130.0, 150.0]);
        let mut motion = patient.motion(11, 1);
        let map = patient.pull_back(&mut motion, low, high, 6.0);
        let rest = |template: Point| -> Point {
            // Where the template point is in the patient at rest: to_template, inverted by iteration.
            let mut x: Point = std::array::from_fn(|a| template[a] * patient.scale[a]);
            for _ in 0..30 {
                let off = sub(patient.to_template(x), template);
                x = std::array::from_fn(|a| x[a] - off[a] * patient.scale[a]);
            }
            x
        };
        let moved = |template: Point| {
            let scan = map.solve(template, rest(template)).unwrap();
            sub(motion.pose.undo(scan), rest(template))
        };
        let shift = moved(organs.prostate_center);
        for a in 0..3 {
            assert!(
                (shift[a] - motion.prostate_shift[a]).abs() < 2.5,
                "{shift:?} for {:?}",
                motion.prostate_shift
            );
        }
        for bone in [[90.0, 0.0, 0.0], [-62.0, 35.0, -45.0], [15.0, -47.0, -34.0], [0.0, 88.0, 42.0]] {
            let d = moved(bone);
            assert!(d.iter().all(|c| c.abs() < 0.3), "bone at {bone:?} moved by {d:?}");
        }
        let held = patient.bladder_volume(&motion);
        assert!((held / motion.bladder_ml - 1.0).abs() < 0.05, "{held} mL for {}", motion.bladder_ml);
    }

    #[test]
    fn random_motion_has_the_spread_of_the_table() {
        let patient = Patient::new(2, 0);
        let motions: Vec<Motion> = (1..200).map(|scan| patient.motion(2, scan)).collect();
        let n = motions.len() as f64;
        for (axis, sigma) in [0.9, 1.9, 1.7].into_iter().enumerate() {
            let mean = motions.iter().map(|m| m.prostate_shift[axis]).sum::<f64>() / n;
            let variance = motions.iter().map(|m| (m.prostate_shift[axis] - mean).powi(2)).sum::<f64>() / n;
            // 199 draws: the standard error of a standard deviation is 5 %.
            assert!((variance.sqrt() / sigma - 1.0).abs() < 0.18, "axis {axis}: {}", variance.sqrt());
        }
        // A full rectum comes with a prostate further forward: r = 0.82 (Mangar 2006).
        let (x, y): (Vec<f64>, Vec<f64>) =
            motions.iter().map(|m| (m.rectum_log, -m.prostate_shift[1])).unzip();
        let (mx, my) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
        let cov = x.iter().zip(&y).map(|(a, b)| (a - mx) * (b - my)).sum::<f64>();
        let spread = |v: &[f64], m: f64| v.iter().map(|a| (a - m).powi(2)).sum::<f64>().sqrt();
        let r = cov / (spread(&x, mx) * spread(&y, my));
        assert!((0.7..0.92).contains(&r), "r = {r}");
    }
}
