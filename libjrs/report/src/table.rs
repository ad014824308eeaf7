//! Tables of the paper's form: rows are systems, columns organs, cells mean ± std with daggers for significance.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::evaluation::{Case, Evaluation, Score, System};
use crate::stats::Summary;
use crate::wilcoxon::{self, signed_rank};

/// Differences with a smaller p-value get a dagger (the paper's level).
pub const SIGNIFICANT: f64 = 0.05;

/// The rows that others are tested against.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct References {
    /// Name of the system for † (elastix-MI in the paper).
    pub dagger: Option<String>,
    /// Name of the system for ‡ (Reg-CNN in the paper).
    pub double_dagger: Option<String>,
}

/// A table ready to print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What is shown, with unit.
    pub title: String,
    /// Head of the first column.
    pub row_head: String,
    /// Heads of the other columns.
    pub columns: Vec<String>,
    /// The rows, top to bottom.
    pub rows: Vec<Row>,
    /// What the reader must know: which data, which test.
    pub notes: Vec<String>,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of the system.
    pub name: String,
    /// One cell per column; `None` where nothing was measured.
    pub cells: Vec<Option<Cell>>,
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation; `None` for a single value.
    pub std: Option<f64>,
    /// Minimum, first quartile, median, third quartile, maximum; `None` if only mean and std are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<[f64; 5]>,
    /// Digits of the mean after the decimal point.
    pub decimals: usize,
    /// Digits of the standard deviation after the decimal point.
    pub std_decimals: usize,
    /// Test against [`References::dagger`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_dagger: Option<wilcoxon::Test>,
    /// Test against [`References::double_dagger`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against_double_dagger: Option<wilcoxon::Test>,
    /// True for the best mean of its column (the rows without registration compete too).
    #[serde(default)]
    pub best: bool,
}

impl Cell {
    fn new(s: Summary, decimals: usize) -> Self {
        Self {
            n: s.n,
            mean: s.mean,
            std: s.std,
            quantiles: Some([s.min, s.q1, s.median, s.q3, s.max]),
            decimals,
            std_decimals: decimals,
            against_dagger: None,
            against_double_dagger: None,
            best: false,
        }
    }

    /// `1.13±0.40`, `1.13` for a single value.
    pub fn mean_std(&self) -> String {
        let (d, e) = (self.decimals, self.std_decimals);
        match self.std {
            Some(std) => format!("{:.d$}±{std:.e$}", self.mean),
            None => format!("{:.d$}", self.mean),
        }
    }

    /// The daggers the cell has earned.
    pub fn marks(&self) -> String {
        let earned = |test: Option<wilcoxon::Test>| test.is_some_and(|t| t.p < SIGNIFICANT);
        let dagger = if earned(self.against_dagger) { "†" } else { "" };
        let double_dagger = if earned(self.against_double_dagger) { "‡" } else { "" };
        format!("{dagger}{double_dagger}")
    }
}

/// The table of one score: mean ± std over the image pairs per organ.
pub fn score_table(evaluation: &Evaluation, score: Score, references: &References) -> Table {
    let mut columns = evaluation.organs();
    columns.retain(|o| evaluation.systems.iter().any(|s| !s.scores(score, o).is_empty()));
    let systems = evaluation.ordered_systems();
    let dagger = references.dagger.as_deref().and_then(|name| evaluation.system(name));
    let double_dagger = references.double_dagger.as_deref().and_then(|name| evaluation.system(name));
    let cell = |system: &System, organ: &String| {
        let test = |reference: Option<&System>| {
            let reference = reference.filter(|r| r.name != system.name)?;
            signed_rank(&paired(system, reference, score, organ))
        };
        let cell = Cell::new(Summary::of(&system.scores(score, organ))?, 2);
        Some(Cell { against_dagger: test(dagger), against_double_dagger: test(double_dagger), ..cell })
    };
    let row = |system: &&System| Row {
        name: system.name.clone(),
        cells: columns.iter().map(|organ| cell(system, organ)).collect(),
    };
    let mut table = Table {
        title: score.title().into(),
        row_head: "system".into(),
        rows: systems.iter().map(row).collect(),
        columns,
        notes: vec![data_note(evaluation)],
    };
    mark_best(&mut table, |_| Some(score.smaller_is_better()));
    let tested: Vec<String> = [("†", dagger), ("‡", double_dagger)]
        .into_iter()
        .filter_map(|(mark, system)| system.map(|s| format!("{mark} differs from {}", s.name)))
        .collect();
    if !tested.is_empty() {
        table.notes.push(format!(
            "{} (Wilcoxon signed-rank test, two-sided, p < {SIGNIFICANT}, paired by image pair).",
            tested.join(", ")
        ));
    }
    table
}

/// The table of what is measured once per image pair: landmarks, Jacobian, folding, consistency, time. Columns
/// without any value are left out.
pub fn case_table(evaluation: &Evaluation) -> Table {
    struct Column {
        name: &'static str,
        decimals: usize,
        smaller_is_better: Option<bool>,
        value: fn(&Case) -> Option<f64>,
    }
    let column =
        |name, decimals, smaller_is_better, value| Column { name, decimals, smaller_is_better, value };
    let mut columns = vec![
        column("TRE mean (mm)", 2, Some(true), |c: &Case| c.tre_mean_mm),
        column("TRE max (mm)", 2, Some(true), |c| c.tre_max_mm),
        // More or less deformation is neither good nor bad as such.
        column("std of Jacobian", 3, None, |c| c.jacobian_std),
        column("min Jacobian", 2, None, |c| c.jacobian_min),
        column("folding (%)", 3, None, |c| c.folding_percent),
        column("inverse consistency (mm)", 2, None, |c| c.inverse_consistency_mm),
        column("time (s)", 2, None, |c| c.seconds),
    ];
    let values = |system: &System, column: &Column| -> Vec<f64> {
        system.cases.iter().filter_map(column.value).filter(|v| v.is_finite()).collect()
    };
    columns.retain(|c| evaluation.systems.iter().any(|s| !values(s, c).is_empty()));
    let row = |system: &&System| Row {
        name: system.name.clone(),
        cells: columns
            .iter()
            .map(|c| Summary::of(&values(system, c)).map(|s| Cell::new(s, c.decimals)))
            .collect(),
    };
    let mut table = Table {
        title: "Landmarks, regularity and time".into(),
        row_head: "system".into(),
        rows: evaluation.ordered_systems().iter().map(row).collect(),
        columns: columns.iter().map(|c| c.name.to_owned()).collect(),
        notes: vec![data_note(evaluation)],
    };
    mark_best(&mut table, |n| columns[n].smaller_is_better);
    table
}

impl Table {
    /// GitHub-flavoured Markdown; the best mean of a column is bold, absent values are a dash.
    pub fn markdown(&self) -> String {
        let escape = |text: &str| text.replace('|', "\\|");
        let heads: Vec<String> = self.columns.iter().map(|c| escape(c)).collect();
        let mut text = format!("**{}**\n\n| {} | {} |\n", self.title, self.row_head, heads.join(" | "));
        text += &format!("|---|{}\n", "---:|".repeat(self.columns.len()));
        for row in &self.rows {
            let cells: Vec<String> = row
                .cells
                .iter()
                .map(|cell| match cell {
                    Some(c) if c.best => format!("**{}**{}", c.mean_std(), c.marks()),
                    Some(c) => c.mean_std() + &c.marks(),
                    None => "–".into(),
                })
                .collect();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {} | {} |", escape(&row.name), cells.join(" | "));
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// One line per cell with full precision, for spreadsheets: absent cells have no line.
    pub fn csv(&self) -> String {
        let mut text = format!(
            "{},column,n,mean,std,min,q1,median,q3,max,p_dagger,p_double_dagger\n",
            csv_field(&self.row_head)
        );
        for row in &self.rows {
            for (column, cell) in self.columns.iter().zip(&row.cells) {
                let Some(cell) = cell else { continue };
                let optional = |v: Option<f64>| v.map_or(String::new(), |v| v.to_string());
                let quantiles: [String; 5] = std::array::from_fn(|n| optional(cell.quantiles.map(|q| q[n])));
                let _ = writeln!(
                    text,
                    "{},{},{},{},{},{},{},{}",
                    csv_field(&row.name),
                    csv_field(column),
                    cell.n,
                    cell.mean,
                    optional(cell.std),
                    quantiles.join(","),
                    optional(cell.against_dagger.map(|t| t.p)),
                    optional(cell.against_double_dagger.map(|t| t.p)),
                );
            }
        }
        text
    }

    /// The whole table as JSON, indented.
    pub fn json(&self) -> String {
        // Summaries hold finite numbers only and all keys are strings: nothing that JSON cannot say.
        serde_json::to_string_pretty(self).expect("a table of finite numbers is valid JSON")
    }
}

/// Mean surface distances printed in the paper (its Table 1, 50 test pairs of 6 patients), to stand beside one's own:
/// other data, so never to be compared number by number.
pub fn published_msd() -> Table {
    type Published = (&'static str, [(f64, f64); 5]);
    const ROWS: [Published; 7] = [
        ("elastix-NCC", [(1.81, 0.7), (2.80, 1.6), (1.19, 0.4), (3.79, 1.2), (5.31, 2.6)]),
        ("elastix-MI", [(1.73, 0.7), (2.70, 1.6), (1.18, 0.4), (3.68, 1.2), (5.26, 2.6)]),
        ("Reg-CNN", [(1.44, 0.5), (2.09, 1.7), (1.22, 0.3), (2.59, 1.3), (4.18, 2.6)]),
        ("JRS-CNN", [(1.18, 0.4), (1.91, 1.6), (1.02, 0.3), (2.32, 1.3), (2.37, 2.0)]),
        ("Reg-GAN", [(1.40, 0.5), (2.14, 1.7), (1.06, 0.3), (2.72, 1.3), (4.31, 2.8)]),
        ("JRS-GANa", [(1.13, 0.4), (1.81, 1.6), (1.00, 0.3), (2.21, 1.3), (2.29, 2.0)]),
        ("JRS-GANb", [(1.17, 0.4), (1.90, 1.5), (1.01, 0.3), (2.34, 1.3), (2.41, 2.1)]),
    ];
    let cell = |&(mean, std): &(f64, f64)| {
        Some(Cell {
            n: 50,
            mean,
            std: Some(std),
            quantiles: None,
            decimals: 2,
            // As printed there.
            std_decimals: 1,
            against_dagger: None,
            against_double_dagger: None,
            best: false,
        })
    };
    Table {
        title: "Published mean surface distance (mm)".into(),
        row_head: "system".into(),
        columns: crate::colour::ORGANS.iter().map(|o| o.name.to_owned()).collect(),
        rows: ROWS
            .iter()
            .map(|(name, values)| Row { name: (*name).into(), cells: values.iter().map(cell).collect() })
            .collect(),
        notes: vec![
            "Elmahdy et al., MICCAI 2019, Table 1: 50 test pairs of 6 patients, clinical data that are not public. \
             Other data than the tables above: only the trend between systems can be compared."
                .into(),
        ],
    }
}

/// Values of one organ in the pairs where both systems have one, matched by the name of the pair.
fn paired(a: &System, b: &System, score: Score, organ: &str) -> Vec<(f64, f64)> {
    let partner = |case: &Case| b.cases.iter().find(|c| c.pair == case.pair)?.score(score, organ);
    a.cases.iter().filter_map(|case| Some((case.score(score, organ)?, partner(case)?))).collect()
}

fn data_note(evaluation: &Evaluation) -> String {
    let (pairs, patients) = evaluation.counts();
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    format!(
        "Mean ± standard deviation over image pairs. Data: {} ({}, {}).",
        evaluation.data,
        plural(pairs, "pair"),
        plural(patients, "patient")
    )
}

/// Marks the best mean of each column, as printed: equal to the last digit shares the mark.
fn mark_best(table: &mut Table, smaller_is_better: impl Fn(usize) -> Option<bool>) {
    for column in 0..table.columns.len() {
        let Some(smaller) = smaller_is_better(column) else { continue };
        let printed = |cell: &Cell| {
            // A printed number can be read back; NaN would only stand for one that cannot, and is never best.
            format!("{:.*}", cell.decimals, cell.mean).parse().unwrap_or(f64::NAN)
        };
        let means: Vec<f64> =
            table.rows.iter().filter_map(|r| r.cells[column].as_ref()).map(printed).collect();
        if means.len() < 2 {
            continue;
        }
        let best = if smaller {
            means.iter().copied().fold(f64::INFINITY, f64::min)
        } else {
            means.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        };
        for cell in table.rows.iter_mut().filter_map(|r| r.cells[column].as_mut()) {
            cell.best = printed(cell) == best;
        }
    }
}

/// Quoted where the content asks for it (RFC 4180).
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::{BEFORE, OrganScores};

    fn system(name: &str, prostate: &[f64], bladder: &[Option<f64>]) -> System {
        let cases = prostate.iter().zip(bladder).enumerate().map(|(n, (&p, &b))| {
            let organ =
                |organ: &str, msd_mm| OrganScores { organ: organ.into(), msd_mm, ..Default::default() };
            Case {
                pair: format!("pair-{n}"),
                patient: format!("patient-{}", n / 4),
                organs: vec![organ("prostate", Some(p)), organ("bladder", b)],
                seconds: (name != BEFORE).then_some(0.5),
                ..Case::default()
            }
        });
        System { name: name.into(), cases: cases.collect() }
    }

    fn study() -> Evaluation {
        let base = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let absent = [None; 8];
        let better: Vec<f64> = base.iter().enumerate().map(|(n, v)| v - 0.5 - 0.02 * n as f64).collect();
        let mut bladder = absent;
        bladder[0] = Some(2.5);
        Evaluation {
            data: "made up".into(),
            systems: vec![system("A", &better, &bladder), system(BEFORE, &base, &absent)],
        }
    }

    fn references() -> References {
        References { dagger: Some(BEFORE.into()), double_dagger: Some("not there".into()) }
    }

    #[test]
    fn values_daggers_and_order() {
        let table = score_table(&study(), Score::Msd, &references());
        assert_eq!(table.rows[0].name, BEFORE);
        assert_eq!(table.columns, ["prostate", "bladder"]);
        let before = table.rows[0].cells[0].as_ref().unwrap();
        // 1..8: mean 4.5, sample standard deviation sqrt(6) = 2.449
        assert_eq!(before.mean_std(), "4.50±2.45");
        assert_eq!(before.marks(), "");
        let a = table.rows[1].cells[0].as_ref().unwrap();
        assert_eq!((a.mean_std().as_str(), a.marks().as_str(), a.best), ("3.93±2.40", "†", true));
        // Eight differences of one sign: p = 2 / 2^8.
        assert!((a.against_dagger.unwrap().p - 2.0 / 256.0).abs() < 1e-15);
    }

    #[test]
    fn absent_organs_are_left_out_and_never_zero() {
        let table = score_table(&study(), Score::Msd, &references());
        assert!(table.rows[0].cells[1].is_none());
        let bladder = table.rows[1].cells[1].as_ref().unwrap();
        assert_eq!((bladder.n, bladder.mean_std().as_str()), (1, "2.50"));
        assert!(score_table(&study(), Score::Dsc, &references()).columns.is_empty());
    }

    #[test]
    fn markdown_csv_and_json() {
        let table = score_table(&study(), Score::Msd, &references());
        let markdown = table.markdown();
        assert!(markdown.contains("| before registration | 4.50±2.45 | – |"), "{markdown}");
        assert!(markdown.contains("| A | **3.93±2.40**† | 2.50 |"), "{markdown}");
        assert!(markdown.contains("made up (8 pairs, 2 patients)"));
        assert!(!markdown.contains('‡'), "no such system, so no claim about it");
        let csv = table.csv();
        assert_eq!(csv.lines().count(), 4);
        assert!(
            csv.lines()
                .nth(1)
                .unwrap()
                .starts_with("before registration,prostate,8,4.5,2.449489742783178,1,")
        );
        let back: Table = serde_json::from_str(&table.json()).unwrap();
        assert_eq!(back, table);
    }

    #[test]
    fn case_table_has_only_measured_columns() {
        let table = case_table(&study());
        assert_eq!(table.columns, ["time (s)"]);
        assert!(table.rows[0].cells[0].is_none());
    }

    #[test]
    fn published_figures_are_complete() {
        let table = published_msd();
        assert!(table.rows.iter().all(|r| r.cells.iter().flatten().count() == 5));
        assert_eq!(table.rows[5].cells[4].as_ref().unwrap().mean_std(), "2.29±2.0");
    }

    #[test]
    fn csv_fields_are_quoted_where_needed() {
        assert_eq!(csv_field("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
