//! Random numbers that depend only on what they are for.
//!
//! Every generator is keyed by (cohort seed, patient, scan, purpose); nothing is drawn from a shared
//! stream, so the number of threads and the order of work cannot change a byte.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a stream of numbers is used for; the last part of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Sizes and shapes of a patient.
    Anatomy,
    /// The patient's systematic errors.
    Systematic,
    /// Pose and organ motion of a scan.
    Motion,
    /// Gas, stool and bowel content of a scan.
    Content,
    /// Tissue texture of a scan.
    Texture,
    /// Voxel noise of one slice of a scan.
    Noise(u32),
}

impl Purpose {
    fn code(self) -> u64 {
        match self {
            Purpose::Anatomy => 1,
            Purpose::Systematic => 2,
            Purpose::Motion => 3,
            Purpose::Content => 4,
            Purpose::Texture => 5,
            Purpose::Noise(slice) => 6 | u64::from(slice) << 8,
        }
    }
}

/// The scan number that stands for the patient as a whole.
pub const WHOLE_PATIENT: usize = u32::MAX as usize;

/// A keyed ChaCha8 stream.
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream for `purpose` of scan `scan` of patient `patient` in the cohort `seed`.
    pub fn new(seed: u64, patient: usize, scan: usize, purpose: Purpose) -> Self {
        let mut key = [0u8; 32];
        for (slot, value) in key.chunks_exact_mut(8).zip([seed, patient as u64, scan as u64, purpose.code()])
        {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Standard normal (Box-Muller), cut at ±2.5 so that no draw breaks the anatomy.
    pub fn normal(&mut self) -> f64 {
        loop {
            let (a, b) = (1.0 - self.unit(), self.unit());
            let value = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
            if value.abs() <= 2.5 {
                return value;
            }
        }
    }

    /// Normal with the given mean and standard deviation, cut at 2.5 standard deviations.
    pub fn gauss(&mut self, mean: f64, sd: f64) -> f64 {
        mean + sd * self.normal()
    }

    /// Three independent normals of mean 0.
    pub fn gauss3(&mut self, sd: [f64; 3]) -> [f64; 3] {
        sd.map(|s| s * self.normal())
    }

    /// Fills `out` with white noise of unit variance: the sum of four uniforms (Irwin-Hall), which needs
    /// no transcendental function and is close to normal once filtered.
    pub fn white(&mut self, out: &mut [f32]) {
        // Each uniform on 0..65536 has variance 65536²/12; four of them sum to 65536²/3.
        let scale = 3f32.sqrt() / 65536.0;
        for value in out {
            let bits = self.0.next_u64();
            let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
            *value = (sum as f32 - 2.0 * 65535.0) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_give_different_streams_and_the_same_key_the_same() {
        let first = |patient, scan, purpose| Draw::new(7, patient, scan, purpose).unit();
        assert_eq!(first(1, 2, Purpose::Motion), first(1, 2, Purpose::Motion));
        assert_ne!(first(1, 2, Purpose::Motion), first(2, 1, Purpose::Motion));
        assert_ne!(first(1, 2, Purpose::Noise(3)), first(1, 2, Purpose::Noise(4)));
    }

    #[test]
    fn white_noise_has_unit_variance() {
        let mut values = vec![0.0; 100_000];
        Draw::new(1, 0, 0, Purpose::Noise(0)).white(&mut values);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "mean {mean}, variance {variance}");
    }
}
