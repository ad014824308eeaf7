//! Time of every generator layer (science.md section 2) for one patch: `speed [edge=96] [repeats=5]`.
//!
//! Prints the best of the repeats in milliseconds and GFLOP/s, for the forward pass (with the inference epilogue),
//! the input gradient and the weight gradient.

use std::time::Instant;

use jrs_kernels::{Conv3d, Epilogue, Isa};

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

fn best(repeats: usize, mut run: impl FnMut()) -> f64 {
    (0..repeats)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let repeats = std::env::args().nth(1).map_or(5, |text| text.parse().expect("a number of repeats"));
    println!("{:?}, {} threads", Isa::best(), rayon::current_num_threads());
    println!("layer      GFLOP |   forward ms  GFLOP/s | input grad ms  GFLOP/s | weight grad ms  GFLOP/s");
    let mut total = [0.0; 4];
    for (name, c_in, c_out, edge, kernel, stride) in LAYERS {
        let conv = Conv3d { batch: 1, c_in, c_out, input: [edge; 3], kernel, stride, padding: stride - 1 };
        let value = |i: usize| (i * 2_654_435_761 % 1000) as f32 / 1000.0 - 0.5;
        let x: Vec<f32> = (0..conv.input_len()).map(value).collect();
        let weight: Vec<f32> = (0..conv.weight_len()).map(value).collect();
        let mut y: Vec<f32> = (0..conv.output_len()).map(value).collect();
        let (scale, shift) = (vec![1.0; c_out], vec![0.0; c_out]);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);

        let epilogue = Epilogue::LeakyNorm { slope: 0.2, scale: &scale, shift: &shift };
        let forward = best(repeats, || conv.forward(&x, &weight, &shift, epilogue, &mut y));
        let input = best(repeats, || conv.input_gradient(&y, &weight, &mut dx));
        let weights = best(repeats, || conv.weight_gradient(&x, &y, &mut dw));

        let giga = conv.flops() / 1e9;
        print!("{name:8} {giga:7.2} |");
        for (seconds, end) in [(forward, "|"), (input, "|"), (weights, "\n")] {
            print!(" {:9.2} {:8.1} {end}", seconds * 1e3, giga / seconds);
        }
        // The generator's input needs no gradient.
        let needed = if name == "x0" { 0.0 } else { input };
        for (sum, value) in total.iter_mut().zip([giga, forward, needed, weights]) {
            *sum += value;
        }
    }
    let [giga, forward, input, weights] = total;
    println!(
        "all convolutions: {giga:.1} GFLOP; forward {:.1} ms; gradients {:.1} ms",
        forward * 1e3,
        (input + weights) * 1e3
    );
    println!("training step, convolutions only: {:.1} ms", (forward + input + weights) * 1e3);
}
