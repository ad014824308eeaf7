//! Kernels with cubes of several units on CubeCL's CPU runtime: what a GPU's hundreds of units do, a few do here. They share tiles,
//! wait for each other and add what each has.
//!
//! Every unit is a thread there that spins where it waits, so on a machine with fewer processors than units each wait lasts until
//! the scheduler has taken the processor from those that spin: milliseconds, several for every cube. So there are few cubes here.
#![cfg(feature = "cpu")]

#[path = "../../kernels/tests/reference/mod.rs"]
mod reference;

use jrs_cube::buffer::{download, upload};
use jrs_cube::conv3d::{self, Arithmetic, Epilogue};
use jrs_cube::{Client, Device, Handle, device, launch};
use jrs_kernels::Conv3d;
use jrs_kernels::warp::Warp;
use reference::{Convolution, close, random};

fn client() -> Client {
    launch::several_units();
    device::open(Device::Cpu).expect("a CPU")
}

fn values(client: &Client, handle: Handle) -> Vec<f32> {
    download(client, handle).expect("the device works")
}

fn layer(
    c_in: usize,
    c_out: usize,
    input: [usize; 3],
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Conv3d {
    Conv3d { batch: 1, c_in, c_out, input, kernel, stride, padding }
}

#[test]
fn convolutions_are_their_definition() {
    let client = client();
    let cases = [
        // More output channels than a block has, so that the input gradient reads several lots of channels. In the gradient of the
        // weight, units that share the rows of a tile, and tiles one after another in a cube.
        layer(1, 17, [1, 2, 18], 1, 1, 0),
        // Partial sums of two cubes.
        layer(1, 1, [3, 4, 6], 3, 1, 1),
        layer(1, 1, [3, 4, 5], 3, 2, 1),
        // More input channels than a block has.
        layer(5, 1, [2, 2, 18], 2, 1, 0),
    ];
    for (seed, conv) in cases.into_iter().enumerate() {
        let case = Convolution::new(conv, 10 * seed as u64 + 3);
        let up = |values: &[f32]| upload(&client, values);
        let (x, weight, bias, dy) = (up(&case.x), up(&case.weight), up(&case.bias), up(&case.dy));
        let (scale, shift) = (up(&case.scale), up(&case.shift));
        let epilogue = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
        let y = conv3d::forward(&client, Arithmetic::F32, &conv, &x, &weight, &bias, epilogue);
        close(&format!("forward of {conv:?}"), &values(&client, y), &case.normed, 1e-5);
        let dx = conv3d::input_gradient(&client, &conv, &dy, &weight);
        close(&format!("input gradient of {conv:?}"), &values(&client, dx), &case.dx, 1e-5);
        let dweight = conv3d::weight_gradient(&client, &conv, &x, &dy);
        close(&format!("weight gradient of {conv:?}"), &values(&client, dweight), &case.dweight, 1e-5);
    }
}

#[test]
fn a_bias_gradient_is_its_definition() {
    let client = client();
    // Two pieces a volume.
    let case = Convolution::new(layer(1, 3, [3, 10, 10], 1, 1, 0), 1);
    let dbias = conv3d::bias_gradient(&client, &case.conv, &upload(&client, &case.dy));
    close("bias gradient", &values(&client, dbias), &case.dbias, 1e-5);
}

#[test]
fn leaky_norm_is_its_definition_and_its_gradient_a_difference() {
    let client = client();
    // Two pieces a volume.
    let case = reference::LeakyNorm::new(2, 2, 300);
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
fn exact_sums_have_the_bits_of_the_cpu() {
    use jrs_kernels::exact_sum as cpu;
    let client = client();
    let (n, terms) = (cpu::BLOCK + 3, 2);
    let gradients = [random(n, 1), random(n, 2)];
    let handles = [upload(&client, &gradients[0]), upload(&client, &gradients[1])];
    let (mut exponents, mut sums) = (vec![0; cpu::blocks(n)], vec![0i64; n]);
    let (on_device, sums_on_device) = (upload(&client, &exponents), upload(&client, &sums));
    for (gradient, handle) in gradients.iter().zip(&handles) {
        cpu::raise_exponents(&mut exponents, gradient);
        jrs_cube::exact_sum::raise_exponents(&client, &on_device, handle, n);
    }
    assert_eq!(download::<i32>(&client, on_device.clone()).unwrap(), exponents);
    for (gradient, handle) in gradients.iter().zip(&handles) {
        cpu::add(&mut sums, gradient, &exponents, terms);
        jrs_cube::exact_sum::add(&client, &sums_on_device, handle, n, &on_device, terms);
    }
    assert!(download::<i64>(&client, sums_on_device.clone()).unwrap() == sums);
    let mean = jrs_cube::exact_sum::mean(&client, &sums_on_device, n, &on_device, terms);
    assert_eq!(values(&client, mean), cpu::mean(&sums, &exponents, terms));
}

#[test]
fn warp_is_its_definition_and_its_gradient_a_difference() {
    let client = client();
    let warp = Warp { batch: 2, channels: 3, source: [7, 8, 9], output: [3, 4, 5], offset: 2 };
    let source = random(warp.source_len(), 1);
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
