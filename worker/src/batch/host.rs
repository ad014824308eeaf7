//! Batches made on the host and uploaded as numbers.

use super::{Batch, RealPair};
use crate::config::RealSegmentation;
use crate::contours::one_hot;
use crate::theta::Theta;
use burn::tensor::{Device, Tensor, TensorData};
use jrs_data::random::{Purpose, stream};
use jrs_data::sampling::{Patch, SampleId};
use libjrs::network::MARGIN;
use rand::Rng;

/// See [`super::Patches::batch`].
pub(super) fn batch(patches: &[Patch], organs: &[u8], blur: usize, device: &Device) -> Batch {
    let edge = patches[0].edge;
    let (mut images, mut source, mut fixed, mut masks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (f, m, s_f, s_m) in directions(patches) {
        images.extend_from_slice(f);
        images.extend_from_slice(m);
        source.extend_from_slice(m);
        source.extend(one_hot(s_m, organs, edge, blur));
        fixed.extend(centre(f, edge));
        let s_f = one_hot(s_f, organs, edge, blur);
        masks.extend(s_f.chunks(edge.pow(3)).flat_map(|channel| centre(channel, edge)));
    }
    let n = 2 * patches.len();
    let inner = edge - 2 * MARGIN;
    let tensor = |data: Vec<f32>, channels: usize, edge: usize| {
        Tensor::<5>::from_data(TensorData::new(data, [n, channels, edge, edge, edge]), device)
    };
    Batch {
        images: tensor(images, 2, edge),
        source: tensor(source, 1 + organs.len(), edge),
        fixed: tensor(fixed, 1, inner),
        fixed_masks: (!organs.is_empty()).then(|| tensor(masks, organs.len(), inner)),
    }
}

/// See [`super::Patches::real_pairs`].
pub(super) fn real_pairs(
    patches: &[Patch],
    organs: &[u8],
    segmentation: RealSegmentation,
    seed: u64,
    device: &Device,
) -> RealPair {
    let inner = patches[0].edge - 2 * MARGIN;
    let (mut images, mut masks) = (Vec::new(), Vec::new());
    for (direction, (f, _, s_f, _)) in directions(patches).enumerate() {
        let id = patches[direction % patches.len()].id;
        let (theta, mut draws) = theta(seed, id, direction / patches.len());
        images.extend(theta.image(&centre(f, patches[0].edge), inner, &mut draws));
        if !organs.is_empty() {
            let union: Vec<f32> = centre(s_f, patches[0].edge)
                .iter()
                .map(|l| f32::from(u8::from(organs.contains(l))))
                .collect();
            match segmentation {
                RealSegmentation::Raw => masks.extend(union),
                RealSegmentation::Theta => masks.extend(theta.displace(&union, inner)),
            }
        }
    }
    let n = 2 * patches.len();
    let tensor =
        |data: Vec<f32>| Tensor::<5>::from_data(TensorData::new(data, [n, 1, inner, inner, inner]), device);
    RealPair { image: tensor(images), mask: (!organs.is_empty()).then(|| tensor(masks)) }
}

/// Θ of a sample, forward (0) or backward (1), and the stream that its noise is drawn from.
pub(super) fn theta(seed: u64, id: SampleId, direction: usize) -> (Theta, impl Rng) {
    let mut draws = stream(seed, Purpose::Theta, &[id.epoch, id.pair as u64, id.k as u64, direction as u64]);
    (Theta::draw(&mut draws), draws)
}

type Direction<'a> = (&'a [f32], &'a [f32], &'a [u8], &'a [u8]);

/// (I_f, I_m, S_f, S_m) of all patches, then the same with fixed and moving exchanged.
fn directions(patches: &[Patch]) -> impl Iterator<Item = Direction<'_>> {
    let forward = |p| -> Direction<'_> {
        let p: &Patch = p;
        (&p.fixed, &p.moving, &p.fixed_labels, &p.moving_labels)
    };
    let backward = |p| -> Direction<'_> {
        let p: &Patch = p;
        (&p.moving, &p.fixed, &p.moving_labels, &p.fixed_labels)
    };
    patches.iter().map(forward).chain(patches.iter().map(backward))
}

/// The part of a cubic patch that the generator's output covers.
fn centre<T: Copy>(patch: &[T], edge: usize) -> Vec<T> {
    let inner = MARGIN..edge - MARGIN;
    let mut out = Vec::with_capacity(inner.len().pow(3));
    for z in inner.clone() {
        for y in inner.clone() {
            let row = (z * edge + y) * edge;
            out.extend_from_slice(&patch[row + inner.start..row + inner.end]);
        }
    }
    out
}
