//! Running the generator: an [`Engine`] computes one padded input, [`infer`] takes whole volumes apart for it.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod device;
mod folded;
mod matrix;
mod plan;
mod stream;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use jrs_kernels::pool::{Pool, SCRATCH};
use rayon::prelude::*;

pub use cpu::CpuEngine;
#[cfg(feature = "cube")]
pub use cube::CubeEngine;
pub use device::{Compute, Device, Precision, on_cpu};
pub use matrix::MatrixEngine;
pub use plan::{Plan, SEAM, Tile, padded};
use stream::{Blocks, Stream};

use crate::network::{INPUT_MULTIPLE, MARGIN, MIN_INPUT};
use crate::progress::Progress;
use crate::volume::range;
use crate::{Error, Result};

/// Computes displacements with the generator. Implementations differ by device, never in meaning.
pub trait Engine: Send + Sync {
    /// What runs where, for logs and reports.
    fn name(&self) -> String;

    /// Displacements of one padded input.
    ///
    /// `fixed` and `moving` are normalised intensities of `size` = \[x, y, z\] voxels (x fastest); each edge is at
    /// least 44 and a multiple of 4. `out` receives the x, y, z components in **mm along the index axes**, each of
    /// `(size - 40)` voxels per axis; output voxel m sits on input voxel m + 20.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if the sizes do not fit; device errors.
    fn displacement(
        &self,
        fixed: &[f32],
        moving: &[f32],
        size: [usize; 3],
        out: &mut [Vec<f32>; 3],
    ) -> Result<()>;

    /// Most bytes that the engine holds on the current threads while all inputs have this size: weights, buffers at work and
    /// waiting for the next layer or tile, and one output. See [`Engine::has_own_memory`].
    fn bytes(&self, size: [usize; 3]) -> usize;

    /// True if [`Engine::bytes`] are in a device's memory and not in the process's.
    fn has_own_memory(&self) -> bool {
        false
    }
}

/// The displacement of every voxel of a whole volume: pads, tiles and joins (`science.md` section 6).
///
/// `fixed` and `moving` are normalised intensities of `size` = \[x, y, z\] voxels, x fastest. The result has the
/// same size, components x, y, z in mm along the index axes. `max_bytes` bounds the engine's working memory for one
/// tile, wherever that is; the two images and the result come on top.
///
/// # Errors
/// [`crate::Error::Memory`] if `max_bytes` is too small for any tile, [`crate::Error::Cancelled`], and whatever the
/// engine reports.
pub fn infer(
    engine: &dyn Engine,
    fixed: &[f32],
    moving: &[f32],
    size: [usize; 3],
    max_bytes: usize,
    progress: Progress,
) -> Result<[Vec<f32>; 3]> {
    infer_within(engine, fixed, moving, size, &size.map(|n| 0..n), max_bytes, progress)
}

/// [`infer`] for a box of the volume alone, at the cost of the box: per axis x, y, z the `wanted` voxels, from a multiple of 4 on. The
/// result has the size of the box and [`infer`]'s values.
///
/// # Errors
/// As [`infer`]; [`crate::Error::Input`] if the box is not one of the volume.
pub fn infer_within(
    engine: &dyn Engine,
    fixed: &[f32],
    moving: &[f32],
    size: [usize; 3],
    wanted: &[Range<usize>; 3],
    max_bytes: usize,
    progress: Progress,
) -> Result<[Vec<f32>; 3]> {
    let plan = Plan::within(size, wanted, max_bytes, |input| engine.bytes(input))?;
    let voxels = wanted.iter().map(Range::len).product();
    let mut u: [Vec<f32>; 3] = std::array::from_fn(|_| vec![0.0; voxels]);
    let mut tile_u: [Vec<f32>; 3] = Default::default();
    // Each image's own minimum pads it.
    let floors = [fixed, moving].map(|image| range(image)[0]);
    progress.step("network", 0, plan.tiles.len())?;
    for (done, tile) in plan.tiles.iter().enumerate() {
        let tile_fixed = cut(fixed, size, tile, floors[0]);
        let tile_moving = cut(moving, size, tile, floors[1]);
        // Where one tile is all that is wanted, its output is the result.
        let whole = tile.keep == *wanted && tile.output_size() == wanted.each_ref().map(Range::len);
        let to = if whole { &mut u } else { &mut tile_u };
        engine.displacement(&tile_fixed, &tile_moving, tile.input_size(), to)?;
        if !whole {
            for (whole, part) in u.iter_mut().zip(&tile_u) {
                paste(part, tile, whole, wanted);
            }
        }
        progress.step("network", done + 1, plan.tiles.len())?;
    }
    Ok(u)
}

/// Buffers of earlier planes and tiles, as long as they are all that an input of another size needs: otherwise few would fit, and the
/// rest would stay for nothing.
#[derive(Default)]
struct Buffers {
    pool: Pool,
    size: Mutex<[usize; 3]>,
}

impl Buffers {
    /// [`Stream::run`] in these buffers.
    fn run<B: Blocks>(&self, blocks: &B, images: [&[f32]; 2], size: [usize; 3], out: &mut [Vec<f32>; 3]) {
        let last = std::mem::replace(&mut *self.size.lock().unwrap_or_else(PoisonError::into_inner), size);
        if last != size && !Stream::fits(blocks, &self.pool, size) {
            self.pool.clear();
            SCRATCH.clear();
        }
        Stream::run(blocks, &self.pool, images, size, out);
    }
}

/// What every engine asks of one padded input.
fn check_input(fixed: &[f32], moving: &[f32], size: [usize; 3]) -> Result<()> {
    if size.iter().any(|&n| n < MIN_INPUT || n % INPUT_MULTIPLE != 0) {
        return Err(Error::input(
            format!("a network input of {size:?} voxels"),
            format!("pad every edge to a multiple of {INPUT_MULTIPLE} of at least {MIN_INPUT}"),
        ));
    }
    let voxels: usize = size.iter().product();
    if fixed.len() != voxels || moving.len() != voxels {
        return Err(Error::input(
            format!("{} fixed and {} moving values for {voxels} voxels", fixed.len(), moving.len()),
            "give one value per voxel",
        ));
    }
    Ok(())
}

/// A tile's input: the image where it has voxels, `floor` elsewhere.
fn cut(image: &[f32], size: [usize; 3], tile: &Tile, floor: f32) -> Vec<f32> {
    let [nx, ny, nz] = tile.input_size();
    let mut out = vec![0.0; nx * ny * nz];
    // Padded voxel p is image voxel p - MARGIN.
    let inside = |a: usize| {
        let Range { start, end } = tile.input[a].clone();
        start.max(MARGIN)..end.min(size[a] + MARGIN)
    };
    let (xs, ys, zs) = (inside(0), inside(1), inside(2));
    out.par_chunks_exact_mut(nx * ny).zip(tile.input[2].clone()).for_each(|(plane, z)| {
        plane.fill(floor);
        if xs.is_empty() || !zs.contains(&z) {
            return;
        }
        for y in ys.clone() {
            let from = xs.start - MARGIN + size[0] * (y - MARGIN + size[1] * (z - MARGIN));
            let to = xs.start - tile.input[0].start + nx * (y - tile.input[1].start);
            plane[to..to + xs.len()].copy_from_slice(&image[from..from + xs.len()]);
        }
    });
    out
}

/// Puts the kept part of a tile's output in its place among the `wanted` voxels.
fn paste(part: &[f32], tile: &Tile, whole: &mut [f32], wanted: &[Range<usize>; 3]) {
    let [nx, ny, _] = tile.output_size();
    let [width, height] = [wanted[0].len(), wanted[1].len()];
    let [xs, ys, zs] =
        std::array::from_fn(|a| tile.keep[a].start - wanted[a].start..tile.keep[a].end - wanted[a].start);
    let [sx, sy, sz] = tile.skip;
    for (k, z) in zs.enumerate() {
        for (j, y) in ys.clone().enumerate() {
            let from = sx + nx * (j + sy + ny * (k + sz));
            let to = xs.start + width * (y + height * z);
            whole[to..to + xs.len()].copy_from_slice(&part[from..from + xs.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Error;

    pub(super) fn images(size: [usize; 3]) -> [Vec<f32>; 2] {
        let n: usize = size.iter().product();
        let wave =
            |i: usize, s: f32| ((i % 97) as f32 * 0.31 + s).sin() * ((i / 97) as f32 * 0.013 + s).cos();
        [0.0, 0.7].map(|s| (0..n).map(|i| wave(i, s)).collect())
    }

    #[test]
    fn tiles_give_what_the_whole_volume_gives() {
        let size = [26, 18, 21];
        let [fixed, moving] = images(size);
        let engine = CpuEngine::new(&cpu::reference_weights());
        let whole = infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
        let spread = whole[0].iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(spread > 0.5, "the comparison needs values of the order of 1 mm, not {spread}");
        for limit in [[56, 60, 52], [52, 56, 48]].map(|edges| engine.bytes(edges)) {
            assert!(Plan::new(size, limit, |s| engine.bytes(s)).unwrap().tiles.len() > 1);
            let tiled = infer(&engine, &fixed, &moving, size, limit, Progress::SILENT).unwrap();
            for (w, t) in whole.iter().flatten().zip(tiled.iter().flatten()) {
                assert!((w - t).abs() < 1e-4, "{w} and {t} mm");
            }
        }
    }

    #[test]
    fn a_box_has_the_values_of_the_whole_volume() {
        let size = [26, 18, 21];
        let [fixed, moving] = images(size);
        let engine = CpuEngine::new(&cpu::reference_weights());
        let whole = infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap();
        for wanted in [[4..13, 8..18, 0..21], [0..26, 12..13, 4..20]] {
            for limit in [usize::MAX, engine.bytes([52, 52, 52])] {
                let part =
                    infer_within(&engine, &fixed, &moving, size, &wanted, limit, Progress::SILENT).unwrap();
                let [width, height, _] = wanted.clone().map(|range| range.len());
                for (whole, part) in whole.iter().zip(&part) {
                    assert_eq!(part.len(), wanted.iter().map(Range::len).product::<usize>());
                    for (i, p) in part.iter().enumerate() {
                        let at = [i % width, i / width % height, i / width / height];
                        let [x, y, z] = std::array::from_fn(|a| wanted[a].start + at[a]);
                        let w = whole[x + size[0] * (y + size[1] * z)];
                        assert!((w - p).abs() < 1e-4, "{w} and {p} mm at {x}, {y}, {z} of {wanted:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn same_bits_with_one_and_two_threads() {
        let size = [9, 8, 7];
        let [fixed, moving] = images(size);
        let engine = CpuEngine::new(&cpu::reference_weights());
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| infer(&engine, &fixed, &moving, size, usize::MAX, Progress::SILENT).unwrap())
        };
        assert_eq!(with(1), with(2));
    }

    /// Planes are made of what earlier ones left in memory.
    #[test]
    fn same_bits_from_an_engine_that_was_used() {
        // Here a plane whose last voxels count is made of a larger one.
        let size = [84, 92, 68];
        let [fixed, moving] = images(size);
        let weights = cpu::reference_weights();
        let run = |engine: &CpuEngine, fixed, moving| {
            let mut u = Default::default();
            engine.displacement(fixed, moving, size, &mut u).unwrap();
            u
        };
        let fresh = run(&CpuEngine::new(&weights), &fixed, &moving);
        let used = CpuEngine::new(&weights);
        let loud: Vec<f32> = fixed.iter().map(|v| 1e4 * v).collect();
        run(&used, &loud, &moving);
        assert!(run(&used, &fixed, &moving) == fresh);
    }

    #[test]
    fn cancelling_ends_between_tiles() {
        let size = [30, 8, 8];
        let [fixed, moving] = images(size);
        let engine = CpuEngine::new(&cpu::reference_weights());
        let stop = AtomicBool::new(false);
        let tiles_done = std::sync::atomic::AtomicUsize::new(0);
        let report = |_: &str, done: usize, _: usize| {
            tiles_done.store(done, Ordering::Relaxed);
            stop.store(done == 1, Ordering::Relaxed);
        };
        let progress = Progress { report: Some(&report), cancel: Some(&stop) };
        let end = infer(&engine, &fixed, &moving, size, engine.bytes([56, 48, 48]), progress);
        assert!(matches!(end, Err(Error::Cancelled)));
        assert_eq!(tiles_done.load(Ordering::Relaxed), 1);
    }
}
