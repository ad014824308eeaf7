//! The NIfTI-1 header (field offsets: nifti1.h), shared by images and displacement fields.

use std::fs;
use std::path::Path;

use crate::geometry::{Grid, checked_grid, determinant};
use crate::{Error, Result, gzip};

pub(crate) const HEADER_BYTES: usize = 348;
/// Header plus the four bytes that say "no extension follows".
pub(crate) const DATA_OFFSET: usize = 352;

/// What a header says besides the geometry.
pub(crate) struct Kind<'a> {
    /// `dim` with the number of axes and everything beyond the three spatial ones.
    pub dim: [i16; 8],
    /// Intent code, 0 for images.
    pub intent: i16,
    /// Datatype code.
    pub datatype: i16,
    /// Bits per voxel.
    pub bits: i16,
    /// At most 79 characters.
    pub description: &'a str,
}

pub(crate) fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

pub(crate) fn contents(path: &Path) -> Result<Vec<u8>> {
    let bytes =
        fs::read(path).map_err(|e| Error::io(path, e, "Check the name and that the file may be read"))?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    gzip::read(&bytes).map_err(|e| Error::io(path, e, "The gzip part is damaged; copy the file again"))
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
pub(crate) fn header(path: &Path, grid: &Grid, kind: &Kind<'_>) -> Result<[u8; DATA_OFFSET]> {
    let mut h = [0u8; DATA_OFFSET];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(HEADER_BYTES as i32).to_le_bytes());
    put(38, b"r");
    let mut dim = kind.dim;
    for a in 0..3 {
        dim[1 + a] = i16::try_from(grid.size[a]).map_err(|_| {
            Error::file(
                path,
                format!("NIfTI-1 cannot hold an axis of {} voxels", grid.size[a]),
                "Split or resample the image",
            )
        })?;
    }
    for (i, d) in dim.iter().enumerate() {
        put(40 + 2 * i, &d.to_le_bytes());
    }
    put(68, &kind.intent.to_le_bytes());
    put(70, &kind.datatype.to_le_bytes());
    put(72, &kind.bits.to_le_bytes());
    let (qfac, quaternion) = quaternion(grid);
    let pixdim = [qfac, grid.spacing[0], grid.spacing[1], grid.spacing[2], 1.0, 1.0, 1.0, 1.0];
    for (i, p) in pixdim.iter().enumerate() {
        put(76 + 4 * i, &(*p as f32).to_le_bytes());
    }
    put(108, &(DATA_OFFSET as f32).to_le_bytes());
    put(112, &1.0f32.to_le_bytes());
    put(123, &[2]); // millimetres
    put(148, kind.description.as_bytes());
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
pub(crate) struct RawHeader<'a> {
    path: &'a Path,
    pub(crate) bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> RawHeader<'a> {
    pub(crate) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let is_nifti = bytes.len() >= DATA_OFFSET && &bytes[344..348] == b"n+1\0";
        let big_endian = match bytes.get(..4) {
            Some([0x5c, 1, 0, 0]) if is_nifti => false,
            Some([0, 0, 1, 0x5c]) if is_nifti => true,
            _ => {
                return Err(Error::file(
                    path,
                    "this is not a single-file NIfTI-1 image",
                    "Give a .nii or .nii.gz file of one piece (no .hdr/.img pair, no NIfTI-2)",
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

    pub(crate) fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.take(at))
    }

    pub(crate) fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.take(at))
    }

    pub(crate) fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.take(at))
    }

    pub(crate) fn grid(&self, size: [usize; 3]) -> Result<Grid> {
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
                "neither sform nor qform is set, so the image has no place",
                "Write the image again with its geometry",
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
