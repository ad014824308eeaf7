//! What a registration will take, before it is begun: memory, the number of tiles, and the work that its time goes with.
//!
//! The figures follow the stages of [`crate::register`] and [`crate::qa`]: which volumes live at the same time. A
//! test of the C interface holds them against what a process really uses.

mod time;

pub use time::{Pace, Work};

use crate::engine::{Engine, Plan};
use crate::geometry::Grid;
use crate::model::Preprocessing;
use crate::network::{MARGIN, flops};
use crate::refine::{self, RefineOptions};
use crate::register::{Prealign, RegisterOptions};
use crate::resample::working_grid;
use crate::{Result, align};

/// What a registration will take.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Estimate {
    /// Most memory in use at one time, bytes; volumes that the caller holds are not counted.
    pub bytes: usize,
    /// What the engine holds for the largest tile, bytes; see [`Engine::bytes`].
    pub tile_bytes: usize,
    /// How much of it is in the memory of a device and not among `bytes`.
    pub device_bytes: usize,
    /// Runs of the network in one direction.
    pub tiles: usize,
    /// What its time goes with; see [`Pace::seconds`].
    pub work: Work,
}

/// Bytes per voxel that refinement works on at its finest resolution: displacement, sums of the NCC, gradients.
const REFINEMENT: usize = 20 * SCALAR;
/// Bytes of an f32 voxel and of a vector of three.
const SCALAR: usize = 4;
const VECTOR: usize = 3 * SCALAR;

/// The voxels of a registration, and what they cost outside the network.
#[derive(Debug, Clone, Copy)]
struct Voxels {
    fixed: usize,
    moving: usize,
    working: usize,
    directions: usize,
}

impl Voxels {
    /// While the network runs: both scans, both working images, and the fields that are finished or being made.
    fn during_network(&self) -> usize {
        SCALAR * (self.fixed + self.moving) + (2 * SCALAR + self.directions * VECTOR) * self.working
    }

    /// While the last field is brought onto its scan's grid: the engine has not let go yet.
    fn during_output(&self) -> usize {
        let seen =
            SCALAR * (self.fixed + self.moving) + (2 * SCALAR + self.directions * VECTOR) * self.working;
        // The forward field resampled and then joined with the affine; or it and the warped scan, and the backward field.
        let alone = 2 * VECTOR * self.fixed;
        let both = (VECTOR + SCALAR) * self.fixed + VECTOR * self.moving;
        seen + if self.directions == 2 { alone.max(both) } else { alone }
    }

    /// While the result is judged: more lives then than while it is made.
    fn during_judgement(&self) -> usize {
        // Scans, field, warped scan, body mask.
        let kept = SCALAR * self.moving + (2 * SCALAR + VECTOR + 1) * self.fixed + VECTOR * self.working;
        // The field without the affine, its lengths in the body, the Jacobian.
        let judged = (VECTOR + 2 * SCALAR) * self.fixed;
        // The backward field; the errors in the body.
        let both = if self.directions == 2 { VECTOR * self.moving + SCALAR * self.fixed } else { 0 };
        kept + judged + both
    }
}

/// What registering scans on these grids takes with `engine` and `options`.
///
/// # Errors
/// [`crate::Error::Memory`] if `options.max_bytes` is too small for any tile.
pub fn estimate(
    engine: Option<&dyn Engine>,
    preprocessing: &Preprocessing,
    [fixed, moving]: [&Grid; 2],
    options: &RegisterOptions,
) -> Result<Estimate> {
    let directions = if options.both_directions { 2 } else { 1 };
    let working = working_grid(fixed, preprocessing.spacing_mm);
    let voxels = Voxels { fixed: fixed.len(), moving: moving.len(), working: working.len(), directions };
    let mut found = Estimate { bytes: voxels.during_judgement(), ..Default::default() };
    if let Prealign::Find(how) = &options.prealign {
        found.work.alignment = align::work([fixed, moving], how);
    }
    // Working images are made, the field is brought onto the scans' grids, and the result is judged there.
    found.work.rest = (2 * working.len() + directions * (fixed.len() + moving.len())) as f64;
    if options.refine.steps > 0 {
        let fine = working_grid(fixed, options.spacing_mm);
        // Both images, a start and a field per direction, and what a level works on.
        let during = (2 * SCALAR + (1 + directions) * VECTOR + REFINEMENT) * fine.len();
        found.bytes = found.bytes.max(voxels.during_network() + during);
        let max_bytes = options.refine.max_bytes.min(options.max_bytes);
        let limits = RefineOptions { max_bytes, ..options.refine.clone() };
        found.work.refinement = directions as f64 * refine::work(fine.size, options.spacing_mm, &limits)?;
        found.work.rest += (2 * fine.len()) as f64;
    }
    if let Some(engine) = engine {
        let plan = Plan::new(working.size, options.max_bytes, |input| engine.bytes(input))?;
        let largest =
            plan.tiles.iter().map(|t| t.input_size()).max_by_key(|size| size.iter().product::<usize>());
        let largest = largest.expect("a plan has a tile");
        found.tiles = plan.tiles.len();
        found.work.network =
            directions as f64 * plan.tiles.iter().map(|t| flops(t.input_size())).sum::<f64>();
        found.tile_bytes = plan.most_bytes(|input| engine.bytes(input));
        let inputs = 2 * SCALAR * largest.iter().product::<usize>();
        let with_network = (voxels.during_network() + inputs).max(voxels.during_output());
        let on_host = if engine.has_own_memory() {
            found.device_bytes = found.tile_bytes;
            VECTOR * largest.map(|n| n - 2 * MARGIN).iter().product::<usize>()
        } else {
            found.tile_bytes
        };
        found.bytes = found.bytes.max(with_network + on_host);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten bytes per voxel, here or on a device.
    struct Sized {
        on_device: bool,
    }

    impl Engine for Sized {
        fn name(&self) -> String {
            "a size".into()
        }

        fn displacement(&self, _: &[f32], _: &[f32], _: [usize; 3], _: &mut [Vec<f32>; 3]) -> Result<()> {
            unreachable!("an estimate computes nothing")
        }

        fn bytes(&self, size: [usize; 3]) -> usize {
            10 * size.iter().product::<usize>()
        }

        fn has_own_memory(&self) -> bool {
            self.on_device
        }
    }

    #[test]
    fn a_devices_memory_is_counted_by_itself() {
        let grid = Grid::axis_aligned([40, 40, 40], [1.0; 3], [0.0; 3]);
        let found = |on_device, max_bytes| {
            let options = RegisterOptions { max_bytes, ..Default::default() };
            estimate(Some(&Sized { on_device }), &Preprocessing::default(), [&grid, &grid], &options).unwrap()
        };
        let (host, device) = (found(false, usize::MAX), found(true, usize::MAX));
        assert_eq!((host.tile_bytes, host.device_bytes), (10 * 80 * 80 * 80, 0));
        assert_eq!(device.device_bytes, device.tile_bytes);
        // What stays here of a tile is its output.
        assert_eq!(host.bytes - device.bytes, host.tile_bytes - VECTOR * 40 * 40 * 40);
        // The limit is the device's: more tiles, and hardly anything less here.
        let tight = found(true, 10 * 60 * 80 * 80);
        assert!(tight.tiles > 1 && tight.device_bytes <= 10 * 60 * 80 * 80, "{tight:?}");
        assert!(found(true, usize::MAX).tiles == 1);
    }

    #[test]
    fn work_follows_the_plan() {
        let grid = Grid::axis_aligned([40, 40, 40], [1.0; 3], [0.0; 3]);
        let engine = Sized { on_device: false };
        let work = |options: &RegisterOptions| {
            estimate(Some(&engine), &Preprocessing::default(), [&grid, &grid], options).unwrap().work
        };
        let plain = work(&RegisterOptions::default());
        assert_eq!((plain.network, plain.refinement, plain.alignment), (flops([80; 3]), 0.0, 0.0));
        let both = work(&RegisterOptions { both_directions: true, ..Default::default() });
        assert_eq!(both.network, 2.0 * plain.network);
        let tiled = work(&RegisterOptions { max_bytes: 10 * 60 * 80 * 80, ..Default::default() });
        assert!(tiled.network > plain.network, "tiles overlap");
        let refine = RefineOptions { steps: 10, ..Default::default() };
        let refined = work(&RegisterOptions { refine, ..Default::default() });
        // 4, 4 and 2 steps on 10, 20 and 40 voxels per axis, and one evaluation more at each.
        assert_eq!(refined.refinement, 5e3 + 5.0 * 8e3 + 3.0 * 64e3);
    }
}
