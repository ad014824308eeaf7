//! Points that are carried over, where that has no good answer: outside the scan, and where the deformation folds.

use std::ptr::null;

use jrs::model::{jrs_model, jrs_model_free};
use jrs::register::jrs_register;
use jrs::result::*;
use jrs::session::jrs_session_free;
use jrs::status::JRS_OK;
use libjrs::geometry::{Point, determinant, distance};

mod support;
use support::{handle, input, last_error, load, scan, session, untrained, volume};

const SIZE: [usize; 3] = [14, 13, 12];
/// Of the scans, mm.
const VOXEL: f64 = 2.5;

fn registered(model: *mut jrs_model) -> *mut jrs_result {
    let (fixed, moving) = (scan(SIZE, 2.0), scan(SIZE, 0.0));
    let (f, m) = (volume(&fixed), volume(&moving));
    let (session, mut result) = (session(|_| {}), std::ptr::null_mut());
    // SAFETY: handles are live and freed once, and the input borrows what is here.
    unsafe {
        let code = jrs_register(session, model, &input(&f, &m), null(), &mut result);
        assert_eq!(code, JRS_OK, "{}", last_error());
        jrs_session_free(session);
        jrs_model_free(model);
    }
    result
}

/// A model whose displacements are so long that the field folds.
fn wild() -> *mut jrs_model {
    load(&untrained(40_000.0))
}

/// A carried point: its place, how far it misses, JRS_POINT_*.
type Carried = (Point, f64, u32);

fn carry(result: *const jrs_result, points: &[Point]) -> Vec<Carried> {
    let count = points.len();
    let (mut there, mut residuals, mut flags) = (vec![[0.0; 3]; count], vec![0.0; count], vec![0; count]);
    // SAFETY: the arrays have `count` entries.
    let code = unsafe {
        let to = there.as_mut_ptr().cast();
        jrs_result_carry_points(
            result,
            points.as_ptr().cast(),
            count,
            to,
            residuals.as_mut_ptr(),
            flags.as_mut_ptr(),
        )
    };
    assert_eq!(code, JRS_OK, "{}", last_error());
    there.into_iter().zip(residuals).zip(flags).map(|((p, r), f)| (p, r, f)).collect()
}

/// Where fixed points go; NaN outside the scan.
fn mapped(result: *const jrs_result, points: &[Point]) -> Vec<Point> {
    let mut there = vec![[0.0; 3]; points.len()];
    // SAFETY: both arrays have that many points.
    let code = unsafe {
        jrs_result_map_points(result, points.as_ptr().cast(), points.len(), there.as_mut_ptr().cast())
    };
    assert_eq!(code, JRS_OK, "{}", last_error());
    there
}

/// Determinant of the map's derivative at fixed point `x`, by differences over one voxel; `None` at the edge.
fn jacobian(result: *const jrs_result, x: Point) -> Option<f64> {
    let beside =
        |a: usize, mm: f64| -> Point { std::array::from_fn(|c| x[c] + if c == a { mm } else { 0.0 }) };
    let places: Vec<Point> = (0..3).flat_map(|a| [beside(a, 0.5 * VOXEL), beside(a, -0.5 * VOXEL)]).collect();
    let to = mapped(result, &places);
    let slope = |r: usize, a: usize| (to[2 * a][r] - to[2 * a + 1][r]) / VOXEL;
    let matrix = std::array::from_fn(|r| std::array::from_fn(|a| slope(r, a)));
    Some(determinant(&matrix)).filter(|d| d.is_finite())
}

/// The centres of all voxels.
fn centres() -> Vec<Point> {
    let grid = scan(SIZE, 0.0).grid;
    let [nx, ny, _] = SIZE;
    (0..grid.len()).map(|i| grid.to_physical([i % nx, i / nx % ny, i / nx / ny].map(|n| n as f64))).collect()
}

#[test]
fn outside_the_fixed_scan_is_flagged() {
    let result = registered(handle());
    let middle = mapped(result, &[[1.0, 2.0, -1.0]])[0];
    let far = [400.0, 0.0, 0.0];
    let carried = carry(result, &[middle, far]);
    let (point, residual, flags) = carried[0];
    assert_eq!(flags, JRS_POINT_FOUND);
    assert!(distance(point, [1.0, 2.0, -1.0]) < 0.01 && residual < 1e-3, "{point:?}, {residual} mm");
    // The edge's displacement goes on out there, so that there is an answer, and it says what it is worth.
    let (point, residual, flags) = carried[1];
    assert_eq!(flags, JRS_POINT_FOUND | JRS_POINT_OUTSIDE);
    assert!(residual < 1e-3 && distance(point, far) < 30.0, "{point:?}");
    assert!(mapped(result, &[far])[0].iter().all(|c| c.is_nan()), "and there is no deformation out there");
    // SAFETY: freed once.
    unsafe { jrs_result_free(result) };
}

#[test]
fn folds_are_flagged_and_nothing_else_is() {
    let smooth = registered(handle());
    let torn = registered(wild());
    for (result, folds) in [(smooth, false), (torn, true)] {
        // What moving points the voxels' centres show, and a point that nothing shows, where the field is torn.
        let targets = mapped(result, &centres());
        let mut folded = 0;
        for (point, _, flags) in carry(result, &targets) {
            let Some(jacobian) = jacobian(result, point) else { continue };
            // At 0 exactly rounding decides.
            if jacobian.abs() > 1e-3 {
                assert_eq!(
                    flags & JRS_POINT_FOLDED != 0,
                    jacobian < 0.0,
                    "{point:?}: {jacobian}, flags {flags}"
                );
            }
            folded += usize::from(flags & JRS_POINT_FOLDED != 0);
        }
        eprintln!("{folded} of {} points lie in a fold", targets.len());
        assert_eq!(folded > 0, folds, "{folded} points");
        // SAFETY: freed once.
        unsafe { jrs_result_free(result) };
    }
}

/// An answer that misses says so: a residual without JRS_POINT_FOUND, and the residual is the distance that it misses by.
#[test]
fn a_point_that_was_not_found_says_by_how_much_it_misses() {
    let result = registered(wild());
    let targets = centres();
    let carried = carry(result, &targets);
    let places: Vec<Point> = carried.iter().map(|(point, ..)| *point).collect();
    let mut missed = 0;
    for ((target, (_, residual, flags)), back) in targets.iter().zip(&carried).zip(mapped(result, &places)) {
        let is_found = flags & JRS_POINT_FOUND != 0;
        assert_eq!(is_found, *residual < 1e-3, "{residual} mm, flags {flags}");
        missed += usize::from(!is_found);
        if flags & JRS_POINT_OUTSIDE == 0 {
            assert!(
                (distance(back, *target) - residual).abs() < 1e-6,
                "{back:?} for {target:?}: {residual} mm"
            );
        }
    }
    eprintln!("{missed} of {} points were not found", targets.len());
    assert!(missed > 0, "the field is torn");
    // SAFETY: freed once.
    unsafe { jrs_result_free(result) };
}
