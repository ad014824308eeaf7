//! The report as one HTML page.

use jrs_report::html::{Grid, GridCell, Page, Tile, Verdict};

use crate::{Outcome, Report};

/// The report as a self-contained page.
pub fn page(report: &Report) -> String {
    let verdict = |passed: bool| if passed { Verdict::Ok } else { Verdict::Reject };
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
            GridCell::Words(format!("{:?}", case.qa)),
            GridCell::Verdict(verdict(case.passed())),
        ]
    };
    let heads = ["case", "error, mm", "moved p95, mm", "seconds", "QA verdict", "outcome"];
    Grid { heads: heads.map(str::to_owned).into(), rows: cases.iter().map(row).collect() }
}

fn checks(case: &Outcome, verdict: impl Fn(bool) -> Verdict) -> Grid {
    let rows = case.checks.iter().map(|check| {
        vec![
            GridCell::Text(check.name.clone()),
            GridCell::Text(check.value.map_or("not measured".into(), |v| format!("{v:.3}"))),
            GridCell::Words(check.tolerance.clone()),
            GridCell::Verdict(verdict(check.passed)),
        ]
    });
    let heads = ["check", "value", "tolerance", "outcome"];
    Grid { heads: heads.map(str::to_owned).into(), rows: rows.collect() }
}
