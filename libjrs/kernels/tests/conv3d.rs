//! The convolution and its gradients against a naive f64 reference, on every instruction set at hand.

mod reference;

use jrs_kernels::bf16::Unit;
use jrs_kernels::pool::SCRATCH;
use jrs_kernels::{Conv3d, Isa};
use reference::{Convolution, close, random};

/// What an earlier user left in scratch buffers must not matter: the next ones are made of values that are not numbers.
fn soil() {
    let lengths = (10..20).map(|power| 1 << power);
    let idle: Vec<_> = lengths.flat_map(|length| [SCRATCH.take(length), SCRATCH.take(length)]).collect();
    idle.into_iter().for_each(|mut buffer| buffer.fill(f32::NAN));
}

fn check(conv: Conv3d, seed: u64) {
    let Convolution { x, weight, bias, dy, y, dx, dweight, dbias, .. } = Convolution::new(conv, seed);
    // The emulated unit shows everywhere what is not instructions.
    for isa in Isa::available().into_iter().chain([Isa::Matrix(Unit::Emulated)]) {
        let within = |what: &str, got: &[f32], want: &[f64]| {
            close(&format!("{what} of {conv:?} on {isa:?}"), got, want, 1e-5);
        };
        let mut out = vec![f32::NAN; y.len()];
        soil();
        conv.forward_on(isa, &x, &weight, &bias, &mut out);
        within("forward", &out, &y);
        out.fill(f32::NAN);
        soil();
        conv.forward_untracked_on(isa, &x, &weight, &bias, &mut out);
        within("untracked forward", &out, &y);
        let mut out = vec![f32::NAN; x.len()];
        soil();
        conv.input_gradient_on(isa, &dy, &weight, &mut out);
        within("input gradient", &out, &dx);
        let mut out = vec![f32::NAN; weight.len()];
        soil();
        conv.weight_gradient_on(isa, &x, &dy, &mut out);
        within("weight gradient", &out, &dweight);
        let mut out = vec![f32::NAN; conv.c_out];
        conv.bias_gradient(&dy, &mut out);
        within("bias gradient", &out, &dbias);
    }
}

#[test]
fn the_networks_kinds_of_layers() {
    reference::layers_of_the_networks().into_iter().for_each(|(conv, seed)| check(conv, seed));
}

#[test]
fn every_stride_padding_and_kernel() {
    reference::strides_paddings_and_kernels().into_iter().for_each(|(conv, seed)| check(conv, seed));
}

#[test]
fn random_shapes() {
    reference::random_shapes().into_iter().for_each(|(conv, seed)| check(conv, seed));
}

#[test]
fn every_edge_from_1_to_40() {
    for n in 1..=40 {
        for (stride, padding) in [(1, 0), (1, 1), (2, 1)] {
            for input in [[3, n, 41 - n], [4, 41 - n, n]] {
                if padding == 1 || n.min(41 - n) >= 3 {
                    let conv = Conv3d { batch: 1, c_in: 2, c_out: 4, input, kernel: 3, stride, padding };
                    check(conv, 9000 + n as u64 * 100);
                }
            }
        }
    }
}

#[test]
fn rows_cut_into_several_parts() {
    check(Conv3d { batch: 1, c_in: 8, c_out: 7, input: [9, 70, 99], kernel: 3, stride: 1, padding: 1 }, 76);
    check(Conv3d { batch: 1, c_in: 17, c_out: 2, input: [5, 40, 37], kernel: 3, stride: 1, padding: 1 }, 77);
    check(Conv3d { batch: 1, c_in: 18, c_out: 3, input: [7, 41, 60], kernel: 3, stride: 2, padding: 1 }, 78);
}

#[test]
fn same_bits_for_any_number_of_threads() {
    for stride in [1, 2] {
        let conv = Conv3d { batch: 2, c_in: 20, c_out: 6, input: [9, 30, 33], kernel: 3, stride, padding: 1 };
        let (x, weight) = (random(conv.input_len(), 1), random(conv.weight_len(), 2));
        let (bias, dy) = (random(conv.c_out, 3), random(conv.output_len(), 4));
        let run = |threads: usize| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
                let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; bias.len()]);
                conv.forward(&x, &weight, &bias, &mut y);
                conv.input_gradient(&dy, &weight, &mut dx);
                conv.weight_gradient(&x, &dy, &mut dw);
                conv.bias_gradient(&dy, &mut db);
                [y, dx, dw, db].concat().iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "stride {stride}");
    }
}
