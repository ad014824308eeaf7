//! Validation as the final user sees it: the inference engine, propagated contours, MSD in mm.

use crate::config::TrainConfig;
use crate::nets::RunningStatistics;
use jrs_data::cache::{Prepared, PreparedPair};
use libjrs::engine::{Precision, infer, on_cpu};
use libjrs::field::warp_labels;
use libjrs::geometry::{Grid, mat_vec};
use libjrs::metrics::surface_distances;
use libjrs::model::{GeneratorWeights, Model, Provenance};
use libjrs::network::{GENERATOR, Layer};
use libjrs::progress::Progress;
use libjrs::{DisplacementField, Error, Result, Volume};

/// Memory for one inference during training; beyond it the volume is tiled.
const MAX_BYTES: usize = 2 << 30;

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
    // Training counts in voxels of the working grid, the model file in mm.
    let scale = config.head_gain * prepared.spacing_mm as f32;
    let head = format!("{}.", GENERATOR[GENERATOR.len() - 1].name);
    let mut in_mm = |name: &str, shape: &[usize]| {
        let mut tensor = take(name, shape)?;
        if name.starts_with(&head) {
            tensor.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(tensor)
    };
    let weights =
        GeneratorWeights::from_tensors(&mut in_mm).expect("one value per parameter of the layer table");
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
    model.manifest.preprocessing = prepared.preprocessing();
    model.manifest.organs = prepared.organs.iter().map(|o| (o.id, o.name.clone())).collect();
    model
}

/// MSD in mm of every organ that both scans of `pair` show, with the inference engine on the whole volume of the working
/// grid. Contours are carried over as the user will see it (one-hot linear, argmax).
///
/// # Errors
/// If inference fails.
pub fn distances(model: &Model, pair: PreparedPair, prepared: &Prepared) -> Result<Vec<f64>> {
    let engine = on_cpu(&model.generator, Precision::F32)?;
    let preprocessing = &model.manifest.preprocessing;
    let intensities =
        |hu: &[i16]| -> Vec<f32> { hu.iter().map(|&v| preprocessing.normalise(v.into())).collect() };
    let (fixed, moving) = (intensities(&pair.fixed), intensities(&pair.moving));
    let along_axes = infer(&*engine, &fixed, &moving, pair.grid.size, MAX_BYTES, Progress::SILENT)?;
    let field = DisplacementField { u: to_lps(&pair.grid, along_axes), grid: pair.grid.clone() };
    let fixed_labels = Volume::new(pair.grid.clone(), pair.fixed_labels);
    let moving_labels = Volume::new(pair.grid, pair.moving_labels);
    let propagated = warp_labels(&moving_labels, &field, None);
    let mut distances = Vec::new();
    for organ in &prepared.organs {
        let surfaces = surface_distances(&fixed_labels, &propagated, organ.id)?;
        distances.extend(surfaces.map(|s| s.msd));
    }
    Ok(distances)
}

/// Mean of the [`distances`] of all pairs, in their order.
///
/// # Errors
/// If no organ is present in both scans of any pair.
pub fn mean_distance(pairs: &[Vec<f64>]) -> Result<f64> {
    let count = pairs.iter().map(Vec::len).sum::<usize>();
    if count == 0 {
        return Err(Error::input(
            "no organ is present in both scans of any validation pair, so no model is better than another",
            "Give validation pairs with labels, or set validation.every = 0",
        ));
    }
    Ok(pairs.iter().flatten().sum::<f64>() / count as f64)
}

/// Components along the grid's axes turned into LPS.
fn to_lps(grid: &Grid, along_axes: [Vec<f32>; 3]) -> [Vec<f32>; 3] {
    let mut u = along_axes;
    for i in 0..grid.len() {
        let v = mat_vec(&grid.direction, [u[0][i], u[1][i], u[2][i]].map(f64::from));
        for c in 0..3 {
            u[c][i] = v[c] as f32;
        }
    }
    u
}
