//! The metrics against SciPy and NumPy on small and degenerate masks.
//!
//! The expected values are in `tests/reference/data/metrics.json`, written by
//! `tests/reference/metrics_reference.py` (independent code: scipy.ndimage.distance_transform_edt,
//! binary_erosion, numpy.percentile, numpy.gradient), which states the definitions and their source.

use libjrs::metrics::{SurfaceDistances, dice, distance_transform, jacobian, surface_distances};
use libjrs::{DisplacementField, Grid, Volume};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    jacobian: JacobianCase,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    size: [usize; 3],
    spacing: [f64; 3],
    reference: Vec<usize>,
    other: Vec<usize>,
    dice: Option<f64>,
    surface: Option<SurfaceDistances>,
    #[serde(default)]
    distances: Vec<(usize, f64)>,
}

#[derive(Deserialize)]
struct JacobianCase {
    size: [usize; 3],
    spacing: [f64; 3],
    direction: [[f64; 3]; 3],
    u: [Vec<f32>; 3],
    #[serde(flatten)]
    expected: libjrs::metrics::JacobianStatistics,
}

fn reference() -> Reference {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reference/data/metrics.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A label map with `label` where the run lengths (0 first) say 1.
fn mask(case: &Case, runs: &[usize], label: u8) -> Volume<u8> {
    let values = runs.iter().enumerate().flat_map(|(i, &n)| vec![if i % 2 == 1 { label } else { 0 }; n]);
    Volume::new(Grid::axis_aligned(case.size, case.spacing, [5.0, -3.0, 2.0]), values.collect())
}

#[test]
fn overlap_and_surface_distances_are_scipys() {
    let cases = reference().cases;
    assert_eq!(cases.len(), 13);
    for case in cases {
        let (a, b) = (mask(&case, &case.reference, 4), mask(&case, &case.other, 4));
        let name = &case.name;
        match (dice(&a, &b, 4).unwrap(), case.dice) {
            (Some(ours), Some(theirs)) => assert!((ours - theirs).abs() < 1e-12, "{name}"),
            (ours, theirs) => assert_eq!(ours, theirs, "{name}"),
        }
        match (surface_distances(&a, &b, 4).unwrap(), case.surface) {
            (Some(ours), Some(theirs)) => {
                let pairs = [
                    (ours.msd, theirs.msd),
                    (ours.hd95, theirs.hd95),
                    (ours.hausdorff, theirs.hausdorff),
                    (ours.mean_from_reference, theirs.mean_from_reference),
                    (ours.mean_to_reference, theirs.mean_to_reference),
                ];
                assert!(pairs.iter().all(|(o, t)| (o - t).abs() < 1e-9), "{name}: {ours:?} {theirs:?}");
            }
            (ours, theirs) => assert_eq!(ours, theirs, "{name}"),
        }
        let transform = distance_transform(&a);
        for &(i, expected) in &case.distances {
            assert!((transform.data[i] - expected).abs() < 1e-9, "{name}: voxel {i}");
        }
    }
}

#[test]
fn jacobian_is_numpys_on_an_oblique_grid() {
    let case = reference().jacobian;
    let grid =
        Grid { size: case.size, spacing: case.spacing, origin: [1.0, 2.0, 3.0], direction: case.direction };
    let ours = jacobian(&DisplacementField { grid, u: case.u }).statistics(|_| true).unwrap();
    let theirs = case.expected;
    assert!(theirs.folded > 0.0, "the case is meant to fold somewhere");
    assert_eq!((ours.voxels, ours.folded), (theirs.voxels, theirs.folded));
    let pairs = [
        (ours.mean, theirs.mean),
        (ours.std, theirs.std),
        (ours.min, theirs.min),
        (ours.max, theirs.max),
        (ours.p1, theirs.p1),
        (ours.p99, theirs.p99),
        (ours.sd_log_j, theirs.sd_log_j),
    ];
    // Determinants are kept in single precision.
    assert!(pairs.iter().all(|(o, t)| (o - t).abs() < 1e-5), "{ours:?} {theirs:?}");
}

#[test]
fn maps_of_different_size_are_refused() {
    let volume = |n| Volume::filled(Grid::axis_aligned([n; 3], [1.0; 3], [0.0; 3]), 1u8);
    assert!(dice(&volume(3), &volume(4), 1).unwrap_err().to_string().contains("[3, 3, 3]"));
    assert!(surface_distances(&volume(3), &volume(4), 1).is_err());
}

/// Speed, on request: `cargo test -p libjrs --test metrics_reference -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn speed_of_five_organs_at_128() {
    let grid = Grid::axis_aligned([128; 3], [1.0; 3], [0.0; 3]);
    let organs = |shift: f64| {
        let mut labels = Volume::filled(grid.clone(), 0u8);
        for i in 0..grid.len() {
            let p = [i % 128, i / 128 % 128, i / 16384].map(|v| v as f64 - shift);
            for (organ, centre) in [[40.0; 3], [90.0, 40.0, 40.0], [40.0, 90.0, 60.0], [90.0; 3], [64.0; 3]]
                .into_iter()
                .enumerate()
            {
                if libjrs::geometry::distance(p, centre) < 16.0 + 2.0 * organ as f64 {
                    labels.data[i] = organ as u8 + 1;
                }
            }
        }
        labels
    };
    let (a, b) = (organs(0.0), organs(3.0));
    let start = std::time::Instant::now();
    for organ in 1..=5 {
        let s = surface_distances(&a, &b, organ).unwrap().unwrap();
        println!("organ {organ}: DSC {:.3} {s:?}", dice(&a, &b, organ).unwrap().unwrap());
    }
    println!("DSC, MSD and HD95 of 5 organs at 128^3: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    let start = std::time::Instant::now();
    distance_transform(&a);
    println!("whole 128^3 distance transform: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
}
