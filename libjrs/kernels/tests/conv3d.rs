//! The convolution and its gradients against a naive f64 reference, on every instruction set at hand.

use jrs_kernels::bf16::Unit;
use jrs_kernels::{Conv3d, Epilogue, Isa};

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

/// Calls `visit(input index, weight index, output index)` for every product of the convolution: the definition.
fn products(conv: &Conv3d, mut visit: impl FnMut(usize, usize, usize)) {
    let ([d, h, w], [od, oh, ow], k) = (conv.input, conv.output(), conv.kernel);
    let source = |out: usize, tap: usize, size: usize| {
        (out * conv.stride + tap).checked_sub(conv.padding).filter(|&i| i < size)
    };
    for n in 0..conv.batch {
        for co in 0..conv.c_out {
            for out in 0..od * oh * ow {
                let (z, y, x) = (out / (oh * ow), out / ow % oh, out % ow);
                for ci in 0..conv.c_in {
                    for tap in 0..k * k * k {
                        let (kz, ky, kx) = (tap / (k * k), tap / k % k, tap % k);
                        if let (Some(z), Some(y), Some(x)) =
                            (source(z, kz, d), source(y, ky, h), source(x, kx, w))
                        {
                            visit(
                                (((n * conv.c_in + ci) * d + z) * h + y) * w + x,
                                (co * conv.c_in + ci) * k * k * k + tap,
                                (n * conv.c_out + co) * od * oh * ow + out,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Largest difference, relative to the largest reference value.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let scale = want.iter().fold(1e-30, |most, v| v.abs().max(most));
    got.iter().zip(want).map(|(&g, w)| (g as f64 - w).abs() / scale).fold(0.0, f64::max)
}

fn check(conv: Conv3d, seed: u64) {
    let x = random(conv.input_len(), seed);
    let weight = random(conv.weight_len(), seed + 1);
    let bias = random(conv.c_out, seed + 2);
    let dy = random(conv.output_len(), seed + 3);
    let voxels: usize = conv.output().iter().product();

    let channel = |i: usize| i / voxels % conv.c_out;
    let mut y: Vec<f64> = (0..dy.len()).map(|i| bias[channel(i)] as f64).collect();
    let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()]);
    products(&conv, |i, w, o| {
        y[o] += x[i] as f64 * weight[w] as f64;
        dx[i] += dy[o] as f64 * weight[w] as f64;
        dw[w] += dy[o] as f64 * x[i] as f64;
    });
    let mut db = vec![0.0f64; conv.c_out];
    dy.iter().enumerate().for_each(|(i, &v)| db[channel(i)] += v as f64);
    let (scale, shift) = (random(conv.c_out, seed + 4), random(conv.c_out, seed + 5));
    let normed: Vec<f64> = y
        .iter()
        .enumerate()
        .map(|(i, &v)| scale[channel(i)] as f64 * v.max(0.2 * v) + shift[channel(i)] as f64)
        .collect();

    // The emulated unit shows everywhere what is not instructions.
    for isa in Isa::available().into_iter().chain([Isa::Matrix(Unit::Emulated)]) {
        let within = |what: &str, got: &[f32], want: &[f64]| {
            let error = error(got, want);
            assert!(error < 1e-5, "{what} of {conv:?} on {isa:?}: relative error {error:e}");
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
        within("weight gradient", &out, &dw);
        let mut out = vec![f32::NAN; conv.c_out];
        conv.bias_gradient(&dy, &mut out);
        within("bias gradient", &out, &db);
    }
}

#[test]
fn the_networks_kinds_of_layers() {
    // (c_in, c_out, kernel, stride, padding) of science.md sections 2 and 3, on small grids.
    for (seed, &(c_in, c_out, kernel, stride, padding)) in [
        (2, 16, 3, 1, 0),
        (16, 16, 3, 2, 1),
        (32, 64, 3, 1, 0),
        (48, 16, 3, 1, 0),
        (16, 3, 1, 1, 0),
        (3, 16, 3, 1, 0),
        (64, 1, 1, 1, 0),
    ]
    .iter()
    .enumerate()
    {
        check(
            Conv3d { batch: 1, c_in, c_out, input: [6, 9, 8], kernel, stride, padding },
            seed as u64 * 10 + 1,
        );
    }
}

#[test]
fn every_stride_padding_and_kernel() {
    for (i, [kernel, stride, padding]) in [
        [1, 1, 0],
        [1, 2, 0],
        [1, 1, 1],
        [1, 2, 1],
        [3, 1, 0],
        [3, 1, 1],
        [3, 2, 0],
        [3, 2, 1],
        [2, 1, 0],
        [2, 2, 1],
    ]
    .into_iter()
    .enumerate()
    {
        for (j, input) in [[3, 4, 5], [8, 7, 6], [5, 3, 19], [4, 12, 3]].into_iter().enumerate() {
            let conv = Conv3d { batch: 2, c_in: 3, c_out: 5, input, kernel, stride, padding };
            check(conv, 1000 + i as u64 * 100 + j as u64 * 10);
        }
    }
}

#[test]
fn random_shapes() {
    for seed in 0..24 {
        let pick = |i: u64, n: u64| ((random(1, seed * 31 + i + 7)[0] + 1.0) / 2.0 * n as f32) as usize;
        let kernel = [1, 3, 3][pick(0, 3)];
        let conv = Conv3d {
            batch: 1 + pick(1, 2),
            c_in: 1 + pick(2, 20),
            c_out: 1 + pick(3, 18),
            input: [3 + pick(4, 6), 3 + pick(5, 12), 3 + pick(6, 30)],
            kernel,
            stride: 1 + pick(7, 2),
            padding: pick(8, 2),
        };
        check(conv, 5000 + seed * 10);
    }
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
