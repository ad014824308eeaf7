//! From two scans to a deformation: the whole pipeline around the network (`science.md` section 6).
//!
//! Both scans are brought onto an isotropic working grid along the fixed scan's axes, the network (or refinement
//! alone) finds u there, and u is turned into LPS, brought onto the fixed scan's own grid and joined with the
//! prealignment: T(x) = affine(x + u(x)).

use std::ops::Range;

use rayon::prelude::*;

use crate::align::{AlignOptions, align};
use crate::engine::{Compute, Engine, Plan, infer_within};
use crate::field::{
    InverseConsistency, compose_with_affine, field_on, inverse_consistency, resample_field, sample_clamped,
    warp_image,
};
use crate::geometry::mat_vec;
use crate::model::{Model, Preprocessing};
use crate::progress::{Progress, Stopwatch};
use crate::reach::{needed, reached};
use crate::refine::{LevelReport, RefineOptions, refine};
use crate::resample::{gaussian_smooth, working_grid};
use crate::volume::first_not_finite;
use crate::working::working_pair;
use crate::{Affine, DisplacementField, Error, Grid, Result, Volume};

/// Stack of the thread for what is done meanwhile, bytes: it writes files, and compresses with threads of the pool.
const STACK: usize = 4 << 20;

/// How to register.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisterOptions {
    /// Maps fixed points to moving points before anything else; the network only finds what is left.
    pub prealign: Prealign,
    /// Bound of the working memory of the network (on its device) and of refinement, bytes; images and fields come on top.
    pub max_bytes: usize,
    /// Gradient steps of test-time refinement; 0 = the network alone.
    pub refine: RefineOptions,
    /// Also register moving to fixed, for the inverse-consistency error, where the patient is. Takes up to twice the time, and no more
    /// memory than the forward direction's network.
    pub both_directions: bool,
    /// Number of threads; `None` = the current rayon pool.
    pub threads: Option<usize>,
    /// Edge of the voxels on which refinement works, mm; a network's are its model's.
    pub spacing_mm: f64,
    /// Where the network runs; refinement and all else run on the CPU.
    pub compute: Compute,
}

impl Default for RegisterOptions {
    fn default() -> Self {
        Self {
            prealign: Prealign::Given(Affine::IDENTITY),
            max_bytes: 4 << 30,
            refine: RefineOptions { steps: 0, ..Default::default() },
            both_directions: false,
            threads: None,
            spacing_mm: 1.0,
            compute: Compute::default(),
        }
    }
}

/// Where the prealignment comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prealign {
    /// It is known; [`Affine::IDENTITY`] where the scans lie as they should.
    Given(Affine),
    /// To be found, see [`crate::align`].
    Find(AlignOptions),
}

/// A finished registration.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The prealignment that was used, fixed to moving.
    pub affine: Affine,
    /// Total displacement T(x) - x, affine included, on the fixed scan's grid, LPS mm.
    pub field: DisplacementField,
    /// u without the affine, on the working grid (of refinement, if there was one), LPS mm: T(x) = affine(x + u(x)).
    pub network_field: DisplacementField,
    /// moving(T(x)) on the fixed scan's grid, HU; where T(x) leaves the moving scan, its minimum.
    pub warped: Volume<f32>,
    /// With [`RegisterOptions::both_directions`]: the total displacement from moving to fixed points, LPS mm, on the part of the moving
    /// scan's grid that the patient of the fixed scan reaches; with refinement on all of it.
    pub backward: Option<DisplacementField>,
    /// What refinement did in the forward direction, per resolution.
    pub refinement: Vec<LevelReport>,
    /// Seconds per stage, in order.
    pub timings: Vec<(&'static str, f64)>,
    /// What a user should know before using the result.
    pub warnings: Vec<String>,
}

/// What is known once the forward direction is done; see [`Registration`].
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// The prealignment.
    pub affine: Affine,
    /// Total displacement on the fixed scan's grid.
    pub field: DisplacementField,
    /// u without the affine, on the working grid.
    pub network_field: DisplacementField,
    /// The moving scan on the fixed scan's grid.
    pub warped: Volume<f32>,
}

impl Registration {
    /// How far fixed -> moving -> fixed misses, over the voxels of the fixed grid where `mask` is not 0 (air around the patient is left
    /// out where `backward` is not known); `None` without [`RegisterOptions::both_directions`] or if nothing can be compared.
    ///
    /// # Errors
    /// If the mask is not on the fixed grid.
    pub fn inverse_consistency(&self, mask: Option<&Volume<u8>>) -> Result<Option<InverseConsistency>> {
        match &self.backward {
            Some(backward) => inverse_consistency(&self.field, backward, mask),
            None => Ok(None),
        }
    }
}

/// Registers `moving` to `fixed` (HU) with a trained model, or without one by refinement from zero.
///
/// # Errors
/// [`Error::Input`] if the scans are empty, hold no finite values, do not overlap, or there is neither a model nor a
/// refinement step; [`Error::Device`], [`Error::Unsupported`] and [`Error::Memory`] as [`Compute`] says;
/// [`Error::Cancelled`].
pub fn register(
    model: Option<&Model>,
    fixed: &Volume<f32>,
    moving: &Volume<f32>,
    options: &RegisterOptions,
    progress: Progress,
) -> Result<Registration> {
    register_meanwhile(model, fixed, moving, options, progress, |_| ()).map(|(result, ())| result)
}

/// [`register`]; `meanwhile` gets the forward result on a thread of its own, to write or show it while the backward
/// direction is computed, and what it returns is handed on.
///
/// # Errors
/// As [`register`].
pub fn register_meanwhile<T: Send>(
    model: Option<&Model>,
    fixed: &Volume<f32>,
    moving: &Volume<f32>,
    options: &RegisterOptions,
    progress: Progress,
    meanwhile: impl FnOnce(&Forward) -> T + Send,
) -> Result<(Registration, T)> {
    let engine = model.map(|m| options.compute.engine(&m.generator)).transpose()?;
    let preprocessing = match model {
        Some(model) => model.manifest.preprocessing.clone(),
        None => Preprocessing { spacing_mm: options.spacing_mm, ..Default::default() },
    };
    register_with(engine.as_deref(), &preprocessing, fixed, moving, options, progress, meanwhile)
}

/// [`register_meanwhile`] on any engine.
///
/// # Errors
/// As [`register`], and what the engine reports.
pub fn register_with<T: Send>(
    engine: Option<&dyn Engine>,
    preprocessing: &Preprocessing,
    fixed: &Volume<f32>,
    moving: &Volume<f32>,
    options: &RegisterOptions,
    progress: Progress,
    meanwhile: impl FnOnce(&Forward) -> T + Send,
) -> Result<(Registration, T)> {
    let run = || pipeline(engine, preprocessing, fixed, moving, options, progress, meanwhile);
    let Some(threads) = options.threads else { return run() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::input(format!("{threads} threads: {e}"), "ask for fewer threads"))?;
    pool.install(run)
}

fn pipeline<T: Send>(
    engine: Option<&dyn Engine>,
    preprocessing: &Preprocessing,
    fixed: &Volume<f32>,
    moving: &Volume<f32>,
    options: &RegisterOptions,
    progress: Progress,
    meanwhile: impl FnOnce(&Forward) -> T + Send,
) -> Result<(Registration, T)> {
    if engine.is_none() && options.refine.steps == 0 {
        return Err(Error::input(
            "neither a model nor a refinement step",
            "give a model or ask for refinement",
        ));
    }
    check_scan(fixed, "fixed")?;
    check_scan(moving, "moving")?;
    let mut clock = Stopwatch::start();
    progress.step("align", 0, 1)?;
    let affine = match &options.prealign {
        Prealign::Given(affine) => *affine,
        Prealign::Find(how) => align(fixed, moving, how)?.affine,
    };
    let inverse_affine = affine.inverse().ok_or_else(|| {
        Error::input(format!("the prealignment {:?} is singular", affine.matrix), "give another affine")
    })?;
    clock.lap("align");
    let mut warnings = Vec::new();

    progress.step("resample", 0, 1)?;
    let scans = Scans { fixed, moving, affine: &affine };
    let seen = scans.seen(preprocessing);
    check_overlap(&seen.grid, &affine, &moving.grid, &mut warnings)?;
    // Refinement has voxels of its own: it follows edges that a coarse network does not see.
    let fine = (options.refine.steps > 0)
        .then(|| scans.seen(&Preprocessing { spacing_mm: options.spacing_mm, ..Default::default() }));
    clock.lap("resample");

    let mut refinement = Vec::new();
    type Voxels = [Range<usize>; 3];
    // u from one image to the other: of the network where it is wanted, of refinement everywhere.
    let mut solve =
        |clock: &mut Stopwatch, [from, to]: [usize; 2], wanted: &Voxels, max_bytes: usize| -> Result<_> {
            let mut field = None;
            if let Some(engine) = engine {
                let (f, m) = (&seen.images[from], &seen.images[to]);
                let u = infer_within(engine, f, m, seen.grid.size, wanted, max_bytes, progress)?;
                field = Some(into_lps(u, &seen.grid.part(wanted)));
                clock.lap("network");
            }
            if let Some(fine) = &fine {
                let limits = RefineOptions {
                    max_bytes: options.refine.max_bytes.min(options.max_bytes),
                    ..options.refine.clone()
                };
                let start = field.map(|field| {
                    let smooth = smoothed(field, options.refine.control_mm);
                    along_axes(resample_field(&smooth, &fine.grid).into_owned())
                });
                let (f, m) = (&fine.images[from], &fine.images[to]);
                let refined = refine(f, m, fine.grid.size, options.spacing_mm, start, &limits, progress)?;
                if refinement.is_empty() {
                    refinement = refined.levels;
                }
                field = Some(into_lps(refined.u, &fine.grid));
                clock.lap("refine");
            }
            Ok(field.expect("there is an engine or a refinement, checked above"))
        };
    let whole = seen.grid.size.map(|n| 0..n);
    let network_field = solve(&mut clock, [0, 1], &whole, options.max_bytes)?;
    progress.step("output", 0, 1)?;
    let field = compose_with_affine(&resample_field(&network_field, &fixed.grid), &affine);
    let warped = warp_image(moving, &field, None, moving.range()[0]);
    if engine.is_some() {
        warn_beyond_reach(&network_field, preprocessing, &mut warnings);
    }
    let forward = Forward { affine, field, network_field, warped };
    clock.lap("output");

    // Without a size, the environment would be asked for one, and a library asks nothing of it.
    let thread = std::thread::Builder::new().stack_size(STACK);
    let (backward, told) = std::thread::scope(|scope| -> Result<_> {
        let telling = thread.spawn_scoped(scope, || meanwhile(&forward)).map_err(|e| {
            Error::input(format!("no thread can be started: {e}"), "let this process have more threads")
        })?;
        let backward = options.both_directions.then(|| {
            let of_patient = |engine| {
                let there = moving.grid.part(&reached(fixed, &forward.field, &moving.grid));
                let part = needed(&there, &inverse_affine, &seen.grid);
                let bytes = bytes_for_part(engine, &seen.grid, &part, options.max_bytes)?;
                Some((there, part, bytes))
            };
            // Refinement looks at whole images: what it finds in a part depends on the rest.
            let found = engine.filter(|_| fine.is_none()).and_then(of_patient);
            let (there, part, bytes) = found.unwrap_or((moving.grid.clone(), whole, options.max_bytes));
            Ok(after_affine(&solve(&mut clock, [1, 0], &part, bytes)?, &inverse_affine, &there))
        });
        let backward = backward.transpose();
        clock.lap("output");
        let told = telling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        clock.lap("rest of writing");
        Ok((backward?, told))
    })?;
    progress.step("output", 1, 1)?;
    let Forward { affine, field, network_field, warped } = forward;
    let timings = clock.laps().to_vec();
    Ok((Registration { affine, field, network_field, warped, backward, refinement, timings, warnings }, told))
}

/// The network's memory on all of a grid, if a part of it needs no more: small tiles can need more than large ones, and the whole is what
/// [`crate::estimate`] knows.
fn bytes_for_part(
    engine: &dyn Engine,
    grid: &Grid,
    part: &[Range<usize>; 3],
    max_bytes: usize,
) -> Option<usize> {
    let bytes = |input: [usize; 3]| engine.bytes(input);
    let most = Plan::new(grid.size, max_bytes, bytes).ok()?.most_bytes(bytes);
    Plan::within(grid.size, part, most, bytes).ok().map(|_| most)
}

/// The two scans and how they lie to each other.
struct Scans<'a> {
    fixed: &'a Volume<f32>,
    moving: &'a Volume<f32>,
    affine: &'a Affine,
}

/// Fixed and moving image on one working grid, normalised.
struct Seen {
    grid: Grid,
    images: [Vec<f32>; 2],
}

impl Scans<'_> {
    fn seen(&self, preprocessing: &Preprocessing) -> Seen {
        let grid = working_grid(&self.fixed.grid, preprocessing.spacing_mm);
        let air = preprocessing.clip_hu[0] as f32;
        let pair = working_pair(self.fixed, self.moving, self.affine, &grid, air);
        let normalised = |mut image: Vec<f32>| {
            image.par_iter_mut().for_each(|v| *v = preprocessing.normalise(*v));
            image
        };
        Seen { grid, images: [normalised(pair.fixed), normalised(pair.moving)] }
    }
}

fn check_scan(scan: &Volume<f32>, name: &str) -> Result<()> {
    let fix = "give a CT scan in HU";
    if scan.grid.is_empty() {
        return Err(Error::input(format!("the {name} scan has {:?} voxels", scan.grid.size), fix));
    }
    if let Some(i) = first_not_finite(&scan.data) {
        return Err(Error::input(format!("the {name} scan holds {} at voxel number {i}", scan.data[i]), fix));
    }
    let [low, high] = scan.range();
    if low == high {
        return Err(Error::input(format!("every voxel of the {name} scan is {low}"), fix));
    }
    Ok(())
}

/// Refuses scans that do not overlap after prealignment and warns where less than half of the fixed scan is covered.
fn check_overlap(grid: &Grid, affine: &Affine, moving: &Grid, warnings: &mut Vec<String>) -> Result<()> {
    const SAMPLES: usize = 16; // per axis
    let mut inside = 0;
    for i in 0..SAMPLES.pow(3) {
        let part = [i % SAMPLES, i / SAMPLES % SAMPLES, i / SAMPLES / SAMPLES];
        let index =
            std::array::from_fn(|a| (grid.size[a] - 1) as f64 * part[a] as f64 / (SAMPLES - 1) as f64);
        let at = moving.to_index(affine.apply(grid.to_physical(index)));
        inside += usize::from((0..3).all(|a| at[a] >= -0.5 && at[a] <= moving.size[a] as f64 - 0.5));
    }
    let share = inside as f64 / SAMPLES.pow(3) as f64;
    if inside == 0 {
        return Err(Error::input(
            format!(
                "the fixed and the moving scan do not overlap (origins {:?} and {:?} mm)",
                grid.origin, moving.origin
            ),
            "prealign them (translation or rigid), or check the files' positions",
        ));
    }
    if share < 0.5 {
        warnings.push(format!(
            "only {:.0} % of the fixed scan is covered by the prealigned moving scan; elsewhere the result is a guess",
            100.0 * share
        ));
    }
    Ok(())
}

/// From mm along the grid's index axes to LPS mm.
fn into_lps(u: [Vec<f32>; 3], grid: &Grid) -> DisplacementField {
    let [mut x, mut y, mut z] = u;
    if grid.direction != crate::geometry::IDENTITY {
        x.par_iter_mut().zip(&mut y).zip(&mut z).for_each(|((x, y), z)| {
            let v = mat_vec(&grid.direction, [*x, *y, *z].map(f64::from));
            [*x, *y, *z] = v.map(|c| c as f32);
        });
    }
    DisplacementField { grid: grid.clone(), u: [x, y, z] }
}

/// A start that refinement's spline can still undo where it is wrong: details finer than its control points would stay.
fn smoothed(field: DisplacementField, sigma_mm: f64) -> DisplacementField {
    let DisplacementField { grid, u } = field;
    let u = u.map(|component| gaussian_smooth(&Volume::new(grid.clone(), component), sigma_mm).data);
    DisplacementField { grid, u }
}

/// From LPS mm to mm along the grid's index axes.
fn along_axes(field: DisplacementField) -> [Vec<f32>; 3] {
    let d = field.grid.direction;
    let transposed = std::array::from_fn(|r| std::array::from_fn(|c| d[c][r]));
    into_lps(field.u, &Grid { direction: transposed, ..field.grid }).u
}

/// Displacement q -> a + v(a) on `grid`, where a = affine(q): the backward map of prealigned scans.
fn after_affine(v: &DisplacementField, affine: &Affine, grid: &Grid) -> DisplacementField {
    field_on(grid, |q| {
        let a = affine.apply(q);
        let d = sample_clamped(v, a);
        std::array::from_fn(|c| a[c] + d[c] - q[c])
    })
}

/// The network cannot see farther than its receptive field, and training shows it no displacement beyond the margin of a
/// patch (`science.md` section 2).
fn warn_beyond_reach(field: &DisplacementField, preprocessing: &Preprocessing, warnings: &mut Vec<String>) {
    let reach = (preprocessing.margin as f64 * preprocessing.spacing_mm) as f32;
    let far = (0..field.grid.len())
        .into_par_iter()
        .filter(|&i| field.at(i).iter().any(|c| c.abs() > reach))
        .count();
    if far > 0 {
        warnings.push(format!(
            "{far} voxels move by more than {reach} mm along an axis, which is beyond what the network was trained for"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::distance;
    use crate::model::{GeneratorWeights, Provenance};

    /// A lumpy body in air, HU, as a function of the place: the same anatomy on any grid.
    fn anatomy(p: [f64; 3]) -> f32 {
        let inside = 1.0 / (1.0 + ((p[0].powi(2) + p[1].powi(2) + p[2].powi(2)).sqrt() - 22.0).exp());
        let organs = (p[0] / 3.1).sin() * (p[1] / 3.7 + 0.4).sin() * (p[2] / 2.9 + 1.0).cos();
        (-1000.0 + inside * (1050.0 + 250.0 * organs)) as f32
    }

    fn scan(grid: Grid, place: impl Fn([f64; 3]) -> [f64; 3]) -> Volume<f32> {
        let [nx, ny, _] = grid.size;
        let at = |i: usize| grid.to_physical([i % nx, i / nx % ny, i / nx / ny].map(|p| p as f64));
        let data = (0..grid.len()).map(|i| anatomy(place(at(i)))).collect();
        Volume::new(grid, data)
    }

    /// Oblique, anisotropic, centred on the origin.
    fn oblique(size: [usize; 3], spacing: [f64; 3]) -> Grid {
        let (s, c) = 0.35f64.sin_cos();
        let direction = [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]];
        let mut grid = Grid { size, spacing, origin: [0.0; 3], direction };
        let middle = grid.to_physical(size.map(|n| (n - 1) as f64 / 2.0));
        grid.origin = middle.map(|m| -m);
        grid
    }

    fn bump(p: [f64; 3]) -> [f64; 3] {
        let w = (-(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]) / 300.0).exp();
        [p[0] + 3.0 * w, p[1] - 2.0 * w, p[2] + 2.5 * w]
    }

    #[test]
    fn finds_a_deformation_between_oblique_grids_behind_an_affine() {
        // fixed(x) = anatomy(bump(x)), moving(q) = anatomy(q - shift): the truth is T(x) = bump(x) + shift.
        let shift = [15.0, -8.0, 4.0];
        let fixed = scan(oblique([44, 48, 22], [1.25, 1.1, 2.4]), bump);
        let mut moving_grid = Grid::axis_aligned([60, 56, 34], [1.0, 1.0, 1.7], [-29.5, -27.5, -28.05]);
        (0..3).for_each(|a| moving_grid.origin[a] += shift[a]);
        let moving = scan(moving_grid, |q| std::array::from_fn(|a| q[a] - shift[a]));
        let options = RegisterOptions {
            prealign: Prealign::Given(Affine { translation: shift, ..Affine::IDENTITY }),
            refine: RefineOptions { steps: 40, ..Default::default() },
            spacing_mm: 1.5,
            both_directions: true,
            ..Default::default()
        };
        let result = register(None, &fixed, &moving, &options, Progress::SILENT).unwrap();
        assert_eq!((&result.field.grid, &result.warped.grid), (&fixed.grid, &fixed.grid));
        let (mut before, mut after, mut count) = (0.0, 0.0, 0.0);
        let [nx, ny, _] = fixed.grid.size;
        for i in 0..fixed.grid.len() {
            let x = fixed.grid.to_physical([i % nx, i / nx % ny, i / nx / ny].map(|p| p as f64));
            if distance(x, [0.0; 3]) < 16.0 {
                let truth: [f64; 3] = std::array::from_fn(|a| bump(x)[a] + shift[a]);
                let found: [f64; 3] = std::array::from_fn(|a| x[a] + result.field.at(i)[a] as f64);
                before += distance(result.affine.apply(x), truth);
                after += distance(found, truth);
                count += 1.0;
            }
        }
        eprintln!(
            "mean error {:.2} -> {:.2} mm, {:?}",
            before / count,
            after / count,
            result.inverse_consistency(None).unwrap()
        );
        assert!(after < 0.35 * before, "{} -> {}", before / count, after / count);
        assert!(
            result.inverse_consistency(None).unwrap().is_some()
                && result.backward.unwrap().grid == moving.grid
        );
        assert!(result.warnings.is_empty(), "{:?}", result.warnings);
    }

    /// What the backward direction leaves out is air, and what it does not is what registering the other way round finds.
    #[test]
    fn backward_is_the_other_way_round_where_the_patient_goes() {
        let grid = Grid::axis_aligned([26, 24, 22], [3.0; 3], [-37.5, -34.5, -31.5]);
        let (fixed, moving) = (scan(grid.clone(), bump), scan(grid.clone(), |p| p));
        let mut model = Model::new(GeneratorWeights::random(1), Provenance::default());
        model.manifest.preprocessing.spacing_mm = 3.0;
        let head = model.generator.layers.last_mut().unwrap();
        head.weight.iter_mut().for_each(|w| *w *= 10_000.0);
        let run = |fixed: &Volume<f32>, moving: &Volume<f32>, both_directions: bool| {
            let prealign = Prealign::Given(Affine::IDENTITY);
            let options = RegisterOptions { prealign, both_directions, ..Default::default() };
            register(Some(&model), fixed, moving, &options, Progress::SILENT).unwrap()
        };
        let (result, swapped) = (run(&fixed, &moving, true), run(&moving, &fixed, false).field);
        let backward = result.backward.as_ref().unwrap();
        assert!(backward.grid.len() < grid.len() / 2, "{:?}", backward.grid.size);
        let first = grid.to_index(backward.grid.origin).map(|n| n.round() as usize);
        let [nx, ny, _] = backward.grid.size;
        let mut most = 0.0f32;
        for i in 0..backward.grid.len() {
            let [x, y, z] = [i % nx, i / nx % ny, i / nx / ny];
            let there = swapped.at(grid.index(first[0] + x, first[1] + y, first[2] + z));
            for (found, expected) in backward.at(i).into_iter().zip(there) {
                assert!((found - expected).abs() < 1e-3, "{found} and {expected} mm at voxel {i}");
                most = most.max(expected.abs());
            }
        }
        assert!(most > 3.0, "the comparison needs displacements of some mm, not {most}");
        // Every voxel of the patient is judged, with the figure that the whole field gives.
        let torso = crate::preprocess::torso_mask(&fixed).unwrap();
        let judged = result.inverse_consistency(Some(&torso)).unwrap().unwrap();
        let by_whole = inverse_consistency(&result.field, &swapped, Some(&torso)).unwrap().unwrap();
        assert_eq!((judged.voxels, judged.left_out), (by_whole.voxels, by_whole.left_out));
        assert!((judged.mean_mm - by_whole.mean_mm).abs() < 1e-3, "{judged:?} and {by_whole:?}");
    }

    #[test]
    fn an_identical_pair_needs_no_correction_and_the_network_runs() {
        let scan = scan(Grid::axis_aligned([14, 12, 10], [3.0; 3], [-20.0, -17.0, -14.0]), |p| p);
        let mut model = Model::new(GeneratorWeights::random(1), Provenance::default());
        model.manifest.preprocessing.spacing_mm = 3.0;
        // A head of zeros: whatever the network sees, it finds no motion.
        let head = model.generator.layers.last_mut().unwrap();
        head.weight.fill(0.0);
        let result =
            register(Some(&model), &scan, &scan, &RegisterOptions::default(), Progress::SILENT).unwrap();
        assert!(result.field.u.iter().flatten().all(|&u| u == 0.0));
        assert_eq!(result.warped, scan);
        // A head that says 2 mm along the index axis z everywhere.
        model.generator.layers.last_mut().unwrap().bias[2] = 2.0;
        let result =
            register(Some(&model), &scan, &scan, &RegisterOptions::default(), Progress::SILENT).unwrap();
        assert!(result.field.u[2].iter().all(|&u| (u - 2.0).abs() < 1e-6));
        assert!(result.field.u[0].iter().all(|&u| u == 0.0));
    }

    #[test]
    fn components_follow_the_fixed_scans_axes() {
        // The head's 1 mm along index axis x is the direction's first column in LPS.
        let fixed = scan(oblique([10, 9, 8], [3.0; 3]), |p| p);
        let mut model = Model::new(GeneratorWeights::random(1), Provenance::default());
        model.manifest.preprocessing.spacing_mm = 3.0;
        let head = model.generator.layers.last_mut().unwrap();
        head.weight.fill(0.0);
        head.bias[0] = 1.0;
        let options = RegisterOptions { threads: Some(1), ..Default::default() };
        let (result, told) =
            register_meanwhile(Some(&model), &fixed, &fixed, &options, Progress::SILENT, Forward::clone)
                .unwrap();
        assert_eq!(
            (&told.field, &told.warped, &told.affine),
            (&result.field, &result.warped, &result.affine)
        );
        let (s, c) = 0.35f32.sin_cos();
        for i in [0, 100, fixed.grid.len() - 1] {
            let u = result.field.at(i);
            assert!((u[0] - c).abs() < 1e-5 && (u[1] - s).abs() < 1e-5 && u[2].abs() < 1e-5, "{u:?}");
        }
    }

    #[test]
    fn bad_input_is_refused_with_the_reason() {
        let good = scan(Grid::axis_aligned([14, 12, 10], [3.0; 3], [-20.0, -17.0, -14.0]), |p| p);
        let options = RegisterOptions {
            refine: RefineOptions { steps: 2, ..Default::default() },
            ..Default::default()
        };
        let said = |fixed: &Volume<f32>, moving: &Volume<f32>, options: &RegisterOptions| {
            register(None, fixed, moving, options, Progress::SILENT).unwrap_err().to_string()
        };
        assert!(said(&good, &good, &RegisterOptions::default()).contains("neither a model"));
        let mut broken = good.clone();
        broken.data[7] = f32::NAN;
        assert!(said(&good, &broken, &options).contains("moving scan holds NaN at voxel number 7"));
        assert!(said(&Volume::filled(good.grid.clone(), 3.0), &good, &options).contains("every voxel"));
        let mut far = good.clone();
        far.grid.origin[0] += 500.0;
        assert!(said(&good, &far, &options).contains("do not overlap"));
    }
}
