//! What a training step waits for: its patches.

use super::{Bench, pair};
use burn::tensor::Device;
use jrs_data::sampling::{Cropping, SampleId};
use jrs_worker::batch::Patches;
use jrs_worker::config::RealSegmentation;

/// The tensors of one iteration from a pair in memory: a patch, both directions, and Θ's real pairs.
pub fn crops(size: usize) -> Bench<'static> {
    let pair = pair();
    let cropping = Cropping { seed: 1, edge: size, full_scale: 1000.0, around_organs: 0.0 };
    let (device, organs) = (Device::flex(), [1, 2, 3, 4, 5]);
    let mut k = 0;
    Bench {
        name: format!("patches of one iteration, {size}^3"),
        flops: None,
        run: Box::new(move || {
            k += 1;
            let patches = [cropping.crop(SampleId { epoch: 0, pair: 0, k }, &pair)];
            let patches = Patches::Host(&patches);
            std::hint::black_box(patches.batch(&organs, 0, &device));
            std::hint::black_box(patches.real_pairs(&organs, RealSegmentation::Raw, 1, &device));
            Ok(())
        }),
    }
}
