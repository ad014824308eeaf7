//! `jrs_volume`: a scan or label map in the caller's memory.

use std::ffi::c_void;

use libjrs::{Grid, Volume};

use crate::status::{Failure, JRS_E_ARGUMENT, JRS_E_GEOMETRY, guard};
use crate::structs::{AbiStruct, init_struct, read_struct};

/// Signed 16-bit integers: CT as scanners store it.
pub const JRS_INT16: u32 = 1;
/// 32-bit floats.
pub const JRS_FLOAT32: u32 = 2;
/// Unsigned 8-bit integers: label maps, 0 is background.
pub const JRS_UINT8: u32 = 3;

/// Voxels in the caller's memory, borrowed and only read during a call. Native byte order.
///
/// Voxel (i, j, k) is at data + i strides[0] + j strides[1] + k strides[2] bytes, its centre at
/// origin + direction (spacing * (i, j, k)) in LPS mm (x to the patient's left, y to the back, z to the head).
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_volume {
    /// sizeof(jrs_volume).
    pub struct_size: usize,
    /// Voxel (0, 0, 0).
    pub data: *const c_void,
    /// Bytes that may be read from data on: what strides and dims reach is checked against it.
    pub data_bytes: u64,
    /// JRS_INT16 or JRS_FLOAT32 for scans, JRS_UINT8 for label maps.
    pub dtype: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Number of voxels along i, j, k.
    pub dims: [u64; 3],
    /// Bytes from a voxel to the next along i, j, k; all 0 for packed voxels with i fastest. Not negative.
    pub strides: [i64; 3],
    /// mm between voxel centres along i, j, k.
    pub spacing: [f64; 3],
    /// Centre of voxel (0, 0, 0), LPS mm.
    pub origin: [f64; 3],
    /// 3x3, row by row; COLUMN a is the unit vector of index axis a in LPS (as in ITK). Orthonormal and right-handed.
    pub direction: [f64; 9],
    /// HU = slope * stored + intercept.
    pub slope: f64,
    /// See slope.
    pub intercept: f64,
}

// SAFETY: repr(C), the size first, pointers and numbers, two u32 side by side and so no padding.
unsafe impl AbiStruct for jrs_volume {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        data: std::ptr::null(),
        data_bytes: 0,
        dtype: JRS_INT16,
        reserved: 0,
        dims: [0; 3],
        strides: [0; 3],
        spacing: [1.0; 3],
        origin: [0.0; 3],
        direction: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        slope: 1.0,
        intercept: 0.0,
    };
}

/// Fills a volume with defaults: int16, packed, 1 mm, axes along LPS, slope 1.
///
/// # Safety
/// `volume` is NULL or valid for writing `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_volume_init(volume: *mut jrs_volume, struct_size: usize) -> i32 {
    // SAFETY: passed on under the same contract.
    guard(|| unsafe { init_struct(volume, struct_size, "jrs_volume") })
}

/// A checked volume of the caller: its voxels can be read, its geometry is that of a scan.
pub(crate) struct Borrowed<'a> {
    pub grid: Grid,
    bytes: &'a [u8],
    strides: [usize; 3],
    dtype: u32,
    slope: f32,
    intercept: f32,
    name: &'static str,
}

/// Most voxels of a volume.
const MOST_VOXELS: u64 = 1 << 31;
/// Least and most spacing, mm.
const SPACING: [f64; 2] = [0.01, 100.0];
/// Farthest place of a voxel, mm.
const FARTHEST: f64 = 1e5;
/// Fewest voxels along an axis: less is no volume to register.
const FEWEST: u64 = 4;

/// Checks a volume; `None` for NULL.
///
/// # Safety
/// `volume` is NULL or points to a `jrs_volume` whose `data` is readable for `data_bytes` bytes during `'a`.
pub(crate) unsafe fn borrow<'a>(
    volume: *const jrs_volume,
    name: &'static str,
) -> Result<Option<Borrowed<'a>>, Failure> {
    if volume.is_null() {
        return Ok(None);
    }
    // SAFETY: by the contract.
    let v = unsafe { read_struct(volume, "jrs_volume") }?;
    let width = match v.dtype {
        JRS_INT16 => 2,
        JRS_FLOAT32 => 4,
        JRS_UINT8 => 1,
        other => {
            let message = format!("dtype {other} of {name} is none of JRS_INT16, JRS_FLOAT32 and JRS_UINT8");
            return Err(Failure::new(JRS_E_ARGUMENT, message));
        }
    };
    if v.data.is_null() {
        return Err(Failure::null(&format!("data of {name}")));
    }
    if v.reserved != 0 {
        return Err(Failure::new(JRS_E_ARGUMENT, format!("reserved of {name} is {} and not 0", v.reserved)));
    }
    if !(v.slope.is_finite() && v.intercept.is_finite() && v.slope != 0.0) {
        let message = format!("slope {} and intercept {} of {name}", v.slope, v.intercept);
        return Err(Failure::new(JRS_E_ARGUMENT, message + ". Give 1 and 0 for HU"));
    }
    let grid = grid(&v, name)?;
    let (strides, reach) = layout(&v, width, name)?;
    if reach > v.data_bytes || reach > isize::MAX as u64 {
        let message = format!(
            "{name} of {:?} voxels with strides {strides:?} reaches {reach} bytes, and data_bytes is {}",
            v.dims, v.data_bytes
        );
        return Err(Failure::new(JRS_E_GEOMETRY, message));
    }
    // SAFETY: not NULL, and readable for `data_bytes` >= `reach` bytes during 'a by the contract.
    let bytes = unsafe { std::slice::from_raw_parts(v.data.cast::<u8>(), reach as usize) };
    let (slope, intercept) = (v.slope as f32, v.intercept as f32);
    Ok(Some(Borrowed { grid, bytes, strides, dtype: v.dtype, slope, intercept, name }))
}

fn grid(v: &jrs_volume, name: &str) -> Result<Grid, Failure> {
    let refuse = |problem: String| Err(Failure::new(JRS_E_GEOMETRY, format!("{name}: {problem}")));
    let voxels = v.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST_VOXELS);
    if voxels.is_none() || v.dims.iter().any(|&d| d < FEWEST) {
        return refuse(format!(
            "{:?} voxels. At least {FEWEST} per axis and at most {MOST_VOXELS} in all are possible",
            v.dims
        ));
    }
    if v.spacing.iter().any(|s| !(SPACING[0]..=SPACING[1]).contains(s)) {
        return refuse(format!(
            "a spacing of {:?} mm. From {} to {} is possible",
            v.spacing, SPACING[0], SPACING[1]
        ));
    }
    let d = &v.direction;
    let direction = [[d[0], d[1], d[2]], [d[3], d[4], d[5]], [d[6], d[7], d[8]]];
    let grid = Grid::checked(v.dims.map(|n| n as usize), v.spacing, v.origin, direction)
        .map_err(|e| Failure::new(JRS_E_GEOMETRY, format!("{name}: {}. {}", e.problem, e.fix)))?;
    if libjrs::geometry::determinant(&grid.direction) < 0.0 {
        return refuse(format!(
            "the axes {d:?} are left-handed. Reverse the order of the slices, or of another axis, with its origin"
        ));
    }
    if grid.corners().iter().flatten().any(|c| c.abs() > FARTHEST) {
        return refuse(format!("a corner farther than {FARTHEST} mm from the origin ({:?})", v.origin));
    }
    Ok(grid)
}

/// Byte strides, and the bytes from the first voxel to the end of the last.
fn layout(v: &jrs_volume, width: u64, name: &str) -> Result<([usize; 3], u64), Failure> {
    let refuse = || {
        let message =
            format!("strides {:?} of {name}. Give bytes that are not negative, or all 0", v.strides);
        Failure::new(JRS_E_GEOMETRY, message)
    };
    let strides = if v.strides == [0; 3] {
        // At most 2^31 voxels of 4 bytes.
        [width, width * v.dims[0], width * v.dims[0] * v.dims[1]]
    } else {
        let mut strides = [0; 3];
        for (to, &from) in strides.iter_mut().zip(&v.strides) {
            *to = u64::try_from(from).map_err(|_| refuse())?;
        }
        strides
    };
    let steps = strides.iter().zip(&v.dims).map(|(&s, &n)| s.checked_mul(n - 1));
    let last = steps.into_iter().try_fold(0u64, |sum, step| sum.checked_add(step?)).ok_or_else(refuse)?;
    let reach = last.checked_add(width).filter(|&r| r <= isize::MAX as u64).ok_or_else(refuse)?;
    Ok((strides.map(|s| s as usize), reach))
}

impl Borrowed<'_> {
    /// A copy in HU.
    pub fn scan(&self) -> Result<Volume<f32>, Failure> {
        let (slope, intercept) = (self.slope, self.intercept);
        let data = match self.dtype {
            JRS_INT16 => self.collect(|b: [u8; 2]| slope * f32::from(i16::from_ne_bytes(b)) + intercept),
            JRS_FLOAT32 => self.collect(|b: [u8; 4]| slope * f32::from_ne_bytes(b) + intercept),
            _ => {
                let message = format!("{} is a scan and has dtype JRS_UINT8", self.name);
                return Err(Failure::new(JRS_E_ARGUMENT, message + ". Give JRS_INT16 or JRS_FLOAT32"));
            }
        };
        Ok(Volume::new(self.grid.clone(), data))
    }

    /// A copy of a label map that belongs to a scan on `grid`.
    pub fn labels(&self, grid: &Grid, scan: &str) -> Result<Volume<u8>, Failure> {
        if self.dtype != JRS_UINT8 || (self.slope, self.intercept) != (1.0, 0.0) {
            let message =
                format!("{} is a label map. Give JRS_UINT8 with slope 1 and intercept 0", self.name);
            return Err(Failure::new(JRS_E_ARGUMENT, message));
        }
        if !self.grid.same_space(grid, 0.1) {
            let message = format!(
                "{} ({:?} voxels) is not on the grid of {scan} ({:?})",
                self.name, self.grid.size, grid.size
            );
            return Err(Failure::new(JRS_E_GEOMETRY, message));
        }
        Ok(Volume::new(grid.clone(), self.collect(|b: [u8; 1]| b[0])))
    }

    fn collect<const N: usize, T>(&self, value: impl Fn([u8; N]) -> T) -> Vec<T> {
        let [nx, ny, nz] = self.grid.size;
        let [sx, sy, sz] = self.strides;
        let mut values = Vec::with_capacity(self.grid.len());
        for z in 0..nz {
            for y in 0..ny {
                let row = &self.bytes[z * sz + y * sy..];
                values.extend((0..nx).map(|x| value(std::array::from_fn(|b| row[x * sx + b]))));
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(data: &[i16]) -> jrs_volume {
        jrs_volume {
            data: data.as_ptr().cast(),
            data_bytes: size_of_val(data) as u64,
            dims: [4, 5, 6],
            ..jrs_volume::DEFAULT
        }
    }

    fn code(volume: &jrs_volume) -> i32 {
        // SAFETY: the data of every case are as long as they say.
        unsafe { borrow(volume, "fixed") }.map(|_| 0).unwrap_or_else(|e| e.code)
    }

    #[test]
    fn strides_slope_and_padding() {
        let data: Vec<i16> = (0..240).collect();
        let packed = volume(&data);
        // Every second value, slices last to first is not possible: the third axis is the fastest here.
        let turned = jrs_volume { strides: [60, 12, 2], slope: 2.0, intercept: -1.0, ..packed };
        // SAFETY: 240 values are there.
        let values = |v: &jrs_volume| unsafe { borrow(v, "fixed") }.unwrap().unwrap().scan().unwrap();
        assert_eq!(values(&packed).at(1, 2, 3), 1.0 + 4.0 * 2.0 + 20.0 * 3.0);
        assert_eq!(values(&turned).at(1, 2, 3), 2.0 * (30.0 + 12.0 + 3.0) - 1.0);
    }

    #[test]
    fn what_no_scan_can_be_is_refused() {
        let data = vec![0i16; 120];
        let good = volume(&data);
        assert_eq!(code(&good), 0);
        let tilted = [1.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let mirrored = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0];
        let cases = [
            jrs_volume { dims: [4, 5, 7], ..good },
            jrs_volume { dims: [u64::MAX, 5, 6], ..good },
            jrs_volume { dims: [1 << 33, 1 << 33, 1 << 33], ..good },
            jrs_volume { dims: [0, 5, 6], ..good },
            jrs_volume { strides: [2, 8, -40], ..good },
            jrs_volume { strides: [2, 8, i64::MAX], ..good },
            jrs_volume { strides: [2, 8, 42], ..good },
            jrs_volume { spacing: [1.0, 0.0, 1.0], ..good },
            jrs_volume { spacing: [1.0, f64::NAN, 1.0], ..good },
            jrs_volume { spacing: [1.0, 1e9, 1.0], ..good },
            jrs_volume { origin: [f64::INFINITY, 0.0, 0.0], ..good },
            jrs_volume { origin: [1e7, 0.0, 0.0], ..good },
            jrs_volume { direction: tilted, ..good },
            jrs_volume { direction: mirrored, ..good },
            jrs_volume { direction: [0.0; 9], ..good },
            jrs_volume { data_bytes: 239, ..good },
        ];
        for (n, case) in cases.iter().enumerate() {
            assert_eq!(code(case), JRS_E_GEOMETRY, "case {n}");
        }
        for case in [
            jrs_volume { dtype: 9, ..good },
            jrs_volume { reserved: 1, ..good },
            jrs_volume { slope: 0.0, ..good },
            jrs_volume { intercept: f64::NAN, ..good },
            jrs_volume { data: std::ptr::null(), ..good },
        ] {
            assert_eq!(code(&case), JRS_E_ARGUMENT);
        }
    }
}
