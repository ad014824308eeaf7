//! Fields as 5-D NIfTI-1: `dim = [5, nx, ny, nz, 1, 3]`, one whole volume per component.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use super::{checked_grid, voxel_count, write_atomically};
use crate::geometry::{Grid, determinant};
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

const HEADER_BYTES: usize = 348;
/// Header plus the four bytes that say "no extension follows".
const DATA_OFFSET: usize = 352;

/// Writes `field` as 5-D NIfTI-1 float32 (gzip if the name ends in `.gz`), with qform and sform.
///
/// # Errors
/// If an axis is longer than NIfTI-1 can say (32767) or the file cannot be written.
pub fn write_nifti(path: impl AsRef<Path>, field: &DisplacementField, flavour: NiftiFlavour) -> Result<()> {
    let path = path.as_ref();
    let header = header(path, &field.grid, flavour)?;
    write_atomically(path, |file| {
        let fill = |out: &mut dyn Write| -> std::io::Result<()> {
            out.write_all(&header)?;
            for (component, sign) in field.u.iter().zip(flavour.signs()) {
                for chunk in component.chunks(1 << 16) {
                    let bytes: Vec<u8> = chunk.iter().flat_map(|v| (v * sign).to_le_bytes()).collect();
                    out.write_all(&bytes)?;
                }
            }
            Ok(())
        };
        if is_gzip(path) {
            // Noise-like floats hardly shrink: a fast level costs a few per cent of size and saves seconds.
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            fill(&mut encoder)?;
            encoder.finish().map(|_| ())
        } else {
            fill(file)
        }
    })
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

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    let bytes =
        fs::read(path).map_err(|e| Error::io(path, e, "Check the name and that the file may be read"))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut inflated = Vec::new();
    flate2::read::MultiGzDecoder::new(&bytes[..])
        .read_to_end(&mut inflated)
        .map_err(|e| Error::io(path, e, "The gzip part is damaged; copy the file again"))?;
    Ok(inflated)
}

/// RAS affine of a grid: rows 0 and 1 of the LPS affine negated.
fn ras_affine(grid: &Grid) -> [[f64; 4]; 3] {
    std::array::from_fn(|r| {
        let sign = if r < 2 { -1.0 } else { 1.0 };
        std::array::from_fn(|c| match c {
            3 => sign * grid.origin[r],
            _ => sign * grid.direction[r][c] * grid.spacing[c],
        })
    })
}

/// The 348 header bytes and the empty extension marker (field offsets: nifti1.h).
fn header(path: &Path, grid: &Grid, flavour: NiftiFlavour) -> Result<[u8; DATA_OFFSET]> {
    let mut h = [0u8; DATA_OFFSET];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(HEADER_BYTES as i32).to_le_bytes());
    put(38, b"r");
    let mut dim = [5i16, 0, 0, 0, 1, 3, 1, 1];
    for a in 0..3 {
        dim[1 + a] = i16::try_from(grid.size[a]).map_err(|_| {
            Error::file(
                path,
                format!("NIfTI-1 cannot hold an axis of {} voxels", grid.size[a]),
                "Write the field as .mha",
            )
        })?;
    }
    for (i, d) in dim.iter().enumerate() {
        put(40 + 2 * i, &d.to_le_bytes());
    }
    put(68, &flavour.intent().to_le_bytes());
    put(70, &16i16.to_le_bytes());
    put(72, &32i16.to_le_bytes());
    let (qfac, quaternion) = quaternion(grid);
    let pixdim = [qfac, grid.spacing[0], grid.spacing[1], grid.spacing[2], 1.0, 1.0, 1.0, 1.0];
    for (i, p) in pixdim.iter().enumerate() {
        put(76 + 4 * i, &(*p as f32).to_le_bytes());
    }
    put(108, &(DATA_OFFSET as f32).to_le_bytes());
    put(112, &1.0f32.to_le_bytes());
    put(123, &[2]); // millimetres
    put(148, b"displacement field, mm");
    put(252, &1i16.to_le_bytes());
    put(254, &1i16.to_le_bytes());
    let affine = ras_affine(grid);
    for (i, q) in quaternion.iter().enumerate() {
        put(256 + 4 * i, &(*q as f32).to_le_bytes());
    }
    for (r, row) in affine.iter().enumerate() {
        put(268 + 4 * r, &(row[3] as f32).to_le_bytes());
        for (c, value) in row.iter().enumerate() {
            put(280 + 16 * r + 4 * c, &(*value as f32).to_le_bytes());
        }
    }
    put(344, b"n+1\0");
    Ok(h)
}

/// `qfac` and the quaternion `(b, c, d)` of the RAS rotation, by the method of nifti1_io's `mat44_to_quatern`.
fn quaternion(grid: &Grid) -> (f64, [f64; 3]) {
    let mut r = grid.direction;
    for value in r[..2].iter_mut().flatten() {
        *value = -*value;
    }
    let qfac = if determinant(&r) < 0.0 { -1.0 } else { 1.0 };
    for row in &mut r {
        row[2] *= qfac;
    }
    // The largest of the four components is taken from its square, the others from products with it.
    let squares = [
        1.0 + r[0][0] + r[1][1] + r[2][2],
        1.0 + r[0][0] - r[1][1] - r[2][2],
        1.0 - r[0][0] + r[1][1] - r[2][2],
        1.0 - r[0][0] - r[1][1] + r[2][2],
    ];
    let largest = (1..4).fold(0, |best, i| if squares[i] > squares[best] { i } else { best });
    let four_q = 2.0 * squares[largest].sqrt();
    let (s10, s20, s21) = (r[1][0] + r[0][1], r[2][0] + r[0][2], r[2][1] + r[1][2]);
    let (d21, d02, d10) = (r[2][1] - r[1][2], r[0][2] - r[2][0], r[1][0] - r[0][1]);
    let q = match largest {
        0 => [four_q * four_q / 4.0, d21, d02, d10],
        1 => [d21, four_q * four_q / 4.0, s10, s20],
        2 => [d02, s10, four_q * four_q / 4.0, s21],
        _ => [d10, s20, s21, four_q * four_q / 4.0],
    }
    .map(|v| v / four_q);
    // NIfTI stores b, c, d of the quaternion with a >= 0.
    let sign = if q[0] < 0.0 { -1.0 } else { 1.0 };
    (qfac, [sign * q[1], sign * q[2], sign * q[3]])
}

/// Header fields of either byte order, read from the whole file's bytes.
struct RawHeader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> RawHeader<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let is_nifti = bytes.len() >= DATA_OFFSET && &bytes[344..348] == b"n+1\0";
        let big_endian = match bytes.get(..4) {
            Some([0x5c, 1, 0, 0]) if is_nifti => false,
            Some([0, 0, 1, 0x5c]) if is_nifti => true,
            _ => {
                return Err(Error::file(
                    path,
                    "this is not a single-file NIfTI-1 image",
                    "Give a .nii or .nii.gz displacement field",
                ));
            }
        };
        Ok(Self { path, bytes, big_endian })
    }

    fn take<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut value: [u8; N] = std::array::from_fn(|i| self.bytes[at + i]);
        if self.big_endian {
            value.reverse();
        }
        value
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.take(at))
    }

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.take(at))
    }

    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.take(at))
    }

    fn grid(&self, size: [usize; 3]) -> Result<Grid> {
        let real = |at: usize| f64::from(self.f32(at));
        let (mut matrix, mut origin): ([[f64; 3]; 3], [f64; 3]);
        if self.i16(254) > 0 {
            matrix = std::array::from_fn(|r| std::array::from_fn(|c| real(280 + 16 * r + 4 * c)));
            origin = std::array::from_fn(|r| real(292 + 16 * r));
        } else if self.i16(252) > 0 {
            let [b, c, d]: [f64; 3] = std::array::from_fn(|i| real(256 + 4 * i));
            let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
            matrix = [
                [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
                [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
                [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ];
            let qfac = if self.f32(76) < 0.0 { -1.0 } else { 1.0 };
            for row in &mut matrix {
                for (axis, value) in row.iter_mut().enumerate() {
                    *value *= real(80 + 4 * axis) * if axis == 2 { qfac } else { 1.0 };
                }
            }
            origin = std::array::from_fn(|r| real(268 + 4 * r));
        } else {
            return Err(Error::file(
                self.path,
                "neither sform nor qform is set, so the field has no place",
                "Write the field again with its geometry",
            ));
        }
        // RAS to LPS.
        for r in 0..2 {
            matrix[r] = matrix[r].map(|v| -v);
            origin[r] = -origin[r];
        }
        let spacing: [f64; 3] =
            std::array::from_fn(|a| (0..3).map(|r| matrix[r][a].powi(2)).sum::<f64>().sqrt());
        let direction = std::array::from_fn(|r| std::array::from_fn(|a| matrix[r][a] / spacing[a]));
        checked_grid(self.path, size, spacing, origin, direction)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::oblique_field;
    use super::*;

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
