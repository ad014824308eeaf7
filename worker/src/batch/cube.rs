//! Batches made on a CubeCL device from scans that lie there. Only what is drawn at random is uploaded, and a pair's scans when a
//! patch of it is first cut.

use super::samples::{Cut, Scans};
use super::{Batch, RealPair};
use crate::config::RealSegmentation;
use burn::backend::Cube;
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use jrs_cube::{Client, Handle, patch};
use libjrs::network::MARGIN;

/// See [`super::Patches::batch`].
pub(super) fn batch(cuts: &[Cut], organs: &[u8], blur: usize, device: &Device) -> Batch {
    let device = of(device);
    let client = device.client();
    let made = patch::batch(&client, &places(cuts, &client), organs, blur, cuts[0].shape);
    let (n, edge) = (2 * cuts.len(), cuts[0].shape.edge);
    let inner = edge - 2 * MARGIN;
    let tensor = |values, channels, edge| tensor(&client, &device, values, [n, channels, edge, edge, edge]);
    Batch {
        images: tensor(made.images, 2, edge),
        source: tensor(made.source, 1 + organs.len(), edge),
        fixed: tensor(made.fixed, 1, inner),
        fixed_masks: made.fixed_masks.map(|masks| tensor(masks, organs.len(), inner)),
    }
}

/// See [`super::Patches::real_pairs`].
pub(super) fn real_pairs(
    cuts: &[Cut],
    organs: &[u8],
    segmentation: RealSegmentation,
    device: &Device,
) -> RealPair {
    let device = of(device);
    let client = device.client();
    let changes: Vec<_> =
        (0..2).flat_map(|direction| cuts.iter().map(move |cut| cut.changes[direction].on_device())).collect();
    let displace_masks = segmentation == RealSegmentation::Theta;
    let places = places(cuts, &client);
    let (image, mask) = patch::real_pairs(&client, &places, organs, &changes, displace_masks, cuts[0].shape);
    let inner = cuts[0].shape.edge - 2 * MARGIN;
    let tensor = |values| tensor(&client, &device, values, [changes.len(), 1, inner, inner, inner]);
    RealPair { image: tensor(image), mask: mask.map(tensor) }
}

fn of(device: &Device) -> CubeDevice {
    crate::device::cube(device).expect("cuts are made for CubeCL devices")
}

fn places<'c>(cuts: &'c [Cut], client: &Client) -> Vec<patch::Cut<'c>> {
    cuts.iter().map(|cut| patch::Cut { volumes: cut.scans.volumes(client), centre: cut.centre }).collect()
}

impl Scans {
    /// Those on the device, which are uploaded the first time. A process has one device.
    fn volumes(&self, client: &Client) -> &patch::Volumes {
        let pair = &self.pair;
        self.on_device.get_or_init(|| {
            let images = [&pair.fixed, &pair.moving].map(|hu| &hu[..]);
            let labels = [&pair.fixed_labels, &pair.moving_labels].map(|labels| &labels[..]);
            patch::Volumes::upload(client, pair.grid.size, images, labels)
        })
    }
}

fn tensor(client: &Client, device: &CubeDevice, values: Handle, shape: [usize; 5]) -> Tensor<5> {
    let values =
        CubeTensor::new_contiguous(client.clone(), device.clone(), Shape::new(shape), values, DType::F32);
    Tensor::from_primitive::<Cube>(values)
}
