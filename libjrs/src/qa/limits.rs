//! Where a figure becomes a reason: the configurable limits and the verdict.

use serde::{Deserialize, Serialize};

use super::QaReport;

/// The verdict; the worst reason counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Nothing exceeds a limit.
    Ok,
    /// Somebody should look at it.
    Review,
    /// Not to be used.
    Reject,
}

/// Limits of every judged figure. The REVIEW defaults for folding, inverse consistency, volume ratio and NCC
/// are those of embedding.md; all others, and every REJECT default, are our choice: an order of magnitude
/// further, for fields that are broken rather than doubtful.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QaLimits {
    /// Share of folded voxels, in the body and in each organ.
    pub folding_review: f64,
    /// The same, to reject.
    pub folding_reject: f64,
    /// 95th percentile of the inverse-consistency error, mm.
    pub inverse_consistency_p95_review_mm: f64,
    /// The same, to reject.
    pub inverse_consistency_p95_reject_mm: f64,
    /// Lowest and highest organ volume after propagation divided by before.
    pub volume_ratio_review: [f64; 2],
    /// The same, to reject.
    pub volume_ratio_reject: [f64; 2],
    /// How far the NCC may fall through the field (0: not at all).
    pub ncc_drop_review: f64,
    /// The same, to reject.
    pub ncc_drop_reject: f64,
    /// Share of the body sent outside the moving image (field of view cut).
    pub out_of_field_review: f64,
    /// The same, to reject.
    pub out_of_field_reject: f64,
    /// Share of the body displaced beyond the network's capture range; never rejects by itself.
    pub beyond_capture_range_review: f64,
}

impl Default for QaLimits {
    fn default() -> Self {
        Self {
            folding_review: 0.001,
            folding_reject: 0.01,
            inverse_consistency_p95_review_mm: 3.0,
            inverse_consistency_p95_reject_mm: 10.0,
            volume_ratio_review: [0.5, 2.0],
            volume_ratio_reject: [0.1, 10.0],
            ncc_drop_review: 0.0,
            ncc_drop_reject: 0.1,
            out_of_field_review: 0.05,
            out_of_field_reject: 0.5,
            beyond_capture_range_review: 0.0,
        }
    }
}

impl QaLimits {
    /// The verdict on a report's figures, with one sentence per exceeded limit.
    pub fn judge(&self, report: &QaReport) -> (Status, Vec<String>) {
        let mut verdict = Verdict { status: Status::Ok, reasons: Vec::new() };
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);

        let regions = report.jacobian.iter().map(|j| ("the body", j));
        let organs = report.organs.iter().filter_map(|o| Some((&o.name[..], o.jacobian.as_ref()?)));
        for (place, jacobian) in regions.chain(organs) {
            let (review, reject) = (self.folding_review, self.folding_reject);
            verdict.above(jacobian.folded, review, reject, |limit| {
                format!(
                    "the field folds in {} of {place} (limit {})",
                    percent(jacobian.folded),
                    percent(limit)
                )
            });
        }
        if let Some(error) = &report.inverse_consistency {
            let limits = (self.inverse_consistency_p95_review_mm, self.inverse_consistency_p95_reject_mm);
            verdict.above(error.p95_mm, limits.0, limits.1, |limit| {
                format!("forward and backward differ by {:.1} mm at p95 (limit {limit} mm)", error.p95_mm)
            });
        }
        for organ in &report.organs {
            let Some(ratio) = organ.volume_ratio else { continue };
            let outside = |[low, high]: [f64; 2]| !(low..=high).contains(&ratio);
            let reason = |[low, high]: [f64; 2]| {
                format!("the {} has {ratio:.2} times its volume (limits {low} to {high})", organ.name)
            };
            if outside(self.volume_ratio_reject) {
                verdict.add(Status::Reject, reason(self.volume_ratio_reject));
            } else if outside(self.volume_ratio_review) {
                verdict.add(Status::Review, reason(self.volume_ratio_review));
            }
        }
        match (report.ncc_before, report.ncc_after) {
            (Some(before), Some(after)) => {
                verdict.above(before - after, self.ncc_drop_review, self.ncc_drop_reject, |limit| {
                    format!("the NCC fell from {before:.4} to {after:.4} (limit: by {limit})")
                });
            }
            (Some(_), None) => verdict.add(
                Status::Review,
                "the images cannot be compared after registration: no overlap, or one is constant".into(),
            ),
            (None, _) => {}
        }
        verdict.above(report.out_of_field, self.out_of_field_review, self.out_of_field_reject, |limit| {
            format!(
                "{} of the body is sent outside the moving image (limit {})",
                percent(report.out_of_field),
                percent(limit)
            )
        });
        let beyond = report.displacement.beyond_capture_range;
        verdict.above(beyond, self.beyond_capture_range_review, f64::INFINITY, |limit| {
            format!(
                "{} of the body moves beyond the capture range (limit {})",
                percent(beyond),
                percent(limit)
            )
        });
        (verdict.status, verdict.reasons)
    }
}

struct Verdict {
    status: Status,
    reasons: Vec<String>,
}

impl Verdict {
    fn add(&mut self, status: Status, reason: String) {
        self.status = self.status.max(status);
        self.reasons.push(reason);
    }

    /// Adds `reason(limit)` for the highest limit that `value` exceeds.
    fn above(&mut self, value: f64, review: f64, reject: f64, reason: impl Fn(f64) -> String) {
        if value > reject {
            self.add(Status::Reject, reason(reject));
        } else if value > review {
            self.add(Status::Review, reason(review));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_with_defaults_and_typing_errors_are_refused() {
        let limits: QaLimits = serde_json::from_str(r#"{"folding_review": 0.5}"#).unwrap();
        assert_eq!(limits, QaLimits { folding_review: 0.5, ..QaLimits::default() });
        assert!(serde_json::from_str::<QaLimits>(r#"{"foldings": 0.5}"#).is_err());
    }

    #[test]
    fn the_worst_reason_counts() {
        let mut verdict = Verdict { status: Status::Ok, reasons: Vec::new() };
        verdict.above(0.5, 1.0, 2.0, |_| "no".into());
        assert_eq!(verdict.status, Status::Ok);
        verdict.above(3.0, 1.0, 2.0, |limit| format!("{limit}"));
        verdict.above(1.5, 1.0, 2.0, |limit| format!("{limit}"));
        assert_eq!((verdict.status, verdict.reasons.join(" ")), (Status::Reject, "2 1".to_owned()));
    }
}
