//! The kernels against PyTorch. Convolution and BatchNorm are compared as parts of the networks.

use jrs_kernels::upsample_concat::UpsampleConcat;
use jrs_kernels::warp::Warp;
use jrs_tests::reference::{Reference, uniform};

/// One operation in f32 has only rounding between it and the reference.
const TIGHT: f64 = 2e-6;

#[test]
fn warp_and_its_gradient() {
    let reference = Reference::new();
    let warp = Warp { batch: 2, channels: 2, source: [14, 15, 16], output: [8, 9, 10], offset: 3 };
    let source = uniform(2030, warp.source_len(), 1.0, 0.0);
    let c = uniform(2032, warp.output_len(), 1.0, 0.0);
    for (case, spacing) in [("warp", 1.0), ("warp_spacing_2", 2.0)] {
        // The reference's u is in mm, the kernel's in voxels.
        let u: Vec<f32> =
            uniform(2031, warp.displacement_len(), 9.0, 0.0).into_iter().map(|v| v / spacing).collect();
        let mut y = vec![f32::NAN; warp.output_len()];
        warp.forward(&source, &u, &mut y);
        reference.assert_close(&format!("{case}.output"), &y, TIGHT);

        let mut du = vec![f32::NAN; u.len()];
        warp.backward(&source, &u, &c, &mut du);
        let per_mm: Vec<f32> = du.into_iter().map(|v| v / spacing).collect();
        reference.assert_close(&format!("{case}.grad.u"), &per_mm, TIGHT);
    }
}

#[test]
fn upsample_concat_and_its_gradients() {
    let reference = Reference::new();
    let op = UpsampleConcat { batch: 2, c_up: 3, c_skip: 2, low: [2, 3, 4], crop: 1 };
    let (low, skip) = (uniform(2040, op.low_len(), 1.0, 0.0), uniform(2041, op.skip_len(), 1.0, 0.0));
    let mut y = vec![f32::NAN; op.output_len()];
    op.forward(&low, &skip, &mut y);
    reference.assert_close("upsample_concat.output", &y, 0.0);

    let c = uniform(2042, op.output_len(), 1.0, 0.0);
    let (mut d_low, mut d_skip) = (vec![f32::NAN; low.len()], vec![f32::NAN; skip.len()]);
    op.backward(&c, &mut d_low, &mut d_skip);
    reference.assert_close("upsample_concat.grad.low", &d_low, TIGHT);
    reference.assert_close("upsample_concat.grad.skip", &d_skip, 0.0);
}
