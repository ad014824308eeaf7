//! `jrs_qa_limits`: where a figure becomes a reason to look, or to reject.

use libjrs::qa::QaLimits;

use crate::status::{Failure, JRS_E_ARGUMENT, guard};
use crate::structs::{AbiStruct, init_struct};

/// Limits of the QA verdict: beyond _review the verdict is REVIEW, beyond _reject REJECT. Shares go from 0 to 1.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types)] // the C name
pub struct jrs_qa_limits {
    /// sizeof(jrs_qa_limits).
    pub struct_size: usize,
    /// Share of folded voxels, in the body and in each structure.
    pub folding_review: f64,
    /// The same, to reject.
    pub folding_reject: f64,
    /// 95th percentile of the inverse-consistency error, mm.
    pub inverse_consistency_p95_review_mm: f64,
    /// The same, to reject.
    pub inverse_consistency_p95_reject_mm: f64,
    /// Lowest and highest volume of a structure after, divided by before.
    pub volume_ratio_review: [f64; 2],
    /// The same, to reject.
    pub volume_ratio_reject: [f64; 2],
    /// How far the NCC may fall through the deformation.
    pub ncc_drop_review: f64,
    /// The same, to reject.
    pub ncc_drop_reject: f64,
    /// Share of the body that is sent outside the moving scan.
    pub out_of_field_review: f64,
    /// The same, to reject.
    pub out_of_field_reject: f64,
    /// Share of the body displaced beyond the network's capture range; never rejects by itself.
    pub beyond_capture_range_review: f64,
}

// SAFETY: repr(C), the size first, then f64 only.
unsafe impl AbiStruct for jrs_qa_limits {
    const DEFAULT: Self = Self {
        struct_size: size_of::<Self>(),
        folding_review: QaLimits::DEFAULT.folding_review,
        folding_reject: QaLimits::DEFAULT.folding_reject,
        inverse_consistency_p95_review_mm: QaLimits::DEFAULT.inverse_consistency_p95_review_mm,
        inverse_consistency_p95_reject_mm: QaLimits::DEFAULT.inverse_consistency_p95_reject_mm,
        volume_ratio_review: QaLimits::DEFAULT.volume_ratio_review,
        volume_ratio_reject: QaLimits::DEFAULT.volume_ratio_reject,
        ncc_drop_review: QaLimits::DEFAULT.ncc_drop_review,
        ncc_drop_reject: QaLimits::DEFAULT.ncc_drop_reject,
        out_of_field_review: QaLimits::DEFAULT.out_of_field_review,
        out_of_field_reject: QaLimits::DEFAULT.out_of_field_reject,
        beyond_capture_range_review: QaLimits::DEFAULT.beyond_capture_range_review,
    };
}

/// Fills the limits with their defaults.
///
/// # Safety
/// `limits` is NULL or valid for writing `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_qa_limits_init(limits: *mut jrs_qa_limits, struct_size: usize) -> i32 {
    // SAFETY: passed on under the same contract.
    guard(|| unsafe { init_struct(limits, struct_size, "jrs_qa_limits") })
}

impl jrs_qa_limits {
    /// As the library wants them; NaN would accept everything and is refused.
    pub(crate) fn checked(&self) -> Result<QaLimits, Failure> {
        let limits = QaLimits {
            folding_review: self.folding_review,
            folding_reject: self.folding_reject,
            inverse_consistency_p95_review_mm: self.inverse_consistency_p95_review_mm,
            inverse_consistency_p95_reject_mm: self.inverse_consistency_p95_reject_mm,
            volume_ratio_review: self.volume_ratio_review,
            volume_ratio_reject: self.volume_ratio_reject,
            ncc_drop_review: self.ncc_drop_review,
            ncc_drop_reject: self.ncc_drop_reject,
            out_of_field_review: self.out_of_field_review,
            out_of_field_reject: self.out_of_field_reject,
            beyond_capture_range_review: self.beyond_capture_range_review,
        };
        let single = [
            limits.folding_review,
            limits.folding_reject,
            limits.inverse_consistency_p95_review_mm,
            limits.inverse_consistency_p95_reject_mm,
            limits.ncc_drop_review,
            limits.ncc_drop_reject,
            limits.out_of_field_review,
            limits.out_of_field_reject,
            limits.beyond_capture_range_review,
        ];
        if single
            .iter()
            .chain(&limits.volume_ratio_review)
            .chain(&limits.volume_ratio_reject)
            .any(|v| v.is_nan())
        {
            return Err(Failure::new(
                JRS_E_ARGUMENT,
                "a QA limit is NaN. Initialise with jrs_qa_limits_init",
            ));
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_librarys() {
        assert_eq!(jrs_qa_limits::DEFAULT.checked().unwrap(), QaLimits::default());
        let nan = jrs_qa_limits { volume_ratio_review: [f64::NAN, 1.0], ..jrs_qa_limits::DEFAULT };
        assert_eq!(nan.checked().unwrap_err().code, JRS_E_ARGUMENT);
    }
}
