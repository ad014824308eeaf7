//! How much two structures overlap.

use rayon::prelude::*;

use crate::volume::Volume;
use crate::{Error, Result};

/// Dice coefficient `2|A∩B| / (|A|+|B|)` of `label` in two maps; `None` if it is absent from either
/// (science.md section 7: an empty structure is absent, never 0).
///
/// # Errors
/// If the maps differ in size.
pub fn dice(a: &Volume<u8>, b: &Volume<u8>, label: u8) -> Result<Option<f64>> {
    same_size(a, b)?;
    let count = |x: &[u8], y: &[u8]| {
        x.iter().zip(y).fold([0usize; 3], |[na, nb, both], (&p, &q)| {
            let (p, q) = (p == label, q == label);
            [na + usize::from(p), nb + usize::from(q), both + usize::from(p && q)]
        })
    };
    let [na, nb, both] = a
        .data
        .par_chunks(1 << 16)
        .zip(b.data.par_chunks(1 << 16))
        .map(|(x, y)| count(x, y))
        .reduce(|| [0; 3], |l, r| [l[0] + r[0], l[1] + r[1], l[2] + r[2]]);
    Ok((na > 0 && nb > 0).then(|| 2.0 * both as f64 / (na + nb) as f64))
}

/// Volume of `label` in mm³, or `None` if it is absent.
pub fn structure_volume(labels: &Volume<u8>, label: u8) -> Option<f64> {
    let voxels = labels.data.par_iter().filter(|&&l| l == label).count();
    (voxels > 0).then(|| voxels as f64 * labels.grid.voxel_volume())
}

/// Refuses two maps that are not voxel for voxel comparable.
pub(super) fn same_size(a: &Volume<u8>, b: &Volume<u8>) -> Result<()> {
    if a.grid.size == b.grid.size {
        return Ok(());
    }
    Err(Error::input(
        format!("two label maps of {:?} and {:?} voxels cannot be compared", a.grid.size, b.grid.size),
        "Resample one onto the grid of the other",
    ))
}
