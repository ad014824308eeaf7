//! Validation as the final user sees it: the inference engine, propagated contours, MSD in mm.

use crate::config::TrainConfig;
use crate::nets::RunningStatistics;
use jrs_data::cache::{Prepared, PreparedPair};
use libjrs::Result;
use libjrs::model::{GeneratorWeights, Model, Provenance};
use libjrs::network::{GENERATOR, Layer};

/// The model file's content for flat generator `values` and running `statistics`.
///
/// Nothing in it depends on time, machine or interruptions: equal runs give equal files.
pub fn model(
    config: &TrainConfig,
    prepared: &Prepared,
    values: &[f32],
    statistics: &RunningStatistics,
    iteration: u64,
    validation_msd_mm: Option<f64>,
) -> Model {
    let mut rest = values;
    let mut blocks = statistics.blocks.iter();
    let mut current = None;
    let mut take = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        if name.ends_with("bn.mean") {
            current = blocks.next();
        }
        Ok(match (name, current) {
            (name, Some([mean, _])) if name.ends_with("bn.mean") => mean.clone(),
            (name, Some([_, var])) if name.ends_with("bn.var") => var.clone(),
            _ => {
                let (head, tail) = rest.split_at(shape.iter().product());
                rest = tail;
                head.to_vec()
            }
        })
    };
    let weights = GeneratorWeights::from_tensors(&mut take).expect("one value per parameter of the layer table");
    debug_assert_eq!(values.len(), GENERATOR.iter().map(Layer::parameters).sum::<usize>());

    let mut model = Model::new(
        weights,
        Provenance {
            system: config.system.name().into(),
            config_sha256: config.digest(),
            dataset_sha256: prepared.digest.clone(),
            seed: config.seed,
            steps: iteration,
            software: concat!("jrs ", env!("CARGO_PKG_VERSION")).into(),
            losses: serde_json::json!({ "validation_msd_mm": validation_msd_mm }),
        },
    );
    model.manifest.preprocessing.spacing_mm = prepared.spacing_mm;
    model.manifest.organs = prepared.organs.iter().map(|o| (o.id, o.name.clone())).collect();
    model
}
