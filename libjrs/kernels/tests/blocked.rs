//! The convolution of planes in blocks of channels against its definition in f64, on every instruction set at hand.

mod reference;

use jrs_kernels::activation::{Activation, Head};
use jrs_kernels::blocked::{Convolution, Output, Plane, Source, View};
use jrs_kernels::pool::{Pool, SCRATCH};
use jrs_kernels::{Conv3d, Isa};
use reference::{close, random};

/// What an earlier user left must not matter: the next planes of that shape are made of values that are not numbers.
fn soil(pool: &Pool, count: usize, channels: usize, edges: [usize; 2]) {
    let idle: Vec<_> = (0..count).map(|_| pool.take(Plane::floats(channels, edges))).collect();
    idle.into_iter().for_each(|mut buffer| buffer.fill(f32::NAN));
}

/// A tensor `[channel][z][y][x]` as planes.
fn planes<'p>(
    pool: &'p Pool,
    x: &[f32],
    channels: usize,
    [depth, height, width]: [usize; 3],
) -> Vec<Plane<'p>> {
    let area = height * width;
    soil(pool, depth, channels, [height, width]);
    let plane = |z: usize| {
        let mut plane = Plane::new(pool, channels, [height, width]);
        let values: Vec<f32> =
            x.chunks_exact(depth * area).flat_map(|c| c[z * area..][..area].to_vec()).collect();
        plane.fill_from(&values, 0);
        assert_eq!(plane.to_vec(), values);
        plane
    };
    (0..depth).map(plane).collect()
}

/// What a convolution of one source reads: padding along z is a plane of zeros in front.
fn inputs<'p>(pool: &'p Pool, reference: &reference::Convolution) -> Vec<Plane<'p>> {
    let Conv3d { c_in, input, padding, .. } = reference.conv;
    let zeros = (0..padding).map(|_| Plane::zero(pool, c_in, [input[1], input[2]]));
    zeros.chain(planes(pool, &reference.x, c_in, input)).collect()
}

/// A 3x3x3 convolution as the network has it: padded where it is strided.
fn shape(c_in: usize, c_out: usize, input: [usize; 3], stride: usize) -> Conv3d {
    Conv3d { batch: 1, c_in, c_out, input, kernel: 3, stride, padding: stride - 1 }
}

/// Planes as a tensor.
fn tensor(planes: &[Plane<'_>], channels: usize) -> Vec<f32> {
    let values: Vec<Vec<f32>> = planes.iter().map(Plane::to_vec).collect();
    let area = values[0].len() / channels;
    (0..channels).flat_map(|c| values.iter().flat_map(move |v| v[c * area..][..area].to_vec())).collect()
}

fn activation(reference: &reference::Convolution) -> Activation {
    let reference::Convolution { bias, scale, shift, .. } = reference;
    Activation { bias: bias.clone(), slope: 0.2, scale: scale.clone(), shift: shift.clone() }
}

fn prepare(reference: &reference::Convolution, sources: &[Source]) -> Convolution {
    let (conv, weight) = (&reference.conv, &reference.weight);
    let read = |co: usize, ci: usize, [kz, ky, kx]: [usize; 3]| {
        weight[(((co * conv.c_in + ci) * 3 + kz) * 3 + ky) * 3 + kx]
    };
    Convolution::new(sources, conv.stride, activation(reference), read)
}

/// All output planes from the inputs of each source, with the crop of the fine ones.
fn compute(
    isa: Isa,
    conv: &Convolution,
    inputs: &[(Vec<&Plane<'_>>, usize)],
    [depth, height, width]: [usize; 3],
) -> Vec<f32> {
    let pool = Pool::new();
    tensor(&compute_in(&pool, isa, conv, inputs, [depth, height, width]), conv.c_out())
}

/// [`compute`] as planes of a pool.
fn compute_in<'p>(
    pool: &'p Pool,
    isa: Isa,
    conv: &Convolution,
    inputs: &[(Vec<&Plane<'_>>, usize)],
    [depth, height, width]: [usize; 3],
) -> Vec<Plane<'p>> {
    soil(pool, depth, conv.c_out(), [height, width]);
    SCRATCH.take(conv.scratch_len()).fill(f32::NAN);
    let mut results: Vec<Plane<'_>> =
        (0..depth).map(|_| Plane::new(pool, conv.c_out(), [height, width])).collect();
    let views: Vec<View<'_>> =
        inputs.iter().map(|(planes, crop)| View { planes: planes.clone(), crop: *crop }).collect();
    conv.run(isa, &views, Output::Planes(results.iter_mut().collect()), conv.scratch_len());
    results
}

/// Vectors: the matrix unit does not come into it.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::available().into_iter().filter(|isa| !matches!(isa, Isa::Matrix(_)))
}

fn check(c_in: usize, c_out: usize, input: [usize; 3], stride: usize, seed: u64) {
    let conv = shape(c_in, c_out, input, stride);
    let reference = reference::Convolution::new(conv, seed);
    let prepared = prepare(&reference, &[Source::Fine(c_in)]);
    let pool = Pool::new();
    let read = inputs(&pool, &reference);
    for isa in isas() {
        let got = compute(isa, &prepared, &[(read.iter().collect(), 0)], conv.output());
        close(&format!("{conv:?} on {isa:?}"), &got, &reference.normed, 1e-5);
    }
}

#[test]
fn the_networks_kinds_of_layers() {
    for (i, (c_in, c_out, stride)) in
        [(2, 16, 1), (3, 16, 1), (16, 16, 1), (16, 32, 1), (32, 32, 1), (64, 48, 1), (16, 16, 2), (32, 32, 2)]
            .into_iter()
            .enumerate()
    {
        // At stride 2 edges are even.
        check(c_in, c_out, [6, 10, 12], stride, 100 * i as u64);
        if stride == 1 {
            check(c_in, c_out, [4, 9, 31], stride, 100 * i as u64 + 50);
        }
    }
}

#[test]
fn every_edge_from_1_to_40() {
    for n in 1..=40 {
        check(16, 16, [3, n + 2, 43 - n], 1, 7000 + n as u64);
        check(1, 16, [3, n + 2, 43 - n], 1, 7000 + n as u64);
        if n % 2 == 0 {
            check(16, 16, [2, n, 42 - n], 2, 7000 + n as u64);
        }
    }
}

/// The next convolution reads results as they are, with the zeros around them.
#[test]
fn results_are_padded() {
    for stride in [1, 2] {
        let first = reference::Convolution::new(shape(32, 32, [8, 12, 20], stride), 1);
        let [depth, height, width] = first.conv.output();
        let second = reference::Convolution::new(shape(32, 32, [depth, height, width], 2), 2);
        let (first_layer, second_layer) =
            (prepare(&first, &[Source::Fine(32)]), prepare(&second, &[Source::Fine(32)]));
        let pool = Pool::new();
        let read = inputs(&pool, &first);
        for isa in isas() {
            let results =
                compute_in(&pool, isa, &first_layer, &[(read.iter().collect(), 0)], first.conv.output());
            let copies = planes(&pool, &tensor(&results, 32), 32, [depth, height, width]);
            let front = Plane::zero(&pool, 32, [height, width]);
            let [got, expected] = [results, copies].map(|planes| {
                let window = std::iter::once(&front).chain(&planes).collect();
                compute(isa, &second_layer, &[(window, 0)], second.conv.output())
            });
            assert!(got == expected, "stride {stride} on {isa:?}");
        }
    }
}

/// Nearest upsampling beside a cropped skip, as a tensor.
fn joined(coarse: &[f32], skip: &[f32], channels: [usize; 2], low: [usize; 3], crop: usize) -> Vec<f32> {
    let fine = low.map(|n| 2 * n);
    let of_skip = [fine[0], fine[1] + 2 * crop, fine[2] + 2 * crop];
    let mut x = Vec::new();
    for c in 0..channels[0] + channels[1] {
        for i in 0..fine.iter().product() {
            let (z, y, x_) = (i / (fine[1] * fine[2]), i / fine[2] % fine[1], i % fine[2]);
            x.push(match c.checked_sub(channels[0]) {
                None => coarse[((c * low[0] + z / 2) * low[1] + y / 2) * low[2] + x_ / 2],
                Some(c) => skip[((c * of_skip[0] + z) * of_skip[1] + y + crop) * of_skip[2] + x_ + crop],
            });
        }
    }
    x
}

#[test]
fn behind_upsampling_and_a_skip() {
    for (i, (channels, c_out, low, crop)) in
        [([16, 16], 16, [3, 4, 5], 1), ([32, 16], 16, [2, 2, 9], 3), ([64, 32], 32, [2, 5, 2], 0)]
            .into_iter()
            .enumerate()
    {
        let fine = low.map(|n| 2 * n);
        let of_skip = [fine[0], fine[1] + 2 * crop, fine[2] + 2 * crop];
        let coarse = random(channels[0] * low.iter().product::<usize>(), 10 * i as u64 + 1);
        let skip = random(channels[1] * of_skip.iter().product::<usize>(), 10 * i as u64 + 2);
        let c_in = channels[0] + channels[1];
        let conv = shape(c_in, c_out, fine, 1);
        let x = joined(&coarse, &skip, channels, low, crop);
        let reference =
            reference::Convolution::of(conv, x, random(conv.weight_len(), i as u64 + 3), 10 * i as u64 + 4);
        let prepared = prepare(&reference, &[Source::Coarse(channels[0]), Source::Fine(channels[1])]);
        let pool = Pool::new();
        let (coarse, skip) =
            (planes(&pool, &coarse, channels[0], low), planes(&pool, &skip, channels[1], of_skip));
        for isa in isas() {
            let inputs = [(coarse.iter().collect(), 0), (skip.iter().collect(), crop)];
            let got = compute(isa, &prepared, &inputs, conv.output());
            close(&format!("{conv:?} on {isa:?}"), &got, &reference.normed, 1e-5);
        }
    }
}

#[test]
fn the_head_follows() {
    let conv = shape(16, 16, [5, 11, 14], 1);
    let reference = reference::Convolution::new(conv, 5);
    let weight = random(48, 6);
    let head = Head {
        weight: std::array::from_fn(|c| std::array::from_fn(|k| weight[16 * c + k])),
        bias: [0.5, -0.25, 1.0],
    };
    let [depth, height, width] = conv.output();
    let voxels = depth * height * width;
    let prepared = prepare(&reference, &[Source::Fine(16)]);
    let pool = Pool::new();
    let read = inputs(&pool, &reference);
    for isa in isas() {
        let mut u: [Vec<f32>; 3] = std::array::from_fn(|_| vec![f32::NAN; voxels]);
        let view = View { planes: read.iter().collect(), crop: 0 };
        let components = u.each_mut().map(|u| &mut u[..]);
        let output = Output::Displacement { head: &head, edges: [height, width], u: components };
        prepared.run(isa, &[view], output, prepared.scratch_len());
        for c in 0..3 {
            let dot = |i: usize| -> f64 {
                let terms = (0..16).map(|k| f64::from(head.weight[c][k]) * reference.normed[k * voxels + i]);
                f64::from(head.bias[c]) + terms.sum::<f64>()
            };
            let expected: Vec<f64> = (0..voxels).map(dot).collect();
            close(&format!("component {c} on {isa:?}"), &u[c], &expected, 1e-5);
        }
    }
}

#[test]
fn planes_that_pass_by_are_those_of_the_whole() {
    for stride in [1, 2] {
        let reference = reference::Convolution::new(shape(16, 16, [12, 14, 18], stride), 9);
        let prepared = prepare(&reference, &[Source::Fine(16)]);
        let pool = Pool::new();
        let read = inputs(&pool, &reference);
        let read: Vec<&Plane<'_>> = read.iter().collect();
        let isa = isas().last().unwrap();
        let [depth, height, width] = reference.conv.output();
        let whole = compute(isa, &prepared, &[(read.clone(), 0)], [depth, height, width]);
        let area = height * width;
        for part in [0..1, 1..3, 3..depth] {
            let planes = read[stride * part.start..stride * (part.end - 1) + 3].to_vec();
            let got = compute(isa, &prepared, &[(planes, 0)], [part.len(), height, width]);
            let expected: Vec<f32> = whole
                .chunks_exact(depth * area)
                .flat_map(|channel| channel[part.start * area..part.end * area].to_vec())
                .collect();
            assert_eq!(got, expected, "planes {part:?} at stride {stride}");
        }
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    for stride in [1, 2] {
        let reference = reference::Convolution::new(shape(32, 32, [8, 30, 34], stride), 9);
        let prepared = prepare(&reference, &[Source::Fine(32)]);
        let pool = Pool::new();
        let read = inputs(&pool, &reference);
        let run = |threads: usize| {
            let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let inputs = [(read.iter().collect(), 0)];
            threads.install(|| compute(Isa::best(), &prepared, &inputs, reference.conv.output()))
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "stride {stride}");
    }
}

#[test]
#[should_panic(expected = "3 channels at stride 2")]
fn few_channels_at_stride_2_are_refused() {
    let reference = reference::Convolution::new(shape(3, 16, [4, 4, 4], 2), 1);
    prepare(&reference, &[Source::Fine(3)]);
}

#[test]
#[should_panic(expected = "voxels where")]
fn too_small_an_input_is_refused() {
    let reference = reference::Convolution::new(shape(16, 16, [3, 9, 9], 1), 1);
    let pool = Pool::new();
    let read = inputs(&pool, &reference);
    compute(
        Isa::Portable,
        &prepare(&reference, &[Source::Fine(16)]),
        &[(read.iter().collect(), 0)],
        [1, 7, 8],
    );
}
