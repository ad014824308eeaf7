//! Refinement without any training on a real CT: recovers a known smooth warp of up to 10 mm.
//!
//! Needs `abdomen_ct.nii.gz` (CC BY 4.0, TCIA CRLM-CT-1006), which is not part of the repository.

use jrs_tests::external::real_scan;
use libjrs::field::warp_image;
use libjrs::progress::Progress;
use libjrs::refine::RefineOptions;
use libjrs::register::{RegisterOptions, register};
use libjrs::{DisplacementField, Grid, Volume};

/// A smooth field of at most 10 mm: waves of 150 to 230 mm.
fn truth(p: [f64; 3]) -> [f64; 3] {
    let wave = |q: f64, length: f64, phase: f64| (q / length * std::f64::consts::TAU + phase).sin();
    [
        6.0 * wave(p[1], 150.0, 0.3) * wave(p[2], 210.0, 1.0),
        6.0 * wave(p[2], 180.0, 2.0) * wave(p[0], 170.0, 0.1),
        5.0 * wave(p[0], 230.0, 1.4) * wave(p[1], 160.0, 0.8),
    ]
}

#[test]
fn recovers_a_known_warp_of_a_real_ct() {
    let Some(path) = real_scan("abdomen_ct.nii.gz") else { return };
    let ct = libjrs::nifti::read_image(&path).unwrap();
    // 4 mm voxels keep the test short.
    let spacing = 4.0;
    let size = std::array::from_fn(|a| (ct.grid.size[a] as f64 * ct.grid.spacing[a] / spacing) as usize);
    let grid = Grid { size, spacing: [spacing; 3], ..ct.grid.clone() };
    let resampled = |u: &DisplacementField| warp_image(&ct, u, None, -1000.0);
    let moving: Volume<f32> = resampled(&DisplacementField::zero(grid.clone()));
    let mut field = DisplacementField::zero(grid.clone());
    let place = |i: usize| {
        let [nx, ny, _] = grid.size;
        grid.to_physical([i % nx, i / nx % ny, i / nx / ny].map(|p| p as f64))
    };
    for i in 0..grid.len() {
        let u = truth(place(i));
        (0..3).for_each(|a| field.u[a][i] = u[a] as f32);
    }
    let fixed = resampled(&field);
    let options = RegisterOptions {
        refine: RefineOptions { steps: 100, ..Default::default() },
        spacing_mm: spacing,
        ..Default::default()
    };
    let result = register(None, &fixed, &moving, &options, Progress::SILENT).unwrap();

    let (mut before, mut after, mut count) = (0.0, 0.0, 0.0);
    for i in 0..grid.len() {
        if fixed.data[i] > -300.0 {
            let (t, u) = (truth(place(i)), result.field.at(i));
            before += t.iter().map(|t| t * t).sum::<f64>().sqrt();
            after += (0..3).map(|a| (u[a] as f64 - t[a]).powi(2)).sum::<f64>().sqrt();
            count += 1.0;
        }
    }
    eprintln!(
        "{size:?}: mean error {:.2} -> {:.2} mm over {count} body voxels, {:?}, {:?}",
        before / count,
        after / count,
        result.refinement,
        result.timings
    );
    assert!(before / count > 3.0, "the warp must be worth recovering");
    assert!(after < 0.5 * before, "mean error {:.2} -> {:.2} mm", before / count, after / count);
}
