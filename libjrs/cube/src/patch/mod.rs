//! Training batches made on the device, from scans kept there as i16 intensities and u8 labels.
//!
//! ```text
//!  scans of a pair           patch of edge P                 batch of n patches: 2n problems
//!  +-------------+           +----------+   fixed, moving -> images [2n, 2, P, P, P]
//!  |     +---+   |   cut     | +------+ |   moving, organs-> source [2n, 1 + organs, P, P, P]
//!  |     | P |   | ------->  | | Q    | |   fixed, centre -> fixed  [2n, 1, Q, Q, Q]
//!  |     +---+   |           | +------+ |   organs, centre-> masks  [2n, organs, Q, Q, Q]
//!  +-------------+           +----------+   first all with fixed and moving as they are, then exchanged
//! ```
//!
//! The host draws what is random: where patches are, the few numbers of Θ, and Θ's noise, which it uploads. The arithmetic is
//! that of `jrs_data::{sampling, contours, theta}`, one unit a voxel.

mod cubes;
mod kernels;

use crate::launch::{Span, grid, values, width};
use crate::{Client, Handle, buffer};
use cubes::{Target, displaced, filtered, move_centre};
use kernels::{PlaceLaunch, cut_image, cut_mask, intensities};

/// Control points of Θ's displacement along each axis.
const CONTROL_POINTS: usize = 4;

/// The scans of a pair on a device.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// HU of the fixed and of the moving scan, i16, x fastest.
    images: [Handle; 2],
    /// Organ ids of both, u8.
    labels: [Handle; 2],
    /// Smallest HU of both: what is outside.
    minima: [i16; 2],
    /// Voxels along x, y, z.
    size: [usize; 3],
}

impl Volumes {
    /// Uploads the (fixed, moving) scans and their organ ids, `size` = x, y, z voxels with x fastest.
    ///
    /// # Panics
    /// If a slice does not have the size.
    pub fn upload(client: &Client, size: [usize; 3], images: [&[i16]; 2], labels: [&[u8]; 2]) -> Self {
        let voxels = size.iter().product::<usize>();
        let lengths = [images[0].len(), images[1].len(), labels[0].len(), labels[1].len()];
        assert_eq!(lengths, [voxels; 4], "scans of size {size:?}");
        Self {
            images: images.map(|image| buffer::upload(client, image)),
            labels: labels.map(|labels| buffer::upload(client, labels)),
            minima: images.map(|image| image.iter().copied().min().unwrap_or(0)),
            size,
        }
    }
}

/// Where a patch is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// Of this pair.
    pub volumes: &'a Volumes,
    /// Around this voxel x, y, z.
    pub centre: [usize; 3],
}

/// What patches are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Edge in voxels: P.
    pub edge: usize,
    /// What the network's output lacks on every side: Q = P - 2 margins.
    pub margin: usize,
    /// HU that become 1.
    pub full_scale: f32,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (I_f, I_m), `[2n, 2, P, P, P]`.
    pub images: Handle,
    /// What is warped: I_m, then its organs, `[2n, 1 + organs, P, P, P]`.
    pub source: Handle,
    /// I_f on the output grid, `[2n, 1, Q, Q, Q]`.
    pub fixed: Handle,
    /// Organs of I_f on the output grid, `[2n, organs, Q, Q, Q]`, where there are organs.
    pub fixed_masks: Option<Handle>,
}

/// One draw of Θ; see `jrs_data::theta::Theta`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change<'a> {
    /// Displacements (x, y, z) of 4 x 4 x 4 control points, in voxels.
    pub field: Option<&'a [[f32; 3]]>,
    /// Weights of the voxels from two before to two after.
    pub smoothing: Option<[f32; 5]>,
    /// Power of the intensity.
    pub gamma: Option<f32>,
    /// Added to every voxel of the output grid.
    pub noise: Option<&'a [f32]>,
}

/// Makes the batch of `cuts`; `organs` are the ids that become channels, averaged over cubes of 2 `blur` + 1 voxels.
///
/// # Panics
/// If the patch is not larger than its margins.
pub fn batch(client: &Client, cuts: &[Cut<'_>], organs: &[u8], blur: usize, shape: Shape) -> Batch {
    let n = 2 * cuts.len();
    let (edge, inner) = (shape.edge, shape.inner());
    let (whole, centre) = (edge.pow(3), inner.pow(3));
    let (sources, masks) = ((1 + organs.len()) * whole, organs.len() * centre);
    let images = Target::new(client, n * 2 * whole);
    let source = Target::new(client, n * sources);
    let fixed = Target::new(client, n * centre);
    let fixed_masks = Target::new(client, n * masks.max(1));
    let organ_list = buffer::upload(client, if organs.is_empty() { &[0] } else { organs });
    for (i, (cut, f, m)) in directions(cuts).enumerate() {
        let start = shape.start(cut.centre, 0);
        let inside = shape.start(cut.centre, shape.margin);
        cut.image(client, f, start, edge, shape.full_scale, &images.at(2 * i * whole));
        cut.image(client, m, start, edge, shape.full_scale, &images.at((2 * i + 1) * whole));
        cut.image(client, m, start, edge, shape.full_scale, &source.at(i * sources));
        cut.image(client, f, inside, inner, shape.full_scale, &fixed.at(i * centre));
        for organ in 0..organs.len() {
            let one = Organs { list: &organ_list, all: organs.len(), first: organ, count: 1 };
            cut.organ(client, m, one, start, edge, blur, &source.at(i * sources + (1 + organ) * whole));
            let to = fixed_masks.at(i * masks + organ * centre);
            if blur == 0 {
                cut.mask(client, f, one, inside, inner, &to);
            } else {
                // The border of the output grid is blurred with what is beyond.
                let patch = Target::new(client, whole);
                cut.organ(client, f, one, start, edge, blur, &patch);
                move_centre(client, &patch, edge, shape.margin, &to);
            }
        }
    }
    Batch {
        images: images.handle,
        source: source.handle,
        fixed: fixed.handle,
        fixed_masks: (!organs.is_empty()).then_some(fixed_masks.handle),
    }
}

/// Makes the critic's real pairs: Θ(I_f), `[2n, 1, Q, Q, Q]`, and the union of the organs of I_f, the same size, where there
/// are organs. `changes` are the 2n draws of Θ; `displace_masks` moves the union as Θ moves the image.
///
/// # Panics
/// If there are not 2n changes, or a noise or a field does not have its size.
pub fn real_pairs(
    client: &Client,
    cuts: &[Cut<'_>],
    organs: &[u8],
    changes: &[Change<'_>],
    displace_masks: bool,
    shape: Shape,
) -> (Handle, Option<Handle>) {
    assert_eq!(changes.len(), 2 * cuts.len(), "a change for each problem");
    let (inner, voxels) = (shape.inner(), shape.inner().pow(3));
    let images = Target::new(client, changes.len() * voxels);
    let masks = Target::new(client, changes.len() * voxels);
    let organ_list = buffer::upload(client, if organs.is_empty() { &[0] } else { organs });
    for (i, ((cut, f, _), change)) in directions(cuts).zip(changes).enumerate() {
        let start = shape.start(cut.centre, shape.margin);
        let image = Target::new(client, voxels);
        cut.image(client, f, start, inner, shape.full_scale, &image);
        change.apply(client, image, inner, &images.at(i * voxels));
        if organs.is_empty() {
            continue;
        }
        let all = Organs { list: &organ_list, all: organs.len(), first: 0, count: organs.len() };
        match change.field.filter(|_| displace_masks) {
            None => cut.mask(client, f, all, start, inner, &masks.at(i * voxels)),
            Some(field) => {
                let mask = Target::new(client, voxels);
                cut.mask(client, f, all, start, inner, &mask);
                displaced(client, &mask, field, inner, &masks.at(i * voxels));
            }
        }
    }
    (images.handle, (!organs.is_empty()).then_some(masks.handle))
}

/// All cuts with the numbers of their fixed and moving scans, then the same with fixed and moving exchanged.
fn directions<'a>(cuts: &'a [Cut<'a>]) -> impl Iterator<Item = (&'a Cut<'a>, usize, usize)> {
    cuts.iter().map(|cut| (cut, 0, 1)).chain(cuts.iter().map(|cut| (cut, 1, 0)))
}

impl Shape {
    fn inner(&self) -> usize {
        assert!(self.edge > 2 * self.margin, "edge {} with margins of {}", self.edge, self.margin);
        self.edge - 2 * self.margin
    }

    /// First voxel x, y, z of the patch, or of its part without the margin.
    fn start(&self, centre: [usize; 3], margin: usize) -> [i32; 3] {
        centre.map(|c| c as i32 - (self.edge / 2) as i32 + margin as i32)
    }
}

/// Organ ids, of which `count` from `first` on are meant.
#[derive(Clone, Copy)]
struct Organs<'a> {
    list: &'a Handle,
    all: usize,
    first: usize,
    count: usize,
}

impl Cut<'_> {
    /// Scan `which` from `start` on, as an image.
    fn image(
        &self,
        client: &Client,
        which: usize,
        start: [i32; 3],
        edge: usize,
        full_scale: f32,
        to: &Target,
    ) {
        let span = Span::free(width(client));
        let voxels = self.volumes.size.iter().product();
        let outside = f32::from(self.volumes.minima[which]) / full_scale;
        // SAFETY: positions outside the scan are not read; the target has room for edge^3 values from `at` on.
        unsafe {
            cut_image::launch_unchecked(
                client,
                grid(span.cubes(edge.pow(3))),
                span.dim(),
                values::<i16>(&self.volumes.images[which], voxels, "scan"),
                to.arg(),
                self.place(start, edge, to.at),
                full_scale,
                outside,
                span,
            );
        }
    }

    /// 1 where scan `which` has one of the organs, otherwise 0.
    fn mask(
        &self,
        client: &Client,
        which: usize,
        organs: Organs<'_>,
        start: [i32; 3],
        edge: usize,
        to: &Target,
    ) {
        let span = Span::free(width(client));
        let voxels = self.volumes.size.iter().product();
        // SAFETY: as in `image`.
        unsafe {
            cut_mask::launch_unchecked(
                client,
                grid(span.cubes(edge.pow(3))),
                span.dim(),
                values::<u8>(&self.volumes.labels[which], voxels, "labels"),
                values::<u8>(organs.list, organs.all, "organs"),
                to.arg(),
                self.place(start, edge, to.at),
                organs.first,
                organs.count,
                span,
            );
        }
    }

    /// [`Cut::mask`], blurred.
    fn organ(
        &self,
        client: &Client,
        which: usize,
        organ: Organs<'_>,
        start: [i32; 3],
        edge: usize,
        blur: usize,
        to: &Target,
    ) {
        if blur == 0 {
            return self.mask(client, which, organ, start, edge, to);
        }
        let mask = Target::new(client, edge.pow(3));
        self.mask(client, which, organ, start, edge, &mask);
        let weights = vec![1.0; 2 * blur + 1];
        filtered(client, mask, &weights, (2 * blur + 1) as f32, edge, to);
    }

    fn place(&self, [x, y, z]: [i32; 3], edge: usize, at: usize) -> PlaceLaunch {
        let [size_x, size_y, size_z] = self.volumes.size;
        PlaceLaunch::new(size_x, size_y, size_z, x, y, z, edge, at)
    }
}

impl Change<'_> {
    /// Θ of a cubic image.
    fn apply(&self, client: &Client, mut image: Target, edge: usize, to: &Target) {
        let voxels = edge.pow(3);
        if let Some(field) = self.field {
            let next = Target::new(client, voxels);
            displaced(client, &image, field, edge, &next);
            image = next;
        }
        if let Some(weights) = self.smoothing {
            let next = Target::new(client, voxels);
            filtered(client, image, &weights, 1.0, edge, &next);
            image = next;
        }
        let noise = self.noise.map(|noise| {
            assert_eq!(noise.len(), voxels, "noise");
            buffer::upload(client, noise)
        });
        let span = Span::free(width(client));
        let noisy = noise.is_some();
        // SAFETY: a unit without a voxel ends; without noise, none is read.
        unsafe {
            intensities::launch_unchecked(
                client,
                grid(span.cubes(voxels)),
                span.dim(),
                image.arg(),
                values::<f32>(noise.as_ref().unwrap_or(&image.handle), voxels, "noise"),
                to.arg(),
                to.at,
                voxels,
                self.gamma.unwrap_or(1.0),
                self.gamma.is_some(),
                noisy,
                span,
            );
        }
    }
}

/// The kernels, as a GPU gets them.
#[cfg(feature = "ptx")]
pub(crate) fn offline(kernels: &mut crate::ptx::Offline) {
    use crate::launch::Width;
    use crate::ptx::{arg, buffer};
    use kernels::{Place, centre, displace, filter};
    let span = Span::free(Width::Gpu);
    let place = || arg::<Place>(PlaceLaunch::new(200, 200, 150, 0, 0, 0, 64, 0));
    kernels.add("patch, image", span.units, |s, d, t| {
        cut_image::CutImage::new(s, d, t, buffer(), buffer(), place(), (), (), span)
    });
    kernels.add("patch, mask", span.units, |s, d, t| {
        cut_mask::CutMask::new(s, d, t, buffer(), buffer(), buffer(), place(), (), (), span)
    });
    kernels.add("patch, filter", span.units, |s, d, t| {
        filter::Filter::new(s, d, t, buffer(), buffer(), buffer(), (), (), (), (), span)
    });
    kernels.add("patch, displacement", span.units, |s, d, t| {
        displace::Displace::new(s, d, t, buffer(), buffer(), buffer(), (), (), (), span)
    });
    kernels.add("patch, intensities", span.units, |s, d, t| {
        intensities::Intensities::new(s, d, t, buffer(), buffer(), buffer(), (), (), (), true, true, span)
    });
    kernels.add("patch, centre", span.units, |s, d, t| {
        centre::Centre::new(s, d, t, buffer(), buffer(), (), (), (), span)
    });
}
