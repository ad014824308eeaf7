//! LeakyReLU + BatchNorm, upsample + concat, and the warp, against definitions in f64 and finite differences.

use jrs_kernels::leaky_norm;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;

/// Reproducible values in [-1, 1).
fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30, |most, v| v.abs().max(most));
    for (i, (&g, w)) in got.iter().zip(want).enumerate() {
        assert!((g as f64 - w).abs() <= tolerance * scale, "{what}[{i}]: {g} instead of {w} (scale {scale})");
    }
}

const SLOPE: f32 = 0.2;
const EPS: f32 = 1e-3;

/// The definition: y, with statistics of the batch.
fn leaky_norm_f64(x: &[f64], gamma: &[f32], beta: &[f32], spatial: usize) -> Vec<f64> {
    let channels = gamma.len();
    let a: Vec<f64> = x.iter().map(|&v| if v > 0.0 { v } else { SLOPE as f64 * v }).collect();
    let mut y = vec![0.0; x.len()];
    for c in 0..channels {
        let mine = |i: &usize| i / spatial % channels == c;
        let count = (x.len() / channels) as f64;
        let mean = (0..a.len()).filter(mine).map(|i| a[i]).sum::<f64>() / count;
        let var = (0..a.len()).filter(mine).map(|i| (a[i] - mean).powi(2)).sum::<f64>() / count;
        for i in (0..a.len()).filter(mine) {
            y[i] = gamma[c] as f64 * (a[i] - mean) / (var + EPS as f64).sqrt() + beta[c] as f64;
        }
    }
    y
}

#[test]
fn leaky_norm_is_its_definition_and_its_gradient_a_difference() {
    let (batch, channels, spatial) = (2, 3, 37);
    // Far from zero mean, as convolutions' results are.
    let x: Vec<f32> = random(batch * channels * spatial, 1).iter().map(|v| 2.0 * v + 0.7).collect();
    let (gamma, beta, dy) = (random(channels, 2), random(channels, 3), random(x.len(), 4));
    let (mean, var) = leaky_norm::batch_stats(&x, batch, channels, spatial, SLOPE);
    let mut y = vec![f32::NAN; x.len()];
    leaky_norm::forward(&x, &mean, &var, &gamma, &beta, EPS, SLOPE, spatial, &mut y);
    let exact: Vec<f64> = x.iter().map(|&v| v as f64).collect();
    close("y", &y, &leaky_norm_f64(&exact, &gamma, &beta, spatial), 1e-6);

    let (mut dx, mut dgamma, mut dbeta) = (vec![f32::NAN; x.len()], vec![f32::NAN; 3], vec![f32::NAN; 3]);
    leaky_norm::backward(&x, &dy, &mean, &var, &gamma, EPS, SLOPE, spatial, &mut dx, &mut dgamma, &mut dbeta);
    let loss = |x: &[f64], gamma: &[f32], beta: &[f32]| -> f64 {
        leaky_norm_f64(x, gamma, beta, spatial).iter().zip(&dy).map(|(y, &d)| y * d as f64).sum()
    };
    let step = 1e-5;
    let difference: Vec<f64> = (0..x.len())
        .map(|i| {
            let (mut up, mut down) = (exact.clone(), exact.clone());
            up[i] += step;
            down[i] -= step;
            (loss(&up, &gamma, &beta) - loss(&down, &gamma, &beta)) / (2.0 * step)
        })
        .collect();
    close("dx", &dx, &difference, 1e-5);
    // The loss is linear in gamma and beta: the slope is exact for any step.
    let linear = |change: &dyn Fn(&mut [f32], &mut [f32])| {
        let (mut g, mut b) = (vec![0.0; channels], vec![0.0; channels]);
        change(&mut g, &mut b);
        loss(&exact, &g, &b)
    };
    let want: Vec<f64> = (0..channels).map(|c| linear(&|g, _| g[c] = 1.0)).collect();
    close("dgamma", &dgamma, &want, 1e-5);
    let want: Vec<f64> = (0..channels).map(|c| linear(&|_, b| b[c] = 1.0)).collect();
    close("dbeta", &dbeta, &want, 1e-5);
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
        let ([d, h, w], [sd, sh, sw]) = (op.output(), op.skip());
        assert_eq!([d, h, w], [4, 6, 8]);
        for (i, &value) in y.iter().enumerate() {
            let (x, row, z, c, n) =
                (i % w, i / w % h, i / (w * h) % d, i / (w * h * d) % 5, i / (w * h * d) / 5);
            let want = if c < 3 {
                a[(((n * 3 + c) * 2 + z / 2) * 3 + row / 2) * 4 + x / 2]
            } else {
                skip[(((n * 2 + c - 3) * sd + z + crop) * sh + row + crop) * sw + x + crop]
            };
            assert_eq!(value, want);
        }
        // <y, dy> = <(a, skip), transpose(dy)> for a linear map, and the parts outside the crop are zero.
        let dy = random(y.len(), 3);
        let (mut da, mut dskip) = (vec![f32::NAN; a.len()], vec![f32::NAN; skip.len()]);
        op.backward(&dy, &mut da, &mut dskip);
        assert!((dot(&y, &dy) - dot(&a, &da) - dot(&skip, &dskip)).abs() < 1e-4);
        assert_eq!(dskip.iter().filter(|&&v| v != 0.0).count(), 2 * 2 * d * h * w);
        let total: f64 = dy.iter().map(|&v| v as f64).sum();
        let parts: f64 = da.iter().chain(&dskip).map(|&v| v as f64).sum();
        assert!((total - parts).abs() < 1e-4);
    }
}

/// The definition in f64.
fn warp_f64(warp: &Warp, source: &[f32], u: &[f64]) -> Vec<f64> {
    let ([sd, sh, sw], [d, h, w]) = (warp.source, warp.output);
    let voxels = d * h * w;
    let mut y = vec![0.0; warp.output_len()];
    for (i, value) in y.iter_mut().enumerate() {
        let (m, volume) = (i % voxels, i / voxels);
        let n = volume / warp.channels;
        let position =
            [(m / (h * w), 2, sd), (m / w % h, 1, sh), (m % w, 0, sw)].map(|(m, component, size)| {
                let u = u[(n * 3 + component) * voxels + i % voxels];
                ((m + warp.offset) as f64 + u).clamp(0.0, (size - 1) as f64)
            });
        for corner in 0..8 {
            let mut weight = 1.0;
            let mut index = volume;
            for (axis, size) in [sd, sh, sw].into_iter().enumerate() {
                let low = position[axis].floor();
                let f = position[axis] - low;
                let up = corner >> axis & 1;
                weight *= if up == 1 { f } else { 1.0 - f };
                index = index * size + (low as usize + up).min(size - 1);
            }
            *value += weight * source[index] as f64;
        }
    }
    y
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
    close("y", &y, &warp_f64(&warp, &source, &exact), 1e-6);

    let dy = random(y.len(), 3);
    let mut du = vec![f32::NAN; u.len()];
    warp.backward(&source, &u, &dy, &mut du);
    let step = 1e-6;
    let difference: Vec<f64> = (0..u.len())
        .map(|i| {
            let mut moved = exact.clone();
            let mut loss = |value: f64| {
                moved[i] = value;
                let y = warp_f64(&warp, &source, &moved);
                y.iter().zip(&dy).map(|(y, &d)| y * d as f64).sum::<f64>()
            };
            (loss(exact[i] + step) - loss(exact[i] - step)) / (2.0 * step)
        })
        .collect();
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
