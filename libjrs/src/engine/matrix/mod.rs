//! The generator on a processor's matrix unit for bf16, in bf16 or nearly with the accuracy of f32.

mod jobs;
mod network;

use jrs_kernels::bf16::{Format, Unit};

use super::stream::Stream;
use super::{Buffers, Engine, Precision, check_input};
use crate::model::GeneratorWeights;
use crate::network::MARGIN;
use crate::{Error, Result};
use network::Network;

/// Runs on the current rayon pool; the same bits for any number of threads.
///
/// In [`Precision::F32`] every activation and weight is the sum of two bf16 (16 bits): displacements differ from exact ones by about
/// 2e-5 of their size, where [`super::CpuEngine`] is at 4e-6 (`agrees_with_pytorch` here and there), both far below what a scan
/// resolves. In [`Precision::Bf16`] they are rounded to one (8 bits); how far the displacement is then off depends on the model,
/// `jrs bench precision` measures it. Sums are f32 and the images lose nothing in both.
pub struct MatrixEngine {
    network: Network,
    buffers: Buffers,
}

impl MatrixEngine {
    /// Prepares the weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if this processor has no matrix unit for bf16, and in [`Precision::Tf32`].
    pub fn new(weights: &GeneratorWeights, precision: Precision) -> Result<Self> {
        let format = Self::format(precision)?;
        Ok(Self::on(Self::unit()?, weights, format))
    }

    /// True if [`MatrixEngine::new`] succeeds here in f32 and bf16.
    pub fn available() -> bool {
        Unit::hardware().is_some()
    }

    /// Why [`MatrixEngine::new`] would not succeed here.
    pub(super) fn check(precision: Precision) -> Result<()> {
        Self::format(precision)?;
        Self::unit().map(|_| ())
    }

    /// What stands for a number.
    fn format(precision: Precision) -> Result<Format> {
        match precision {
            Precision::F32 => Ok(Format::Two),
            Precision::Bf16 => Ok(Format::One),
            Precision::Tf32 => {
                Err(Error::unsupported("no processor computes in TF32", "Use f32 precision, or a GPU"))
            }
        }
    }

    fn unit() -> Result<Unit> {
        Unit::hardware().ok_or_else(|| {
            Error::unsupported(
                "this processor has no AMX with bf16, or the system does not allow it",
                "Use f32 precision",
            )
        })
    }

    fn on(unit: Unit, weights: &GeneratorWeights, format: Format) -> Self {
        Self { network: Network::new(unit, weights, format), buffers: Buffers::default() }
    }
}

impl Engine for MatrixEngine {
    fn name(&self) -> String {
        let precision = match self.network.format {
            Format::One => "bf16",
            Format::Two => "f32 as sums of two bf16",
        };
        format!("CPU, {} threads, {precision} on {:?}", rayon::current_num_threads(), self.network.unit)
    }

    fn displacement(
        &self,
        fixed: &[f32],
        moving: &[f32],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) -> Result<()> {
        check_input(fixed, moving, size)?;
        self.buffers.run(&self.network, [fixed, moving], size, out);
        Ok(())
    }

    fn bytes(&self, size: [usize; 3]) -> usize {
        let output: usize = size.iter().map(|n| n - 2 * MARGIN).product();
        self.network.bytes() + Stream::bytes(&self.network, size) + 3 * size_of::<f32>() * output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::{reference_weights, relative_error};
    use crate::engine::tests::images;
    use crate::engine::{CpuEngine, infer};
    use crate::progress::Progress;

    fn units() -> Vec<Unit> {
        if Unit::hardware().is_none() {
            eprintln!("SKIPPED: this processor has no AMX, only the emulated unit is tested");
        }
        std::iter::once(Unit::Emulated).chain(Unit::hardware()).collect()
    }

    /// Thirteen layers of 16 bits each, or of 8.
    #[test]
    fn agrees_with_pytorch() {
        for unit in units() {
            for (format, most) in [(Format::Two, 1e-4), (Format::One, 0.03)] {
                let engine = MatrixEngine::on(unit, &reference_weights(), format);
                let relative = relative_error(&engine);
                assert!(relative < most, "{}: relative error {relative}", engine.name());
            }
        }
    }

    #[test]
    fn any_size_gives_what_the_other_engine_gives() {
        let unit = *units().last().expect("at least the emulated one");
        for size in [[44, 44, 48], [48, 60, 44], [56, 44, 52]] {
            let [fixed, moving] = images(size);
            let (mut expected, mut got) = (Default::default(), Default::default());
            CpuEngine::new(&reference_weights()).displacement(&fixed, &moving, size, &mut expected).unwrap();
            let engine = MatrixEngine::on(unit, &reference_weights(), Format::Two);
            engine.displacement(&fixed, &moving, size, &mut got).unwrap();
            let pairs = || expected.iter().flatten().zip(got.iter().flatten());
            assert_eq!(pairs().count(), 3 * size.iter().map(|n| n - 40).product::<usize>());
            let difference: f32 = pairs().map(|(e, g)| (e - g).powi(2)).sum();
            let norm: f32 = pairs().map(|(e, _)| e.powi(2)).sum();
            let relative = (difference / norm).sqrt();
            assert!(relative < 1e-4, "{size:?}: relative difference {relative}");
        }
    }

    #[test]
    fn tiles_give_what_the_whole_volume_gives() {
        let size = [26, 18, 21];
        let [fixed, moving] = images(size);
        for unit in units() {
            let engine = MatrixEngine::on(unit, &reference_weights(), Format::Two);
            let whole = infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
            let limit = engine.bytes([52, 56, 48]);
            let tiled = infer(&engine, &fixed, &moving, size, limit, Progress::SILENT).unwrap();
            for (w, t) in whole.iter().flatten().zip(tiled.iter().flatten()) {
                assert!((w - t).abs() < 1e-4, "{w} and {t} mm");
            }
        }
    }

    #[test]
    fn counts_what_the_pool_holds() {
        for (size, format) in
            [([44, 44, 48], Format::Two), ([44, 48, 100], Format::One), ([100, 140, 48], Format::Two)]
        {
            if let Some(unit) = Unit::hardware() {
                let engine = MatrixEngine::on(unit, &reference_weights(), format);
                let image = vec![0.5; size.iter().product()];
                for _ in 0..3 {
                    engine.displacement(&image, &image, size, &mut Default::default()).unwrap();
                }
                let counted = Stream::bytes(&engine.network, size);
                assert_eq!(counted, size_of::<f32>() * engine.buffers.pool.peak(), "{size:?}");
            }
        }
    }

    #[test]
    fn memory_grows_with_the_plane_and_not_with_the_depth() {
        let network = Network::new(Unit::Emulated, &GeneratorWeights::random(1), Format::Two);
        let [thin, thick] = [256, 1024].map(|nz| Stream::bytes(&network, [296, 296, nz]));
        assert!(thick < thin + thin / 100, "{thin} and {thick} bytes");
    }
}
