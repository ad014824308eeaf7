//! The kernels against their definitions in f64, the same cases as the CPU's kernels. Run with the feature `cpu`, they are
//! compiled for the processor; with `cuda` instead, on the first GPU (or skipped, where there is none).
#![cfg(any(feature = "cpu", feature = "cuda"))]

#[path = "../../kernels/tests/reference/mod.rs"]
mod reference;

use jrs_cube::buffer::{download, upload};
use jrs_cube::conv3d::{self, Arithmetic, Epilogue};
use jrs_cube::{Client, Device, Handle, device};
use jrs_kernels::Conv3d;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;
use reference::{Convolution, close, random};

/// The device under test.
fn client() -> Option<Client> {
    let chosen = if cfg!(feature = "cpu") { Device::Cpu } else { Device::Cuda(0) };
    match device::open(chosen) {
        Ok(client) => Some(client),
        Err(error) if chosen != Device::Cpu => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn values(client: &Client, handle: Handle) -> Vec<f32> {
    download(client, handle).expect("the device works")
}

fn check(client: &Client, (conv, seed): (Conv3d, u64)) {
    let case = Convolution::new(conv, seed);
    let up = |values: &[f32]| upload(client, values);
    let (x, weight, bias) = (up(&case.x), up(&case.weight), up(&case.bias));
    let y = conv3d::forward(client, Arithmetic::F32, &conv, &x, &weight, &bias, Epilogue::None);
    close(&format!("forward of {conv:?}"), &values(client, y), &case.y, 1e-5);
    let (scale, shift) = (up(&case.scale), up(&case.shift));
    let epilogue = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
    let y = conv3d::forward(client, Arithmetic::F32, &conv, &x, &weight, &bias, epilogue);
    close(&format!("forward with epilogue of {conv:?}"), &values(client, y), &case.normed, 1e-5);
    let dy = up(&case.dy);
    let dx = conv3d::input_gradient(client, &conv, &dy, &weight);
    close(&format!("input gradient of {conv:?}"), &values(client, dx), &case.dx, 1e-5);
    let dweight = conv3d::weight_gradient(client, &conv, &x, &dy);
    close(&format!("weight gradient of {conv:?}"), &values(client, dweight), &case.dweight, 1e-5);
    let dbias = conv3d::bias_gradient(client, &conv, &dy);
    close(&format!("bias gradient of {conv:?}"), &values(client, dbias), &case.dbias, 1e-5);
}

#[test]
fn convolutions_are_their_definition() {
    let Some(client) = client() else { return };
    for case in reference::layers_of_the_networks() {
        check(&client, case);
    }
    for case in reference::strides_paddings_and_kernels() {
        check(&client, case);
    }
    for case in reference::random_shapes() {
        check(&client, case);
    }
}

#[test]
fn the_upsampled_input_is_never_stored_and_counts() {
    let Some(client) = client() else { return };
    let arithmetics = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];
    for (crop, arithmetic) in arithmetics.into_iter().flat_map(|a| [(0, a), (2, a)]) {
        let op = UpsampleConcat { batch: 2, c_up: 3, c_skip: 2, low: [3, 4, 5], crop };
        let conv =
            Conv3d { batch: 2, c_in: 5, c_out: 4, input: op.output(), kernel: 3, stride: 1, padding: 0 };
        let (a, skip) = (random(op.low_len(), 1), random(op.skip_len(), 2));
        let (weight, bias) = (random(conv.weight_len(), 3), random(4, 4));
        let [a, skip, weight, bias] = [&a, &skip, &weight, &bias].map(|values| upload(&client, values));
        let stored = jrs_cube::upsample_concat::forward(&client, &op, &a, &skip);
        let want = conv3d::forward(&client, arithmetic, &conv, &stored, &weight, &bias, Epilogue::None);
        let none = Epilogue::None;
        let got = conv3d::forward_upsampled(&client, arithmetic, &conv, &op, &a, &skip, &weight, &bias, none);
        assert_eq!(values(&client, got), values(&client, want), "crop {crop}, {arithmetic:?}");
    }
}

#[test]
fn upsample_concat_is_its_definition_and_backward_its_transpose() {
    let Some(client) = client() else { return };
    for crop in [0, 3] {
        let op = UpsampleConcat { batch: 2, c_up: 3, c_skip: 2, low: [2, 3, 4], crop };
        let (a, skip) = (random(op.low_len(), 1), random(op.skip_len(), 2));
        let y =
            jrs_cube::upsample_concat::forward(&client, &op, &upload(&client, &a), &upload(&client, &skip));
        let y = values(&client, y);
        assert_eq!(y, reference::upsample_concat(&op, &a, &skip), "crop {crop}");
        // <y, dy> = <(a, skip), transpose(dy)> for a linear map, and the CPU's kernel adds in the same order.
        let dy = random(y.len(), 3);
        let (da, dskip) = jrs_cube::upsample_concat::backward(&client, &op, &upload(&client, &dy));
        let (da, dskip) = (values(&client, da), values(&client, dskip));
        let (left, right) =
            (reference::dot(&y, &dy), reference::dot(&a, &da) + reference::dot(&skip, &dskip));
        assert!((left - right).abs() < 1e-4);
        let (mut da_cpu, mut dskip_cpu) = (vec![f32::NAN; a.len()], vec![f32::NAN; skip.len()]);
        op.backward(&dy, &mut da_cpu, &mut dskip_cpu);
        assert!(da == da_cpu && dskip == dskip_cpu, "crop {crop}");
    }
}

#[test]
fn leaky_norm_is_its_definition_and_its_gradient_a_difference() {
    let Some(client) = client() else { return };
    let case = reference::LeakyNorm::new(2, 3, 37);
    let (n, c, spatial) = (case.batch, case.channels, case.spatial);
    let (slope, eps) = (reference::LeakyNorm::SLOPE, reference::LeakyNorm::EPS);
    let up = |values: &[f32]| upload(&client, values);
    let (x, gamma, beta, dy) = (up(&case.x), up(&case.gamma), up(&case.beta), up(&case.dy));
    let statistics = jrs_cube::leaky_norm::statistics(&client, &x, n, c, spatial, slope);
    let (mean, var) = jrs_kernels::leaky_norm::batch_stats(&case.x, n, c, spatial, slope);
    let cpu: Vec<f64> = mean.into_iter().chain(var).map(f64::from).collect();
    close("statistics", &values(&client, statistics.clone()), &cpu, 1e-6);
    let y = jrs_cube::leaky_norm::forward(&client, &x, &statistics, &gamma, &beta, eps, slope, n, c, spatial);
    close("y", &values(&client, y), &case.y, 1e-6);
    let (dx, dparams) =
        jrs_cube::leaky_norm::backward(&client, &x, &dy, &statistics, &gamma, eps, slope, n, c, spatial);
    close("dx", &values(&client, dx), &case.dx, 1e-5);
    let dparams = values(&client, dparams);
    close("dgamma", &dparams[..c], &case.dgamma, 1e-5);
    close("dbeta", &dparams[c..], &case.dbeta, 1e-5);
}

#[test]
fn sums_over_several_pieces() {
    let Some(client) = client() else { return };
    let (n, c, spatial, slope) = (2, 2, 40_001, 0.2);
    let x = random(n * c * spatial, 5);
    let handle = upload(&client, &x);
    let statistics = jrs_cube::leaky_norm::statistics(&client, &handle, n, c, spatial, slope);
    let (mean, var) = jrs_kernels::leaky_norm::batch_stats(&x, n, c, spatial, slope);
    let cpu: Vec<f64> = mean.into_iter().chain(var).map(f64::from).collect();
    close("statistics", &values(&client, statistics), &cpu, 1e-6);
}

#[test]
fn warp_is_its_definition_and_its_gradient_a_difference() {
    let Some(client) = client() else { return };
    // The second source has an axis of one voxel.
    for source in [[7, 8, 9], [6, 1, 9]] {
        let warp = Warp { batch: 2, channels: 3, source, output: [3, 4, 5], offset: 2 };
        let source = random(warp.source_len(), 1);
        // Up to 4 voxels: a good part of the positions is outside.
        let u: Vec<f32> = random(warp.displacement_len(), 2).iter().map(|v| 4.0 * v).collect();
        let exact: Vec<f64> = u.iter().map(|&v| v as f64).collect();
        let dy = random(warp.output_len(), 3);
        let up = |values: &[f32]| upload(&client, values);
        let (on_source, on_u, on_dy) = (up(&source), up(&u), up(&dy));
        let y = jrs_cube::warp::forward(&client, &warp, &on_source, &on_u);
        close("y", &values(&client, y), &reference::warp(&warp, &source, &exact), 1e-6);
        let du = jrs_cube::warp::backward(&client, &warp, &on_source, &on_u, &on_dy);
        close("du", &values(&client, du), &reference::warp_gradient(&warp, &source, &u, &dy), 2e-6);
    }
}

#[test]
fn a_nan_displacement_gives_nan_not_a_wrong_value() {
    let Some(client) = client() else { return };
    let warp = Warp { batch: 1, channels: 1, source: [2, 2, 2], output: [1, 1, 1], offset: 0 };
    let warped = |u: [f32; 3]| {
        let (source, u) = (upload(&client, &[1.0f32; 8]), upload(&client, &u));
        values(&client, jrs_cube::warp::forward(&client, &warp, &source, &u))[0]
    };
    assert!(warped([f32::NAN, 0.0, 0.0]).is_nan());
    assert_eq!(warped([f32::INFINITY, 0.0, 0.0]), 1.0);
    assert_eq!(warped([0.0, f32::NEG_INFINITY, 0.0]), 1.0);
}

/// Finite values of every magnitude f32 has, with zeros and subnormal ones among them.
fn all_magnitudes(len: usize, seed: u64) -> Vec<f32> {
    let bits = random(2 * len, seed);
    let value = |i: usize| match i % 8 {
        0 => 0.0,
        1 => f32::MIN_POSITIVE / 8.0 * bits[i],
        2..5 => bits[i],
        _ => bits[i] * 2f32.powf(bits[len + i] * 126.0),
    };
    (0..len).map(value).collect()
}

#[test]
fn exact_sums_have_the_bits_of_the_cpu() {
    use jrs_kernels::exact_sum as cpu;
    let Some(client) = client() else { return };
    for (n, terms) in [(1, 1), (1023, 3), (1025, 8), (5000, 5)] {
        let mut values: Vec<Vec<f32>> = (0..terms).map(|t| all_magnitudes(n, (n + t) as u64)).collect();
        if n == 5000 {
            values[1][2000] = f32::INFINITY; // a block of NaN
            // A block of subnormal values, and halves that are rounded to even.
            values.iter_mut().for_each(|v| v[3072..4096].iter_mut().for_each(|v| *v *= f32::MIN_POSITIVE));
            values[0][..1024]
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v = 2f32.powi(i as i32 % 12 + 60) * 1.5);
        }
        let mut exponents = vec![0; cpu::blocks(n)];
        let on_device = upload(&client, &exponents);
        let handles: Vec<Handle> = values.iter().map(|v| upload(&client, v)).collect();
        for (value, handle) in values.iter().zip(&handles) {
            cpu::raise_exponents(&mut exponents, value);
            jrs_cube::exact_sum::raise_exponents(&client, &on_device, handle, n);
        }
        assert_eq!(download::<i32>(&client, on_device.clone()).unwrap(), exponents, "{n} values");
        let mut sums = vec![0i64; n];
        let sums_on_device = upload(&client, &sums);
        for (value, handle) in values.iter().zip(&handles) {
            cpu::add(&mut sums, value, &exponents, terms);
            jrs_cube::exact_sum::add(&client, &sums_on_device, handle, n, &on_device, terms);
        }
        assert!(
            download::<i64>(&client, sums_on_device.clone()).unwrap() == sums,
            "{n} values, {terms} terms"
        );
        let mean = jrs_cube::exact_sum::mean(&client, &sums_on_device, n, &on_device, terms);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let want = bits(cpu::mean(&sums, &exponents, terms));
        assert!(bits(download(&client, mean).unwrap()) == want, "{n} values, {terms} terms");
    }
}
