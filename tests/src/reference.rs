//! PyTorch's values, and the numbers they were computed from: `tests/reference/README.md` has the formulas.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// Fair tolerance for networks in f32: norm of the difference / norm.
pub const TOLERANCE: f64 = 1e-4;

/// The committed file.
pub struct Reference {
    bytes: Vec<u8>,
}

impl Default for Reference {
    fn default() -> Self {
        Self::new()
    }
}

impl Reference {
    /// Reads `tests/reference/data/networks_torch.safetensors`.
    ///
    /// # Panics
    /// If it is missing: it is part of the repository.
    pub fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference/data/networks_torch.safetensors");
        Self { bytes: std::fs::read(path).expect("the reference file is part of the repository") }
    }

    /// True if there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    /// A tensor's values, flat.
    ///
    /// # Panics
    /// If there is no such tensor.
    pub fn values(&self, name: &str) -> Vec<f64> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::U8 => data.iter().map(|b| f64::from(*b)).collect(),
            other => panic!("{name}: {other:?} is not used in this file"),
        }
    }

    /// Asserts that `ours` equals the tensor `name` within `tolerance` (norm of the difference / norm).
    pub fn assert_close(&self, name: &str, ours: &[f32], tolerance: f64) {
        assert_close(name, ours, &self.values(name), tolerance);
    }

    /// The same for a gradient that is stored in full or sampled, with its norm.
    pub fn assert_gradient(&self, name: &str, ours: &[f32], tolerance: f64) {
        let norm = self.values(&format!("{name}.norm"))[0];
        let our_norm = ours.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((our_norm / norm - 1.0).abs() < tolerance, "norm of {name}: {our_norm}, PyTorch {norm}");
        let full = format!("{name}.full");
        if self.has(&full) {
            return self.assert_close(&full, ours, tolerance);
        }
        let sampled = self.values(&format!("{name}.sampled"));
        let ours: Vec<f32> = sample_indices(ours.len(), sampled.len()).map(|i| ours[i]).collect();
        assert_close(name, &ours, &sampled, tolerance);
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("the reference file is a safetensors file")
    }
}

/// Asserts that the norm of the difference is at most `tolerance` times the reference's norm.
pub fn assert_close(name: &str, ours: &[f32], reference: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), reference.len(), "number of values of {name}");
    let difference = ours.iter().zip(reference).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
    let norm = reference.iter().map(|b| b * b).sum::<f64>().sqrt();
    assert!(difference <= tolerance * norm, "{name}: relative difference {:.2e}", difference / norm);
}

/// splitmix64 of (stream << 32) + i.
pub fn hash(stream: u64, i: u64) -> u64 {
    let mut z = (stream << 32).wrapping_add(i).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `n` values in offset ± scale.
pub fn uniform(stream: u64, n: usize, scale: f64, offset: f64) -> Vec<f32> {
    let unit = |i| (hash(stream, i) >> 11) as f64 * (2.0_f64).powi(-52) - 1.0;
    (0..n as u64).map(|i| (offset + scale * unit(i)) as f32).collect()
}

/// The flat indices at which `count` values of a tensor of `n` are stored.
pub fn sample_indices(n: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count as u64).map(move |j| (hash(7, j) % n as u64) as usize)
}

/// A tensor of a layer by its kind (`conv.weight`, `bn.gamma`, ...) and shape, from its own stream.
pub fn weight(stream: u64, kind: &str, shape: &[usize]) -> Vec<f32> {
    let n = shape.iter().product();
    let (scale, offset) = match kind {
        "conv.weight" => ((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt(), 0.0),
        "conv.bias" | "bn.beta" => (0.1, 0.0),
        "bn.gamma" => (0.2, 1.0),
        "bn.mean" => (0.2, 0.3),
        "bn.var" => (0.5, 1.0),
        _ => panic!("{kind} is no tensor of a network"),
    };
    uniform(stream, n, scale, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formula_is_the_scripts() {
        let reference = Reference::new();
        let ours: Vec<f64> = uniform(5, 8, 1.0, 0.0).into_iter().map(f64::from).collect();
        assert_eq!(ours, reference.values("formula.stream_5"));
        let ours: Vec<f64> = sample_indices(1000, 8).map(|i| i as f64).collect();
        assert_eq!(ours, reference.values("formula.sample_indices_1000"));
    }

    #[test]
    #[should_panic(expected = "relative difference")]
    fn a_difference_is_found() {
        let reference = Reference::new();
        let mut ours: Vec<f32> = reference.values("warp.output").into_iter().map(|v| v as f32).collect();
        ours[100] += 0.1;
        reference.assert_close("warp.output", &ours, TOLERANCE);
    }
}
