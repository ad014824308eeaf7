//! 3-D convolution (cross-correlation, as PyTorch) and its gradients.
//!
//! ```text
//!  input plane                 packed window: rows one after        register tile
//!  (zero padded)               another, wp = w_out + kw - 1
//!  +-----------------+                                               positions p ...
//!  | . . . . . . . . |         ci 0: |row|row|row|...            +------+------+------+
//!  | . [ chunk of ]. |  pack         |row|row|row|  next z  co 0 | acc  | acc  | acc  |
//!  | . [ rows     ]. | ----->  ci 1: |row|row|row|...          1 | acc  | acc  | acc  |
//!  | . . . . . . . . |               ...                       2 | acc  | acc  | acc  |
//!  +-----------------+                                         3 | acc  | acc  | acc  |
//!                                                                +------+------+------+
//! ```
//!
//! A task computes a few rows of a few z-planes, for all output channels. It copies the input it needs,
//! `window::CHANNEL_BLOCK` channels at a time, into a packed window that stays in the L2 cache. With the rows of a plane one
//! after another, output `p = y*wp + x` needs, for tap (ci, kz, ky, kx), the value at `p + offset(tap)`:
//! a **constant** offset. So the inner loop walks a table of offsets, loads three vectors there and
//! multiplies them into the accumulators of four output channels; no index arithmetic, no row ends. The
//! `kw - 1` positions between rows compute garbage that the store leaves out.
//!
//! Stride 2 packs the window as four phase planes (even/odd y and x); the same loop runs with another table.
//! The input gradient is the same loop on `dy` with mirrored, transposed weights; at stride 2 it is one small
//! convolution for each of the eight parities of the output. The weight gradient (`weight_gradient`) walks
//! the same packed windows, four output channels by three taps at a time.
//!
//! 3x3x3 kernels at stride 1, where the network spends its time, go through `winograd` instead: fewer products, the same
//! register tile. Where the processor has a matrix unit, gradients and untracked passes with
//! enough channels go through `matrix`.

mod correlate;
mod matrix;
mod weight_gradient;
mod window;
mod winograd;

use rayon::prelude::*;

use crate::Isa;
use correlate::{Correlation, Placement};

/// Shape of a convolution. Tensors are `[batch, channel, z, y, x]`, weights `[c_out, c_in, kz, ky, kx]`.
///
/// ```
/// use jrs_kernels::Conv3d;
/// let conv = Conv3d { batch: 1, c_in: 1, c_out: 1, input: [3, 3, 3], kernel: 3, stride: 1, padding: 0 };
/// let mut y = [0.0];
/// conv.forward(&[1.0; 27], &[0.5; 27], &[2.0], &mut y);
/// assert_eq!(y, [15.5]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3d {
    /// Volumes in the batch.
    pub batch: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Input size: depth z, height y, width x.
    pub input: [usize; 3],
    /// Kernel edge.
    pub kernel: usize,
    /// Step between outputs: 1 or 2.
    pub stride: usize,
    /// Zeros around the input, per side.
    pub padding: usize,
}

impl Conv3d {
    /// Output size: depth z, height y, width x.
    ///
    /// # Panics
    /// If the kernel does not fit the padded input, or the stride is neither 1 nor 2.
    pub fn output(&self) -> [usize; 3] {
        assert!(matches!(self.stride, 1 | 2), "stride {} is neither 1 nor 2", self.stride);
        self.input.map(|n| {
            assert!(n + 2 * self.padding >= self.kernel, "kernel {} on input {n}", self.kernel);
            (n + 2 * self.padding - self.kernel) / self.stride + 1
        })
    }

    /// Values of the input tensor.
    pub fn input_len(&self) -> usize {
        self.batch * self.c_in * self.input.iter().product::<usize>()
    }

    /// Values of the output tensor.
    pub fn output_len(&self) -> usize {
        self.batch * self.c_out * self.output().iter().product::<usize>()
    }

    /// Values of the weight tensor.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.kernel.pow(3)
    }

    /// Multiplications and additions of one forward pass (and of each of the two large gradients).
    pub fn flops(&self) -> f64 {
        2.0 * self.output_len() as f64 * (self.c_in * self.kernel.pow(3)) as f64
    }

    /// `y = conv(x, weight) + bias`.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        self.forward_on(Isa::best(), x, weight, bias, y);
    }

    /// [`Conv3d::forward`] with a chosen instruction set.
    pub fn forward_on(&self, isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        self.check(Some(x.len()), Some(weight.len()), Some(y.len()));
        assert_eq!(bias.len(), self.c_out, "bias");
        run(&self.correlation(isa), x, self.reader(weight), bias, y);
    }

    /// [`Conv3d::forward`] for passes through which no gradient goes: where a matrix unit makes it faster, 16
    /// bits of every value count.
    pub fn forward_untracked(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        self.forward_untracked_on(Isa::best(), x, weight, bias, y);
    }

    /// [`Conv3d::forward_untracked`] with a chosen instruction set.
    pub fn forward_untracked_on(&self, isa: Isa, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        match matrix::unit(isa, self.c_in, self.c_out) {
            None => self.forward_on(isa, x, weight, bias, y),
            Some(unit) => {
                self.check(Some(x.len()), Some(weight.len()), Some(y.len()));
                assert_eq!(bias.len(), self.c_out, "bias");
                matrix::correlate::run(unit, &self.correlation(isa), x, self.reader(weight), bias, y);
            }
        }
    }

    /// The forward pass.
    fn correlation(&self, isa: Isa) -> Correlation {
        let output = self.output();
        Correlation {
            isa,
            batch: self.batch,
            c_in: self.c_in,
            c_out: self.c_out,
            input: self.input,
            start: [-(self.padding as isize); 3],
            stride: self.stride,
            kernel: [self.kernel; 3],
            output,
            placement: Placement { size: output, first: [0; 3], step: 1 },
        }
    }

    /// Reads a weight by output channel, input channel and tap.
    fn reader<'a>(&'a self, weight: &'a [f32]) -> impl Fn(usize, usize, [usize; 3]) -> f32 + Sync + 'a {
        |co, ci, [kz, ky, kx]| weight[self.weight_index(co, ci, kz, ky, kx)]
    }

    /// `dx`: gradient of the input, from the gradient `dy` of the output. Overwrites `dx`.
    pub fn input_gradient(&self, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
        self.input_gradient_on(Isa::best(), dy, weight, dx);
    }

    /// [`Conv3d::input_gradient`] with a chosen instruction set.
    pub fn input_gradient_on(&self, isa: Isa, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
        self.check(Some(dx.len()), Some(weight.len()), Some(dy.len()));
        let (s, k, pad) = (self.stride, self.kernel, self.padding);
        if k < s {
            dx.fill(0.0); // some inputs meet no tap at all
        }
        let no_bias = vec![0.0; self.c_in];
        // Input i meets output (i + pad - k) / s for the taps k of the right parity. With i = s*j + r that is a
        // convolution over j: taps last, last - s, ..., reading outputs from (r + pad - last)/s + j on.
        let axis = |r: usize| -> Option<(usize, usize, isize)> {
            let last = (0..k).rev().find(|tap| (r + pad + s - tap % s).is_multiple_of(s))?;
            let taps = last / s + 1;
            Some((taps, last, (r + pad) as isize / s as isize - (last / s) as isize))
        };
        for parity in 0..s.pow(3) {
            let r = [parity / (s * s), parity / s % s, parity % s];
            let [Some(z), Some(y), Some(x)] = r.map(axis) else { continue };
            let output = [0, 1, 2].map(|a| (self.input[a] + s - 1 - r[a]) / s);
            if output.contains(&0) {
                continue;
            }
            let conv = Correlation {
                isa,
                batch: self.batch,
                c_in: self.c_out,
                c_out: self.c_in,
                input: self.output(),
                start: [z.2, y.2, x.2],
                stride: 1,
                kernel: [z.0, y.0, x.0],
                output,
                placement: Placement { size: self.input, first: r, step: s },
            };
            let mirrored = |ci, co, [tz, ty, tx]: [usize; 3]| {
                weight[self.weight_index(co, ci, z.1 - s * tz, y.1 - s * ty, x.1 - s * tx)]
            };
            match matrix::unit(isa, conv.c_in, conv.c_out) {
                Some(unit) => matrix::correlate::run(unit, &conv, dy, mirrored, &no_bias, dx),
                None => run(&conv, dy, mirrored, &no_bias, dx),
            }
        }
    }

    /// `dweight`: gradient of the weights, from the input and the gradient `dy` of the output. Overwrites `dweight`.
    pub fn weight_gradient(&self, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
        self.weight_gradient_on(Isa::best(), x, dy, dweight);
    }

    /// [`Conv3d::weight_gradient`] with a chosen instruction set.
    pub fn weight_gradient_on(&self, isa: Isa, x: &[f32], dy: &[f32], dweight: &mut [f32]) {
        self.check(Some(x.len()), Some(dweight.len()), Some(dy.len()));
        match matrix::unit(isa, self.c_in, self.c_out) {
            Some(unit) if self.kernel == 3 => matrix::weight_gradient::run(unit, self, x, dy, dweight),
            _ => weight_gradient::run(self, isa, x, dy, dweight),
        }
    }

    /// `dbias`: gradient of the bias, the sum of `dy` per channel. Overwrites `dbias`.
    pub fn bias_gradient(&self, dy: &[f32], dbias: &mut [f32]) {
        self.check(None, None, Some(dy.len()));
        assert_eq!(dbias.len(), self.c_out, "dbias");
        let voxels: usize = self.output().iter().product();
        let channels: Vec<f64> = dy
            .par_chunks(voxels)
            .map(|channel| {
                // Short f32 runs (fast), long f64 sums (exact enough for any volume).
                channel.chunks(256).map(|run| lanes_sum(run) as f64).sum()
            })
            .collect();
        for (co, sum) in dbias.iter_mut().enumerate() {
            *sum = (0..self.batch).map(|n| channels[n * self.c_out + co]).sum::<f64>() as f32;
        }
    }

    fn weight_index(&self, co: usize, ci: usize, kz: usize, ky: usize, kx: usize) -> usize {
        let k = self.kernel;
        (((co * self.c_in + ci) * k + kz) * k + ky) * k + kx
    }

    fn check(&self, x: Option<usize>, weight: Option<usize>, y: Option<usize>) {
        if let Some(len) = x {
            assert_eq!(len, self.input_len(), "input of {self:?}");
        }
        if let Some(len) = weight {
            assert_eq!(len, self.weight_len(), "weight of {self:?}");
        }
        if let Some(len) = y {
            assert_eq!(len, self.output_len(), "output of {self:?}");
        }
    }
}

/// By Winograd's filtering where it applies, otherwise directly.
fn run(
    conv: &Correlation,
    x: &[f32],
    weight: impl Fn(usize, usize, [usize; 3]) -> f32 + Sync,
    bias: &[f32],
    y: &mut [f32],
) {
    if winograd::applies(conv) {
        winograd::run(conv, x, weight, bias, y);
    } else {
        conv.run(x, weight, bias, y);
    }
}

/// Sum with eight running totals, so that the compiler can use vectors.
fn lanes_sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for lane in 0..8 {
            lanes[lane] += eight[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}
