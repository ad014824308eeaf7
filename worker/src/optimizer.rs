//! Updates of a flat parameter vector: Burn's RMSProp and Adam, with state that can be stored exactly.

use crate::config::{Optimizer as OptimizerConfig, Rule, Schedule};
use crate::ops::sums::sum;
use burn::optim::{
    Adam, AdamConfig, AdamState, AdaptiveMomentumState, CenteredState, Optimizer as _, RmsProp,
    RmsPropConfig, RmsPropState, SquareAvgState,
};
use burn::tensor::{Device, Tensor, TensorData};

/// An update rule with its state.
#[derive(Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    rule: RuleState,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "a run has two, one per network")]
enum RuleState {
    Rmsprop(RmsProp, Option<RmsPropState<1>>),
    Adam(Adam, Option<AdamState<1>>),
}

/// What a checkpoint stores of an optimiser: number of updates and moment vectors, empty before the first update.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredState {
    /// Updates made (Adam's bias correction depends on it; 0 for RMSProp).
    pub time: u64,
    /// RMSProp: the mean square. Adam: first and second moment.
    pub moments: Vec<Vec<f32>>,
}

impl Optimizer {
    /// A fresh optimiser.
    pub fn new(config: &OptimizerConfig) -> Self {
        let rule = match config.rule {
            // Burn's own defaults (momentum 0.9, epsilon 1e-5) differ from the paper's framework.
            Rule::Rmsprop => RuleState::Rmsprop(
                RmsPropConfig::new().with_alpha(0.9).with_momentum(0.0).with_epsilon(1e-10).build(),
                None,
            ),
            Rule::Adam => RuleState::Adam(AdamConfig::new().with_epsilon(1e-8).build(), None),
        };
        Self { config: config.clone(), rule }
    }

    /// One update of `values` at `progress` (0 at the first iteration, 1 after the last).
    pub fn step(&mut self, values: Tensor<1>, gradient: Tensor<1>, progress: f64) -> Tensor<1> {
        let gradient = clip_norm(gradient, self.config.clip_norm);
        let rate = learning_rate(&self.config, progress);
        match &mut self.rule {
            RuleState::Rmsprop(rule, state) => {
                let (values, next) = rule.step(rate, values, gradient, state.take());
                *state = next;
                values
            }
            RuleState::Adam(rule, state) => {
                let (values, next) = rule.step(rate, values, gradient, state.take());
                *state = next;
                values
            }
        }
    }

    /// State for a checkpoint.
    pub fn store(&self) -> StoredState {
        let host = |t: &Tensor<1>| t.to_data().try_into_vec::<f32>().expect("moments are f32");
        match &self.rule {
            RuleState::Rmsprop(_, Some(s)) => {
                StoredState { time: 0, moments: vec![host(&s.square_avg.square_avg)] }
            }
            RuleState::Adam(_, Some(s)) => StoredState {
                time: s.momentum.time as u64,
                moments: vec![host(&s.momentum.moment_1), host(&s.momentum.moment_2)],
            },
            _ => StoredState::default(),
        }
    }

    /// Takes the state of a checkpoint. Returns false, and changes nothing, if it is another rule's.
    pub fn restore(&mut self, stored: &StoredState, device: &Device) -> bool {
        let tensor = |v: &Vec<f32>| Tensor::<1>::from_data(TensorData::new(v.clone(), [v.len()]), device);
        match (&mut self.rule, &stored.moments[..]) {
            (RuleState::Rmsprop(_, state), []) => *state = None,
            (RuleState::Adam(_, state), []) => *state = None,
            (RuleState::Rmsprop(_, state), [square]) => {
                let square = tensor(square);
                *state = Some(RmsPropState::new(
                    SquareAvgState::new(square.clone()),
                    CenteredState::new(None, square),
                    None,
                ));
            }
            (RuleState::Adam(_, state), [first, second]) => {
                *state = Some(AdamState::new(AdaptiveMomentumState::new(
                    stored.time as usize,
                    tensor(first),
                    tensor(second),
                )));
            }
            _ => return false,
        }
        true
    }
}

/// The learning rate at `progress` in 0..=1.
pub fn learning_rate(config: &OptimizerConfig, progress: f64) -> f64 {
    match config.schedule {
        Schedule::Constant => config.learning_rate,
        Schedule::Cosine => config.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    }
}

/// Shortens `gradient` to `limit` if it is longer; the device decides.
fn clip_norm(gradient: Tensor<1>, limit: f32) -> Tensor<1> {
    if limit == 0.0 {
        return gradient;
    }
    let norm = sum(gradient.clone().square()).sqrt();
    let short = norm.clone().greater_elem(limit).bool_not();
    let scale = (norm.full_like(limit) / norm).mask_fill(short, 1.0);
    gradient * scale
}
