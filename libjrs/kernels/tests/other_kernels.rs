//! LeakyReLU + BatchNorm, upsample + concat, and the warp, against definitions in f64 and finite differences.

mod reference;

use jrs_kernels::leaky_norm;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;

use reference::{LeakyNorm, close, dot, random};

const SLOPE: f32 = LeakyNorm::SLOPE;
const EPS: f32 = LeakyNorm::EPS;

#[test]
fn leaky_norm_is_its_definition_and_its_gradient_a_difference() {
    let case = LeakyNorm::new(2, 3, 37);
    let LeakyNorm { batch, channels, spatial, ref x, ref gamma, ref beta, ref dy, .. } = case;
    let (mean, var) = leaky_norm::batch_stats(x, batch, channels, spatial, SLOPE);
    let mut y = vec![f32::NAN; x.len()];
    leaky_norm::forward(x, &mean, &var, gamma, beta, EPS, SLOPE, spatial, &mut y);
    close("y", &y, &case.y, 1e-6);
    let (mut dx, mut dgamma, mut dbeta) = (vec![f32::NAN; x.len()], vec![f32::NAN; 3], vec![f32::NAN; 3]);
    leaky_norm::backward(x, dy, &mean, &var, gamma, EPS, SLOPE, spatial, &mut dx, &mut dgamma, &mut dbeta);
    close("dx", &dx, &case.dx, 1e-5);
    close("dgamma", &dgamma, &case.dgamma, 1e-5);
    close("dbeta", &dbeta, &case.dbeta, 1e-5);
}

#[test]
fn leaky_norm_over_several_chunks_has_the_same_bits_for_any_number_of_threads() {
    let (batch, channels, spatial) = (2, 2, 40_001);
    let (x, dy) = (random(batch * channels * spatial, 5), random(batch * channels * spatial, 6));
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let (mean, var) = leaky_norm::batch_stats(&x, batch, channels, spatial, SLOPE);
            let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; 2], vec![0.0; 2]);
            leaky_norm::backward(
                &x,
                &dy,
                &mean,
                &var,
                &[1.0, 2.0],
                EPS,
                SLOPE,
                spatial,
                &mut dx,
                &mut dgamma,
                &mut dbeta,
            );
            [mean, var, dx, dgamma, dbeta].concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
    let mean = (0..x.len()).filter(|i| i / spatial % 2 == 1).map(|i| x[i].max(SLOPE * x[i]) as f64);
    let mean = mean.sum::<f64>() / (batch * spatial) as f64;
    assert!((f32::from_bits(one[1]) as f64 - mean).abs() < 1e-7);
}

#[test]
fn upsample_concat_is_its_definition_and_backward_its_transpose() {
    for crop in [0, 3] {
        let op = UpsampleConcat { batch: 2, c_up: 3, c_skip: 2, low: [2, 3, 4], crop };
        let (a, skip) = (random(op.low_len(), 1), random(op.skip_len(), 2));
        let mut y = vec![f32::NAN; op.output_len()];
        op.forward(&a, &skip, &mut y);
        assert_eq!(y, reference::upsample_concat(&op, &a, &skip), "crop {crop}");
        // <y, dy> = <(a, skip), transpose(dy)> for a linear map, and the parts outside the crop are zero.
        let dy = random(y.len(), 3);
        let (mut da, mut dskip) = (vec![f32::NAN; a.len()], vec![f32::NAN; skip.len()]);
        op.backward(&dy, &mut da, &mut dskip);
        assert!((dot(&y, &dy) - dot(&a, &da) - dot(&skip, &dskip)).abs() < 1e-4);
        assert_eq!(dskip.iter().filter(|&&v| v != 0.0).count(), 2 * 2 * 4 * 6 * 8);
        let total: f64 = dy.iter().map(|&v| v as f64).sum();
        let parts: f64 = da.iter().chain(&dskip).map(|&v| v as f64).sum();
        assert!((total - parts).abs() < 1e-4);
    }
}

#[test]
fn warp_is_its_definition_and_its_gradient_a_difference() {
    let warp = Warp { batch: 2, channels: 3, source: [7, 8, 9], output: [3, 4, 5], offset: 2 };
    let source = random(warp.source_len(), 1);
    // Up to 4 voxels: a good part of the positions is outside.
    let u: Vec<f32> = random(warp.displacement_len(), 2).iter().map(|v| 4.0 * v).collect();
    let exact: Vec<f64> = u.iter().map(|&v| v as f64).collect();
    let mut y = vec![f32::NAN; warp.output_len()];
    warp.forward(&source, &u, &mut y);
    close("y", &y, &reference::warp(&warp, &source, &exact), 1e-6);

    let dy = random(y.len(), 3);
    let mut du = vec![f32::NAN; u.len()];
    warp.backward(&source, &u, &dy, &mut du);
    let difference = reference::warp_gradient(&warp, &source, &u, &dy);
    assert!(difference.iter().filter(|&&v| v == 0.0).count() > 10, "clamped positions are part of the test");
    close("du", &du, &difference, 2e-6);
}

#[test]
fn a_nan_displacement_gives_nan_not_a_wrong_value() {
    let warp = Warp { batch: 1, channels: 1, source: [2, 2, 2], output: [1, 1, 1], offset: 0 };
    let mut y = [0.0];
    warp.forward(&[1.0; 8], &[f32::NAN, 0.0, 0.0], &mut y);
    assert!(y[0].is_nan());
    warp.forward(&[1.0; 8], &[f32::INFINITY, 0.0, 0.0], &mut y);
    assert_eq!(y[0], 1.0);
}
