//! The scores of a study: systems, image pairs, organs. Filled by whoever computed the metrics.

use serde::{Deserialize, Serialize};

use crate::colour::ORGANS;

/// Name of the system that stands for no registration; always the first row.
pub const BEFORE: &str = "before registration";

/// Everything that the tables and box plots of a study are made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Which data, in words: it is printed under every table.
    pub data: String,
    /// The systems compared.
    pub systems: Vec<System>,
}

/// One way of registering, applied to all pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// For instance `JRS-GANa`, `elastix-MI` or [`BEFORE`].
    pub name: String,
    /// One entry per image pair.
    pub cases: Vec<Case>,
}

/// One image pair. What was not measured is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Name of the pair, the same in all systems: tests are paired by it.
    pub pair: String,
    /// Whose images they are.
    pub patient: String,
    /// Scores of the organs present in both images.
    #[serde(default)]
    pub organs: Vec<OrganScores>,
    /// Mean target registration error, mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tre_mean_mm: Option<f64>,
    /// Largest target registration error, mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tre_max_mm: Option<f64>,
    /// Standard deviation of the Jacobian determinant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jacobian_std: Option<f64>,
    /// Smallest Jacobian determinant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jacobian_min: Option<f64>,
    /// Share of voxels with a determinant at or below 0, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folding_percent: Option<f64>,
    /// Mean inverse-consistency error, mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inverse_consistency_mm: Option<f64>,
    /// Time of the registration, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// Scores of one organ. An absent organ has no entry or `None`, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OrganScores {
    /// Name, as in [`crate::colour::ORGANS`].
    pub organ: String,
    /// Dice similarity coefficient, 0..1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dsc: Option<f64>,
    /// Mean surface distance, mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msd_mm: Option<f64>,
    /// 95th percentile Hausdorff distance, mm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hd95_mm: Option<f64>,
}

/// A score per organ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// Mean surface distance, mm.
    Msd,
    /// 95th percentile Hausdorff distance, mm.
    Hd95,
    /// Dice similarity coefficient.
    Dsc,
}

impl Score {
    /// All, in the order of the report.
    pub const ALL: [Score; 3] = [Score::Msd, Score::Hd95, Score::Dsc];

    /// Title with unit.
    pub fn title(self) -> &'static str {
        match self {
            Score::Msd => "Mean surface distance (mm)",
            Score::Hd95 => "95% Hausdorff distance (mm)",
            Score::Dsc => "Dice similarity coefficient",
        }
    }

    /// Short name for file names and keys.
    pub fn key(self) -> &'static str {
        match self {
            Score::Msd => "msd_mm",
            Score::Hd95 => "hd95_mm",
            Score::Dsc => "dsc",
        }
    }

    /// True if a smaller value is better.
    pub fn smaller_is_better(self) -> bool {
        self != Score::Dsc
    }

    /// The score of an organ, `None` if absent or not a number.
    pub fn of(self, scores: &OrganScores) -> Option<f64> {
        let value = match self {
            Score::Msd => scores.msd_mm,
            Score::Hd95 => scores.hd95_mm,
            Score::Dsc => scores.dsc,
        };
        value.filter(|v| v.is_finite())
    }
}

impl Case {
    /// The score of one organ.
    pub fn score(&self, score: Score, organ: &str) -> Option<f64> {
        self.organs.iter().find(|o| o.organ == organ).and_then(|o| score.of(o))
    }

    /// Mean score over the organs present.
    pub fn mean_score(&self, score: Score) -> Option<f64> {
        let values: Vec<f64> = self.organs.iter().filter_map(|o| score.of(o)).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

impl System {
    /// The scores of one organ over all pairs.
    pub fn scores(&self, score: Score, organ: &str) -> Vec<f64> {
        self.cases.iter().filter_map(|c| c.score(score, organ)).collect()
    }
}

impl Evaluation {
    /// The systems with [`BEFORE`] first, otherwise in the given order.
    pub fn ordered_systems(&self) -> Vec<&System> {
        let (before, others): (Vec<_>, Vec<_>) = self.systems.iter().partition(|s| s.name == BEFORE);
        before.into_iter().chain(others).collect()
    }

    /// The organs that have any score: the paper's order first, then further ones as they come.
    pub fn organs(&self) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for scores in self.systems.iter().flat_map(|s| &s.cases).flat_map(|c| &c.organs) {
            let any = Score::ALL.iter().any(|s| s.of(scores).is_some());
            if any && !seen.contains(&scores.organ) {
                seen.push(scores.organ.clone());
            }
        }
        let rank = |name: &str| ORGANS.iter().position(|o| o.name == name).unwrap_or(ORGANS.len());
        seen.sort_by_key(|name| rank(name));
        seen
    }

    /// The system of that name.
    pub fn system(&self, name: &str) -> Option<&System> {
        self.systems.iter().find(|s| s.name == name)
    }

    /// Number of distinct pairs and patients.
    pub fn counts(&self) -> (usize, usize) {
        let count = |key: fn(&Case) -> &String| {
            let mut names: Vec<_> = self.systems.iter().flat_map(|s| &s.cases).map(key).collect();
            names.sort_unstable();
            names.dedup();
            names.len()
        };
        (count(|c| &c.pair), count(|c| &c.patient))
    }

    /// Best, median and worst case of a system by the mean score over organs (the cases to show in pictures).
    /// `None` if the system is unknown or has no scores.
    pub fn representative_cases(&self, system: &str, score: Score) -> Option<[&Case; 3]> {
        let mut ranked: Vec<(f64, &Case)> = self
            .system(system)?
            .cases
            .iter()
            .filter_map(|c| c.mean_score(score).map(|m| (if score.smaller_is_better() { m } else { -m }, c)))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.pair.cmp(&b.1.pair)));
        let last = ranked.len().checked_sub(1)?;
        Some([ranked[0].1, ranked[last / 2].1, ranked[last].1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(pair: &str, organs: &[(&str, f64)]) -> Case {
        let organs = organs
            .iter()
            .map(|&(organ, msd)| OrganScores { organ: organ.into(), msd_mm: Some(msd), ..Default::default() })
            .collect();
        Case { pair: pair.into(), patient: "p".into(), organs, ..Case::default() }
    }

    #[test]
    fn organs_come_in_the_papers_order_and_before_comes_first() {
        let evaluation = Evaluation {
            data: "d".into(),
            systems: vec![
                System { name: "A".into(), cases: vec![case("1", &[("bladder", 2.0), ("prostate", 1.0)])] },
                System {
                    name: BEFORE.into(),
                    cases: vec![case("1", &[("bone", 2.0), ("rectum", f64::NAN)])],
                },
            ],
        };
        assert_eq!(evaluation.organs(), ["prostate", "bladder", "bone"]);
        assert_eq!(evaluation.ordered_systems()[0].name, BEFORE);
    }

    #[test]
    fn best_median_worst() {
        let cases = [3.0, 1.0, 9.0, 2.0, 4.0].iter().enumerate();
        let cases = cases.map(|(n, &m)| case(&format!("p{n}"), &[("prostate", m)])).collect();
        let evaluation = Evaluation { data: "d".into(), systems: vec![System { name: "A".into(), cases }] };
        let shown = evaluation.representative_cases("A", Score::Msd).unwrap().map(|c| c.pair.as_str());
        assert_eq!(shown, ["p1", "p0", "p2"]);
        assert!(evaluation.representative_cases("B", Score::Msd).is_none());
    }

    #[test]
    fn json_round_trip_keeps_absence() {
        let text = r#"{"data":"d","systems":[{"name":"A","cases":[{"pair":"1","patient":"p",
            "organs":[{"organ":"rectum","dsc":0.9,"msd_mm":null}]}]}]}"#;
        let evaluation: Evaluation = serde_json::from_str(text).unwrap();
        let scores = &evaluation.systems[0].cases[0].organs[0];
        assert_eq!((scores.dsc, scores.msd_mm), (Some(0.9), None));
        let again: Evaluation = serde_json::from_str(&serde_json::to_string(&evaluation).unwrap()).unwrap();
        assert_eq!(again, evaluation);
    }
}
