//! `jrs_register` and `jrs_estimate`: two scans in, a result out.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use libjrs::align::{AlignOptions, Kind};
use libjrs::engine::{Engine, Plan, Precision};
use libjrs::estimate::{Estimate, estimate};
use libjrs::field::warp_labels;
use libjrs::model::{Model, Preprocessing};
use libjrs::progress::Progress;
use libjrs::provenance::{Device, InputRecord, Record};
use libjrs::qa::{QaLimits, assess_registration};
use libjrs::refine::RefineOptions;
use libjrs::register::{Prealign, RegisterOptions, register_with};
use libjrs::resample::working_grid;
use libjrs::{Affine, Grid};

use crate::cancel::jrs_cancel;
use crate::contours::{OwnContours, Structure, copy_in, jrs_contours, label_map};
use crate::limits::jrs_qa_limits;
use crate::model::jrs_model;
use crate::result::jrs_result;
use crate::session::{JRS_LOG_INFO, JRS_LOG_WARNING, Means, jrs_session};
use crate::status::{Failure, JRS_E_ARGUMENT, JRS_E_MEMORY, guard};
use crate::structs::{AbiStruct, init_struct, read_struct, write_struct};
use crate::volume::{Borrowed, borrow, jrs_volume};

/// Prealignment is prealign, or the identity where that is NULL.
pub const JRS_PREALIGN_GIVEN: u32 = 0;
/// Prealignment is found: six degrees of freedom, by the bones. prealign must be NULL.
pub const JRS_PREALIGN_RIGID: u32 = 1;
/// Prealignment is found: twelve degrees of freedom. prealign must be NULL.
pub const JRS_PREALIGN_AFFINE: u32 = 2;

/// What is registered, and how. Everything it points to is only read during the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_register_input {
    /// sizeof(jrs_register_input).
    pub struct_size: usize,
    /// Today's scan, on whose grid the result is given.
    pub fixed: *const jrs_volume,
    /// The planning scan.
    pub moving: *const jrs_volume,
    /// Label map on the moving scan's grid to be carried over, or NULL.
    pub labels: *const jrs_volume,
    /// Known label map on the fixed scan's grid to score the result with, or NULL.
    pub reference_labels: *const jrs_volume,
    /// Contours on the moving scan to be carried over, or NULL.
    pub contours: *const jrs_contours,
    /// 4x4, row by row: maps a FIXED point (x, y, z, 1) in LPS mm to the MOVING point that shows the same anatomy
    /// before the deformation (as ITK and elastix do). Last row 0 0 0 1. Or NULL.
    pub prealign: *const f64,
    /// Limits of the QA verdict; NULL for the defaults.
    pub limits: *const jrs_qa_limits,
    /// JRS_PREALIGN_*.
    pub prealign_mode: u32,
    /// 1 (default): also registers moving to fixed, for the inverse-consistency error, where the patient is; takes up to twice the time.
    pub both_directions: u32,
    /// Gradient steps of refinement after the network (or without a model, instead of it); 0 for none.
    pub refine_steps: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Edge of the voxels on which refinement works, mm.
    pub refine_spacing_mm: f64,
    /// Most memory of one tile of the network, bytes; 0 for no other limit than the session's. A call can be cancelled
    /// after every tile, so smaller tiles stop sooner and take longer in all.
    pub max_tile_bytes: u64,
}

// SAFETY: repr(C), the size first, pointers and numbers, u32 in pairs and so no padding.
unsafe impl AbiStruct for jrs_register_input {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        fixed: std::ptr::null(),
        moving: std::ptr::null(),
        labels: std::ptr::null(),
        reference_labels: std::ptr::null(),
        contours: std::ptr::null(),
        prealign: std::ptr::null(),
        limits: std::ptr::null(),
        prealign_mode: JRS_PREALIGN_GIVEN,
        both_directions: 1,
        refine_steps: 0,
        reserved: 0,
        refine_spacing_mm: 1.0,
        max_tile_bytes: 0,
    };
}

/// What a call will take. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_estimate_result {
    /// sizeof(jrs_estimate_result).
    pub struct_size: usize,
    /// Most memory in use at one time with the session's limits, bytes: what a call adds to the process.
    pub host_bytes: u64,
    /// The least limit with which the call can be done, in small tiles.
    pub least_host_bytes: u64,
    /// Runs of the network in one direction.
    pub tiles: u64,
    /// Seconds, roughly: the work by the pace of the session's earlier calls, or, before there were any that say enough, of
    /// small registrations that are timed now. How busy the machine will be is not foreseen.
    pub seconds: f64,
    /// As host_bytes, in the memory of the device; 0 for the CPU.
    pub device_bytes: u64,
    /// As least_host_bytes, in the memory of the device; 0 for the CPU.
    pub least_device_bytes: u64,
}

// SAFETY: repr(C), the size first, then numbers of 8 bytes.
unsafe impl AbiStruct for jrs_estimate_result {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        host_bytes: 0,
        least_host_bytes: 0,
        tiles: 0,
        seconds: 0.0,
        device_bytes: 0,
        least_device_bytes: 0,
    };
}

/// Fills an input with its defaults.
///
/// # Safety
/// `input` is NULL or valid for writing `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_register_input_init(input: *mut jrs_register_input, struct_size: usize) -> i32 {
    // SAFETY: passed on under the same contract.
    guard(|| unsafe { init_struct(input, struct_size, "jrs_register_input") })
}

/// Registers. model may be NULL where refine_steps is not 0; cancel may be NULL. On success *result is a new handle.
///
/// JRS_E_ARGUMENT, JRS_E_STRUCT_SIZE, JRS_E_BUSY, JRS_E_GEOMETRY, JRS_E_INPUT, JRS_E_DEVICE, JRS_E_MEMORY,
/// JRS_E_CANCELLED.
///
/// # Safety
/// `session`, `model` and `cancel` are NULL or live handles; `input` is NULL or an initialised struct, and all it
/// points to is as long as it says and does not change during the call; `result` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_register(
    session: *mut jrs_session,
    model: *const jrs_model,
    input: *const jrs_register_input,
    cancel: *const jrs_cancel,
    result: *mut *mut jrs_result,
) -> i32 {
    // SAFETY: NULL or a live handle by the contract; calls only share it.
    let Some(session) = (unsafe { session.as_ref() }) else {
        return guard(|| Err(Failure::null("session")));
    };
    session.call(|| {
        if result.is_null() {
            return Err(Failure::null("result"));
        }
        // SAFETY: NULL or live handles by the contract.
        let (model, cancel) = unsafe { (model.as_ref(), cancel.as_ref()) };
        // SAFETY: passed on under the same contract.
        let task = unsafe { Task::read(input, model.map(|m| &m.model), &session.means) }?;
        let token = cancel.map(|c| c.is_set.clone());
        let made = task.run(session, token.as_deref())?;
        // SAFETY: not NULL, so by the contract valid for a write.
        unsafe { result.write(Box::into_raw(Box::new(made))) };
        Ok(())
    })
}

/// What jrs_register with the same arguments would take. Does not look at voxels.
///
/// # Safety
/// As jrs_register; `estimate` is NULL or valid for writing as many bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_estimate(
    session: *mut jrs_session,
    model: *const jrs_model,
    input: *const jrs_register_input,
    estimate: *mut jrs_estimate_result,
) -> i32 {
    // SAFETY: NULL or a live handle by the contract; calls only share it.
    let Some(session) = (unsafe { session.as_ref() }) else {
        return guard(|| Err(Failure::null("session")));
    };
    session.call(|| {
        // SAFETY: NULL or a live handle by the contract.
        let model = unsafe { model.as_ref() };
        // SAFETY: passed on under the same contract.
        let task = unsafe { Task::read(input, model.map(|m| &m.model), &session.means) }?;
        let means = &session.means;
        let figures = session.run(None, |_| task.figures(means))?;
        // SAFETY: passed on under the same contract.
        unsafe { write_struct(estimate, figures, "jrs_estimate_result") }
    })
}

/// A checked input.
struct Task<'a> {
    model: Option<&'a Model>,
    fixed: Borrowed<'a>,
    moving: Borrowed<'a>,
    labels: Option<Borrowed<'a>>,
    reference: Option<Borrowed<'a>>,
    structures: Vec<Structure>,
    limits: QaLimits,
    options: RegisterOptions,
}

impl<'a> Task<'a> {
    /// # Safety
    /// As for `jrs_register`.
    unsafe fn read(
        input: *const jrs_register_input,
        model: Option<&'a Model>,
        means: &Means,
    ) -> Result<Self, Failure> {
        if input.is_null() {
            return Err(Failure::null("input"));
        }
        let refuse = |message: String| Err(Failure::new(JRS_E_ARGUMENT, message));
        // SAFETY: an initialised struct, and what it points to is as long as it says.
        let (given, fixed, moving, labels, reference, structures, limits, matrix) = unsafe {
            let given = read_struct(input, "jrs_register_input")?;
            (
                given,
                borrow(given.fixed, "fixed")?,
                borrow(given.moving, "moving")?,
                borrow(given.labels, "labels")?,
                borrow(given.reference_labels, "reference_labels")?,
                copy_in(given.contours)?,
                read_struct(given.limits, "jrs_qa_limits")?,
                given.prealign.cast::<[u8; 128]>().as_ref(),
            )
        };
        let fixed = fixed.ok_or_else(|| Failure::null("fixed"))?;
        let moving = moving.ok_or_else(|| Failure::null("moving"))?;
        if given.reserved != 0 {
            return refuse(format!("reserved is {} and not 0", given.reserved));
        }
        if given.both_directions > 1 {
            return refuse(format!("both_directions is {}, not 0 or 1", given.both_directions));
        }
        if given.refine_steps > 100_000 {
            return refuse(format!(
                "{} steps of refinement. At most 100000 are possible",
                given.refine_steps
            ));
        }
        if !(0.25..=20.0).contains(&given.refine_spacing_mm) {
            return refuse(format!(
                "refine_spacing_mm is {}. From 0.25 to 20 is possible",
                given.refine_spacing_mm
            ));
        }
        if model.is_none() && given.refine_steps == 0 {
            return refuse("neither a model nor a refinement step. Give a model".into());
        }
        let options = RegisterOptions {
            prealign: prealign(given.prealign_mode, matrix)?,
            max_bytes: match given.max_tile_bytes {
                0 => usize::MAX,
                bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
            },
            refine: RefineOptions { steps: given.refine_steps as usize, ..Default::default() },
            both_directions: given.both_directions == 1,
            spacing_mm: given.refine_spacing_mm,
            compute: means.compute,
            ..Default::default()
        };
        Ok(Self { model, fixed, moving, labels, reference, structures, limits: limits.checked()?, options })
    }

    fn engine(&self) -> libjrs::Result<Option<Box<dyn Engine>>> {
        self.model.map(|model| self.options.compute.engine(&model.generator)).transpose()
    }

    fn preprocessing(&self) -> Preprocessing {
        match self.model {
            Some(model) => model.manifest.preprocessing.clone(),
            None => Preprocessing { spacing_mm: self.options.spacing_mm, ..Default::default() },
        }
    }

    /// Memory and tiles with at most `max_bytes` for the network.
    fn estimate(&self, engine: Option<&dyn Engine>, max_bytes: usize) -> libjrs::Result<Estimate> {
        let grids: [&Grid; 2] = [&self.fixed.grid, &self.moving.grid];
        let options = RegisterOptions { max_bytes, ..self.options.clone() };
        let mut found = estimate(engine, &self.preprocessing(), grids, &options)?;
        // Label maps, and one structure's coverage here and there.
        let [fixed, moving] = grids.map(Grid::len);
        let is_labelled = self.labels.is_some() || !self.structures.is_empty();
        let labels =
            if is_labelled { fixed + moving } else { 0 } + self.reference.as_ref().map_or(0, |_| fixed);
        found.bytes += labels + 4 * self.structures.len() * moving;
        Ok(found)
    }

    /// How much the network may use so that the whole call stays within the session's limit.
    fn budget(&self, means: &Means, engine: Option<&dyn Engine>) -> Result<(usize, Estimate), Failure> {
        let limit = means.max_host_bytes;
        let on_device = engine.is_some_and(|engine| engine.has_own_memory());
        let device_limit = if on_device { means.max_device_bytes } else { usize::MAX };
        let mut budget = self.options.max_bytes.min(device_limit);
        let mut found = self.estimate(engine, budget)?;
        if found.bytes <= limit {
            return Ok((budget, found));
        }
        let (least_budget, least) = self.least(engine)?;
        if least.bytes > limit {
            let message = format!(
                "the call needs at least {} bytes and max_host_bytes is {limit}. Allow more, or crop the scans",
                least.bytes
            );
            return Err(Failure::new(JRS_E_MEMORY, message));
        }
        // Tiles come in steps, so the largest that fit are approached from above.
        while found.bytes > limit {
            let smaller = found.tile_bytes / 8 * 7;
            let next = self.estimate(engine, smaller).ok().filter(|next| next.tile_bytes < found.tile_bytes);
            (budget, found) = next.map_or((least_budget, least.clone()), |next| (smaller, next));
        }
        Ok((budget, found))
    }

    /// The budget of the smallest tiles, and what they take.
    fn least(&self, engine: Option<&dyn Engine>) -> Result<(usize, Estimate), Failure> {
        let Some(engine) = engine else { return Ok((usize::MAX, self.estimate(None, usize::MAX)?)) };
        let working = working_grid(&self.fixed.grid, self.preprocessing().spacing_mm);
        let mut low = Plan::least_bytes(working.size, |input| engine.bytes(input));
        loop {
            match self.estimate(Some(engine), low) {
                Ok(found) => return Ok((low, found)),
                Err(_) if low < usize::MAX / 2 => low += low / 8,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn figures(&self, means: &Means) -> Result<jrs_estimate_result, Failure> {
        let engine = self.engine()?;
        let (budget, found) = self.budget(means, engine.as_deref())?;
        let mut pace = means.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = match pace.seconds(&found.work) {
            Some(seconds) => seconds,
            None => {
                let options = RegisterOptions { max_bytes: budget, ..self.options.clone() };
                pace.measure(engine.as_deref(), &self.preprocessing(), &options)?;
                jrs_kernels::pool::SCRATCH.clear();
                pace.seconds(&found.work).expect("every stage of the options has been measured")
            }
        };
        let (_, least) = self.least(engine.as_deref())?;
        Ok(jrs_estimate_result {
            host_bytes: found.bytes as u64,
            least_host_bytes: least.bytes as u64,
            tiles: found.tiles as u64,
            seconds,
            device_bytes: found.device_bytes as u64,
            least_device_bytes: least.device_bytes as u64,
            ..jrs_estimate_result::DEFAULT
        })
    }

    fn run(&self, session: &jrs_session, token: Option<&AtomicBool>) -> Result<jrs_result, Failure> {
        let means = &session.means;
        let (result, warnings) = session.run(token, |progress| {
            let made = self.register(means, progress);
            // Large scratch buffers are the whole process's; a host does not want them between calls.
            jrs_kernels::pool::SCRATCH.clear();
            made
        })?;
        warnings.iter().for_each(|warning| session.log(JRS_LOG_WARNING, warning));
        session.log(JRS_LOG_INFO, &format!("registered: {:?}", result.qa.status));
        Ok(result)
    }

    /// All of it, on the session's threads.
    fn register(&self, means: &Means, progress: Progress) -> Result<(jrs_result, Vec<String>), Failure> {
        let clock = Instant::now();
        let engine = self.engine()?;
        let (budget, found) = self.budget(means, engine.as_deref())?;
        if Vec::<u8>::new().try_reserve_exact(found.bytes).is_err() {
            let message = format!("the call needs {} bytes, and the system does not give them", found.bytes);
            return Err(Failure::new(JRS_E_MEMORY, message + ". Crop the scans or set max_host_bytes"));
        }
        let (fixed, moving) = (self.fixed.scan()?, self.moving.scan()?);
        let labels = self.labels.as_ref().map(|l| l.labels(&moving.grid, "moving")).transpose()?;
        let reference = self.reference.as_ref().map(|l| l.labels(&fixed.grid, "fixed")).transpose()?;
        let mut structures = Vec::new();
        for structure in &self.structures {
            structures.push(structure.on(&moving.grid)?);
        }
        let options = RegisterOptions { max_bytes: budget, ..self.options.clone() };
        let preprocessing = self.preprocessing();
        let (mut done, ()) =
            register_with(engine.as_deref(), &preprocessing, &fixed, &moving, &options, progress, |_| ())?;
        let device = Device {
            name: engine.as_ref().map_or("CPU".into(), |e| e.name()),
            // Refinement has one precision.
            precision: engine.as_ref().map_or(Precision::F32, |_| options.compute.precision).name().into(),
            threads: means.pool.current_num_threads(),
            is_deterministic: true,
        };
        drop(engine); // and its buffers
        done.warnings.extend(structures.iter_mut().filter_map(|s| s.warning.take()));

        progress.step("judge", 0, 1)?;
        let contours = OwnContours::carried(&structures, &done.field);
        let labels =
            labels.or_else(|| (!structures.is_empty()).then(|| label_map(&structures, &moving.grid)));
        drop(structures);
        let carried = labels.as_ref().map(|l| warp_labels(l, &done.field, None));
        let organs = [reference.as_ref(), labels.as_ref()];
        let qa =
            assess_registration([&fixed, &moving], &done, organs, preprocessing.spacing_mm, &self.limits)?;
        progress.step("judge", 1, 1)?;
        let mut pace = means.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.update(&found.work, &done.timings, clock.elapsed().as_secs_f64());
        drop(pace);

        let mut record = Record::new(&done, self.model, device);
        record.options = self.options_record();
        record.inputs.insert("fixed".into(), InputRecord::new(&fixed));
        record.inputs.insert("moving".into(), InputRecord::new(&moving));
        for (name, map) in [("labels", &labels), ("reference_labels", &reference)] {
            record.inputs.extend(map.as_ref().map(|map| (name.into(), InputRecord::new(map))));
        }
        let warnings = done.warnings;
        let result = jrs_result {
            pool: means.pool.clone(),
            affine: done.affine,
            field: done.field,
            warped: done.warped,
            labels: carried,
            contours,
            qa,
            provenance: record.to_json(),
        };
        Ok((result, warnings))
    }

    fn options_record(&self) -> BTreeMap<String, serde_json::Value> {
        let prealign = match self.options.prealign {
            Prealign::Given(_) => "given",
            Prealign::Find(AlignOptions { kind: Kind::Rigid, .. }) => "rigid",
            Prealign::Find(_) => "affine",
        };
        [
            ("prealign", prealign.into()),
            ("both_directions", self.options.both_directions.into()),
            ("refine_steps", self.options.refine.steps.into()),
            ("refine_spacing_mm", self.options.spacing_mm.into()),
        ]
        .map(|(name, value): (&str, serde_json::Value)| (name.to_owned(), value))
        .into()
    }
}

/// From the mode and the matrix as bytes (a host's array need not be aligned).
fn prealign(mode: u32, matrix: Option<&[u8; 128]>) -> Result<Prealign, Failure> {
    let refuse = |message: String| Err(Failure::new(JRS_E_ARGUMENT, message));
    let find = |kind| Ok(Prealign::Find(AlignOptions { kind, ..Default::default() }));
    match (mode, matrix) {
        (JRS_PREALIGN_GIVEN, None) => Ok(Prealign::Given(Affine::IDENTITY)),
        (JRS_PREALIGN_GIVEN, Some(bytes)) => {
            let m: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f64::from_ne_bytes(*b)).collect();
            if m[12..] != [0.0, 0.0, 0.0, 1.0] {
                return refuse(format!(
                    "the last row of prealign is {:?}, not 0 0 0 1. Give the matrix row by row",
                    &m[12..]
                ));
            }
            let affine = Affine {
                matrix: std::array::from_fn(|r| std::array::from_fn(|c| m[4 * r + c])),
                translation: [m[3], m[7], m[11]],
            };
            let determinant = libjrs::geometry::determinant(&affine.matrix);
            if !m.iter().all(|v| v.is_finite()) || !(0.125..=8.0).contains(&determinant) {
                return refuse(format!("prealign {m:?} mirrors, flattens or changes volumes too much"));
            }
            Ok(Prealign::Given(affine))
        }
        (JRS_PREALIGN_RIGID, None) => find(Kind::Rigid),
        (JRS_PREALIGN_AFFINE, None) => find(Kind::Affine),
        (JRS_PREALIGN_RIGID | JRS_PREALIGN_AFFINE, Some(_)) => {
            refuse("prealign is given and prealign_mode asks to find it. Choose one".into())
        }
        (other, _) => refuse(format!("prealign_mode {other} is none of JRS_PREALIGN_*")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_maps_fixed_to_moving_points() {
        let m: [f64; 16] = [1., 0., 0., 5., 0., 1., 0., 6., 0., 0., 1., 7., 0., 0., 0., 1.];
        let bytes: [u8; 128] = m.map(f64::to_ne_bytes).concat().try_into().unwrap();
        let Prealign::Given(affine) = prealign(JRS_PREALIGN_GIVEN, Some(&bytes)).unwrap() else { panic!() };
        assert_eq!(affine.apply([1.0, 1.0, 1.0]), [6.0, 7.0, 8.0]);
        let mut transposed = m;
        (transposed[3], transposed[12]) = (0.0, 5.0);
        let bytes: [u8; 128] = transposed.map(f64::to_ne_bytes).concat().try_into().unwrap();
        assert_eq!(prealign(JRS_PREALIGN_GIVEN, Some(&bytes)).unwrap_err().code, JRS_E_ARGUMENT);
        assert!(prealign(JRS_PREALIGN_RIGID, Some(&bytes)).is_err() && prealign(7, None).is_err());
    }
}
