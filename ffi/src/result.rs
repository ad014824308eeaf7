//! `jrs_result`: deformation, warped scan, labels, contours, points.

use std::sync::Arc;

use libjrs::field::{invert_points, map_point};
use libjrs::geometry::Point;
use libjrs::qa::QaReport;
use libjrs::{Affine, DisplacementField, Volume};

use crate::contours::{OwnContours, array, jrs_contours};
use crate::status::{Failure, JRS_E_INPUT, guard};
use crate::structs::{copy_out, write_struct};

/// A finished registration. Never changes; threads may read it at the same time. It stays valid when its session and
/// model are freed.
#[allow(non_camel_case_types)] // the C name
pub struct jrs_result {
    pub(crate) pool: Arc<rayon::ThreadPool>,
    pub(crate) affine: Affine,
    pub(crate) field: DisplacementField,
    pub(crate) warped: Volume<f32>,
    pub(crate) labels: Option<Volume<u8>>,
    pub(crate) contours: OwnContours,
    pub(crate) qa: QaReport,
    pub(crate) provenance: String,
}

// "Threads may read it" rests on this.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<jrs_result>();
};

/// Flag of a carried point: the inverse came within 0.001 mm.
pub const JRS_POINT_FOUND: u32 = 1;
/// Flag of a carried point: the deformation folds there, so there are several answers.
pub const JRS_POINT_FOLDED: u32 = 2;
/// Flag of a carried point: outside the fixed scan, where the deformation of its edge goes on.
pub const JRS_POINT_OUTSIDE: u32 = 4;

/// Ends a result and every view of it; NULL does nothing.
///
/// # Safety
/// `result` is NULL or a handle that has not been freed and that no other thread uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_free(result: *mut jrs_result) {
    guard(|| {
        if !result.is_null() {
            // SAFETY: by the contract a live handle, which jrs_register made from a box.
            drop(unsafe { Box::from_raw(result) });
        }
        Ok(())
    });
}

/// Number of voxels of the fixed scan, along i, j, k.
///
/// # Safety
/// `result` is NULL or a live handle; `dims` is NULL or valid for writing 3 numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_dims(result: *const jrs_result, dims: *mut u64) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        if dims.is_null() {
            return Err(Failure::null("dims"));
        }
        let size = result.field.grid.size.map(|n| n as u64);
        // SAFETY: not NULL, so by the contract valid for 3 numbers.
        unsafe { std::ptr::copy_nonoverlapping(size.as_ptr(), dims, 3) };
        Ok(())
    })
}

/// The displacement, prealignment included, into the caller's buffer: for every voxel of the fixed scan (i fastest) its
/// x, y, z component in mm, LPS. Pull-back: the fixed point p shows what the moving scan shows at p + u(p).
///
/// capacity and *needed are numbers of floats. buffer = NULL with capacity = 0 asks for the number only and succeeds.
///
/// # Safety
/// `result` is NULL or a live handle; `buffer` is NULL or writable for `capacity` floats; `needed` is NULL or valid for
/// a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_dvf(
    result: *const jrs_result,
    buffer: *mut f32,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        let voxels = result.field.grid.len();
        if buffer.is_null() || capacity < 3 * voxels {
            // SAFETY: only the size is asked for or refused here: no value of the slice is ever copied.
            return unsafe { size_only(3 * voxels, buffer, capacity, needed) };
        }
        if needed.is_null() {
            return Err(Failure::null("needed"));
        }
        // SAFETY: valid for a write and for `capacity` >= 3 `voxels` floats by the contract.
        unsafe {
            needed.write(3 * voxels);
            for i in 0..voxels {
                std::ptr::copy_nonoverlapping(result.field.at(i).as_ptr(), buffer.add(3 * i), 3);
            }
        }
        Ok(())
    })
}

/// The same without a copy, component by component: x, y and z each point to one float per voxel, i fastest, valid
/// until jrs_result_free.
///
/// # Safety
/// `result` is NULL or a live handle; `x`, `y` and `z` are NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_dvf_view(
    result: *const jrs_result,
    x: *mut *const f32,
    y: *mut *const f32,
    z: *mut *const f32,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        for to in [x, y, z] {
            if to.is_null() {
                return Err(Failure::null("x, y or z"));
            }
        }
        for (to, component) in [x, y, z].into_iter().zip(&result.field.u) {
            // SAFETY: not NULL, so by the contract valid for a write.
            unsafe { to.write(component.as_ptr()) };
        }
        Ok(())
    })
}

/// The moving scan on the fixed scan's grid, HU, one float per voxel, i fastest; valid until jrs_result_free. Where the
/// deformation leaves the moving scan stands its minimum.
///
/// # Safety
/// `result` is NULL or a live handle; `voxels` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_warped_view(result: *const jrs_result, voxels: *mut *const f32) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: NULL or valid for a write by the contract.
        unsafe { point_to(voxels, result.warped.data.as_ptr(), "voxels") }
    })
}

/// The labels on the fixed scan's grid (of the label map, or else of the contours), one byte per voxel, i fastest; valid
/// until jrs_result_free. JRS_E_INPUT if there were none.
///
/// # Safety
/// `result` is NULL or a live handle; `voxels` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_labels_view(result: *const jrs_result, voxels: *mut *const u8) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: NULL or valid for a write by the contract.
        unsafe { point_to(voxels, result.labels()?.data.as_ptr(), "voxels") }
    })
}

/// The contours on slices of the fixed scan, as a view that is valid until jrs_result_free. Set struct_size before the
/// call. Without contours in the input there are no polygons.
///
/// # Safety
/// `result` is NULL or a live handle; `contours` is NULL or valid for writing as many bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_contours_view(
    result: *const jrs_result,
    contours: *mut jrs_contours,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: passed on under the same contract.
        unsafe { write_struct(contours, result.contours.view(), "jrs_contours") }
    })
}

/// The prealignment that was used: 4x4, row by row, fixed to moving points, LPS mm.
///
/// # Safety
/// `result` is NULL or a live handle; `matrix` is NULL or valid for writing 16 numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_prealign(result: *const jrs_result, matrix: *mut f64) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        if matrix.is_null() {
            return Err(Failure::null("matrix"));
        }
        let (m, t) = (result.affine.matrix, result.affine.translation);
        let row = |r: usize| [m[r][0], m[r][1], m[r][2], t[r]];
        let rows = [row(0), row(1), row(2), [0.0, 0.0, 0.0, 1.0]];
        // SAFETY: not NULL, so by the contract valid for 16 numbers.
        unsafe { std::ptr::copy_nonoverlapping(rows.as_flattened().as_ptr(), matrix, 16) };
        Ok(())
    })
}

/// Carries points of the MOVING scan (a fiducial, the vertices of a mesh) over to the fixed scan: the inverse of the
/// deformation, by fixed-point iteration. points and carried have 3 * count numbers, x, y, z in LPS mm.
///
/// residuals (count numbers, mm) tells how far the carried point misses when it is sent back; flags (count numbers) are
/// JRS_POINT_*. Both may be NULL. Look at points without JRS_POINT_FOUND or with JRS_POINT_FOLDED.
///
/// # Safety
/// `result` is NULL or a live handle; the arrays are NULL or as long as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_carry_points(
    result: *const jrs_result,
    points: *const f64,
    count: usize,
    carried: *mut f64,
    residuals: *mut f64,
    flags: *mut u32,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let (result, given) = unsafe { (live(result)?, copied_points(points, count)?) };
        if carried.is_null() {
            return Err(Failure::null("carried"));
        }
        let found = result.pool.install(|| invert_points(&result.field, None, &given))?;
        for (n, point) in found.iter().enumerate() {
            let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
            // SAFETY: the arrays that are not NULL are writable for `count` points.
            unsafe {
                std::ptr::copy_nonoverlapping(point.point.as_ptr(), carried.add(3 * n), 3);
                if !residuals.is_null() {
                    residuals.add(n).write(point.residual_mm);
                }
                if !flags.is_null() {
                    flags.add(n).write(
                        flag(point.converged, JRS_POINT_FOUND)
                            | flag(point.folded, JRS_POINT_FOLDED)
                            | flag(point.outside, JRS_POINT_OUTSIDE),
                    );
                }
            }
        }
        Ok(())
    })
}

/// Maps points of the FIXED scan to the moving scan: p + u(p). NaN for points outside the fixed scan. Arrays as in
/// jrs_result_carry_points.
///
/// # Safety
/// As jrs_result_carry_points.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_map_points(
    result: *const jrs_result,
    points: *const f64,
    count: usize,
    mapped: *mut f64,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let (result, given) = unsafe { (live(result)?, copied_points(points, count)?) };
        if mapped.is_null() {
            return Err(Failure::null("mapped"));
        }
        for (n, &point) in given.iter().enumerate() {
            let to = map_point(&result.field, None, point).unwrap_or([f64::NAN; 3]);
            // SAFETY: writable for `count` points by the contract.
            unsafe { std::ptr::copy_nonoverlapping(to.as_ptr(), mapped.add(3 * n), 3) };
        }
        Ok(())
    })
}

impl jrs_result {
    pub(crate) fn labels(&self) -> Result<&Volume<u8>, Failure> {
        self.labels.as_ref().ok_or_else(|| {
            Failure::new(JRS_E_INPUT, "there are no labels. Give labels or contours in jrs_register_input")
        })
    }
}

/// # Safety
/// `result` is NULL or a live handle.
pub(crate) unsafe fn live<'a>(result: *const jrs_result) -> Result<&'a jrs_result, Failure> {
    // SAFETY: by the contract.
    unsafe { result.as_ref() }.ok_or_else(|| Failure::null("result"))
}

/// # Safety
/// `to` is NULL or valid for a write.
unsafe fn point_to<T>(to: *mut *const T, from: *const T, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, so by the contract valid for a write.
    unsafe { to.write(from) };
    Ok(())
}

/// Tells a size, or refuses a buffer that is too small for it.
///
/// # Safety
/// `needed` is NULL or valid for a write, and `capacity` is less than `count` or `buffer` is NULL.
unsafe fn size_only(
    count: usize,
    buffer: *mut f32,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    // Nothing is copied, so units stand for the floats.
    let nothing = vec![(); count];
    // SAFETY: a unit takes no memory.
    unsafe { copy_out(&nothing, buffer.cast(), capacity, needed) }
}

/// # Safety
/// `points` is NULL or readable for 3 `count` numbers.
unsafe fn copied_points(points: *const f64, count: usize) -> Result<Vec<Point>, Failure> {
    if count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: by the contract.
    let numbers = unsafe { array(points, (count as u64).saturating_mul(3), "points") }?;
    if let Some(bad) = numbers.iter().find(|v| !v.is_finite()) {
        return Err(Failure::new(JRS_E_INPUT, format!("a point has the coordinate {bad}")));
    }
    Ok(numbers.as_chunks().0.to_vec())
}
