//! Fields as 5-D NIfTI-1: `dim = [5, nx, ny, nz, 1, 3]`, one whole volume per component.

use std::path::Path;

use crate::geometry::voxel_count;
use crate::nifti::header::{HEADER_BYTES, Kind, RawHeader, contents, header};
use crate::nifti::write_file;
use crate::volume::DisplacementField;
use crate::{Error, Result};

/// Which meaning a 5-D NIfTI field has for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NiftiFlavour {
    /// Intent 1006 (`DISPVECT`), vectors in RAS mm: ITK, SimpleITK and 3D Slicer convert them.
    Itk,
    /// Intent 1007 (`VECTOR`), vectors in LPS mm, as ANTs writes and reads them.
    Ants,
}

impl NiftiFlavour {
    fn intent(self) -> i16 {
        match self {
            Self::Itk => 1006,
            Self::Ants => 1007,
        }
    }

    /// Factor of each component between memory (LPS) and file; its own inverse.
    fn signs(self) -> [f32; 3] {
        match self {
            Self::Itk => [-1.0, -1.0, 1.0],
            Self::Ants => [1.0; 3],
        }
    }
}

/// Writes `field` as 5-D NIfTI-1 float32 (gzip if the name ends in `.gz`), with qform and sform.
///
/// # Errors
/// If an axis is longer than NIfTI-1 can say (32767) or the file cannot be written.
pub fn write_nifti(path: impl AsRef<Path>, field: &DisplacementField, flavour: NiftiFlavour) -> Result<()> {
    let path = path.as_ref();
    let kind = Kind {
        dim: [5, 0, 0, 0, 1, 3, 1, 1],
        intent: flavour.intent(),
        datatype: 16,
        bits: 32,
        description: "displacement field, mm",
    };
    let header = header(path, &field.grid, &kind)?;
    let signs = flavour.signs();
    write_file(path, &header, &field.u.each_ref().map(Vec::as_slice), |c, v| (v * signs[c]).to_le_bytes())
}

/// Reads a 5-D NIfTI-1 field of intent 1006 (RAS vectors) or 1007 (LPS vectors), float32 or float64, of
/// either byte order, plain or gzip. The sform is used where it is set, else the qform.
///
/// # Errors
/// If the file cannot be read or is anything else than that.
pub fn read_nifti(path: impl AsRef<Path>) -> Result<DisplacementField> {
    let path = path.as_ref();
    let bytes = contents(path)?;
    let header = RawHeader::parse(path, &bytes)?;
    let dim: [i16; 8] = std::array::from_fn(|i| header.i16(40 + 2 * i));
    if dim[0] != 5 || dim[4] != 1 || dim[5] != 3 || dim[1..4].iter().any(|&d| d < 1) {
        return Err(Error::file(
            path,
            format!("dim is {:?}, and a displacement field has [5, nx, ny, nz, 1, 3]", &dim[..6]),
            "Give the displacement field, not an image",
        ));
    }
    let flavour = match header.i16(68) {
        1006 => NiftiFlavour::Itk,
        1007 => NiftiFlavour::Ants,
        other => {
            return Err(Error::file(
                path,
                format!("intent code {other} does not say whether the vectors are RAS or LPS"),
                "Set it to 1006 (RAS millimetres) or 1007 (LPS millimetres)",
            ));
        }
    };
    let size = [dim[1] as usize, dim[2] as usize, dim[3] as usize];
    let grid = header.grid(size)?;

    let width = match header.i16(70) {
        16 => 4,
        64 => 8,
        other => {
            return Err(Error::file(
                path,
                format!("datatype {other} is neither float32 (16) nor float64 (64)"),
                "Write the field as float32",
            ));
        }
    };
    let n = voxel_count(path, size)?;
    // Stored as a float by the standard; a negative or NaN offset becomes 0 and then fails the check below.
    let offset = header.f32(108) as usize;
    let expected = n * 3 * width;
    if offset < HEADER_BYTES || bytes.len() < offset.saturating_add(expected) {
        return Err(Error::file(
            path,
            format!("{} bytes with data from {offset}, where {size:?} voxels need {expected}", bytes.len()),
            "The file is cut; copy it again",
        ));
    }
    // A slope of 0 means "not scaled".
    let (slope, intercept) = match header.f32(112) {
        s if s == 0.0 || !s.is_finite() => (1.0, 0.0),
        s => (s, header.f32(116)),
    };
    let signs = flavour.signs();
    let u = std::array::from_fn(|c| {
        let start = offset + c * n * width;
        (0..n)
            .map(|i| match width {
                4 => (header.f32(start + 4 * i) * slope + intercept) * signs[c],
                _ => (header.f64(start + 8 * i) as f32 * slope + intercept) * signs[c],
            })
            .collect()
    });
    Ok(DisplacementField { grid, u })
}

#[cfg(test)]
mod tests {
    use super::super::tests::oblique_field;
    use super::*;
    use crate::nifti::header::DATA_OFFSET;
    use std::fs;

    #[test]
    fn flavours_store_ras_and_lps() {
        let folder = tempfile::tempdir().unwrap();
        let field = oblique_field();
        let stored = |flavour| {
            let path = folder.path().join("u.nii");
            write_nifti(&path, &field, flavour).unwrap();
            let bytes = fs::read(&path).unwrap();
            let h = RawHeader::parse(&path, &bytes).unwrap();
            let n = field.grid.len();
            (h.i16(68), [0, 1, 2].map(|c| h.f32(DATA_OFFSET + 4 * (c * n + 7))))
        };
        let u = field.at(7);
        assert_eq!(stored(NiftiFlavour::Itk), (1006, [-u[0], -u[1], u[2]]));
        assert_eq!(stored(NiftiFlavour::Ants), (1007, u));
    }

    #[test]
    fn qform_and_sform_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.nii");
        let mut field = oblique_field();
        for flip in [1.0, -1.0] {
            for row in &mut field.grid.direction {
                row[1] *= flip;
            }
            write_nifti(&path, &field, NiftiFlavour::Itk).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            bytes[254..256].copy_from_slice(&[0, 0]); // sform off: the reader must fall back to the qform
            fs::write(&path, bytes).unwrap();
            assert!(read_nifti(&path).unwrap().grid.same_space(&field.grid, 1e-3));
        }
    }

    #[test]
    fn an_unclear_intent_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.nii");
        write_nifti(&path, &oblique_field(), NiftiFlavour::Itk).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[68..70].copy_from_slice(&[0, 0]);
        fs::write(&path, bytes).unwrap();
        assert!(read_nifti(&path).unwrap_err().to_string().contains("intent code 0"));
    }
}
