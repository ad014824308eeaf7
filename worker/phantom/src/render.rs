//! From anatomy and map to the files of a scan: HU image, labels, torso mask.
//!
//! HU values are those of the table "Intensities" in phantom.md. Gas, stool, texture and noise are
//! functions of the scan, not of the anatomy, so registration cannot learn them.

mod content;
mod noise;

use crate::anatomy::Tissue;
use crate::anatomy::organs::{BLADDER_WALL, RECTUM_WALL};
use crate::draw::{Draw, Purpose};
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

const AIR: f64 = -1000.0;

/// Renders scan `scan` of `patient` (cohort `seed`) whose pull-back map is `map`.
pub fn render(patient: &Patient, map: &Lattice, grid: &Grid, seed: u64, scan: usize) -> Rendered {
    let [nx, ny, nz] = grid.size;
    let content = Content::draw(seed, patient.number, scan, grid);
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
                    image[at] = intensity(patient, &tissue, t, x, &content, edge) as f32;
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

/// HU at one point: tissues laid over each other, each with a soft edge `edge` mm wide.
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
