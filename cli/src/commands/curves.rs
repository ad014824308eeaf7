//! A run's loss tables as charts.

use jrs_report::curves::{Chart, Series};
use libjrs::{Error, Result};
use std::path::Path;

/// Charts of `losses.csv` and `validation.csv` in a run's folder; a table that is missing gives no chart.
///
/// # Errors
/// If a table is there but cannot be read.
pub fn charts(logs: &Path) -> Result<Vec<Chart>> {
    let losses = Table::read(&logs.join("losses.csv"))?;
    let validation = Table::read(&logs.join("validation.csv"))?;
    let chart = |table: &Option<Table>, title: &str, y_label: &str, columns: &[(&str, &str)]| {
        let table = table.as_ref()?;
        let series: Vec<Series> = columns
            .iter()
            .map(|(column, name)| Series { name: (*name).into(), points: table.points(column) })
            .filter(|series| series.points.iter().any(|(_, y)| *y != 0.0))
            .collect();
        (!series.is_empty()).then(|| Chart {
            title: title.into(),
            x_label: "generator iteration".into(),
            y_label: y_label.into(),
            log_y: false,
            series,
        })
    };
    let dice = [
        ("one_minus_dsc", "1 - DSC"),
        ("one_minus_dsc_at_rest", "1 - DSC of the same patches, not registered"),
    ];
    let adversarial = [("wasserstein", "W = E[D(real)] - E[D(fake)]"), ("adversarial", "L_adv")];
    let all = [
        chart(&losses, "Overlap of the contours in the patches", "1 - DSC", &dice),
        chart(&losses, "Image similarity in the patches", "1 - NCC", &[("one_minus_ncc", "1 - NCC")]),
        chart(&losses, "Smoothness", "bending energy", &[("bending_energy", "L_smooth")]),
        chart(&losses, "Critic", "score", &adversarial),
        chart(&validation, "Validation", "MSD, mm", &[("msd_mm", "mean surface distance")]),
    ];
    Ok(all.into_iter().flatten().collect())
}

/// A loss table: a step and named columns.
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<f64>>,
}

impl Table {
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, e, "make the run's folder readable")),
        };
        let mut lines = text.lines();
        let columns = lines.next().unwrap_or_default().split(',').map(str::to_owned).collect();
        // A cell without a number: an iteration without a critic update.
        let row = |line: &str| line.split(',').map(|cell| cell.parse().unwrap_or(f64::NAN)).collect();
        Ok(Some(Self { columns, rows: lines.map(row).collect() }))
    }

    fn points(&self, column: &str) -> Vec<(f64, f64)> {
        let Some(at) = self.columns.iter().position(|c| c == column) else { return Vec::new() };
        let points = self.rows.iter().filter_map(|row| Some((*row.first()?, *row.get(at)?)));
        points.filter(|(_, y)| y.is_finite()).collect()
    }
}
