//! The training loop: the critic schedule, validation, best model, early stop, checkpoints.

use crate::config::TrainConfig;
use crate::gan::{Gan, GeneratorLosses};
use crate::optimizer::learning_rate;
use crate::state::{self, Best, Cursor};
use crate::validation::validate;
use burn::tensor::Device;
use jrs_data::cache::{Prepared, PreparedPair};
use jrs_data::dataset::Split;
use jrs_data::sampling::{Cropping, Patch, SampleOrder};
use libjrs::model::Model;
use libjrs::{Error, Result};
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::Arc;

/// What the loop tells, and asks of, the program around it.
pub trait Observer {
    /// After every generator iteration.
    fn iteration(&mut self, report: &IterationReport) -> Result<()>;
    /// After every validation.
    fn validated(&mut self, report: &ValidationReport) -> Result<()>;
    /// Store this state. Called at the configured interval, at the end and when stopping.
    fn checkpoint(&mut self, cursor: Cursor, state: Vec<u8>) -> Result<()>;
    /// Asked between updates: true saves the state and leaves.
    fn stop_requested(&self) -> bool;
}

/// One generator iteration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IterationReport {
    /// Generator iterations done, from 1.
    pub iteration: u64,
    /// Updates done, critic and generator together.
    pub updates: u64,
    /// Step size of the generator's update.
    pub learning_rate: f64,
    /// Generator losses.
    pub losses: GeneratorLosses,
    /// W = E[D(real)] - E[D(fake)] of the last critic update, if the system has a critic.
    pub wasserstein: Option<f32>,
}

/// One validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValidationReport {
    /// Generator iterations done.
    pub iteration: u64,
    /// Mean MSD over organs and pairs, mm.
    pub msd_mm: f64,
    /// True if no earlier model was better.
    pub best: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All iterations are done.
    Finished,
    /// Validation did not improve for `patience` validations.
    EarlyStop,
    /// [`Observer::stop_requested`] said so; the state is saved.
    Interrupted,
}

/// A run in progress.
pub struct Trainer {
    config: TrainConfig,
    data: TrainingData,
    device: Device,
    gan: Gan,
    cursor: Cursor,
    best: Option<Best>,
}

impl Trainer {
    /// A fresh run on a prepared cache.
    ///
    /// # Errors
    /// If the cache has no training pairs, or no labels where the system needs them.
    pub fn new(config: &TrainConfig, prepared: Prepared, device: Device) -> Result<Self> {
        let organs: Vec<u8> = prepared.organs.iter().map(|o| o.id).collect();
        if config.system.uses_dice() && organs.is_empty() {
            return Err(Error::input(
                format!("the data lists no organs, but {} learns from contours", config.system.name()),
                "Prepare data with labels, or train Reg-CNN or Reg-GAN",
            ));
        }
        let gan = Gan::new(config, &organs, prepared.spacing_mm as f32, &device);
        let data = TrainingData::new(config, prepared)?;
        Ok(Self { config: config.clone(), data, device, gan, cursor: Cursor::default(), best: None })
    }

    /// Continues from a checkpoint's state.
    ///
    /// # Errors
    /// If the state is not this configuration's.
    pub fn restore(&mut self, state: &[u8]) -> Result<()> {
        (self.cursor, self.best) = state::restore(state, &mut self.gan, &self.device)?;
        Ok(())
    }

    /// Where the run stands.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Trains until the end, an early stop or a request to stop.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        while self.cursor.iteration < self.config.iterations {
            if self.out_of_patience() {
                return Ok(Outcome::EarlyStop);
            }
            let mut wasserstein = None;
            while self.cursor.critic_done < self.config.critic_steps(self.cursor.iteration) {
                if observer.stop_requested() {
                    return self.interrupt(observer);
                }
                let patches = self.data.patches(self.cursor.updates)?;
                wasserstein = Some(self.gan.update_critic(&patches, self.progress()));
                self.cursor.critic_done += 1;
                self.cursor.updates += 1;
            }
            // After a critic update the generator's follows at once: its report holds that update's W.
            if wasserstein.is_none() && observer.stop_requested() {
                return self.interrupt(observer);
            }
            let patches = self.data.patches(self.cursor.updates)?;
            let rate = learning_rate(&self.config.generator, self.progress());
            let losses = self.gan.update_generator(&patches, self.progress());
            self.cursor = Cursor {
                updates: self.cursor.updates + 1,
                iteration: self.cursor.iteration + 1,
                critic_done: 0,
            };
            self.after_iteration(observer, rate, losses, wasserstein)?;
        }
        Ok(Outcome::Finished)
    }

    /// The model of this run: the best by validation, or the last if there was no validation.
    pub fn model(&self) -> Model {
        let (values, statistics, iteration) = match &self.best {
            Some(best) => (best.values.clone(), &best.statistics, best.iteration),
            None => {
                let g = &self.gan.generator;
                (g.parameters.to_vec(), &g.statistics, self.cursor.iteration)
            }
        };
        let best_msd = self.best.as_ref().map(|b| b.msd_mm);
        crate::validation::model(&self.config, &self.data.prepared, &values, statistics, iteration, best_msd)
    }

    fn after_iteration(
        &mut self,
        observer: &mut dyn Observer,
        learning_rate: f64,
        losses: GeneratorLosses,
        wasserstein: Option<f32>,
    ) -> Result<()> {
        let Cursor { iteration, updates, .. } = self.cursor;
        if !losses.total.is_finite() || !losses.gradient_norm.is_finite() {
            return Err(Error::input(
                format!("the loss became {} at iteration {iteration}", losses.total),
                "Lower generator.learning_rate or set generator.clip_norm, and resume from an earlier checkpoint",
            ));
        }
        observer.iteration(&IterationReport { iteration, updates, learning_rate, losses, wasserstein })?;
        let last = iteration == self.config.iterations;
        let due = |every: u64| every > 0 && (iteration % every == 0 || last);
        if due(self.config.validation.every) && !self.data.validation.is_empty() {
            let report = self.validate()?;
            observer.validated(&report)?;
        }
        if due(self.config.checkpoint.every) {
            self.save(observer)?;
        }
        Ok(())
    }

    fn validate(&mut self) -> Result<ValidationReport> {
        let g = &self.gan.generator;
        let iteration = self.cursor.iteration;
        let (values, statistics) = (g.parameters.to_vec(), g.statistics.clone());
        let model = crate::validation::model(
            &self.config,
            &self.data.prepared,
            &values,
            &statistics,
            iteration,
            None,
        );
        let pairs = self.data.validation.iter().map(|&i| self.data.prepared.load(i));
        let msd_mm = validate(&model, pairs, &self.data.prepared)?;
        let best = self.best.as_ref().is_none_or(|b| msd_mm < b.msd_mm);
        if best {
            self.best = Some(Best { iteration, msd_mm, values, statistics, since: 0 });
        } else if let Some(b) = &mut self.best {
            b.since += 1;
        }
        Ok(ValidationReport { iteration, msd_mm, best })
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.config.validation.patience;
        patience > 0 && self.best.as_ref().is_some_and(|b| b.since >= patience)
    }

    fn interrupt(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        self.save(observer)?;
        Ok(Outcome::Interrupted)
    }

    fn save(&self, observer: &mut dyn Observer) -> Result<()> {
        observer.checkpoint(self.cursor, state::to_bytes(&self.gan, self.cursor, self.best.as_ref()))
    }

    fn progress(&self) -> f64 {
        self.cursor.iteration as f64 / self.config.iterations as f64
    }
}

/// Training patches in the run's order, with the pairs of the current window in memory.
struct TrainingData {
    prepared: Prepared,
    /// Indices of the training pairs in the cache.
    train: Vec<usize>,
    /// Indices of the validation pairs in use.
    validation: Vec<usize>,
    order: SampleOrder,
    loaded: VecDeque<(usize, Arc<PreparedPair>)>,
    capacity: usize,
    cropping: Cropping,
    batch: u64,
}

impl TrainingData {
    fn new(config: &TrainConfig, prepared: Prepared) -> Result<Self> {
        let of = |split| -> Vec<usize> {
            (0..prepared.pairs.len()).filter(|&i| prepared.pairs[i].split == split).collect()
        };
        let (train, mut validation) = (of(Split::Train), of(Split::Validation));
        if train.is_empty() {
            return Err(Error::input(
                format!("none of the {} prepared pairs is in the train split", prepared.pairs.len()),
                "Set \"split\": \"train\" for some patients in dataset.json and prepare again",
            ));
        }
        if config.validation.max_pairs > 0 {
            validation.truncate(config.validation.max_pairs);
        }
        let s = &config.sampling;
        Ok(Self {
            order: SampleOrder::new(config.seed, train.len(), s.patches_per_pair, s.window),
            train,
            validation,
            loaded: VecDeque::new(),
            // A batch may straddle two windows.
            capacity: 2 * s.window,
            cropping: Cropping {
                seed: config.seed,
                edge: s.patch,
                full_scale: prepared.preprocessing().divide_by as f32,
                around_organs: s.around_organs,
            },
            batch: s.batch as u64,
            prepared,
        })
    }

    /// The batch of update number `update`: positions `[update·B, (update+1)·B)` of the order.
    fn patches(&mut self, update: u64) -> Result<Vec<Patch>> {
        let ids: Vec<_> = (0..self.batch).map(|i| self.order.at(update * self.batch + i)).collect();
        let pairs: Vec<_> = ids.iter().map(|id| self.pair(id.pair)).collect::<Result<_>>()?;
        let cropping = self.cropping;
        Ok(ids.par_iter().zip(&pairs).map(|(&id, pair)| cropping.crop(id, pair)).collect())
    }

    fn pair(&mut self, index: usize) -> Result<Arc<PreparedPair>> {
        if let Some((_, pair)) = self.loaded.iter().find(|(i, _)| *i == index) {
            return Ok(pair.clone());
        }
        let pair = Arc::new(self.prepared.load(self.train[index])?);
        self.loaded.push_back((index, pair.clone()));
        if self.loaded.len() > self.capacity {
            self.loaded.pop_front();
        }
        Ok(pair)
    }
}
