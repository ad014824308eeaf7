//! `jrs_contours`: structures as planar polygons, slice by slice.

use libjrs::contour::{SliceContour, rasterise, trace};
use libjrs::field::warp_image;
use libjrs::geometry::Point;
use libjrs::{DisplacementField, Grid, Volume};

use crate::status::{Failure, JRS_E_ARGUMENT, guard};
use crate::structs::{AbiStruct, init_struct, read_struct};

/// Closed planar polygons in LPS mm. All points stand one after another; polygon p takes the next polygon_points[p]
/// of them and belongs to structure polygon_labels[p]. The first point of a polygon is not repeated at its end.
///
/// As input, polygons lie on slices of the moving scan (planes of its third index). Within a slice and a structure
/// the even-odd rule holds: a polygon inside another is a hole (as DICOM's CLOSED_PLANAR_XOR and nested loops mean it).
/// As output, they lie on slices of the fixed scan, outlines counter-clockwise in (i, j) and holes clockwise.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_contours {
    /// sizeof(jrs_contours).
    pub struct_size: usize,
    /// x, y, z of every point: 3 * point_count numbers.
    pub points: *const f64,
    /// Number of points.
    pub point_count: u64,
    /// Number of points of every polygon.
    pub polygon_points: *const u64,
    /// Structure of every polygon, 1 to 255.
    pub polygon_labels: *const u8,
    /// Number of polygons.
    pub polygon_count: u64,
    /// Output only, NULL as input: 1 where the polygon is a hole.
    pub polygon_is_hole: *const u8,
    /// Output only, NULL as input: slice of the fixed scan.
    pub polygon_slices: *const u32,
}

// SAFETY: repr(C), the size first, pointers and u64 only.
unsafe impl AbiStruct for jrs_contours {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        points: std::ptr::null(),
        point_count: 0,
        polygon_points: std::ptr::null(),
        polygon_labels: std::ptr::null(),
        polygon_count: 0,
        polygon_is_hole: std::ptr::null(),
        polygon_slices: std::ptr::null(),
    };
}

/// Fills contours with defaults: none.
///
/// # Safety
/// `contours` is NULL or valid for writing `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_contours_init(contours: *mut jrs_contours, struct_size: usize) -> i32 {
    // SAFETY: passed on under the same contract.
    guard(|| unsafe { init_struct(contours, struct_size, "jrs_contours") })
}

/// A structure of the caller.
pub(crate) struct Structure {
    pub label: u8,
    pub polygons: Vec<Vec<Point>>,
}

/// A structure on the moving scan's voxels.
pub(crate) struct OnMoving {
    pub label: u8,
    pub coverage: Volume<f32>,
    /// What the caller should know.
    pub warning: Option<String>,
}

/// Copies the caller's structures, by label; none for NULL.
///
/// # Safety
/// `contours` is NULL or points to an initialised struct whose arrays are as long as it says.
pub(crate) unsafe fn copy_in(contours: *const jrs_contours) -> Result<Vec<Structure>, Failure> {
    // SAFETY: by the contract; NULL gives none.
    let c = unsafe { read_struct(contours, "jrs_contours") }?;
    if c.polygon_count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the arrays are as long as the struct says.
    let (points, counts, labels) = unsafe {
        let numbers = c.point_count.saturating_mul(3);
        (
            array(c.points, numbers, "points of contours")?,
            array(c.polygon_points, c.polygon_count, "polygon_points")?,
            array(c.polygon_labels, c.polygon_count, "polygon_labels")?,
        )
    };
    let total = counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
    if total != Some(c.point_count) {
        let message = format!("polygon_points add up to {total:?}, and point_count is {}", c.point_count);
        return Err(Failure::new(JRS_E_ARGUMENT, message));
    }
    let mut structures: Vec<Structure> = Vec::new();
    let mut rest = points;
    for (&count, &label) in counts.iter().zip(labels) {
        if label == 0 {
            return Err(Failure::new(
                JRS_E_ARGUMENT,
                "a polygon has label 0, which is the background. Use 1 to 255",
            ));
        }
        let (own, after) = rest.split_at(3 * count as usize);
        rest = after;
        let polygon = own.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
        match structures.iter_mut().find(|s| s.label == label) {
            Some(structure) => structure.polygons.push(polygon),
            None => structures.push(Structure { label, polygons: vec![polygon] }),
        }
    }
    structures.sort_by_key(|s| s.label);
    Ok(structures)
}

/// The caller's array.
///
/// # Safety
/// `at` is NULL or readable for `count` values during `'a`.
pub(crate) unsafe fn array<'a, T>(at: *const T, count: u64, name: &str) -> Result<&'a [T], Failure> {
    if at.is_null() {
        return Err(Failure::null(name));
    }
    if !at.is_aligned() {
        return Err(Failure::new(
            JRS_E_ARGUMENT,
            format!("{name} is not aligned to {} bytes", align_of::<T>()),
        ));
    }
    let bytes = count.checked_mul(size_of::<T>() as u64).filter(|&b| b <= isize::MAX as u64);
    if bytes.is_none() {
        return Err(Failure::new(
            JRS_E_ARGUMENT,
            format!("{count} values in {name} are more than memory holds"),
        ));
    }
    // SAFETY: not NULL, aligned, of a possible size, and readable for `count` values by the contract.
    Ok(unsafe { std::slice::from_raw_parts(at, count as usize) })
}

impl Structure {
    /// The structure as the covered share of the moving scan's voxels.
    pub fn on(&self, moving: &Grid) -> Result<OnMoving, Failure> {
        let found = rasterise(&self.polygons, moving).map_err(|e| {
            Failure::new(crate::status::JRS_E_INPUT, format!("contours of label {}: {e}", self.label))
        })?;
        let gaps: Vec<String> = found.gaps.iter().map(|g| format!("{} to {}", g.start, g.end - 1)).collect();
        let warning = (!gaps.is_empty()).then(|| {
            format!("label {} has no contour on slices {} and stays empty there", self.label, gaps.join(", "))
        });
        Ok(OnMoving { label: self.label, coverage: found.coverage, warning })
    }
}

/// The structures as one label map; where they overlap, the higher label is kept.
pub(crate) fn label_map(structures: &[OnMoving], grid: &Grid) -> Volume<u8> {
    let mut labels = Volume::filled(grid.clone(), 0u8);
    for structure in structures {
        let voxels = labels.data.iter_mut().zip(&structure.coverage.data);
        voxels.filter(|(_, share)| **share >= 0.5).for_each(|(label, _)| *label = structure.label);
    }
    labels
}

/// Contours in the library's memory, as a view shows them.
#[derive(Default)]
pub(crate) struct OwnContours {
    points: Vec<Point>,
    polygon_points: Vec<u64>,
    labels: Vec<u8>,
    is_hole: Vec<u8>,
    slices: Vec<u32>,
}

impl OwnContours {
    /// The structures carried over to the fixed scan.
    pub fn carried(structures: &[OnMoving], field: &DisplacementField) -> Self {
        let mut all = Self::default();
        for structure in structures {
            for contour in trace(&warp_image(&structure.coverage, field, None, 0.0)) {
                all.push(structure.label, contour);
            }
        }
        all
    }

    fn push(&mut self, label: u8, contour: SliceContour) {
        self.polygon_points.push(contour.points.len() as u64);
        self.points.extend(contour.points);
        self.labels.push(label);
        self.is_hole.push(u8::from(contour.is_hole));
        self.slices.push(contour.slice as u32);
    }

    /// Pointers into this.
    pub fn view(&self) -> jrs_contours {
        jrs_contours {
            struct_size: size_of::<jrs_contours>(),
            points: self.points.as_ptr().cast(),
            point_count: self.points.len() as u64,
            polygon_points: self.polygon_points.as_ptr(),
            polygon_labels: self.labels.as_ptr(),
            polygon_count: self.labels.len() as u64,
            polygon_is_hole: self.is_hole.as_ptr(),
            polygon_slices: self.slices.as_ptr(),
        }
    }
}
