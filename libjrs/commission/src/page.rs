//! The report as one HTML page.

use jrs_report::html::{Grid, GridCell, Page, Tile, Verdict};

use crate::{Outcome, Report};

/// The report as a self-contained page.
pub fn page(report: &Report) -> String {
    let verdict = |passed: bool| if passed { Verdict::Passed } else { Verdict::Failed };
    let subtitle = format!("model {} on this machine, against AAPM TG-132", report.system);
    let mut page = Page::new("Commissioning", &subtitle, Some(verdict(report.passed)));
    page.section("Summary");
    let passed = report.cases.iter().filter(|case| case.passed()).count();
    let seconds: f64 = report.cases.iter().map(|case| case.seconds).sum();
    let tile = |label: &str, value: String, note: &str, verdict| Tile {
        label: label.into(),
        value,
        note: note.into(),
        verdict,
    };
    page.tiles(&[
        tile("cases passed", format!("{passed} of {}", report.cases.len()), "", Some(verdict(report.passed))),
        tile("time", format!("{seconds:.0} s"), "registration alone", None),
    ]);
    page.grid(&summary(&report.cases, verdict));
    page.paragraph(match report.passed {
        true => "Every case was passed: on this machine the model is as accurate as the tolerances ask, on synthetic scans.",
        false => {
            "Not every case was passed: the model is not as accurate on this machine as the tolerances ask. It is not ready for \
             use; the checks below say where it falls short."
        }
    });
    page.paragraph(
        "Every case is a synthetic pelvis that was deformed by a known map; the error is the distance between the \
         displacement that was found and the true one, wherever a point of one scan is in the other. The QA verdict is what a user would see: it knows \
         no truth. A case passes if every check below does.",
    );
    for case in &report.cases {
        page.section(case.name);
        let [mean, p95] = case.true_displacement_mm;
        page.paragraph(&format!("{}. True displacement: mean {mean:.1} mm, p95 {p95:.1} mm.", case.purpose));
        page.grid(&checks(case, verdict));
    }
    page.section("Where the tolerances come from");
    page.paragraph(
        "AAPM TG-132 (Brock et al., Med. Phys. 44(7), e43, 2017) recommends for digital phantoms: after deformation 95 % of voxels within \
         2 mm and no error of 5 mm or more; for rigid alignment half the largest voxel edge. For clinical images (its table III): targets \
         and consistency within the largest voxel edge, about 2 to 3 mm, contours' mean distance 2 to 3 mm, Dice 0.80 to 0.90, no \
         negative Jacobian. The suite takes the phantom's limits where both scans show the same, and the clinical 3 mm where they do not \
         (gas, metal, cut field of view). Its own choices are: the 99.9th percentile as the largest error, 8 mm instead of 5 for it where \
         scans do not show the same, and 0.5 mm where nothing has moved. Errors count inside organs too, where uniform tissue shows little \
         motion: a method that is right at every contour can fail them.",
    );
    page.section("Provenance");
    let suite = serde_json::to_value(&report.suite).unwrap_or_default();
    let mut facts = vec![
        ("software".into(), report.software.clone()),
        ("model SHA-256".into(), report.model_sha256.clone().unwrap_or_else(|| "no model".into())),
    ];
    for (name, value) in suite.as_object().into_iter().flatten() {
        facts.push((name.clone(), value.to_string()));
    }
    page.facts(&facts);
    page.finish(&report.software)
}

fn summary(cases: &[Outcome], verdict: impl Fn(bool) -> Verdict) -> Grid {
    let row = |case: &Outcome| {
        let error = case.checks.first().and_then(|c| c.value);
        vec![
            GridCell::Text(case.name.into()),
            GridCell::Text(error.map_or("not measured".into(), |v| format!("{v:.2}"))),
            GridCell::Text(format!("{:.1}", case.true_displacement_mm[1])),
            GridCell::Text(format!("{:.1}", case.seconds)),
            GridCell::Words(format!("{:?}", case.qa).to_uppercase()),
            GridCell::Verdict(verdict(case.passed())),
        ]
    };
    let heads = ["case", "error p95, mm", "moved p95, mm", "seconds", "QA verdict", "outcome"];
    Grid { heads: heads.map(str::to_owned).into(), rows: cases.iter().map(row).collect() }
}

fn checks(case: &Outcome, verdict: impl Fn(bool) -> Verdict) -> Grid {
    let rows = case.checks.iter().map(|check| {
        vec![
            GridCell::Text(check.name.clone()),
            GridCell::Text(check.value.map_or("not measured".into(), shown)),
            GridCell::Words(check.tolerance.clone()),
            GridCell::Verdict(verdict(check.passed)),
        ]
    });
    let heads = ["check", "value", "tolerance", "outcome"];
    Grid { heads: heads.map(str::to_owned).into(), rows: rows.collect() }
}

/// Three digits behind the point, or what is left where that would look like nothing.
fn shown(value: f64) -> String {
    match value != 0.0 && value.abs() < 5e-4 {
        true => format!("{value:.0e}"),
        false => format!("{value:.3}"),
    }
}
