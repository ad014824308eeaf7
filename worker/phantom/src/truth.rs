//! The exact answer for a pair: displacement and landmarks.

use crate::anatomy::bones::{FEMORAL_HEAD, SYMPHYSIS};
use crate::lattice::Lattice;
use crate::motion::Patient;
use libjrs::geometry::Point;
use libjrs::landmarks::Landmark;
use libjrs::{DisplacementField, Grid};
use rayon::prelude::*;

/// True displacement on the fixed grid: `x + u(x)` is the point of the moving scan that shows the same
/// anatomy, found by solving ψ_moving(y) = ψ_fixed(x). NaN where nothing corresponds: in the lumen of
/// rectum and bowel, whose content changes, and outside the moving map.
pub fn displacement(patient: &Patient, fixed: &Lattice, moving: &Lattice, grid: &Grid) -> DisplacementField {
    let [nx, ny, _] = grid.size;
    let mut field = DisplacementField::zero(grid.clone());
    let [ux, uy, uz] = &mut field.u;
    let plane = nx * ny;
    (ux.par_chunks_mut(plane).zip(uy.par_chunks_mut(plane)).zip(uz.par_chunks_mut(plane)))
        .enumerate()
        .for_each(|(k, ((ux, uy), uz))| {
            for j in 0..ny {
                let [x0, y, z] = grid.to_physical([0.0, j as f64, k as f64]);
                let row = fixed.row(y, z);
                // The answer of the previous voxel starts the next one; every row starts by itself.
                let mut previous: Option<[f64; 3]> = None;
                for i in 0..nx {
                    let x = [x0 + i as f64 * grid.spacing[0], y, z];
                    let target = row.as_ref().and_then(|row| row.map(x[0]));
                    let solved = target.and_then(|t| {
                        let guess = previous.map_or(x, |u| [x[0] + u[0], x[1] + u[1], x[2] + u[2]]);
                        moving.solve(t, guess).or_else(|| moving.solve(t, x))
                    });
                    previous = solved.map(|to| [to[0] - x[0], to[1] - x[1], to[2] - x[2]]);
                    let lumen = target.is_none_or(|t| patient.anatomy.is_lumen(t));
                    let u = previous.filter(|_| !lumen).unwrap_or([f64::NAN; 3]);
                    let at = i + nx * j;
                    (ux[at], uy[at], uz[at]) = (round(u[0]), round(u[1]), round(u[2]));
                }
            }
        });
    field
}

/// To 1/1024 mm, the accuracy of the inversion: the digits behind it would only fill the file.
fn round(mm: f64) -> f32 {
    ((mm * 1024.0).round() / 1024.0) as f32
}

/// Landmarks that both scans show within `grid`.
pub fn landmarks(patient: &Patient, fixed: &Lattice, moving: &Lattice, grid: &Grid) -> Vec<Landmark> {
    let visible = |p: Point| {
        let index = grid.to_index(p);
        (0..3).all(|a| index[a] >= 0.0 && index[a] <= (grid.size[a] - 1) as f64)
    };
    named_points(patient)
        .into_iter()
        .filter_map(|(name, template)| {
            let start: Point = std::array::from_fn(|a| template[a] * patient.scale[a]);
            let fixed = fixed.solve(template, start)?;
            let moving = moving.solve(template, start)?;
            (visible(fixed) && visible(moving)).then(|| Landmark { name: name.into(), fixed, moving })
        })
        .collect()
}

/// Landmarks in the template frame.
fn named_points(patient: &Patient) -> Vec<(&'static str, Point)> {
    let organs = &patient.anatomy.organs;
    let (pc, pr) = (organs.prostate_center, organs.prostate_radii);
    let (bc, br) = (organs.bladder_center, organs.bladder_radii);
    let along = |c: Point, axis: usize, d: f64| -> Point {
        std::array::from_fn(|a| c[a] + if a == axis { d } else { 0.0 })
    };
    let rectum_front = |z: f64| {
        let (c, r) = (organs.rectum_center(z), organs.rectum_radii(z));
        [c[0], c[1] - r[1], z]
    };
    vec![
        ("prostate centre", pc),
        ("prostate apex", along(pc, 2, -pr[2])),
        ("prostate base", along(pc, 2, pr[2])),
        ("seminal vesicle tip right", organs.vesicle_tips[0]),
        ("seminal vesicle tip left", organs.vesicle_tips[1]),
        ("bladder neck", along(bc, 2, -br[2])),
        ("bladder dome", along(bc, 2, br[2])),
        ("bladder front", along(bc, 1, -br[1])),
        ("rectum front wall at prostate", rectum_front(pc[2])),
        ("rectum front wall at 30 mm", rectum_front(30.0)),
        ("femoral head right", [-FEMORAL_HEAD[0], FEMORAL_HEAD[1], FEMORAL_HEAD[2]]),
        ("femoral head left", FEMORAL_HEAD),
        ("symphysis top", SYMPHYSIS[0]),
        ("symphysis bottom", SYMPHYSIS[1]),
    ]
}
