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

/// Limits of every judged figure, for one registration of clinical scans whose truth nobody knows.
///
/// *TG-132* is AAPM Task Group 132's report (Brock et al., Med. Phys. 44(7), e43-e76, 2017), table III: consistency within the
/// largest voxel edge (about 2 to 3 mm), no negative Jacobian. It has no figure for volumes, similarity and field of view; the
/// REVIEW limits for those are this project's, and so is every REJECT limit: about an order of magnitude further, for fields
/// that are broken rather than doubtful.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QaLimits {
    /// Share of folded voxels, in the body and in each organ. TG-132 asks for none, which 0 is; that up to 0.1 % is let pass is
    /// this project's choice.
    pub folding_review: f64,
    /// The same, to reject.
    pub folding_reject: f64,
    /// 95th percentile of the inverse-consistency error, mm. TG-132's consistency, upper end (3 mm); that it holds for the 95th
    /// percentile is this project's choice.
    pub inverse_consistency_p95_review_mm: f64,
    /// The same, to reject.
    pub inverse_consistency_p95_reject_mm: f64,
    /// Lowest and highest organ volume after propagation divided by before. Bladders do double and halve between fractions
    /// (Br. J. Radiol. 84, 813, 2011: 282 ± 145 mL at planning, 11 to 781 mL on treatment): this is to be looked at, not wrong.
    pub volume_ratio_review: [f64; 2],
    /// The same, to reject.
    pub volume_ratio_reject: [f64; 2],
    /// How far the NCC may fall through the field (0: not at all): a registration that makes the scans less alike is doubtful.
    pub ncc_drop_review: f64,
    /// The same, to reject.
    pub ncc_drop_reject: f64,
    /// Share of the body sent outside the moving image (field of view cut), where nothing is known.
    pub out_of_field_review: f64,
    /// The same, to reject.
    pub out_of_field_reject: f64,
    /// Share of the body displaced beyond the network's capture range, which training never showed it; never rejects by
    /// itself.
    pub beyond_capture_range_review: f64,
}

impl QaLimits {
    /// The defaults; a constant, because the C interface has them too.
    pub const DEFAULT: Self = Self {
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
    };
}

impl Default for QaLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One figure beside its limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was measured.
    pub figure: String,
    /// The value with its unit.
    pub value: String,
    /// What is acceptable, in words.
    pub limit: String,
    /// Outcome of this check alone.
    pub status: Status,
    /// A sentence, if the limit is exceeded.
    pub reason: Option<String>,
}

impl QaLimits {
    /// Every figure of a report that there is, against these limits.
    pub fn checks(&self, report: &QaReport) -> Vec<Check> {
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let mm = |length: f64| format!("{length:.1} mm");
        let mut checks = Vec::new();

        let regions = report.jacobian.iter().map(|j| ("the body", j));
        let organs = report.organs.iter().filter_map(|o| Some((&o.name[..], o.jacobian.as_ref()?)));
        for (place, jacobian) in regions.chain(organs) {
            let limits = [self.folding_review, self.folding_reject];
            checks.push(at_most(
                format!("folding in {place}"),
                jacobian.folded,
                limits,
                percent,
                |value, limit| format!("the field folds in {value} of {place} (limit {limit})"),
            ));
        }
        if let Some(error) = &report.inverse_consistency {
            let limits = [self.inverse_consistency_p95_review_mm, self.inverse_consistency_p95_reject_mm];
            checks.push(at_most(
                "inverse consistency (p95)".into(),
                error.p95_mm,
                limits,
                mm,
                |value, limit| format!("forward and backward differ by {value} at p95 (limit {limit})"),
            ));
        }
        for organ in &report.organs {
            let Some(ratio) = organ.volume_ratio else { continue };
            let limits =
                [(Status::Reject, self.volume_ratio_reject), (Status::Review, self.volume_ratio_review)];
            let exceeded = limits.into_iter().find(|(_, [low, high])| !(*low..=*high).contains(&ratio));
            let [low, high] = self.volume_ratio_review;
            checks.push(Check {
                figure: format!("volume of the {}, after / before", organ.name),
                value: format!("{ratio:.2}"),
                limit: format!("{low} to {high}"),
                status: exceeded.map_or(Status::Ok, |(status, _)| status),
                reason: exceeded.map(|(_, [low, high])| {
                    format!("the {} has {ratio:.2} times its volume (limits {low} to {high})", organ.name)
                }),
            });
        }
        checks.extend(self.similarity(report));
        let limits = [self.out_of_field_review, self.out_of_field_reject];
        checks.push(at_most(
            "sent outside the moving image".into(),
            report.out_of_field,
            limits,
            percent,
            |value, limit| format!("{value} of the body is sent outside the moving image (limit {limit})"),
        ));
        let (beyond, limits) =
            (report.displacement.beyond_capture_range, [self.beyond_capture_range_review, f64::INFINITY]);
        checks.push(at_most(
            "moved beyond the capture range".into(),
            beyond,
            limits,
            percent,
            |value, limit| format!("{value} of the body moves beyond the capture range (limit {limit})"),
        ));
        checks
    }

    /// The NCC must not fall; `None` if there was none before.
    fn similarity(&self, report: &QaReport) -> Option<Check> {
        let before = report.ncc_before?;
        let figure = "NCC, before → after".to_owned();
        let limit = match self.ncc_drop_review {
            0.0 => "no fall".to_owned(),
            drop => format!("a fall of at most {drop}"),
        };
        Some(match report.ncc_after {
            Some(after) => {
                let limits = [self.ncc_drop_review, self.ncc_drop_reject];
                let reason = |_: &str, limit: &str| {
                    format!("the NCC fell from {before:.4} to {after:.4} (limit: by {limit})")
                };
                let check = at_most(figure, before - after, limits, |drop| drop.to_string(), reason);
                Check { value: format!("{before:.4} → {after:.4}"), limit, ..check }
            }
            None => Check {
                figure,
                value: format!("{before:.4} → none"),
                limit,
                status: Status::Review,
                reason: Some(
                    "the images cannot be compared after registration: no overlap, or one is constant".into(),
                ),
            },
        })
    }

    /// The verdict on a report's figures, with one sentence per exceeded limit.
    pub fn judge(&self, report: &QaReport) -> (Status, Vec<String>) {
        let checks = self.checks(report);
        let worst = checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok);
        (worst, checks.into_iter().filter_map(|check| check.reason).collect())
    }
}

/// A figure that may be at most `review`, or at worst `reject`; `reason` gets the value and the highest limit that it
/// exceeds, as `show` writes them.
fn at_most(
    figure: String,
    value: f64,
    [review, reject]: [f64; 2],
    show: impl Fn(f64) -> String,
    reason: impl Fn(&str, &str) -> String,
) -> Check {
    let exceeded = match value {
        v if v > reject => Some((Status::Reject, reject)),
        v if v > review => Some((Status::Review, review)),
        _ => None,
    };
    Check {
        figure,
        value: show(value),
        limit: format!("at most {}", show(review)),
        status: exceeded.map_or(Status::Ok, |(status, _)| status),
        reason: exceeded.map(|(_, limit)| reason(&show(value), &show(limit))),
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
    fn the_highest_exceeded_limit_counts() {
        let check = |value| {
            at_most("f".into(), value, [1.0, 2.0], |v| format!("{v} mm"), |v, limit| format!("{v} > {limit}"))
        };
        let said = |value| (check(value).status, check(value).reason);
        assert_eq!(said(1.0), (Status::Ok, None));
        assert_eq!(said(1.5), (Status::Review, Some("1.5 mm > 1 mm".into())));
        assert_eq!(said(3.0), (Status::Reject, Some("3 mm > 2 mm".into())));
        assert_eq!(check(3.0).limit, "at most 1 mm");
    }
}
