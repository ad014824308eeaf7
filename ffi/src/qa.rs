//! `jrs_qa`: the judgement of a result, as a struct and as JSON.

use std::ffi::c_char;

use libjrs::qa::{OrganFigures, QaReport, Status};

use crate::result::{jrs_result, live};
use crate::status::{Failure, JRS_E_ARGUMENT, guard};
use crate::structs::{AbiStruct, copy_text, write_struct};

/// Verdict: no figure exceeds a limit.
pub const JRS_QA_OK: u32 = 0;
/// Verdict: a person should look before use.
pub const JRS_QA_REVIEW: u32 = 1;
/// Verdict: not to be used.
pub const JRS_QA_REJECT: u32 = 2;

/// The judgement of a result. Shares go from 0 to 1, lengths are mm; NaN is "not measured". Set struct_size before the
/// call. "Before" is the prealignment alone, "body" the torso of the fixed scan.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_qa {
    /// sizeof(jrs_qa).
    pub struct_size: usize,
    /// JRS_QA_*.
    pub verdict: u32,
    /// Number of reasons in the JSON's "reasons".
    pub reason_count: u32,
    /// Number of structures, see jrs_result_structure_qa.
    pub structure_count: u64,
    /// Mean length of the displacement in the body, without the prealignment.
    pub displacement_mean_mm: f64,
    /// Its 95th percentile.
    pub displacement_p95_mm: f64,
    /// Its maximum.
    pub displacement_max_mm: f64,
    /// Share of the body displaced beyond what the network can see.
    pub beyond_capture_range: f64,
    /// Share of the body that folds (Jacobian determinant not positive).
    pub folded: f64,
    /// Least Jacobian determinant in the body.
    pub jacobian_min: f64,
    /// Largest Jacobian determinant in the body.
    pub jacobian_max: f64,
    /// Standard deviation of the Jacobian determinant in the body.
    pub jacobian_std: f64,
    /// Mean inverse-consistency error.
    pub inverse_consistency_mean_mm: f64,
    /// Its 95th percentile.
    pub inverse_consistency_p95_mm: f64,
    /// Correlation of the scans in the body, before.
    pub ncc_before: f64,
    /// The same, after.
    pub ncc_after: f64,
    /// Share of the body that is sent outside the moving scan.
    pub out_of_field: f64,
}

// SAFETY: repr(C), the size first, u32 in a pair, then numbers of 8 bytes.
unsafe impl AbiStruct for jrs_qa {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        verdict: JRS_QA_REJECT,
        reason_count: 0,
        structure_count: 0,
        displacement_mean_mm: f64::NAN,
        displacement_p95_mm: f64::NAN,
        displacement_max_mm: f64::NAN,
        beyond_capture_range: f64::NAN,
        folded: f64::NAN,
        jacobian_min: f64::NAN,
        jacobian_max: f64::NAN,
        jacobian_std: f64::NAN,
        inverse_consistency_mean_mm: f64::NAN,
        inverse_consistency_p95_mm: f64::NAN,
        ncc_before: f64::NAN,
        ncc_after: f64::NAN,
        out_of_field: f64::NAN,
    };
}

/// The judgement of one structure. DSC, MSD and HD95 need reference_labels. Set struct_size before the call.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_structure_qa {
    /// sizeof(jrs_structure_qa).
    pub struct_size: usize,
    /// The structure.
    pub label: u32,
    /// Always 0.
    pub reserved: u32,
    /// Volume after divided by before; 0 if the structure was lost.
    pub volume_ratio: f64,
    /// Share of the structure that folds.
    pub folded: f64,
    /// Dice coefficient with the reference, before.
    pub dsc_before: f64,
    /// The same, after.
    pub dsc_after: f64,
    /// Mean surface distance to the reference, mm, before.
    pub msd_before_mm: f64,
    /// The same, after.
    pub msd_after_mm: f64,
    /// 95th percentile of the surface distance, mm, before.
    pub hd95_before_mm: f64,
    /// The same, after.
    pub hd95_after_mm: f64,
}

// SAFETY: as for jrs_qa.
unsafe impl AbiStruct for jrs_structure_qa {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        label: 0,
        reserved: 0,
        volume_ratio: f64::NAN,
        folded: f64::NAN,
        dsc_before: f64::NAN,
        dsc_after: f64::NAN,
        msd_before_mm: f64::NAN,
        msd_after_mm: f64::NAN,
        hd95_before_mm: f64::NAN,
        hd95_after_mm: f64::NAN,
    };
}

/// The judgement.
///
/// # Safety
/// `result` is NULL or a live handle; `qa` is NULL or valid for writing as many bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_qa(result: *const jrs_result, qa: *mut jrs_qa) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: passed on under the same contract.
        unsafe { write_struct(qa, figures(&result.qa), "jrs_qa") }
    })
}

/// The judgement of structure number index, from 0, by rising label.
///
/// # Safety
/// As jrs_result_qa.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_structure_qa(
    result: *const jrs_result,
    index: u64,
    qa: *mut jrs_structure_qa,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let organs = &unsafe { live(result) }?.qa.organs;
        let organ = usize::try_from(index).ok().and_then(|n| organs.get(n)).ok_or_else(|| {
            Failure::new(JRS_E_ARGUMENT, format!("there is no structure {index}, only {}", organs.len()))
        })?;
        // SAFETY: passed on under the same contract.
        unsafe { write_struct(qa, structure(organ), "jrs_structure_qa") }
    })
}

/// The judgement as JSON, with the reasons in words. As jrs_model_card_json.
///
/// # Safety
/// As jrs_model_card_json, for a result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_qa_json(
    result: *const jrs_result,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: passed on under the same contract.
        unsafe { copy_text(&result.qa.to_json(), buffer, capacity, needed) }
    })
}

/// What exactly ran, as JSON for the audit trail: versions, hash of the model, device, precision, options, hash of every
/// input, seconds, warnings. No patient data. As jrs_model_card_json.
///
/// # Safety
/// As jrs_model_card_json, for a result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_provenance_json(
    result: *const jrs_result,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let result = unsafe { live(result) }?;
        // SAFETY: passed on under the same contract.
        unsafe { copy_text(&result.provenance, buffer, capacity, needed) }
    })
}

fn figures(report: &QaReport) -> jrs_qa {
    let number = |v: Option<f64>| v.unwrap_or(f64::NAN);
    let (u, jacobian, inverse) = (&report.displacement, &report.jacobian, &report.inverse_consistency);
    jrs_qa {
        verdict: match report.status {
            Status::Ok => JRS_QA_OK,
            Status::Review => JRS_QA_REVIEW,
            Status::Reject => JRS_QA_REJECT,
        },
        reason_count: report.reasons.len() as u32,
        structure_count: report.organs.len() as u64,
        displacement_mean_mm: u.mean_mm,
        displacement_p95_mm: u.p95_mm,
        displacement_max_mm: u.max_mm,
        beyond_capture_range: u.beyond_capture_range,
        folded: number(jacobian.map(|j| j.folded)),
        jacobian_min: number(jacobian.map(|j| j.min)),
        jacobian_max: number(jacobian.map(|j| j.max)),
        jacobian_std: number(jacobian.map(|j| j.std)),
        inverse_consistency_mean_mm: number(inverse.map(|i| i.mean_mm)),
        inverse_consistency_p95_mm: number(inverse.map(|i| i.p95_mm)),
        ncc_before: number(report.ncc_before),
        ncc_after: number(report.ncc_after),
        out_of_field: report.out_of_field,
        ..jrs_qa::DEFAULT
    }
}

fn structure(organ: &OrganFigures) -> jrs_structure_qa {
    let number = |v: Option<f64>| v.unwrap_or(f64::NAN);
    let [before, after] = [organ.before, organ.after];
    jrs_structure_qa {
        label: organ.label.into(),
        volume_ratio: number(organ.volume_ratio),
        folded: number(organ.jacobian.map(|j| j.folded)),
        dsc_before: number(before.map(|a| a.dice)),
        dsc_after: number(after.map(|a| a.dice)),
        msd_before_mm: number(before.and_then(|a| Some(a.surface?.msd))),
        msd_after_mm: number(after.and_then(|a| Some(a.surface?.msd))),
        hd95_before_mm: number(before.and_then(|a| Some(a.surface?.hd95))),
        hd95_after_mm: number(after.and_then(|a| Some(a.surface?.hd95))),
        ..jrs_structure_qa::DEFAULT
    }
}
