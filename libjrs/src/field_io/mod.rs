//! Displacement fields on disk, always float32, in three shapes other programs read.
//!
//! | function | file | vectors | read by |
//! |---|---|---|---|
//! | [`write_nifti`] with [`NiftiFlavour::Itk`] | NIfTI 5-D `(nx, ny, nz, 1, 3)`, intent 1006 | RAS mm | ITK, SimpleITK, 3D Slicer |
//! | [`write_nifti`] with [`NiftiFlavour::Ants`] | the same with intent 1007 | LPS mm | ANTs and older ITK |
//! | [`write_mha`] | MetaImage, 3 interleaved channels | LPS mm | ITK, SimpleITK, elastix, 3D Slicer |
//!
//! In memory there is only LPS ([`DisplacementField`]); the sign change of the first flavour happens here.
//!
//! What SimpleITK 2.5.7 (ITK 5.4) really does, measured by `tests/reference/fields_check.py`:
//! - Intent 1006 (`DISPVECT`): read as a 3-D image of 3-vectors, x and y of every **vector negated**
//!   (RAS to LPS), geometry converted too. So the file must hold RAS vectors, and a field written as
//!   [`NiftiFlavour::Itk`] arrives in SimpleITK with exactly our LPS values.
//!   (SimpleITK cannot write such an image back: its writer refuses the intent it kept from the reader.)
//! - Intent 1007 (`VECTOR`): also a 3-D image of 3-vectors, geometry converted, but the vectors are taken
//!   **as they are**. So the file must hold LPS vectors ([`NiftiFlavour::Ants`]), which is also what ANTs
//!   writes; SimpleITK itself writes vector images this way.
//! - nibabel converts nothing: it gives the stored vectors beside a RAS geometry. With 1006 both are RAS, so
//!   `moving_ras = fixed_ras + vector`; with 1007 x and y of the vectors must be negated first.
//!
//! A file is written under a temporary name in the same folder and renamed, so a reader never sees half of it.

mod mha;
mod nifti5d;

pub use mha::{read_mha, write_mha};
pub use nifti5d::{NiftiFlavour, read_nifti, write_nifti};

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::geometry::{Grid, Point, determinant};
use crate::volume::DisplacementField;
use crate::{Error, Result};

/// Reads a field by the file name's ending: `.mha`, `.nii` or `.nii.gz`.
///
/// # Errors
/// If the ending is another one, or as [`read_nifti`] and [`read_mha`].
pub fn read(path: impl AsRef<Path>) -> Result<DisplacementField> {
    let path = path.as_ref();
    match Format::of(path)? {
        Format::Nifti => read_nifti(path),
        Format::Mha => read_mha(path),
    }
}

/// Writes a field by the file name's ending: `.mha`, or `.nii` and `.nii.gz` in the given flavour.
///
/// # Errors
/// If the ending is another one, or as [`write_nifti`] and [`write_mha`].
pub fn write(path: impl AsRef<Path>, field: &DisplacementField, flavour: NiftiFlavour) -> Result<()> {
    let path = path.as_ref();
    match Format::of(path)? {
        Format::Nifti => write_nifti(path, field, flavour),
        Format::Mha => write_mha(path, field),
    }
}

enum Format {
    Nifti,
    Mha,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        if name.ends_with(".nii") || name.ends_with(".nii.gz") {
            Ok(Self::Nifti)
        } else if name.ends_with(".mha") {
            Ok(Self::Mha)
        } else {
            Err(Error::file(
                path,
                "a displacement field is kept as .nii, .nii.gz or .mha, and this name ends in none of them",
                "Give the file one of these endings",
            ))
        }
    }
}

/// Runs `fill` on a temporary file beside `path` and renames it to `path`; on any error nothing is left.
pub(crate) fn write_atomically(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().ok_or_else(|| {
        Error::file(path, "the path names no file", "Give the name of the file that is to be written")
    })?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary: PathBuf =
        path.with_file_name(format!(".{}.{}-{serial}.tmp", name.to_string_lossy(), std::process::id()));
    let attempt = || {
        let mut file = BufWriter::new(File::create(&temporary)?);
        fill(&mut file)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|e| {
        // The first error is the one to report; the temporary file may never have existed.
        let _ = fs::remove_file(&temporary);
        Error::io(
            path,
            e,
            "Check that the folder exists, that it can be written and that the disk is not full",
        )
    })
}

/// A grid from file geometry, refused unless spacing is positive and the axes are orthonormal within 1e-3.
///
/// Single-precision files carry directions with errors near 1e-7, so the axes are made orthonormal again
/// (Gram-Schmidt): [`Grid::to_index`] relies on it.
fn checked_grid(
    path: &Path,
    size: [usize; 3],
    spacing: [f64; 3],
    origin: Point,
    direction: [[f64; 3]; 3],
) -> Result<Grid> {
    const FIX: &str = "Write the field again with a rigid, finite image geometry";
    let finite = origin.iter().chain(direction.as_flattened()).all(|v| v.is_finite());
    if !finite || spacing.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::file(
            path,
            format!(
                "the geometry is unusable: spacing {spacing:?}, origin {origin:?}, direction {direction:?}"
            ),
            FIX,
        ));
    }
    if size.contains(&0) {
        return Err(Error::file(path, format!("the size {size:?} has an axis without voxels"), FIX));
    }
    let column = |a: usize| [direction[0][a], direction[1][a], direction[2][a]];
    let dot = |a: [f64; 3], b: [f64; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    let mut axes: [[f64; 3]; 3] = [[0.0; 3]; 3];
    for a in 0..3 {
        let mut v = column(a);
        let mut skew: f64 = (dot(v, v) - 1.0).abs();
        for axis in axes.iter().take(a) {
            let along = dot(v, *axis);
            skew = skew.max(along.abs());
            v = std::array::from_fn(|i| v[i] - along * axis[i]);
        }
        if skew > 1e-3 {
            return Err(Error::file(
                path,
                format!("the axes {direction:?} are not orthonormal: axis {a} is off by {skew:.2e}"),
                "Resample the field to a grid without shear",
            ));
        }
        let norm = dot(v, v).sqrt();
        axes[a] = v.map(|c| c / norm);
    }
    let direction: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|c| axes[c][r]));
    debug_assert!((determinant(&direction).abs() - 1.0).abs() < 1e-6);
    Ok(Grid { size, spacing, origin, direction })
}

/// Bytes of one component, or an error for sizes that cannot be held.
fn voxel_count(path: &Path, size: [usize; 3]) -> Result<usize> {
    size.iter()
        .try_fold(1usize, |n, &s| n.checked_mul(s))
        .filter(|n| n.checked_mul(3 * 8).is_some())
        .ok_or_else(|| {
            Error::file(path, format!("the size {size:?} overflows"), "Check that the file is whole")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::mat_mul;

    /// An oblique, anisotropic grid (rotated about two axes) with a field that differs in every voxel.
    pub(super) fn oblique_field() -> DisplacementField {
        let (s, c) = 0.3f64.sin_cos();
        let (t, d) = 0.2f64.sin_cos();
        let direction = mat_mul(
            &[[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
            &[[1.0, 0.0, 0.0], [0.0, d, -t], [0.0, t, d]],
        );
        let grid =
            Grid { size: [5, 4, 3], spacing: [0.9, 1.25, 3.0], origin: [-100.5, 42.25, -730.0], direction };
        let n = grid.len();
        DisplacementField {
            grid,
            u: std::array::from_fn(|c| (0..n).map(|i| i as f32 * 0.37 - 5.0 * c as f32).collect()),
        }
    }

    #[test]
    fn every_shape_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let field = oblique_field();
        for (name, flavour) in [
            ("u.nii", NiftiFlavour::Itk),
            ("u.nii.gz", NiftiFlavour::Itk),
            ("a.nii.gz", NiftiFlavour::Ants),
            ("u.mha", NiftiFlavour::Itk),
        ] {
            let path = folder.path().join(name);
            write(&path, &field, flavour).unwrap();
            let back = read(&path).unwrap();
            assert_eq!(back.u, field.u, "{name}");
            // The NIfTI header holds single precision: 1e-4 mm over coordinates near 1000 mm.
            assert!(back.grid.same_space(&field.grid, 1e-3), "{name}: {:?}", back.grid);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "no temporary file is left");
    }

    #[test]
    fn a_left_handed_grid_survives() {
        let folder = tempfile::tempdir().unwrap();
        let mut field = oblique_field();
        for row in &mut field.grid.direction {
            row[2] = -row[2];
        }
        for name in ["u.nii", "u.mha"] {
            let path = folder.path().join(name);
            write(&path, &field, NiftiFlavour::Itk).unwrap();
            assert!(read(&path).unwrap().grid.same_space(&field.grid, 1e-3), "{name}");
        }
    }

    #[test]
    fn bad_files_are_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let field = oblique_field();
        let error = |path: &Path| read(path).unwrap_err().to_string();
        assert!(write(folder.path().join("u.nrrd"), &field, NiftiFlavour::Itk).is_err());
        assert!(write(folder.path().join("none/u.mha"), &field, NiftiFlavour::Itk).is_err());
        assert!(error(&folder.path().join("missing.mha")).contains("missing.mha"));
        for name in ["u.nii", "u.nii.gz", "u.mha"] {
            let path = folder.path().join(name);
            write(&path, &field, NiftiFlavour::Itk).unwrap();
            let whole = fs::read(&path).unwrap();
            fs::write(&path, &whole[..whole.len() - 40]).unwrap();
            assert!(error(&path).contains(name), "{name}");
            fs::write(&path, b"no image").unwrap();
            assert!(error(&path).contains(name), "{name}");
        }
    }
}
