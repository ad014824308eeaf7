//! The quality page of one registration.

use serde::{Deserialize, Serialize};

use crate::evaluation::{OrganScores, Score};
use crate::html::{Figure, Grid, GridCell, Page, Tile, Verdict};

/// Everything on the page. Sections without content are left out.
#[derive(Debug, Clone)]
pub struct RegistrationReport {
    /// Heading, for instance the name of the patient and scan.
    pub title: String,
    /// One line below: model, date.
    pub subtitle: String,
    /// The outcome of the checks.
    pub verdict: Verdict,
    /// Why, one sentence each.
    pub reasons: Vec<String>,
    /// Key figures (time, mean displacement, share of folding ...).
    pub tiles: Vec<Tile>,
    /// The checks behind the verdict.
    pub checks: Vec<Check>,
    /// Scores against known contours of the fixed image.
    pub organs: Vec<OrganChange>,
    /// Pictures, as from [`crate::RegistrationPictures::figures`].
    pub figures: Vec<Figure>,
    /// Files, grids, settings, versions, checksums.
    pub provenance: Vec<(String, String)>,
    /// What made the page.
    pub footer: String,
}

/// One quality check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was measured.
    pub name: String,
    /// The value with its unit.
    pub value: String,
    /// What is acceptable, in words.
    pub limit: String,
    /// Outcome of this check alone.
    pub verdict: Verdict,
}

/// Scores of an organ before and after registration; `None` where not measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrganChange {
    /// Name of the organ.
    pub organ: String,
    /// Before registration.
    pub before: Option<OrganScores>,
    /// After registration.
    pub after: Option<OrganScores>,
}

/// The page as one HTML file.
pub fn registration_page(report: &RegistrationReport) -> String {
    let mut page = Page::new(&report.title, &report.subtitle, Some(report.verdict));
    if !report.tiles.is_empty() || !report.reasons.is_empty() {
        page.section("Summary");
        page.tiles(&report.tiles);
        if !report.reasons.is_empty() {
            page.list(&report.reasons);
        }
    }
    if !report.checks.is_empty() {
        page.section("Checks");
        page.grid(&checks(&report.checks));
    }
    if !report.organs.is_empty() {
        page.section("Organs, before → after");
        page.grid(&organs(&report.organs));
    }
    if !report.figures.is_empty() {
        page.section("Pictures");
        page.figures(&report.figures);
        page.paragraph(
            "Radiological orientation: the patient's right is on the left of axial and coronal pictures; anterior \
             is on the left of sagittal ones. CT window -160 to 240 HU.",
        );
    }
    if !report.provenance.is_empty() {
        page.section("Provenance");
        page.facts(&report.provenance);
    }
    page.finish(&report.footer)
}

fn checks(checks: &[Check]) -> Grid {
    let row = |check: &Check| {
        vec![
            GridCell::Text(check.name.clone()),
            GridCell::Text(check.value.clone()),
            GridCell::Words(check.limit.clone()),
            GridCell::Verdict(check.verdict),
        ]
    };
    Grid {
        heads: ["check", "value", "expected", "outcome"].map(str::to_owned).into(),
        rows: checks.iter().map(row).collect(),
    }
}

fn organs(changes: &[OrganChange]) -> Grid {
    let row = |change: &OrganChange| {
        let value = |scores: &Option<OrganScores>, score: Score| {
            scores.as_ref().and_then(|s| score.of(s)).map_or("–".into(), |v| format!("{v:.2}"))
        };
        let pair = |score| {
            GridCell::Text(format!("{} → {}", value(&change.before, score), value(&change.after, score)))
        };
        vec![GridCell::Text(change.organ.clone()), pair(Score::Dsc), pair(Score::Msd), pair(Score::Hd95)]
    };
    Grid {
        heads: ["organ", "DSC", "MSD (mm)", "HD95 (mm)"].map(str::to_owned).into(),
        rows: changes.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::Picture;

    fn report() -> RegistrationReport {
        RegistrationReport {
            title: "patient & scan".into(),
            subtitle: "s".into(),
            verdict: Verdict::Reject,
            reasons: vec!["folding in 3% of the body".into()],
            tiles: vec![],
            checks: vec![Check {
                name: "folding".into(),
                value: "3 %".into(),
                limit: "below 0.5 %".into(),
                verdict: Verdict::Reject,
            }],
            organs: vec![OrganChange {
                organ: "bladder".into(),
                before: Some(OrganScores { organ: "bladder".into(), dsc: Some(0.5), ..Default::default() }),
                after: Some(OrganScores { organ: "bladder".into(), dsc: Some(0.875), ..Default::default() }),
            }],
            figures: vec![Figure { picture: Picture::Png(vec![0; 8]), caption: "c".into() }],
            provenance: vec![("model".into(), "m".into())],
            footer: "f".into(),
        }
    }

    #[test]
    fn shows_verdict_checks_and_organs() {
        let page = registration_page(&report());
        assert!(page.contains("<span class=\"badge reject\">REJECT</span>"));
        assert!(page.contains("<td>0.50 → 0.88</td>") && page.contains("<td>– → –</td>"), "{page}");
        assert!(page.contains("patient &amp; scan"));
    }

    #[test]
    fn refers_to_nothing_outside() {
        let page = registration_page(&report());
        for reference in ["http:", "https:", "<script", "<link", "@import", "url(", "src=\"/", "href="] {
            assert!(!page.contains(reference), "{reference}");
        }
    }
}
