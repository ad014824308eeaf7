//! The page of a study: systems compared over many image pairs.

use crate::boxplot::box_plot;
use crate::curves::Chart;
use crate::evaluation::{BEFORE, Evaluation, Score};
use crate::html::{Figure, Page, Picture, Tile};
use crate::table::{References, Table, case_table, published_msd, score_table};

/// Everything on the page besides what follows from the scores. Empty lists leave their section out.
#[derive(Debug, Clone)]
pub struct EvaluationReport {
    /// Heading.
    pub title: String,
    /// One line below: run, date.
    pub subtitle: String,
    /// The scores.
    pub evaluation: Evaluation,
    /// Which systems the daggers refer to.
    pub references: References,
    /// What the reader should take from it, one sentence each.
    pub findings: Vec<String>,
    /// Overlays of the best, median and worst case ([`Evaluation::representative_cases`]).
    pub overlays: Vec<Figure>,
    /// Loss curves.
    pub curves: Vec<Chart>,
    /// Configuration, dataset digest, versions, seeds.
    pub provenance: Vec<(String, String)>,
    /// What made the page.
    pub footer: String,
}

/// The page as one HTML file.
pub fn evaluation_page(report: &EvaluationReport) -> String {
    let evaluation = &report.evaluation;
    let mut page = Page::new(&report.title, &report.subtitle, None);
    page.section("Summary");
    page.tiles(&size_tiles(evaluation));
    page.tiles(&organ_tiles(evaluation));
    if !report.findings.is_empty() {
        page.list(&report.findings);
    }
    let tables: Vec<(Score, Table)> = Score::ALL
        .into_iter()
        .map(|score| (score, score_table(evaluation, score, &report.references)))
        .filter(|(_, table)| !table.columns.is_empty())
        .collect();
    for (score, table) in &tables {
        page.section(match score {
            Score::Msd => "Surface distance",
            Score::Hd95 => "Hausdorff distance",
            Score::Dsc => "Overlap",
        });
        page.table(table);
        page.figures(&[Figure {
            picture: Picture::Svg(box_plot(evaluation, *score)),
            caption: "Quartiles, median (line), mean (diamond), whiskers to the farthest value within 1.5 \
                      interquartile ranges, points beyond."
                .into(),
        }]);
    }
    let cases = case_table(evaluation);
    if !cases.columns.is_empty() {
        page.section(&cases.title);
        page.table(&Table { title: String::new(), ..cases });
    }
    if !report.overlays.is_empty() {
        page.section("Cases");
        page.figures(&report.overlays);
    }
    if !report.curves.is_empty() {
        page.section("Training");
        let figures = report
            .curves
            .iter()
            .map(|chart| Figure { picture: Picture::Svg(chart.svg()), caption: String::new() });
        page.figures(&figures.collect::<Vec<_>>());
    }
    if tables.iter().any(|(score, _)| *score == Score::Msd) {
        page.section("The paper's figures");
        page.table(&published_msd());
    }
    if !report.provenance.is_empty() {
        page.section("Provenance");
        page.facts(&report.provenance);
    }
    page.finish(&report.footer)
}

fn size_tiles(evaluation: &Evaluation) -> Vec<Tile> {
    let (pairs, patients) = evaluation.counts();
    let plain =
        |label: &str, value: String| Tile { label: label.into(), value, note: String::new(), verdict: None };
    let systems = evaluation.systems.iter().filter(|s| s.name != BEFORE).count();
    vec![
        plain("image pairs", pairs.to_string()),
        plain("patients", patients.to_string()),
        plain("systems", systems.to_string()),
    ]
}

/// The mean surface distance of each organ, before and with the best system.
fn organ_tiles(evaluation: &Evaluation) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let table = score_table(evaluation, Score::Msd, &References::default());
    for (column, organ) in table.columns.iter().enumerate() {
        let mean = |name: &str| {
            let row = table.rows.iter().find(|r| r.name == name)?;
            row.cells[column].as_ref().map(|c| c.mean)
        };
        let best = table
            .rows
            .iter()
            .filter(|r| r.name != BEFORE)
            .filter_map(|r| r.cells[column].as_ref().map(|c| (c.mean, &r.name)))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((after, name)) = best else { continue };
        let before = mean(BEFORE).map_or(String::new(), |b| format!("from {b:.2}, "));
        tiles.push(Tile {
            label: format!("MSD {organ}"),
            value: format!("{after:.2} mm"),
            note: format!("{before}best: {name}"),
            verdict: None,
        });
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curves::Series;
    use crate::evaluation::{Case, OrganScores, System};

    fn report() -> EvaluationReport {
        let system = |name: &str, msd: f64| {
            let organ = |m| OrganScores { organ: "rectum".into(), msd_mm: Some(m), ..Default::default() };
            let cases = (0..6).map(|n| Case {
                pair: format!("pair {n}"),
                patient: "p".into(),
                organs: vec![organ(msd + 0.1 * f64::from(n))],
                ..Case::default()
            });
            System { name: name.into(), cases: cases.collect() }
        };
        EvaluationReport {
            title: "study".into(),
            subtitle: "s".into(),
            evaluation: Evaluation {
                data: "made up".into(),
                systems: vec![system("JRS-CNN", 1.0), system(BEFORE, 3.0)],
            },
            references: References { dagger: Some(BEFORE.into()), double_dagger: None },
            findings: vec![],
            overlays: vec![],
            curves: vec![Chart {
                title: "loss".into(),
                x_label: "step".into(),
                y_label: "loss".into(),
                log_y: true,
                series: vec![Series { name: "a".into(), points: vec![(0.0, 1.0), (1.0, 0.1)] }],
            }],
            provenance: vec![],
            footer: "f".into(),
        }
    }

    #[test]
    fn has_tables_plots_and_tiles() {
        let page = evaluation_page(&report());
        assert!(page.contains("1.25 mm") && page.contains("from 3.25, best: JRS-CNN"), "{page}");
        assert_eq!(page.matches("<svg").count(), 2, "one box plot, one chart");
        assert!(page.find("before registration").unwrap() < page.find("JRS-CNN</th>").unwrap());
        assert!(!page.contains("Provenance"));
    }

    #[test]
    fn refers_to_nothing_outside() {
        // The name of the SVG name space is an identifier that nothing loads.
        let page = evaluation_page(&report()).replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in ["http:", "https:", "<script", "<link", "@import", "url(", "href="] {
            assert!(!page.contains(reference), "{reference}");
        }
    }
}
