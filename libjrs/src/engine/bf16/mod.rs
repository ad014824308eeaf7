//! The generator in bf16 on a processor's matrix unit.

mod network;
mod stream;

use jrs_kernels::bf16::Unit;
use jrs_kernels::pool::Pool;

use super::{Engine, check_input};
use crate::model::GeneratorWeights;
use crate::network::MARGIN;
use crate::{Error, Result};
use network::Network;
use stream::Stream;

/// Runs on the current rayon pool; the same bits for any number of threads.
///
/// Activations and weights are rounded to bf16 (8 bits), sums are f32, and the images lose nothing. How far the displacement is from
/// [`super::CpuEngine`]'s depends on the model; `jrs bench precision` measures it.
pub struct Bf16Engine {
    network: Network,
    unit: Unit,
    /// Buffers of earlier planes and tiles.
    pool: Pool,
}

impl Bf16Engine {
    /// Prepares the weights.
    ///
    /// # Errors
    /// [`Error::Input`] if this processor has no matrix unit for bf16.
    pub fn new(weights: &GeneratorWeights) -> Result<Self> {
        let unit = Unit::hardware().ok_or_else(|| {
            Error::input(
                "this processor has no AMX with bf16, or the system does not allow it",
                "use f32 precision",
            )
        })?;
        Ok(Self::on(unit, weights))
    }

    /// True if [`Bf16Engine::new`] succeeds here.
    pub fn available() -> bool {
        Unit::hardware().is_some()
    }

    fn on(unit: Unit, weights: &GeneratorWeights) -> Self {
        Self { network: Network::new(weights), unit, pool: Pool::new() }
    }
}

impl Engine for Bf16Engine {
    fn name(&self) -> String {
        format!("CPU, {} threads, bf16 on {:?}", rayon::current_num_threads(), self.unit)
    }

    fn displacement(
        &self,
        fixed: &[f32],
        moving: &[f32],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) -> Result<()> {
        check_input(fixed, moving, size)?;
        Stream::run(&self.network, self.unit, &self.pool, [fixed, moving], size, out);
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        let output: usize = size.iter().map(|n| n - 2 * MARGIN).product();
        Stream::bytes(&self.network, size) + 3 * size_of::<f32>() * output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::images;
    use crate::engine::{CpuEngine, cpu::reference_weights, infer};
    use crate::progress::Progress;

    fn units() -> Vec<Unit> {
        if Unit::hardware().is_none() {
            eprintln!("SKIPPED: this processor has no AMX, only the emulated unit is tested");
        }
        std::iter::once(Unit::Emulated).chain(Unit::hardware()).collect()
    }

    /// Against f32, which agrees with PyTorch: thirteen layers of 8 bits each.
    #[test]
    fn agrees_with_f32() {
        for size in [[44, 44, 48], [48, 60, 44], [56, 44, 52]] {
            let [fixed, moving] = images(size);
            let (mut expected, mut got) = (Default::default(), Default::default());
            CpuEngine::new(&reference_weights()).displacement(&fixed, &moving, size, &mut expected).unwrap();
            for unit in units() {
                let engine = Bf16Engine::on(unit, &reference_weights());
                engine.displacement(&fixed, &moving, size, &mut got).unwrap();
                let pairs = || expected.iter().flatten().zip(got.iter().flatten());
                assert_eq!(pairs().count(), 3 * size.iter().map(|n| n - 40).product::<usize>());
                let difference: f32 = pairs().map(|(e, g)| (e - g).powi(2)).sum();
                let norm: f32 = pairs().map(|(e, _)| e.powi(2)).sum();
                let relative = (difference / norm).sqrt();
                assert!(relative < 0.02, "{size:?} on {unit:?}: norm of the difference / norm = {relative}");
            }
        }
    }

    #[test]
    fn tiles_give_what_the_whole_volume_gives() {
        let size = [26, 18, 21];
        let [fixed, moving] = images(size);
        for unit in units() {
            let engine = Bf16Engine::on(unit, &reference_weights());
            let whole = infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
            let limit = engine.bytes([52, 56, 48]);
            let tiled = infer(&engine, &fixed, &moving, size, limit, Progress::SILENT).unwrap();
            for (w, t) in whole.iter().flatten().zip(tiled.iter().flatten()) {
                assert!((w - t).abs() < 1e-4, "{w} and {t} mm");
            }
        }
    }

    #[test]
    fn memory_grows_with_the_plane_and_not_with_the_depth() {
        let network = Network::new(&GeneratorWeights::random(1));
        let [thin, thick] = [256, 1024].map(|nz| Stream::bytes(&network, [296, 296, nz]));
        assert!(thick < thin + thin / 100, "{thin} and {thick} bytes");
    }
}
