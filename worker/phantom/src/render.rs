//! From anatomy and map to the files of a scan: HU image, labels, torso mask.
//!
//! HU values are those of the table "Intensities" in phantom.md. Noise is a function of the scan. Gas, stool and texture
//! are too, so that training cannot learn them, unless a known deformation is to be measured: see [`Texture`].

mod content;
mod noise;

use crate::anatomy::Tissue;
use crate::anatomy::organs::{BLADDER_WALL, RECTUM_WALL};
use crate::draw::{Draw, Purpose, WHOLE_PATIENT};
use crate::lattice::Lattice;
use crate::motion::Patient;
use content::Content;
use libjrs::geometry::Point;
use libjrs::{Grid, Volume};
use rayon::prelude::*;

/// A rendered CT.
pub struct Rendered {
    /// Image in HU, whole numbers.
    pub image: Volume<f32>,
    /// Label map (0 background, 1-5 organs).
    pub labels: Volume<u8>,
    /// 1 inside the skin.
    pub torso: Volume<u8>,
}

/// What texture of tissue, gas and stool belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texture {
    /// To the scan: they lie still in space while the anatomy moves, and every scan has its own. For cohorts to train on.
    OfScan,
    /// To the patient: they move with the anatomy, as grain of real tissue does, and scans differ by their noise alone. For
    /// measuring how well a deformation is found: texture that stays behind would say that nothing moved.
    OfTissue,
}

const AIR: f64 = -1000.0;

/// Renders scan `scan` of `patient` (cohort `seed`) whose pull-back map is `map`.
pub fn render(
    patient: &Patient,
    map: &Lattice,
    grid: &Grid,
    seed: u64,
    scan: usize,
    texture: Texture,
) -> Rendered {
    let [nx, ny, nz] = grid.size;
    let drawn_for = if texture == Texture::OfScan { scan } else { WHOLE_PATIENT };
    let content = Content::draw(seed, patient.number, drawn_for, grid);
    let couch = Couch::below(patient);
    let edge = (1.1 * grid.spacing[0]).max(1.0);

    let mut image = vec![AIR as f32; grid.len()];
    let mut labels = vec![0u8; grid.len()];
    let mut torso = vec![0u8; grid.len()];
    (image.par_chunks_mut(nx * ny).zip(labels.par_chunks_mut(nx * ny)).zip(torso.par_chunks_mut(nx * ny)))
        .enumerate()
        .for_each(|(k, ((image, labels), torso))| {
            for j in 0..ny {
                let [x0, y, z] = grid.to_physical([0.0, j as f64, k as f64]);
                let Some(row) = map.row(y, z) else { continue };
                for i in 0..nx {
                    let x = [x0 + i as f64 * grid.spacing[0], y, z];
                    let at = i + nx * j;
                    let tissue = row.map(x[0]).and_then(|t| Some((t, patient.anatomy.tissue(t)?)));
                    let Some((t, tissue)) = tissue else {
                        image[at] = couch.hu(x) as f32;
                        continue;
                    };
                    labels[at] = tissue.label();
                    torso[at] = u8::from(tissue.skin < 0.0);
                    let grain = match texture {
                        Texture::OfScan => x,
                        // The patient's size, so that the grain has its own.
                        Texture::OfTissue => std::array::from_fn(|a| t[a] * patient.scale[a]),
                    };
                    image[at] = intensity(patient, &tissue, t, grain, &content, edge) as f32;
                }
            }
        });

    let noise = noise::volume(grid, seed, patient.number, scan);
    let sd = Draw::new(seed, patient.number, scan, Purpose::Texture).between(6.0, 9.0) as f32;
    let mut finished = vec![0.0f32; grid.len()];
    finished.par_chunks_mut(nx * ny).enumerate().for_each(|(k, out)| {
        let plane = nx * ny;
        let (below, above) = (k.saturating_sub(1) * plane, (k + 1).min(nz - 1) * plane);
        for at in 0..plane {
            // Partial volume along z: part of each neighbouring slice.
            let blurred = 0.14 * (image[below + at] + image[above + at]) + 0.72 * image[k * plane + at];
            // Few photons pass along the widest path, so the middle of the body is noisier than its edge.
            let r = ((at % nx) as f32 / nx as f32 - 0.5).abs();
            let local = if blurred < -950.0 { 0.5 } else { 1.15 - 0.7 * r };
            out[at] = (blurred + sd * local * noise[k * plane + at]).round().clamp(-1024.0, 3071.0);
        }
    });
    Rendered {
        image: Volume::new(grid.clone(), finished),
        labels: Volume::new(grid.clone(), labels),
        torso: Volume::new(grid.clone(), torso),
    }
}

/// HU at the point `t` of the anatomy's frame: tissues laid over each other, each with a soft edge `edge` mm wide. `x` is
/// where the texture is read.
fn intensity(patient: &Patient, tissue: &Tissue, t: Point, x: Point, content: &Content, edge: f64) -> f64 {
    let cover = |d: f64| (0.5 - d / edge).clamp(0.0, 1.0);
    let fine = content.fine(x);
    let broad = content.broad(x);

    // Fat with faint strands.
    let mut hu = -104.0 + 5.0 * fine + 5.0 * broad;
    let mut lay = |d: f64, value: f64| {
        let c = cover(d);
        hu += c * (value - hu);
    };
    lay(tissue.muscle, 42.0 + 4.0 * fine + 6.0 * broad.min(0.5));
    lay(tissue.vessel, 40.0);
    lay(tissue.bead, 30.0);
    if tissue.bowel < edge {
        lay(tissue.bowel, 34.0);
        lay(tissue.bowel + RECTUM_WALL, content.bowel(x));
    }
    if tissue.rectum.min(tissue.tube) < edge {
        lay(tissue.rectum.max(tissue.tube - 2.0), 38.0 + 3.0 * fine);
        lay(tissue.tube.max(tissue.rectum) + RECTUM_WALL, content.rectum(&patient.anatomy.organs, t, x));
    }
    if tissue.bladder < edge {
        lay(tissue.bladder, 32.0);
        lay(tissue.bladder + BLADDER_WALL, content.urine);
    }
    lay(tissue.vesicles, 24.0 + 4.0 * fine);
    lay(tissue.prostate, 36.0 + 4.0 * fine + 3.0 * broad);
    // Skin.
    lay(tissue.skin.abs().max(-tissue.skin) - 1.6, 5.0);

    let bone = tissue.bone;
    if bone.distance < edge {
        let depth = -bone.distance;
        // From compact bone at the surface to spongy bone inside, with trabeculae.
        let inside = ((depth - bone.cortex) / 2.5).clamp(0.0, 1.0);
        let compact = if bone.cortex > 4.0 { 1250.0 } else { 900.0 } + 60.0 * broad;
        let spongy = bone.marrow + 45.0 * fine + 50.0 * broad;
        lay(bone.distance, compact + inside * (spongy - compact));
    }
    let body = cover(tissue.skin);
    AIR + body * (hu - AIR)
}

/// What the patient lies on: a curved carbon shell, and rods under the mattress.
struct Couch {
    top: f64,
}

impl Couch {
    fn below(patient: &Patient) -> Self {
        Self { top: patient.anatomy.body.back() * patient.scale[1] + 22.0 }
    }

    fn hu(&self, x: Point) -> f64 {
        let shell = self.top + 34.0 - x[0] * x[0] / 1500.0;
        let mut hu = AIR;
        if x[0].abs() < 240.0 && (x[1] - shell).abs() < 1.6 {
            hu = -150.0;
        } else if x[1] > shell && x[1] < shell + 22.0 {
            hu = -965.0;
        }
        for (at, r, value) in [(-92.0, 3.4, 700.0), (8.0, 1.8, -300.0), (96.0, 3.4, 150.0)] {
            if (x[0] - at).powi(2) + (x[1] - self.top).powi(2) < r * r {
                hu = value;
            }
        }
        hu
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anatomy::bones::FEMORAL_HEAD;
    use crate::truth::displacement;
    use libjrs::resample::sample_linear;

    /// Root mean square difference, HU, of what two scans show of the same places inside a femoral head, whose spongy bone
    /// has the strongest texture; linear interpolation and noise are part of it.
    fn difference(texture: Texture) -> f64 {
        let (seed, patient) = (21, Patient::new(21, 1));
        let low = std::array::from_fn(|a| FEMORAL_HEAD[a] * patient.scale[a] - 30.0);
        let grid = Grid::axis_aligned([40, 40, 40], [1.5; 3], low);
        let mut motions = [patient.motion(seed, 1), patient.motion(seed, 0)];
        let [fixed, moving] = motions.each_mut().map(|m| patient.pull_back_over(m, &grid, 5.0));
        let scan = |map: &Lattice, number| render(&patient, map, &grid, seed, number, texture).image;
        let (seen_fixed, seen_moving) = (scan(&fixed, 1), scan(&moving, 0));
        let truth = displacement(&patient, &fixed, &moving, &grid);
        let (mut sum, mut count) = (0.0, 0.0);
        for i in 0..grid.len() {
            let x = grid.to_physical([i % 40, i / 40 % 40, i / 1600].map(|n| n as f64));
            let tissue = fixed.map(x).and_then(|t| patient.anatomy.tissue(t));
            let is_spongy = tissue.is_some_and(|t| -t.bone.distance > t.bone.cortex + 5.0);
            let there = std::array::from_fn(|a| x[a] + f64::from(truth.at(i)[a]));
            if let Some(hu) = sample_linear(&seen_moving, there).filter(|_| is_spongy) {
                sum += f64::from(hu - seen_fixed.data[i]).powi(2);
                count += 1.0;
            }
        }
        assert!(count > 1000.0, "{count} voxels");
        (sum / count).sqrt()
    }

    #[test]
    fn texture_stays_with_the_scan_or_moves_with_the_tissue() {
        let (of_scan, of_tissue) = (difference(Texture::OfScan), difference(Texture::OfTissue));
        eprintln!("the same places of two scans differ by {of_scan:.1} and {of_tissue:.1} HU");
        // Noise of 6 to 9 HU in each, and the linear interpolation of a grain of two voxels.
        assert!(of_tissue < 25.0 && of_scan > 2.0 * of_tissue, "{of_scan} and {of_tissue} HU");
    }
}
