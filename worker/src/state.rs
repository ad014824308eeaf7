//! The training state as one safetensors blob: what a checkpoint stores and a resume restores, bit for bit.

use crate::gan::{Gan, Trained};
use crate::nets::{Parameters, RunningStatistics};
use crate::optimizer::StoredState;
use burn::tensor::Device;
use libjrs::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Metadata key of the [`Cursor`] and the optimisers' times.
const KEY: &str = "jrs.state";

/// Where a run stands, apart from its networks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Updates and iterations done.
    pub cursor: Cursor,
    /// W = E[D(real)] - E[D(fake)] of the last critic update, if the iteration that comes next had one.
    pub wasserstein: Option<f32>,
    /// The best model so far.
    pub best: Option<Arc<Best>>,
}

/// Where a run is in the order of its updates. Samples are never listed: update `u` consumes positions `[u·B, (u+1)·B)` of the order.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Updates done, of the critic and the generator together.
    pub updates: u64,
    /// Generator iterations done.
    pub iteration: u64,
    /// Critic updates done within the iteration that comes next.
    pub critic_done: u64,
}

/// The best model so far by validation MSD.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// Generator iterations done when it was found.
    pub iteration: u64,
    /// Mean MSD over organs and validation pairs, mm.
    pub msd_mm: f64,
    /// Generator values.
    pub values: Vec<f32>,
    /// BatchNorm's running statistics.
    pub statistics: RunningStatistics,
    /// Validations since.
    pub since: u64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    cursor: Cursor,
    wasserstein: Option<f32>,
    generator_time: u64,
    critic_time: u64,
    best: Option<(u64, f64, u64)>,
}

/// Serialises networks, optimisers and where the run stands. Equal states give equal bytes.
pub fn to_bytes(gan: &Gan, standing: &Standing) -> Vec<u8> {
    let Standing { cursor, wasserstein, best } = standing;
    let mut tensors: Vec<(String, Vec<f32>)> = Vec::new();
    let generator_time = push_trained(&mut tensors, "generator", &gan.generator);
    let critic_time = gan.critic.as_ref().map_or(0, |c| push_trained(&mut tensors, "critic", c));
    if let Some(best) = best {
        tensors.push(("best.values".into(), best.values.clone()));
        push_statistics(&mut tensors, "best", &best.statistics);
    }
    let header = Header {
        cursor: *cursor,
        wasserstein: *wasserstein,
        generator_time,
        critic_time,
        best: best.as_ref().map(|b| (b.iteration, b.msd_mm, b.since)),
    };
    // A single metadata entry: the order of several would follow a hash map.
    let header = serde_json::to_string(&header).expect("plain values always serialise");
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, data)| {
            let view = TensorView::new(Dtype::F32, vec![data.len()], bytemuck::cast_slice(data));
            (name.clone(), view.expect("length matches"))
        })
        .collect();
    serialize(views, Some(HashMap::from([(KEY.to_owned(), header)]))).expect("valid tensors always serialise")
}

/// Restores what [`to_bytes`] wrote into a `gan` of the same configuration.
///
/// # Errors
/// If the bytes are no training state, or one of another network or optimiser.
pub fn restore(bytes: &[u8], gan: &mut Gan, device: &Device) -> Result<Standing> {
    let wrong = |what: String| {
        Error::input(
            format!("the checkpoint does not hold this run's state: {what}"),
            "Resume with the configuration the run was started with",
        )
    };
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| wrong(e.to_string()))?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(e.to_string()))?;
    let header =
        metadata.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| wrong(format!("no {KEY}")))?;
    let header: Header = serde_json::from_str(header).map_err(|e| wrong(e.to_string()))?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let view = tensors.tensor(name).map_err(|e| wrong(format!("{name}: {e}")))?;
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    restore_trained("generator", header.generator_time, &mut gan.generator, &read, &wrong, device)?;
    if let Some(critic) = &mut gan.critic {
        restore_trained("critic", header.critic_time, critic, &read, &wrong, device)?;
    }
    let best = match header.best {
        None => None,
        Some((iteration, msd_mm, since)) => {
            let mut statistics = gan.generator.statistics.clone();
            restore_statistics("best", &mut statistics, &read, &wrong)?;
            Some(Arc::new(Best { iteration, msd_mm, since, values: read("best.values")?, statistics }))
        }
    };
    Ok(Standing { cursor: header.cursor, wasserstein: header.wasserstein, best })
}

fn push_trained(tensors: &mut Vec<(String, Vec<f32>)>, prefix: &str, trained: &Trained) -> u64 {
    tensors.push((format!("{prefix}.values"), trained.parameters.to_vec()));
    push_statistics(tensors, prefix, &trained.statistics);
    let stored = trained.optimizer.store();
    for (i, moment) in stored.moments.into_iter().enumerate() {
        tensors.push((format!("{prefix}.moment{i}"), moment));
    }
    stored.time
}

fn push_statistics(tensors: &mut Vec<(String, Vec<f32>)>, prefix: &str, statistics: &RunningStatistics) {
    for (b, [mean, var]) in statistics.blocks.iter().enumerate() {
        tensors.push((format!("{prefix}.bn{b:02}.mean"), mean.clone()));
        tensors.push((format!("{prefix}.bn{b:02}.var"), var.clone()));
    }
}

type Read<'a> = dyn Fn(&str) -> Result<Vec<f32>> + 'a;
type Wrong<'a> = dyn Fn(String) -> Error + 'a;

fn restore_trained(
    prefix: &str,
    time: u64,
    trained: &mut Trained,
    read: &Read<'_>,
    wrong: &Wrong<'_>,
    device: &Device,
) -> Result<()> {
    let values = read(&format!("{prefix}.values"))?;
    let expected = trained.parameters.len();
    if values.len() != expected {
        return Err(wrong(format!("{prefix} has {} values, not {expected}", values.len())));
    }
    trained.parameters = Parameters::from_values(&trained.parameters.layers.clone(), values, device);
    restore_statistics(prefix, &mut trained.statistics, read, wrong)?;
    let moments: Vec<Vec<f32>> = (0..2).map_while(|i| read(&format!("{prefix}.moment{i}")).ok()).collect();
    if moments.iter().any(|m| m.len() != expected)
        || !trained.optimizer.restore(&StoredState { time, moments }, device)
    {
        return Err(wrong(format!("{prefix}'s optimiser state is another rule's")));
    }
    Ok(())
}

fn restore_statistics(
    prefix: &str,
    statistics: &mut RunningStatistics,
    read: &Read<'_>,
    wrong: &Wrong<'_>,
) -> Result<()> {
    for (b, moments) in statistics.blocks.iter_mut().enumerate() {
        for (values, kind) in moments.iter_mut().zip(["mean", "var"]) {
            let name = format!("{prefix}.bn{b:02}.{kind}");
            let stored = read(&name)?;
            if stored.len() != values.len() {
                return Err(wrong(format!("{name} has {} channels, not {}", stored.len(), values.len())));
            }
            *values = stored;
        }
    }
    Ok(())
}
