//! The networks as tables: what `science.md` sections 2 and 3 (after Figure 1 of the paper) print, as data.
//!
//! Training builds its modules from these rows, the inference engine its plan, and the model file its tensor
//! names: there is one place where a width or a stride is written.

/// One convolution of a network. Every *block* is Conv3d 3x3x3 (bias) -> LeakyReLU(0.2) -> BatchNorm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Name of its output in the paper's numbering: `x0`, ..., `u`, `score`. Also the tensor prefix.
    pub name: &'static str,
    /// Input channels (after any concatenation).
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel edge: 3 in blocks, 1 in heads.
    pub kernel: usize,
    /// 1, or 2 where the path contracts.
    pub stride: usize,
    /// Zero padding per side: 1 at stride 2, otherwise none ("valid").
    pub padding: usize,
    /// Followed by LeakyReLU and BatchNorm (all but the heads).
    pub block: bool,
}

const fn block(name: &'static str, c_in: usize, c_out: usize, stride: usize) -> Layer {
    Layer { name, c_in, c_out, kernel: 3, stride, padding: stride - 1, block: true }
}

const fn head(name: &'static str, c_in: usize, c_out: usize) -> Layer {
    Layer { name, c_in, c_out, kernel: 1, stride: 1, padding: 0, block: false }
}

/// Slope of LeakyReLU for negative inputs.
pub const LEAKY_SLOPE: f32 = 0.2;
/// BatchNorm's epsilon.
pub const BN_EPSILON: f32 = 1e-3;
/// Share of the new batch in BatchNorm's running statistics.
pub const BN_MOMENTUM: f32 = 0.1;
/// Standard deviation of the initial convolution weights.
pub const INIT_STD: f32 = 0.02;

/// Output voxel `m` of the generator sits on input voxel `m + MARGIN`.
pub const MARGIN: usize = 20;
/// Centre crop per side of skip B (`x4`) before it joins `x9`, voxels.
pub const CROP_B: usize = 4;
/// Centre crop per side of skip A (`x1`) before it joins `x13`, voxels.
pub const CROP_A: usize = 16;
/// Smallest input edge the generator accepts; inputs are multiples of [`INPUT_MULTIPLE`].
pub const MIN_INPUT: usize = 44;
/// Input edges are multiples of this.
pub const INPUT_MULTIPLE: usize = 4;

/// The generator `G(I_f, I_m) -> u`. `x10` reads concat(upsample(x7), crop(x4)); `x14` concat(upsample(x11), crop(x1)).
pub const GENERATOR: [Layer; 13] = [
    block("x0", 2, 16, 1),
    block("x1", 16, 16, 1),
    block("x2", 16, 16, 2),
    block("x3", 16, 32, 1),
    block("x4", 32, 32, 1),
    block("x5", 32, 32, 2),
    block("x6", 32, 64, 1),
    block("x7", 64, 64, 1),
    block("x10", 96, 32, 1),
    block("x11", 32, 32, 1),
    block("x14", 48, 16, 1),
    block("x15", 16, 16, 1),
    head("u", 16, 3),
];

/// Where the expanding path takes a skip connection in: its input is upsampled by 2 and set beside the cropped skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// The layer that reads the result.
    pub before: &'static str,
    /// The layer that the skip comes from.
    pub skip: &'static str,
    /// Voxels that the skip loses per side.
    pub crop: usize,
}

/// The generator's skip connections, deeper ones first: they are joined first.
pub const JOINS: [Join; 2] =
    [Join { before: "x10", skip: "x4", crop: CROP_B }, Join { before: "x14", skip: "x1", crop: CROP_A }];

/// The PatchGAN critic `D`: the contracting path, then one linear score per position.
/// `c_in` is 3 for (I_f, I_m∘Φ, S_m∘Φ) and 2 for the other systems.
pub fn critic(c_in: usize) -> [Layer; 9] {
    let mut layers = [head("score", 64, 1); 9];
    layers[..8].copy_from_slice(&GENERATOR[..8]);
    layers[0].c_in = c_in;
    layers
}

impl Layer {
    /// Number of trainable values: weights, biases and BatchNorm's scale and shift.
    pub const fn parameters(&self) -> usize {
        let conv = self.c_out * (self.c_in * self.kernel.pow(3) + 1);
        if self.block { conv + 2 * self.c_out } else { conv }
    }

    /// The skip connection that joins the generator before this layer.
    pub fn join(&self) -> Option<&'static Join> {
        JOINS.iter().find(|join| join.before == self.name)
    }

    /// Output edge for input edge `n`.
    pub const fn output(&self, n: usize) -> usize {
        (n + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Tensors of this layer as (name, shape), in the order of the model file:
    /// `<layer>.conv.weight` \[c_out, c_in, k, k, k\], `<layer>.conv.bias` \[c_out\] and for blocks
    /// `<layer>.bn.{gamma,beta,mean,var}` \[c_out\].
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let k = self.kernel;
        let name = |suffix: &str| format!("{}.{suffix}", self.name);
        let mut all = vec![
            (name("conv.weight"), vec![self.c_out, self.c_in, k, k, k]),
            (name("conv.bias"), vec![self.c_out]),
        ];
        if self.block {
            all.extend(["bn.gamma", "bn.beta", "bn.mean", "bn.var"].map(|s| (name(s), vec![self.c_out])));
        }
        all
    }
}

impl Join {
    /// Channels of the skip.
    pub fn channels(&self) -> usize {
        GENERATOR.iter().find(|layer| layer.name == self.skip).expect("a layer of the table").c_out
    }
}

/// Multiplications and additions of the generator's convolutions for an input of `size` voxels, by their definition; kernels
/// may need fewer (Winograd).
pub fn flops(size: [usize; 3]) -> f64 {
    let mut edges = size;
    let of_layer = |layer: &Layer| {
        if layer.join().is_some() {
            edges = edges.map(|n| 2 * n);
        }
        edges = edges.map(|n| layer.output(n));
        let voxels: usize = edges.iter().product();
        2.0 * (voxels * layer.c_out * layer.c_in * layer.kernel.pow(3)) as f64
    };
    GENERATOR.iter().map(of_layer).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flops_are_those_of_the_method() {
        // science.md section 2: 19.9 GMAC for 96^3, 1.12 TMAC for 296^3.
        assert_eq!((flops([96; 3]) / 2e9 * 10.0).round(), 199.0);
        assert_eq!((flops([296; 3]) / 2e12 * 100.0).round(), 112.0);
    }

    #[test]
    fn parameter_count_is_the_papers() {
        // science.md section 2.
        assert_eq!(GENERATOR.iter().map(Layer::parameters).sum::<usize>(), 389_091);
    }

    #[test]
    fn critic_sizes_follow_the_table() {
        // science.md section 3: 56-54-52-26-24-22-11-9-7.
        let mut n = 56;
        let sizes: Vec<usize> = critic(3)
            .iter()
            .map(|l| {
                n = l.output(n);
                n
            })
            .collect();
        assert_eq!(sizes, [54, 52, 26, 24, 22, 11, 9, 7, 7]);
    }
}
