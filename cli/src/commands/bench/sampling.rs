//! What a training step waits for: its patches.

use super::{Bench, five_balls, wave};
use burn::tensor::Device;
use jrs_data::cache::PreparedPair;
use jrs_data::dataset::Split;
use jrs_data::sampling::{Cropping, SampleId};
use jrs_worker::batch::{batch, real_pairs};
use jrs_worker::config::RealSegmentation;
use libjrs::{Affine, Grid};

/// Edge of the volumes that patches are cut from.
const VOLUME: usize = 192;

/// The tensors of one iteration from a pair in memory: a patch, both directions, and Θ's real pairs.
pub fn crops(size: usize) -> Bench<'static> {
    let hu = |phase| wave(VOLUME.pow(3), phase).iter().map(|v| (v * 1000.0) as i16).collect();
    let pair = PreparedPair {
        id: "bench".into(),
        patient: "bench".into(),
        split: Split::Train,
        grid: Grid::axis_aligned([VOLUME; 3], [1.0; 3], [0.0; 3]),
        fixed: hu(0.0),
        moving: hu(0.3),
        fixed_labels: five_balls(VOLUME, 0.0),
        moving_labels: five_balls(VOLUME, 2.0),
        mask: vec![1; VOLUME.pow(3)],
        affine: Affine::IDENTITY,
    };
    let cropping = Cropping { seed: 1, edge: size, full_scale: 1000.0, around_organs: 0.0 };
    let (device, organs) = (Device::flex(), [1, 2, 3, 4, 5]);
    let mut k = 0;
    Bench {
        name: format!("patches of one iteration, {size}^3"),
        flops: None,
        run: Box::new(move || {
            k += 1;
            let patches = [cropping.crop(SampleId { epoch: 0, pair: 0, k }, &pair)];
            std::hint::black_box(batch(&patches, &organs, 0, &device));
            std::hint::black_box(real_pairs(&patches, &organs, RealSegmentation::Raw, 1, &device));
            Ok(())
        }),
    }
}
