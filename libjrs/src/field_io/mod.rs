//! Displacement fields on disk, always float32, in the shapes other programs read.
//!
//! | function | file | vectors | read by |
//! |---|---|---|---|
//! | [`write_nifti`] with [`NiftiFlavour::Itk`] | NIfTI 5-D `(nx, ny, nz, 1, 3)`, intent 1006 | RAS mm | ITK, SimpleITK, 3D Slicer |
//! | [`write_nifti`] with [`NiftiFlavour::Ants`] | the same with intent 1007 | LPS mm | ANTs and older ITK |
//! | [`write_mha`] | MetaImage, 3 interleaved channels | LPS mm | ITK, SimpleITK, elastix, 3D Slicer |
//! | [`write_nrrd`] | NRRD, 3 interleaved components | LPS mm | ITK, SimpleITK, 3D Slicer |
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
mod nrrd;

pub use mha::{read_mha, write_mha};
pub use nifti5d::{NiftiFlavour, read_nifti, write_nifti};
pub use nrrd::write_nrrd;

use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Grid;
    use crate::geometry::mat_mul;
    use std::fs;

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
