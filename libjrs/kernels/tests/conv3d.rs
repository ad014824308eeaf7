//! The convolution and its gradients against a naive f64 reference, on every instruction set at hand.

mod reference;

use jrs_kernels::bf16::Unit;
use jrs_kernels::{Conv3d, Epilogue, Isa};
use reference::{Convolution, close, random};

fn check(conv: Conv3d, seed: u64) {
    let Convolution { x, weight, bias, dy, scale, shift, y, normed, dx, dweight, dbias, .. } =
        Convolution::new(conv, seed);
    // The emulated unit shows everywhere what is not instructions.
    for isa in Isa::available().into_iter().chain([Isa::Matrix(Unit::Emulated)]) {
        let within = |what: &str, got: &[f32], want: &[f64]| {
            close(&format!("{what} of {conv:?} on {isa:?}"), got, want, 1e-5);
        };
        let mut out = vec![f32::NAN; y.len()];
        conv.forward_on(isa, &x, &weight, &bias, Epilogue::None, &mut out);
        within("forward", &out, &y);
        out.fill(f32::NAN);
        conv.forward_untracked_on(isa, &x, &weight, &bias, &mut out);
        within("untracked forward", &out, &y);
        let epilogue = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
        conv.forward_on(isa, &x, &weight, &bias, epilogue, &mut out);
        within("forward with epilogue", &out, &normed);
        let mut out = vec![f32::NAN; x.len()];
        conv.input_gradient_on(isa, &dy, &weight, &mut out);
        within("input gradient", &out, &dx);
        let mut out = vec![f32::NAN; weight.len()];
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
fn planes_that_pass_by_are_those_of_the_whole() {
    let whole = Conv3d { batch: 1, c_in: 6, c_out: 8, input: [11, 13, 18], kernel: 3, stride: 1, padding: 0 };
    let (weight, bias) = (random(whole.weight_len(), 2), random(8, 3));
    for (stride, padding) in [(1, 0), (2, 1)] {
        // A plane of zeros in front stands for padding along z.
        let area = 13 * 18;
        let mut x = random(6 * 11 * area, 1);
        if padding == 1 {
            x.chunks_exact_mut(11 * area).for_each(|channel| channel[..area].fill(0.0));
        }
        let planes = |from: usize, to: usize| -> Vec<f32> {
            x.chunks_exact(11 * area).flat_map(|channel| channel[from * area..to * area].to_vec()).collect()
        };
        let whole = Conv3d { input: [11 - padding, 13, 18], stride, padding, ..whole };
        let mut expected = vec![0.0; whole.output_len()];
        whole.forward(&planes(padding, 11), &weight, &bias, Epilogue::None, &mut expected);
        let depth = whole.output()[0];
        let mut y = vec![0.0; expected.len()];
        for (first, last) in [(0, 2), (2, 3), (3, depth)] {
            let (from, to) = (stride * first, stride * (last - 1) + 3);
            let part = Conv3d { input: [to - from, 13, 18], ..whole };
            part.forward_planes(&planes(from, to), &weight, &bias, Epilogue::None, &mut y, first, depth);
        }
        assert_eq!(y, expected, "stride {stride}");
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
                conv.forward(&x, &weight, &bias, Epilogue::None, &mut y);
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
