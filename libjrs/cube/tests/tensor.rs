//! The convolution in TF32 and bf16 against its definition: the operands rounded here, then products and sums in f64, so that
//! what differs is f32's addition alone. Run with the feature `cpu`, loops stand for the tensor core and all else is what a GPU
//! runs; with `cuda` instead, on the first GPU (or skipped, where there is none).
#![cfg(any(feature = "cpu", feature = "cuda"))]

#[path = "../../kernels/tests/reference/mod.rs"]
mod reference;

use jrs_cube::buffer::{download, upload};
use jrs_cube::conv3d::{self, Arithmetic, Epilogue};
use jrs_cube::{Client, Device, device};
use jrs_kernels::Conv3d;
use reference::{Convolution, close, error};

const ARITHMETICS: [Arithmetic; 2] = [Arithmetic::Tf32, Arithmetic::Bf16];

/// The device under test.
fn client() -> Option<Client> {
    let chosen = if cfg!(feature = "cpu") { Device::Cpu } else { Device::Cuda(0) };
    match device::open(chosen) {
        Ok(client) if ARITHMETICS.iter().all(|a| a.on(&client)) => Some(client),
        Ok(_) => {
            eprintln!("SKIPPED: no tensor cores for TF32 and bf16");
            None
        }
        Err(error) if chosen != Device::Cpu => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// `value` with a significand of 8 bits (bf16) or 11 (TF32): the nearest, of two the one with an even last bit. By distances in
/// f64, other than the kernels do it.
fn rounded(arithmetic: Arithmetic, value: f32) -> f32 {
    let dropped = if arithmetic == Arithmetic::Bf16 { 16 } else { 13 };
    let below = value.to_bits() >> dropped << dropped;
    let above = below + (1 << dropped);
    let number = |bits: u32| {
        // What follows the largest finite number counts as 2^128 here.
        let number = f32::from_bits(bits);
        if number.is_infinite() { 2f64.powi(128).copysign(number as f64) } else { number as f64 }
    };
    let distance = |bits: u32| (number(bits) - value as f64).abs();
    let even = |bits: u32| (bits >> dropped).is_multiple_of(2);
    let nearest = match distance(below).total_cmp(&distance(above)) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => above,
        std::cmp::Ordering::Equal => [below, above].into_iter().find(|&bits| even(bits)).unwrap(),
    };
    f32::from_bits(nearest)
}

fn layer(c_in: usize, c_out: usize, input: [usize; 3], kernel: usize, stride: usize) -> Conv3d {
    Conv3d { batch: 1, c_in, c_out, input, kernel, stride, padding: stride - 1 }
}

fn check(client: &Client, arithmetic: Arithmetic, (conv, seed): (Conv3d, u64)) {
    let exact = Convolution::new(conv, seed);
    let case = Convolution::rounded(conv, seed, |value| rounded(arithmetic, value));
    let up = |values: &[f32]| upload(client, values);
    let (x, weight, bias) = (up(&exact.x), up(&exact.weight), up(&exact.bias));
    let (scale, shift) = (up(&exact.scale), up(&exact.shift));
    let normed = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
    for (epilogue, want) in [(Epilogue::None, &case.y), (normed, &case.normed)] {
        let y = conv3d::forward(client, arithmetic, &conv, &x, &weight, &bias, epilogue);
        let y = download(client, y).expect("the device works");
        close(&format!("{arithmetic:?}, {epilogue:?} of {conv:?}"), &y, want, 1e-5);
    }
}

#[test]
fn convolutions_are_their_definition() {
    let Some(client) = client() else { return };
    for arithmetic in ARITHMETICS {
        let shapes = [
            reference::layers_of_the_networks(),
            reference::strides_paddings_and_kernels(),
            reference::random_shapes(),
        ];
        shapes.into_iter().flatten().for_each(|case| check(&client, arithmetic, case));
        // Several blocks of outputs, several tiles of each axis, and edges that divide nothing.
        for (seed, conv) in
            [layer(5, 70, [7, 11, 19], 3, 1), layer(17, 33, [9, 13, 37], 3, 2), layer(1, 1, [3, 3, 3], 3, 1)]
                .into_iter()
                .enumerate()
        {
            check(&client, arithmetic, (conv, 9000 + 10 * seed as u64));
        }
    }
}

/// One weight of 1: the sum is the rounded input, and it has its bits.
#[test]
fn operands_are_rounded_to_the_nearest_ties_to_even() {
    let Some(client) = client() else { return };
    for arithmetic in ARITHMETICS {
        let unit = if arithmetic == Arithmetic::Bf16 { 2f32.powi(-7) } else { 2f32.powi(-10) };
        let mut x = vec![0.0, 1.0, 1.5, f32::MAX, f32::MIN_POSITIVE, 1e-30, 3.4e38, 2f32.powi(127)];
        // Halves above even and odd numbers, and what is next to them.
        for whole in 0..8 {
            let half = 1.0 + (whole as f32 + 0.5) * unit;
            x.extend([half, half.next_down(), half.next_up(), 8.0 * half, half / 64.0]);
        }
        x.extend(reference::random(1000, 5));
        x.extend(x.clone().iter().map(|v| -v));
        let conv = layer(1, 1, [1, 1, x.len()], 1, 1);
        let up = |values: &[f32]| upload(&client, values);
        let (one, zero) = (up(&[1.0]), up(&[0.0]));
        let y = conv3d::forward(&client, arithmetic, &conv, &up(&x), &one, &zero, Epilogue::None);
        for (value, got) in x.iter().zip(download::<f32>(&client, y).unwrap()) {
            assert_eq!(got, rounded(arithmetic, *value), "{arithmetic:?} of {value:e}");
        }
        // The weight as well; what is not a number stays so.
        let (half, odd) = (1.0 + 0.5 * unit, 1.0 + 1.5 * unit);
        let conv = layer(1, 4, [1, 1, 1], 1, 1);
        let (weight, zeros) = (up(&[half, odd, f32::NAN, f32::INFINITY]), up(&[0.0; 4]));
        let y = conv3d::forward(&client, arithmetic, &conv, &one, &weight, &zeros, Epilogue::None);
        let y = download::<f32>(&client, y).unwrap();
        assert_eq!(y[..2], [1.0, 1.0 + 2.0 * unit], "{arithmetic:?}");
        assert!(y[2].is_nan() && y[3] == f32::INFINITY, "{arithmetic:?}: {y:?}");
    }
}

/// What rounding costs a layer: half a unit in the last place for each operand, and the other arithmetic is not what ran.
#[test]
fn errors_are_those_of_the_arithmetic() {
    let Some(client) = client() else { return };
    let conv = layer(32, 32, [6, 6, 18], 3, 1);
    let exact = Convolution::new(conv, 77);
    let up = |values: &[f32]| upload(&client, values);
    let (x, weight, bias) = (up(&exact.x), up(&exact.weight), up(&exact.bias));
    for (arithmetic, from, to) in
        [(Arithmetic::F32, 0.0, 1e-5), (Arithmetic::Tf32, 2e-5, 4e-4), (Arithmetic::Bf16, 2e-4, 3e-3)]
    {
        let y = conv3d::forward(&client, arithmetic, &conv, &x, &weight, &bias, Epilogue::None);
        let error = error(&download(&client, y).unwrap(), &exact.y);
        assert!((from..to).contains(&error), "{arithmetic:?}: {error:e}");
    }
}
