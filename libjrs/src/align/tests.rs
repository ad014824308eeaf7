use super::solve::rotation;
use super::*;
use crate::geometry::{distance, mat_vec};
use crate::nifti::read_image;
use crate::resample::resample_image;
use jrs_tests::external::real_scan;
use std::time::Instant;

/// A pelvis of simple shapes: fat, muscle, hip bones, femoral heads and sacrum, a bladder of its own size per scan,
/// gas at its own place and noise of its own. `pose` maps points of this scan to the anatomy's own space.
fn pelvis(grid: &Grid, pose: &Affine, bladder_mm: f64, gas: Point, seed: u64) -> Volume<f32> {
    let mut image = Volume::filled(grid.clone(), 0.0f32);
    let [nx, ny, _] = grid.size;
    let ellipsoid =
        |p: Point, c: Point, r: Point| (0..3).map(|a| ((p[a] - c[a]) / r[a]).powi(2)).sum::<f64>() < 1.0;
    let mut state = seed;
    for i in 0..grid.len() {
        let index = [i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64);
        let p = pose.apply(grid.to_physical(index));
        let side = [p[0].abs(), p[1], p[2]];
        let in_body = (p[0] / 175.0).powi(2) + (p[1] / 112.0).powi(2) < 1.0;
        let in_muscle = (p[0] / 155.0).powi(2) + (p[1] / 92.0).powi(2) < 1.0;
        let hip = ellipsoid(side, [85.0, 5.0, 20.0], [18.0, 45.0, 60.0]);
        let hip_inside = ellipsoid(side, [85.0, 5.0, 20.0], [12.0, 38.0, 52.0]);
        let femur = ellipsoid(side, [95.0, -10.0, -40.0], [24.0, 24.0, 24.0]);
        let sacrum = ellipsoid(p, [0.0, 65.0, 20.0], [40.0, 16.0, 45.0]);
        let mut hu = -1000.0;
        if in_body {
            hu = -100.0;
        }
        if in_muscle {
            hu = 40.0;
        }
        if ellipsoid(p, [0.0, -20.0, 10.0], [bladder_mm, 0.8 * bladder_mm, 0.8 * bladder_mm]) {
            hu = 2.0;
        }
        if hip || sacrum {
            hu = if hip_inside { 180.0 } else { 500.0 };
        }
        if femur {
            hu = 350.0;
        }
        if ellipsoid(p, gas, [14.0; 3]) {
            hu = -900.0;
        }
        // Sum of four uniform numbers of a linear congruence (Knuth's MMIX constants): near Gaussian, sd 12 HU.
        let noise: f64 = (0..4)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
            })
            .sum();
        image.data[i] = (hu + 21.0 * noise) as f32;
    }
    image
}

fn rigid(degrees: [f64; 3], millimetres: [f64; 3], centre: Point) -> Affine {
    let matrix = rotation(degrees.map(f64::to_radians));
    let turned = mat_vec(&matrix, centre);
    Affine { matrix, translation: std::array::from_fn(|a| centre[a] - turned[a] + millimetres[a]) }
}

/// Mean and largest distance between two maps over every 7th fixed torso voxel, mm.
fn error_mm(fixed: &Volume<f32>, found: &Affine, truth: &Affine) -> (f64, f64) {
    let (_, mask) = torso(fixed).unwrap();
    let [nx, ny, _] = mask.grid.size;
    let (mut sum, mut most, mut n) = (0.0, 0.0f64, 0.0);
    for (i, _) in mask.data.iter().enumerate().filter(|(i, m)| **m != 0 && i % 7 == 0) {
        let p = mask.grid.to_physical([i % nx, i / nx % ny, i / (nx * ny)].map(|v| v as f64));
        let e = distance(found.apply(p), truth.apply(p));
        (sum, most, n) = (sum + e, most.max(e), n + 1.0);
    }
    (sum / n, most)
}

fn grids() -> (Grid, Grid) {
    let fixed = Grid::axis_aligned([190, 130, 64], [2.0, 2.0, 2.5], [-189.0, -129.0, -80.0]);
    let mut moving = Grid::axis_aligned([180, 126, 58], [2.1, 2.1, 3.0], [-195.0, -140.0, -85.0]);
    moving.direction = rotation([0.0, 0.0, 0.05]);
    (fixed, moving)
}

#[test]
fn rigid_motion_is_found_although_organs_and_gas_changed() {
    let (fixed_grid, moving_grid) = grids();
    let fixed = pelvis(&fixed_grid, &Affine::IDENTITY, 30.0, [0.0, 45.0, -20.0], 1);
    let motions = [
        ([0.0; 3], [0.0; 3]),
        ([8.0, -3.0, 2.0], [15.0, -10.0, 5.0]),
        ([-5.0, 8.0, -6.0], [-15.0, 15.0, -15.0]),
        ([2.0, -8.0, 8.0], [3.0, -15.0, 15.0]),
    ];
    for (degrees, millimetres) in motions {
        let truth = rigid(degrees, millimetres, [0.0; 3]);
        let moving = pelvis(&moving_grid, &truth.inverse().unwrap(), 45.0, [10.0, 50.0, 5.0], 2);
        let started = Instant::now();
        let found = align(&fixed, &moving, &AlignOptions::default()).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let (mean, most) = error_mm(&fixed, &found.affine, &truth);
        eprintln!(
            "synthetic {degrees:?} deg {millimetres:?} mm: mean {mean:.3} max {most:.3} mm, {seconds:.2} s, {found:?}"
        );
        // Half a millimetre is a sixth of a slice: the edges of this pelvis are sampled, not blurred by partial volume.
        assert!(mean < 0.7 && most < 1.2, "mean {mean}, max {most}");
        assert!(found.similarity_after > 0.8 && found.similarity_after >= found.similarity_before - 0.01);
    }
}

#[test]
fn an_affine_map_is_found() {
    let (fixed_grid, moving_grid) = grids();
    let fixed = pelvis(&fixed_grid, &Affine::IDENTITY, 30.0, [0.0, 45.0, -20.0], 1);
    let mut truth = rigid([3.0, -2.0, 4.0], [8.0, -6.0, 5.0], [0.0; 3]);
    let stretch = [[1.03, 0.0, 0.01], [0.0, 0.97, 0.0], [0.0, 0.02, 1.02]];
    truth.matrix = crate::geometry::mat_mul(&truth.matrix, &stretch);
    let moving = pelvis(&moving_grid, &truth.inverse().unwrap(), 35.0, [5.0, 48.0, -10.0], 2);
    let options = AlignOptions { kind: Kind::Affine, ..Default::default() };
    let found = align(&fixed, &moving, &options).unwrap();
    let (mean, most) = error_mm(&fixed, &found.affine, &truth);
    eprintln!("synthetic affine: mean {mean:.3} max {most:.3} mm");
    assert!(mean < 0.5 && most < 1.5, "mean {mean}, max {most}");
    let rigid = align(&fixed, &moving, &AlignOptions::default()).unwrap();
    assert!(found.similarity_after > rigid.similarity_after);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let grid = Grid::axis_aligned([95, 65, 32], [4.0, 4.0, 5.0], [-188.0, -128.0, -78.0]);
    let fixed = pelvis(&grid, &Affine::IDENTITY, 30.0, [0.0, 45.0, -20.0], 1);
    let moving = pelvis(&grid, &rigid([3.0, 2.0, 1.0], [5.0, 4.0, 3.0], [0.0; 3]), 30.0, [0.0, 45.0, 0.0], 2);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| align(&fixed, &moving, &AlignOptions::default()).unwrap())
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn scans_that_cannot_be_aligned_are_refused() {
    let grid = Grid::axis_aligned([60, 40, 20], [6.0, 6.0, 8.0], [-177.0, -117.0, -76.0]);
    let fixed = pelvis(&grid, &Affine::IDENTITY, 30.0, [0.0, 45.0, -20.0], 1);
    let air = Volume::filled(grid, -1000.0);
    let options = AlignOptions::default();
    let text = align(&fixed, &air, &options).unwrap_err().to_string();
    assert!(text.contains("moving") && text.contains("-1000"), "{text}");
    assert!(align(&air, &fixed, &options).unwrap_err().to_string().contains("fixed"));
}

/// The scan itself, moved by a known motion and read on a shifted grid: interpolation blurs it, and parts of the
/// body leave the field of view, as between two real scans.
#[test]
fn rigid_motion_of_real_scans_is_found() {
    for name in ["torso_ct_3mm.nii.gz", "abdomen_ct.nii.gz"] {
        let Some(path) = real_scan(name) else { continue };
        let mut fixed = read_image(&path).unwrap();
        if fixed.grid.spacing[0] < 1.5 {
            fixed = shrink(&fixed, [2, 2, 1], |v| v);
        }
        let centre = image_centre(&fixed.grid);
        for (degrees, millimetres) in
            [([8.0, -4.0, 3.0], [15.0, -12.0, 10.0]), ([-6.0, 5.0, -8.0], [-10.0, 15.0, -15.0])]
        {
            let truth = rigid(degrees, millimetres, centre);
            let mut grid = fixed.grid.clone();
            grid.origin = std::array::from_fn(|a| grid.origin[a] + [3.1, -2.3, 4.7][a]);
            let moving = resample_image(&fixed, &grid, Some(&truth.inverse().unwrap()), -1024.0);
            let started = Instant::now();
            let found = align(&fixed, &moving, &AlignOptions::default()).unwrap();
            let seconds = started.elapsed().as_secs_f64();
            let (mean, most) = error_mm(&fixed, &found.affine, &truth);
            eprintln!(
                "{name} {degrees:?} deg {millimetres:?} mm: mean {mean:.3} max {most:.3} mm, {seconds:.2} s, {found:?}"
            );
            assert!(mean < 0.5 && most < 1.5, "{name}: mean {mean}, max {most}");
        }
    }
}
