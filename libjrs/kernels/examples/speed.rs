//! Time of every generator layer (science.md section 2) for one 96^3 patch: `speed [repeats=5] [layer]`.
//!
//! Prints the best of the repeats in milliseconds and GFLOP/s, for inference in planes, the forward pass, the input gradient and the
//! weight gradient.

use std::time::Instant;

use jrs_kernels::activation::Activation;
use jrs_kernels::blocked::{Convolution, Output, Plane, Source, View};
use jrs_kernels::pool::Pool;
use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;
use jrs_kernels::{Conv3d, Isa, leaky_norm};

/// (name, c_in, c_out, input edge for a 96^3 patch, kernel, stride).
const LAYERS: [(&str, usize, usize, usize, usize, usize); 13] = [
    ("x0", 2, 16, 96, 3, 1),
    ("x1", 16, 16, 94, 3, 1),
    ("x2", 16, 16, 92, 3, 2),
    ("x3", 16, 32, 46, 3, 1),
    ("x4", 32, 32, 44, 3, 1),
    ("x5", 32, 32, 42, 3, 2),
    ("x6", 32, 64, 21, 3, 1),
    ("x7", 64, 64, 19, 3, 1),
    ("x10", 96, 32, 34, 3, 1),
    ("x11", 32, 32, 32, 3, 1),
    ("x14", 48, 16, 60, 3, 1),
    ("x15", 16, 16, 58, 3, 1),
    ("u", 16, 3, 56, 1, 1),
];

/// Seconds: of this thread's own processor time where it does all the work (a busy machine then matters less),
/// otherwise of the clock on the wall.
fn now(start: Instant) -> f64 {
    let own = || -> Option<f64> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
    };
    let alone = rayon::current_num_threads() == 1;
    own().filter(|_| alone).unwrap_or_else(|| start.elapsed().as_secs_f64())
}

fn best(repeats: usize, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..repeats)
        .map(|_| {
            let before = now(start);
            run();
            now(start) - before
        })
        .fold(f64::INFINITY, f64::min)
}

/// Seconds of a block in inference, all its planes at once; `u` is part of the block before it there.
fn inference(repeats: usize, conv: &Conv3d) -> Option<f64> {
    let sources = match (conv.c_in, conv.kernel) {
        (_, 1) => return None,
        (96, _) => vec![Source::Coarse(64), Source::Fine(32)],
        (48, _) => vec![Source::Coarse(32), Source::Fine(16)],
        (channels, _) => vec![Source::Fine(channels)],
    };
    let each = vec![0.1; conv.c_out];
    let activation = Activation { bias: each.clone(), slope: 0.2, scale: each.clone(), shift: each };
    let prepared = Convolution::new(&sources, conv.stride, activation, |_, _, _| 0.1);
    let (pool, [depth, height, width]) = (Pool::new(), conv.output());
    let inputs = sources.iter().map(|source| -> Vec<Plane<'_>> {
        let (channels, up) = match *source {
            Source::Fine(channels) => (channels, 1),
            Source::Coarse(channels) => (channels, 2),
        };
        let edges = [conv.input[1] / up, conv.input[2] / up];
        (0..conv.input[0] / up + conv.padding).map(|_| Plane::zero(&pool, channels, edges)).collect()
    });
    let inputs: Vec<Vec<Plane<'_>>> = inputs.collect();
    let mut results: Vec<Plane<'_>> =
        (0..depth).map(|_| Plane::new(&pool, conv.c_out, [height, width])).collect();
    Some(best(repeats, || {
        let views: Vec<View<'_>> =
            inputs.iter().map(|planes| View { planes: planes.iter().collect(), crop: 0 }).collect();
        prepared.run(
            Isa::best(),
            &views,
            Output::Planes(results.iter_mut().collect()),
            prepared.scratch_len(),
        );
    }))
}

/// GFLOP/s of all threads doing nothing but multiply-adds on registers, in the widest vectors.
#[cfg(target_arch = "x86_64")]
fn peak(repeats: usize) -> Option<f64> {
    use std::arch::x86_64::*;

    const ROUNDS: usize = 2_000_000;
    const SUMS: usize = 12;
    #[target_feature(enable = "avx2,fma")]
    fn spin() -> f32 {
        let factor = _mm256_set1_ps(0.999);
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, factor);
            }
        }
        sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum()
    }
    #[target_feature(enable = "avx512f")]
    fn spin_wide() -> f32 {
        let factor = _mm512_set1_ps(0.999);
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, factor);
            }
        }
        sums.iter().map(|&sum| _mm512_cvtss_f32(sum)).sum()
    }
    let lanes = match Isa::best() {
        Isa::Portable => return None,
        Isa::Avx2 => 8,
        _ => 16,
    };
    let seconds = best(repeats, || {
        rayon::broadcast(|_| {
            // SAFETY: of what is available these are the best.
            std::hint::black_box(unsafe { if lanes == 16 { spin_wide() } else { spin() } });
        });
    });
    Some((ROUNDS * SUMS * 2 * lanes * rayon::current_num_threads()) as f64 / seconds / 1e9)
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: usize) -> Option<f64> {
    None
}

fn main() {
    let repeats = std::env::args().nth(1).map_or(5, |text| text.parse().expect("a number of repeats"));
    if std::env::var("RAYON_NUM_THREADS").is_ok_and(|n| n == "1") {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread()
            .build_global()
            .expect("no pool yet");
    }
    println!("{:?}, {} threads", Isa::best(), rayon::current_num_threads());
    if let Some(peak) = peak(repeats) {
        println!("multiply-adds on registers: {peak:.0} GFLOP/s");
    }
    println!(
        "layer      GFLOP | inference ms  GFLOP/s |   forward ms  GFLOP/s | input grad ms  GFLOP/s | weight grad ms  GFLOP/s"
    );
    let mut total = [0.0; 5];
    let only = std::env::args().nth(2);
    let wanted =
        |layer: &&(&str, usize, usize, usize, usize, usize)| only.as_ref().is_none_or(|name| name == layer.0);
    for &(name, c_in, c_out, edge, kernel, stride) in LAYERS.iter().filter(wanted) {
        let conv = Conv3d { batch: 1, c_in, c_out, input: [edge; 3], kernel, stride, padding: stride - 1 };
        let value = |i: usize| (i * 2_654_435_761 % 1000) as f32 / 1000.0 - 0.5;
        let x: Vec<f32> = (0..conv.input_len()).map(value).collect();
        let weight: Vec<f32> = (0..conv.weight_len()).map(value).collect();
        let mut y: Vec<f32> = (0..conv.output_len()).map(value).collect();
        let bias = vec![0.0; c_out];
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);

        let forward = best(repeats, || conv.forward(&x, &weight, &bias, &mut y));
        let input = best(repeats, || conv.input_gradient(&y, &weight, &mut dx));
        let weights = best(repeats, || conv.weight_gradient(&x, &y, &mut dw));

        let planes = inference(repeats, &conv).unwrap_or(0.0);

        let giga = conv.flops() / 1e9;
        print!("{name:8} {giga:7.2} |");
        for (seconds, end) in [(planes, "|"), (forward, "|"), (input, "|"), (weights, "\n")] {
            print!(" {:9.2} {:8.1} {end}", seconds * 1e3, giga / seconds);
        }
        // The generator's input needs no gradient.
        let needed = if name == "x0" { 0.0 } else { input };
        for (sum, value) in total.iter_mut().zip([giga, planes, forward, needed, weights]) {
            *sum += value;
        }
    }
    if only.is_some() {
        return;
    }
    let [giga, planes, forward, input, weights] = total;
    let rest = memory_bound(repeats);
    let training = forward + input + weights + rest;
    println!("all convolutions: {giga:.1} GFLOP");
    println!("inference, one patch: {:.0} ms", planes * 1e3);
    println!("training step, one patch (no loss, no optimiser): {:.0} ms", training * 1e3);
}

/// Seconds of everything in a training step of the generator that is not a convolution.
fn memory_bound(repeats: usize) -> f64 {
    let values =
        |len: usize| (0..len).map(|i| (i * 2_654_435_761 % 1000) as f32 / 500.0 - 1.0).collect::<Vec<f32>>();

    let [mut stats, mut norm, mut backward] = [0.0; 3];
    for (_, c_in, channels, edge, kernel, stride) in LAYERS.into_iter().filter(|layer| layer.4 == 3) {
        let conv =
            Conv3d { batch: 1, c_in, c_out: channels, input: [edge; 3], kernel, stride, padding: stride - 1 };
        let spatial: usize = conv.output().iter().product();
        let (x, dy, gamma) = (values(conv.output_len()), values(conv.output_len()), vec![1.0; channels]);
        let (mut out, mut dgamma, mut dbeta) = (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
        let (mean, var) = leaky_norm::batch_stats(&x, 1, channels, spatial, 0.2);
        stats += best(repeats, || {
            std::hint::black_box(leaky_norm::batch_stats(&x, 1, channels, spatial, 0.2));
        });
        norm += best(repeats, || {
            leaky_norm::forward(&x, &mean, &var, &gamma, &gamma, 1e-3, 0.2, spatial, &mut out)
        });
        backward += best(repeats, || {
            let (dx, dgamma, dbeta) = (&mut out, &mut dgamma, &mut dbeta);
            leaky_norm::backward(&x, &dy, &mean, &var, &gamma, 1e-3, 0.2, spatial, dx, dgamma, dbeta);
        });
    }

    let [mut concat, mut split] = [0.0; 2];
    for (c_up, c_skip, low, crop) in [(64, 32, 17, 4), (32, 16, 30, 16)] {
        let op = UpsampleConcat { batch: 1, c_up, c_skip, low: [low; 3], crop };
        let (mut a, mut skip, mut y) = (values(op.low_len()), values(op.skip_len()), values(op.output_len()));
        concat += best(repeats, || op.forward(&a, &skip, &mut y));
        split += best(repeats, || op.backward(&y, &mut a, &mut skip));
    }

    // The image and five organs.
    let warp = Warp { batch: 1, channels: 6, source: [96; 3], output: [56; 3], offset: 20 };
    let (source, u) = (values(warp.source_len()), values(warp.displacement_len()));
    let (mut y, mut du) = (values(warp.output_len()), values(warp.displacement_len()));
    let warped = best(repeats, || warp.forward(&source, &u, &mut y));
    let unwarped = best(repeats, || warp.backward(&source, &u, &y, &mut du));

    println!(
        "leaky + batch norm, all layers: stats {:.1}, forward {:.1}, backward {:.1} ms",
        stats * 1e3,
        norm * 1e3,
        backward * 1e3
    );
    println!("upsample + concat: forward {:.1}, backward {:.1} ms", concat * 1e3, split * 1e3);
    println!("warp of 6 channels: forward {:.1}, backward {:.1} ms", warped * 1e3, unwarped * 1e3);
    stats + norm + backward + concat + split + warped + unwarped
}
