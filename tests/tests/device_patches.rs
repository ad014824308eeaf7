//! Patches that a device (`JRS_TEST_DEVICE`) cuts from scans of its own, and Θ there, against those made on the host
//! (`jrs_data::{sampling, contours, theta}`, which have tests of their own). Where the device is the CPU there is nothing to compare.

mod device;

use burn::tensor::{Device, Tensor};
use device::device;
use jrs_data::cache::PreparedPair;
use jrs_data::dataset::Split;
use jrs_data::sampling::SampleId;
use jrs_data::theta::Theta;
use jrs_worker::batch::{Batch, Cutter, RealPair, Samples, Scans};
use jrs_worker::config::{RealSegmentation, TrainConfig};
use libjrs::{Affine, Grid};
use std::sync::Arc;

/// The smallest that a critic can see.
const EDGE: usize = 76;
const FULL_SCALE: f32 = 1000.0;
const SEED: u64 = 5;
/// Positions up to 36 voxels have steps of 3.8e-6 in f32, and a mask changes by 1 within a voxel, along three axes.
const INTERPOLATED: f32 = 1.2e-5;

/// Scans smaller than a patch along z, so that patches stick out on some sides whatever their centre.
fn scans(number: usize) -> Arc<Scans> {
    let size = [61, 50, 31];
    let voxels = size.iter().product::<usize>();
    let at = |i: usize| [i % size[0], i / size[0] % size[1], i / size[0] / size[1]].map(|v| v as f32 * 0.21);
    let image = |phase: f32| -> Vec<i16> {
        let wave = |i| at(i).iter().map(|v| (v + phase + number as f32).sin()).product::<f32>();
        (0..voxels).map(|i| (wave(i) * 1000.0) as i16).collect()
    };
    let labels = |shift: usize| -> Vec<u8> {
        // Blocks of eight voxels, in which a blurred mask reaches 1.
        let block = |i: usize| i % size[0] / 8 + i / size[0] % size[1] / 8 + i / size[0] / size[1] / 8;
        (0..voxels).map(|i| ((block(i) + shift) % 4) as u8).collect()
    };
    Arc::new(Scans::from(PreparedPair {
        id: format!("pair {number}"),
        patient: "formula".into(),
        split: Split::Train,
        grid: Grid::axis_aligned(size, [1.0; 3], [0.0; 3]),
        fixed: image(0.0),
        moving: image(0.4),
        fixed_labels: labels(0),
        moving_labels: labels(1),
        mask: vec![1; voxels],
        affine: Affine::IDENTITY,
    }))
}

fn config() -> TrainConfig {
    let text = format!("system = \"JRS-GANa\"\nseed = {SEED}\nsampling = {{ patch = {EDGE}, batch = 2 }}");
    TrainConfig::parse(&text).unwrap()
}

/// Three samples of two pairs.
fn samples(device: &Device, config: &TrainConfig, first: usize) -> Samples {
    let scans = [scans(0), scans(1), scans(0)];
    let ids = [0, 1, 2].map(|k| SampleId { epoch: 2, pair: k % 2, k: first + k });
    Cutter::new(config, FULL_SCALE, device).samples(&ids, &scans)
}

fn host<const D: usize>(t: Tensor<D>) -> (Vec<usize>, Vec<f32>) {
    (t.dims().to_vec(), t.to_data().try_into_vec().expect("values are f32"))
}

fn assert_same(name: &str, ours: Tensor<5>, expected: Tensor<5>, tolerance: f32) {
    let ((shape, ours), (expected_shape, expected)) = (host(ours), host(expected));
    assert_eq!(shape, expected_shape, "{name}");
    let off = ours.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: {} values, off by {off:.1e} at most", ours.len());
    assert!(off <= tolerance, "{name}: off by {off:e}, at most {tolerance:e}");
    let spread = expected.iter().fold(0.0f32, |most, v| most.max((v - expected[0]).abs()));
    assert!(spread > 0.5, "{name}: the values hardly differ, so nothing is shown");
}

#[test]
fn a_batch_is_the_hosts() {
    let config = config();
    for (organs, blur) in [(vec![], 0), (vec![1, 3], 0), (vec![1, 2, 3], 2)] {
        let make =
            |device: &Device| -> Batch { samples(device, &config, 0).patches().batch(&organs, blur, device) };
        let (ours, expected) = (make(&device()), make(&Device::flex()));
        let name = |part: &str| format!("{part}, organs {organs:?}, blur {blur}");
        // Nothing is interpolated, and a mean of 0 and 1 has its order.
        assert_same(&name("images"), ours.images, expected.images, 0.0);
        assert_same(
            &name("source"),
            ours.source,
            expected.source,
            if blur == 0 { 0.0 } else { INTERPOLATED },
        );
        assert_same(&name("fixed"), ours.fixed, expected.fixed, 0.0);
        assert_eq!(ours.fixed_masks.is_some(), expected.fixed_masks.is_some());
        if let (Some(ours), Some(expected)) = (ours.fixed_masks, expected.fixed_masks) {
            assert_same(&name("fixed masks"), ours, expected, if blur == 0 { 0.0 } else { INTERPOLATED });
        }
    }
}

#[test]
fn real_pairs_are_the_hosts() {
    let config = config();
    // So many that each part of Θ is there with and without the others.
    let mut seen = [0; 4];
    for first in (0..18).step_by(3) {
        for segmentation in [RealSegmentation::Raw, RealSegmentation::Theta] {
            let make = |device: &Device| -> RealPair {
                let samples = samples(device, &config, first);
                samples.patches().real_pairs(&[1, 2], segmentation, SEED, device)
            };
            let (ours, expected) = (make(&device()), make(&Device::flex()));
            let name = format!("samples from {first} on, {segmentation:?}");
            assert_same(&format!("Θ(I), {name}"), ours.image, expected.image, INTERPOLATED);
            assert_same(&format!("mask, {name}"), ours.mask.unwrap(), expected.mask.unwrap(), INTERPOLATED);
        }
        for k in first..first + 3 {
            for direction in 0..2 {
                let key = [2, (k - first) as u64 % 2, k as u64, direction];
                let mut draws = jrs_data::random::stream(SEED, jrs_data::random::Purpose::Theta, &key);
                let Theta { noise, smoothing, gamma, field } = Theta::draw(&mut draws);
                let parts = [noise, smoothing.is_some(), gamma.is_some(), field.is_some()];
                seen.iter_mut().zip(parts).for_each(|(seen, part)| *seen += usize::from(part));
            }
        }
    }
    assert!(seen.iter().all(|&n| n > 5 && n < 31), "each part of Θ, and without it: {seen:?} of 36");
}

#[test]
fn scans_are_uploaded_once_and_cut_anywhere() {
    let config = config();
    let device = device();
    let pair = scans(3);
    let cutter = Cutter::new(&config, FULL_SCALE, &device);
    let cut = |k| {
        let samples = cutter.samples(&[SampleId { epoch: 0, pair: 0, k }], std::slice::from_ref(&pair));
        host(samples.patches().batch(&[], 0, &device).images)
    };
    let first = cut(0);
    assert_ne!(cut(1), first, "another centre is another patch");
    assert_eq!(cut(0), first);
}
