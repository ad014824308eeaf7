//! How a correlation is cut up into cubes and units, and which of its variants a kernel is: compile-time constants.

/// The constants of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Units of a cube, z, y, x.
    pub units: [usize; 3],
    /// Voxels of a unit, along x.
    pub run: usize,
    /// Output channels of a cube.
    pub outputs: usize,
    /// Input channels in shared memory at a time.
    pub inputs: usize,
    /// Taps that count, z, y, x.
    pub taps: [usize; 3],
    /// Input voxels from one output to the next.
    pub stride: usize,
    /// Edge of the kernel in the weight tensor.
    pub edge: usize,
    /// Where weights are read.
    pub weights: Weights,
    /// What happens to a sum before it is stored.
    pub finish: Finish,
    /// Where the input is read.
    pub source: Source,
}

/// Which weight belongs to output o, input i and tap t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Weights {
    /// `weight[o][i][t]`: the forward pass.
    Plain,
    /// `weight[i][o][last - step * t]`: the input gradient of a convolution of stride `step`.
    Mirrored {
        /// Stride of the convolution.
        step: usize,
    },
}

/// What is stored for a sum s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Finish {
    /// s
    Sum,
    /// s + bias
    Bias,
    /// scale * leaky(s + bias) + shift
    LeakyNorm,
}

/// Where the input lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// In one tensor.
    One,
    /// The first channels are the nearest x2 upsampling of one tensor, the others the centre of another.
    UpsampleConcat,
}

impl Plan {
    /// Voxels of a tile, z, y, x.
    pub fn tile(&self) -> [usize; 3] {
        let [z, y, x] = self.units;
        [z, y, x * self.run]
    }

    /// Input voxels under a tile, z, y, x.
    pub fn window(&self) -> [usize; 3] {
        let tile = self.tile();
        [0, 1, 2].map(|a| (tile[a] - 1) * self.stride + self.taps[a])
    }

    /// From one row to the next in shared memory.
    pub fn pitch(&self) -> usize {
        let x = self.units[2];
        let rows = self.window()[2].div_ceil(x);
        x * (rows + 1 - rows % 2)
    }

    /// Values of an input channel in shared memory.
    pub fn channel(&self) -> usize {
        let [z, y, _] = self.window();
        z * y * self.pitch()
    }

    pub fn tap_count(&self) -> usize {
        self.taps.iter().product()
    }

    /// Bytes of shared memory with so many input channels at a time.
    pub fn shared(&self, inputs: usize) -> usize {
        4 * inputs * (self.channel() + self.tap_count() * self.outputs)
    }

    pub fn unit_count(&self) -> usize {
        self.units.iter().product()
    }
}
