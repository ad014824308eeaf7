//! What follows a convolution in inference: activation and folded BatchNorm, and the network's head.

/// What follows the sums: `y = scale * leaky(sum + bias) + shift`, per output channel.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Of the convolution.
    pub bias: Vec<f32>,
    /// Slope of LeakyReLU for negative values, from 0 to 1.
    pub slope: f32,
    /// Folded BatchNorm.
    pub scale: Vec<f32>,
    /// Folded BatchNorm.
    pub shift: Vec<f32>,
}

/// The network's head, a 1x1x1 convolution to three components, which is applied to the f32 values of the last block, whatever
/// planes are held in.
#[derive(Clone, Debug)]
pub struct Head {
    /// Per component and channel.
    pub weight: [[f32; 16]; 3],
    /// Per component.
    pub bias: [f32; 3],
}
