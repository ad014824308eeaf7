//! The tables of a run: losses and validations as CSV, and the same as TensorBoard events.

use jrs_telemetry::losses::LossTable;
use jrs_telemetry::tensorboard::EventWriter;
use jrs_worker::trainer::{IterationReport, ValidationReport};
use std::path::Path;

const COLUMNS: [&str; 12] = [
    "updates",
    "learning_rate",
    "total",
    "one_minus_dsc",
    "one_minus_dsc_at_rest",
    "one_minus_ncc",
    "bending_energy",
    "adversarial",
    "adversarial_ratio",
    "wasserstein",
    "gradient_norm",
    "max_displacement_mm",
];

/// Open tables.
pub struct Tables {
    losses: LossTable,
    validation: LossTable,
    events: EventWriter,
}

impl Tables {
    /// Begins or continues the tables in `folder`; the next row is that of iteration `next`.
    pub fn open(folder: &Path, next: u64) -> libjrs::Result<Self> {
        Ok(Self {
            losses: LossTable::resume(folder.join("losses.csv"), &COLUMNS, next)?,
            validation: LossTable::resume(folder.join("validation.csv"), &["msd_mm", "best"], next)?,
            events: EventWriter::create(folder.join("events"), (next > 1).then_some(next))?,
        })
    }

    /// The row of an iteration.
    pub fn iteration(&mut self, report: &IterationReport) -> libjrs::Result<()> {
        let l = &report.losses;
        let values = [
            report.updates as f64,
            report.learning_rate,
            f64::from(l.total),
            f64::from(l.dice),
            f64::from(l.dice_at_rest),
            f64::from(l.ncc),
            f64::from(l.smoothness),
            f64::from(l.adversarial),
            f64::from(l.adversarial_ratio),
            report.wasserstein.map_or(f64::NAN, f64::from),
            f64::from(l.gradient_norm),
            f64::from(l.max_displacement),
        ];
        self.losses.row(report.iteration, &values)?;
        let named: Vec<(String, f64)> =
            COLUMNS.iter().zip(values).map(|(name, v)| (format!("train/{name}"), v)).collect();
        let scalars: Vec<(&str, f64)> = named.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        self.events.scalars(report.iteration, &scalars)
    }

    /// The row of a validation.
    pub fn validated(&mut self, report: &ValidationReport) -> libjrs::Result<()> {
        self.validation.row(report.iteration, &[report.msd_mm, f64::from(u8::from(report.best))])?;
        self.events.scalars(report.iteration, &[("validation/msd_mm", report.msd_mm)])
    }
}
