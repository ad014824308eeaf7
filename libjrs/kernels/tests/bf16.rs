//! The convolution in bf16 and in sums of two bf16 against its definition in f64, on the emulated unit and on the processor's where it has one.

use jrs_kernels::activation::{Activation, Head};
use jrs_kernels::bf16::{
    Filter, Format, Job, Output, Part, Plane, Taps, Unit, View, coarse_taps, convolve, paired_tap,
    stack_images,
};
use jrs_kernels::pool::Pool;

fn units() -> Vec<Unit> {
    let hardware = Unit::hardware();
    if hardware.is_none() {
        eprintln!("SKIPPED: this processor has no AMX, only the emulated unit is tested");
    }
    std::iter::once(Unit::Emulated).chain(hardware).collect()
}

/// A format, and the steps of inputs and weights (see [`steps_of`]) that it holds exactly, as it does their products: that of two
/// low terms is left out, so only one of the two has any.
const FORMATS: [(Format, [usize; 2]); 3] =
    [(Format::One, [8, 8]), (Format::Two, [512, 8]), (Format::Two, [8, 512])];

/// Reproducible values k/8 with |k| <= 8: they, their products and sums are exact in f32, and so is the comparison.
fn random(len: usize, seed: u64) -> Vec<f32> {
    steps_of(8, len, seed)
}

/// The same with k/`steps`, |k| <= `steps`: 512 need more than the 8 bits of one bf16.
fn steps_of(steps: usize, len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 33) % (2 * steps as u64 + 1)) as f32 / steps as f32 - 1.0
        })
        .collect()
}

/// What an earlier user left must not matter: the next planes of that shape are made of values that are not numbers.
fn soil(pool: &Pool, count: usize, channels: usize, edges: [usize; 2], format: Format) {
    let idle: Vec<_> = (0..count).map(|_| pool.take(Plane::floats(channels, edges, format))).collect();
    idle.into_iter().for_each(|mut buffer| buffer.fill(f32::NAN));
}

/// A tensor `[c][z][y][x]`, zero outside.
struct Volume {
    channels: usize,
    size: [usize; 3],
    data: Vec<f32>,
}

impl Volume {
    fn random(channels: usize, size: [usize; 3], steps: usize, seed: u64) -> Self {
        Self { channels, size, data: steps_of(steps, channels * size.iter().product::<usize>(), seed) }
    }

    fn at(&self, c: usize, place: [isize; 3]) -> f64 {
        let inside = (0..3).all(|a| place[a] >= 0 && (place[a] as usize) < self.size[a]);
        let [z, y, x] = place.map(|p| p as usize);
        let [nz, ny, nx] = self.size;
        if inside { self.data[((c * nz + z) * ny + y) * nx + x] as f64 } else { 0.0 }
    }

    fn planes<'p>(&self, pool: &'p Pool, format: Format) -> Vec<Plane<'p>> {
        let [nz, ny, nx] = self.size;
        soil(pool, nz, self.channels, [ny, nx], format);
        (0..nz)
            .map(|z| {
                let mut plane = Plane::new(pool, self.channels, [ny, nx], format);
                let channel = |c: usize| &self.data[(c * nz + z) * ny * nx..][..ny * nx];
                plane.fill_from(&(0..self.channels).flat_map(channel).copied().collect::<Vec<_>>());
                plane
            })
            .collect()
    }
}

/// For a group of outputs each has its own copy.
fn activation(c_out: usize, group: usize) -> Activation {
    let (bias, scale, shift) = (random(c_out, 3), vec![0.5; c_out], random(c_out, 4));
    Activation {
        bias: bias.repeat(group),
        slope: 0.25,
        scale: scale.repeat(group),
        shift: shift.repeat(group),
    }
}

fn activate(a: &Activation, co: usize, sum: f64) -> f32 {
    let v = sum + a.bias[co] as f64;
    let exact = a.scale[co] as f64 * v.max(0.25 * v) + a.shift[co] as f64;
    assert_eq!(exact as f32 as f64, exact, "the reference must be exact");
    exact as f32
}

/// To bf16 and back, to the nearest, ties to even: by the definition, not by bit tricks.
fn rounded(value: f32) -> f32 {
    if value == 0.0 {
        return value;
    }
    let unit = 2f64.powi((value.abs() as f64).log2().floor() as i32 - 7);
    ((value as f64 / unit).round_ties_even() * unit) as f32
}

/// What a format keeps of a value.
fn kept(value: f32, format: Format) -> f32 {
    let high = rounded(value);
    match format {
        Format::One => high,
        Format::Two => high + rounded(value - high),
    }
}

fn compare(plane: &Plane<'_>, expected: impl Fn(usize, usize, usize) -> f32, what: &str) {
    let [height, width] = plane.edges();
    for (i, &got) in plane.to_f32().iter().enumerate() {
        let (c, y, x) = (i / (height * width), i / width % height, i % width);
        assert_eq!(got, kept(expected(c, y, x), plane.format()), "{what}: channel {c}, row {y}, column {x}");
    }
}

fn check(c_in: usize, c_out: usize, edges: [usize; 2], stride: usize) {
    FORMATS.iter().for_each(|&(format, steps)| check_in(format, steps, c_in, c_out, edges, stride));
}

fn check_in(format: Format, steps: [usize; 2], c_in: usize, c_out: usize, edges: [usize; 2], stride: usize) {
    let input = Volume::random(c_in, [3, edges[0], edges[1]], steps[0], 1);
    let weight = steps_of(steps[1], c_out * c_in * 27, 2);
    let at = |co: usize, ci: usize, [z, y, x]: [usize; 3]| weight[(co * c_in + ci) * 27 + z * 9 + y * 3 + x];
    // 16 channels are read in pairs, and what is made of them is written in pairs.
    let group = if c_in == 16 { 2 } else { 1 };
    let padding = stride - 1;
    let filter = if group == 2 {
        let taps = Taps { channels: 32, kernel: [3, 3, stride + 1], format };
        Filter::new(format, 2 * c_out, &[taps], |_, co, ci, [z, y, pair]| {
            // At stride 2 the first pair begins one voxel in front of the first tap.
            let tap = paired_tap(stride * (co / c_out) + padding, pair, ci / 16);
            tap.map_or(0.0, |x| at(co % c_out, ci % 16, [z, y, x]))
        })
    } else {
        let taps = Taps { channels: c_in, kernel: [3; 3], format };
        Filter::new(format, c_out, &[taps], |_, co, ci, tap| at(co, ci, tap))
    };
    let a = activation(c_out, group);
    let out_edges = edges.map(|n| (n + 2 * padding - 3) / stride + 1);
    let sum = |co: usize, y: usize, x: usize| -> f64 {
        let mut sum = 0.0;
        for ci in 0..c_in {
            for tap in 0..27 {
                let tap = [tap / 9, tap / 3 % 3, tap % 3];
                let from = |out: usize, k: usize| (out * stride + k) as isize - padding as isize;
                let place = [tap[0] as isize, from(y, tap[1]), from(x, tap[2])];
                sum += input.at(ci, place) * at(co, ci, tap) as f64;
            }
        }
        sum
    };
    let pool = Pool::new();
    let planes = input.planes(&pool, format);
    for unit in units() {
        soil(&pool, 1, c_out, out_edges, format);
        let mut out = Plane::new(&pool, c_out, out_edges, format);
        let view = View {
            planes: planes.iter().collect(),
            group,
            origin: [-(padding as isize); 2],
            step: [stride; 2],
        };
        let parts = vec![Part { filter: &filter, inputs: vec![view] }];
        let output = Output::Plane(&mut out);
        convolve(unit, &a, &mut [Job { parts, lattices: [1, 1], group, output }]);
        let what = format!("{c_in} to {c_out} channels, {edges:?}, stride {stride}, {format:?}, {unit:?}");
        compare(&out, |c, y, x| activate(&a, c, sum(c, y, x)), &what);
    }
}

#[test]
fn the_networks_layers() {
    // (c_in, c_out, stride) of science.md section 2.
    for (c_in, c_out, stride) in
        [(16, 16, 1), (16, 16, 2), (16, 32, 1), (32, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 1)]
    {
        check(c_in, c_out, [8, 24], stride);
    }
}

#[test]
fn every_edge_from_3_to_40() {
    for n in 3..=40 {
        check(32, 32, [n, 43 - n], 1);
        // Pairs come in even rows.
        check(16, 16, [n, (44 - n).next_multiple_of(2)], 1);
        check(16, 32, [4, n.next_multiple_of(4)], 2);
        // Padding stands before the first voxel only: behind an even edge stride 2 needs none.
        check(32, 32, [4, n.next_multiple_of(2)], 2);
    }
}

/// The next convolution reads results as they are, with the zeros around them.
#[test]
fn results_are_padded() {
    for (format, steps) in FORMATS {
        let input = Volume::random(32, [3, 10, 26], steps[0], 1);
        let weight = steps_of(steps[1], 32 * 32 * 27, 2);
        let taps = Taps { channels: 32, kernel: [3; 3], format };
        let filter = Filter::new(format, 32, &[taps], |_, co, ci, [z, y, x]| {
            weight[(co * 32 + ci) * 27 + z * 9 + y * 3 + x] / 64.0
        });
        let a = activation(32, 1);
        let pool = Pool::new();
        let planes = input.planes(&pool, format);
        for unit in units() {
            let run = |planes: Vec<&Plane<'_>>, stride: usize| {
                let edges = planes[0].edges().map(|n| if stride == 2 { n / 2 } else { n - 2 });
                soil(&pool, 1, 32, edges, format);
                let mut out = Plane::new(&pool, 32, edges, format);
                let view = View { planes, group: 1, origin: [1 - stride as isize; 2], step: [stride; 2] };
                let parts = vec![Part { filter: &filter, inputs: vec![view] }];
                let output = Output::Plane(&mut out);
                convolve(unit, &a, &mut [Job { parts, lattices: [1, 1], group: 1, output }]);
                out
            };
            let result = run(planes.iter().collect(), 1);
            let mut copy = Plane::new(&pool, 32, result.edges(), format);
            copy.fill_from(&result.to_f32());
            let [got, expected] = [&result, &copy].map(|plane| run(vec![plane; 3], 2).to_f32());
            // A value half way between two bf16 is a sum with either. The product of low terms, up to 2^-18 of the factors', is left out, so
            // that which one it is can be seen.
            let same = got.iter().zip(&expected).all(|(g, e)| (g - e).abs() < 1e-5);
            assert!(same, "{format:?} on {unit:?}");
        }
    }
}

/// Nearest upsampling, concatenation with a cropped skip and a 3x3x3 convolution, in one.
#[test]
fn upsampled_inputs_are_read_in_place() {
    FORMATS.iter().for_each(|&(format, steps)| upsampled_in(format, steps));
}

fn upsampled_in(format: Format, steps: [usize; 2]) {
    for (low_channels, skip_channels, c_out, crop, low_edges) in
        [(64, 32, 32, 4, [5, 6]), (32, 16, 16, 4, [3, 19]), (32, 32, 64, 0, [4, 3])]
    {
        let low = Volume::random(low_channels, [2, low_edges[0], low_edges[1]], steps[0], 1);
        let edges = low_edges.map(|n| 2 * n);
        let skip = Volume::random(skip_channels, [4, edges[0] + 2 * crop, edges[1] + 2 * crop], steps[0], 2);
        let c_in = low_channels + skip_channels;
        let weight: Vec<f32> = steps_of(steps[1], c_out * c_in * 27, 5).iter().map(|w| w / 2.0).collect();
        let at =
            |co: usize, ci: usize, [z, y, x]: [usize; 3]| weight[(co * c_in + ci) * 27 + z * 9 + y * 3 + x];
        let sum = |parity: usize, co: usize, y: usize, x: usize| -> f64 {
            let mut sum = 0.0;
            for ci in 0..c_in {
                for tap in 0..27 {
                    let tap = [tap / 9, tap / 3 % 3, tap % 3];
                    let [z, y, x] = [parity + tap[0], y + tap[1], x + tap[2]].map(|p| p as isize);
                    let value = if ci < low_channels {
                        low.at(ci, [z / 2, y / 2, x / 2])
                    } else {
                        skip.at(ci - low_channels, [z, y + crop as isize, x + crop as isize])
                    };
                    sum += value * at(co, ci, tap) as f64;
                }
            }
            sum
        };
        // A skip of 16 channels is read in pairs, and the outputs with it.
        let group = if skip_channels == 16 { 2 } else { 1 };
        let a = activation(c_out, group);
        let pool = Pool::new();
        let (low_planes, skip_planes) = (low.planes(&pool, format), skip.planes(&pool, format));
        for parity in 0..2 {
            let lattices = [2, 2 / group];
            let inputs = [
                Taps { channels: low_channels, kernel: [2; 3], format },
                Taps { channels: group * skip_channels, kernel: [3, 3, 4 - group], format },
            ];
            let filters: Vec<Filter> = (0..lattices[0] * lattices[1])
                .map(|i| {
                    Filter::new(format, group * c_out, &inputs, |input, co, ci, [z, y, x]| {
                        let (second, co) = (co / c_out, co % c_out);
                        if input == 1 {
                            let tap =
                                if group == 2 { paired_tap(second, x, ci / skip_channels) } else { Some(x) };
                            return tap.map_or(0.0, |x| at(co, low_channels + ci % skip_channels, [z, y, x]));
                        }
                        let odd_column = if group == 2 { second } else { i % 2 };
                        let mut sum = 0.0;
                        for kz in coarse_taps(parity, z) {
                            for ky in coarse_taps(i / lattices[1], y) {
                                sum += coarse_taps(odd_column, x)
                                    .map(|kx| at(co, ci, [kz, ky, kx]))
                                    .sum::<f32>();
                            }
                        }
                        sum
                    })
                })
                .collect();
            let parts: Vec<Part<'_>> = filters
                .iter()
                .enumerate()
                .map(|(i, filter)| {
                    let (odd_row, odd_column) = (i / lattices[1], i % lattices[1]);
                    let coarse =
                        View { planes: low_planes.iter().collect(), group: 1, origin: [0, 0], step: [1, 1] };
                    let fine = View {
                        planes: skip_planes[parity..][..3].iter().collect(),
                        group,
                        origin: [(crop + odd_row) as isize, (crop / group + odd_column) as isize],
                        step: [2, 2 / group],
                    };
                    Part { filter, inputs: vec![coarse, fine] }
                })
                .collect();
            for unit in units() {
                soil(&pool, 1, c_out, edges.map(|n| n - 2), format);
                let mut out = Plane::new(&pool, c_out, edges.map(|n| n - 2), format);
                let output = Output::Plane(&mut out);
                convolve(unit, &a, &mut [Job { parts: parts.clone(), lattices, group, output }]);
                let what = format!("{low_channels} + {skip_channels} to {c_out}, {format:?} on {unit:?}");
                compare(&out, |c, y, x| activate(&a, c, sum(parity, c, y, x)), &what);
            }
        }
    }
}

#[test]
fn the_head_sees_unrounded_values() {
    // Five rows: the last register block has one.
    let input = Volume::random(16, [3, 7, 22], 8, 1);
    let weight = random(16 * 16 * 27, 2);
    let at = |co: usize, ci: usize, [z, y, x]: [usize; 3]| weight[(co * 16 + ci) * 27 + z * 9 + y * 3 + x];
    let taps = Taps { channels: 32, kernel: [3, 3, 2], format: Format::One };
    let filter = Filter::new(Format::One, 32, &[taps], |_, co, ci, [z, y, pair]| {
        paired_tap(co / 16, pair, ci / 16).map_or(0.0, |x| at(co % 16, ci % 16, [z, y, x]))
    });
    let a = activation(16, 2);
    let values = random(48, 9);
    let head = Head {
        weight: std::array::from_fn(|c| std::array::from_fn(|k| values[16 * c + k])),
        bias: [0.5, -0.25, 1.0],
    };
    let pool = Pool::new();
    let planes = input.planes(&pool, Format::One);
    for unit in units() {
        let mut u = [(); 3].map(|_| vec![f32::NAN; 5 * 20]);
        let [x, y, z] = &mut u;
        let view = View { planes: planes.iter().collect(), group: 2, origin: [0; 2], step: [1; 2] };
        let parts = vec![Part { filter: &filter, inputs: vec![view] }];
        let output = Output::Displacement { head: &head, edges: [5, 20], u: [x, y, z] };
        convolve(unit, &a, &mut [Job { parts, lattices: [1, 1], group: 2, output }]);
        for (i, y, x) in (0..5 * 20).map(|i| (i, i / 20, i % 20)) {
            let active: Vec<f64> = (0..16)
                .map(|co| {
                    let taps = (0..16 * 27).map(|j| (j / 27, [j / 9 % 3, j / 3 % 3, j % 3]));
                    let products = taps.map(|(ci, tap)| {
                        let place = [tap[0], y + tap[1], x + tap[2]].map(|p| p as isize);
                        input.at(ci, place) * at(co, ci, tap) as f64
                    });
                    activate(&a, co, products.sum()) as f64
                })
                .collect();
            for c in 0..3 {
                let dot: f64 = (0..16).map(|k| head.weight[c][k] as f64 * active[k]).sum();
                let expected = head.bias[c] as f64 + dot;
                let error = (u[c][i] as f64 - expected).abs();
                assert!(error < 1e-5 * expected.abs().max(1.0), "{unit:?}: {} and {expected}", u[c][i]);
            }
        }
    }
}

#[test]
fn stacked_images_keep_sixteen_bits() {
    let edges = [5, 7];
    let images = [0.1f32, -0.7].map(|s| (0..35).map(|i| (i as f32 * 0.37 + s).sin()).collect::<Vec<_>>());
    let pool = Pool::new();
    let mut plane = Plane::zero(&pool, 16, [3, 7], Format::One);
    stack_images([&images[0], &images[1]], edges, &mut plane);
    let got = plane.to_f32();
    let at = |channel: usize, y: usize, x: usize| got[(channel * 3 + y) * 7 + x];
    for (y, x) in (0..21).map(|i| (i / 7, i % 7)) {
        for (row, image) in (0..6).map(|i| (i / 2, i % 2)) {
            let channel = 4 * row + 2 * image;
            let value = images[image][(y + row) * 7 + x];
            let error = (at(channel, y, x) + at(channel + 1, y, x) - value).abs();
            assert!(error <= value.abs() / 65536.0, "{error} of {value}");
        }
        (12..16).for_each(|channel| assert_eq!(at(channel, y, x), 0.0));
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let input = Volume::random(32, [3, 40, 35], 512, 1);
    let weight = random(32 * 32 * 27, 2);
    let format = Format::Two;
    let taps = Taps { channels: 32, kernel: [3; 3], format };
    let filter = Filter::new(format, 32, &[taps], |_, co, ci, [z, y, x]| {
        weight[(co * 32 + ci) * 27 + z * 9 + y * 3 + x] * 0.37
    });
    let a = activation(32, 1);
    for unit in units() {
        let run = |threads: usize| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let pool = Pool::new();
                let planes = input.planes(&pool, format);
                let mut out = Plane::new(&pool, 32, [38, 33], format);
                let view = View { planes: planes.iter().collect(), group: 1, origin: [0; 2], step: [1; 2] };
                let parts = vec![Part { filter: &filter, inputs: vec![view] }];
                let output = Output::Plane(&mut out);
                convolve(unit, &a, &mut [Job { parts, lattices: [1, 1], group: 1, output }]);
                out.to_f32()
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5), "{unit:?}");
    }
}
