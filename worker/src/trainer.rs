//! The training loop: the critic schedule, validation, best model, early stop, checkpoints.

use crate::collective::{Alone, Failure};
use crate::config::TrainConfig;
use crate::feed::Feed;
use crate::gan::{Gan, GeneratorLosses, Trained};
use crate::optimizer::learning_rate;
use crate::state::{self, Best, Cursor, Standing};
use crate::step::{Group, Phase, Share, collect};
use crate::validation;
use burn::tensor::Device;
use jrs_data::cache::Prepared;
use jrs_data::dataset::Split;
use libjrs::model::Model;
use libjrs::{Error, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest that one rank's part of a validation may keep the others waiting.
const VALIDATION_PATIENCE: Duration = Duration::from_secs(1800);

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

/// A step that all ranks made, and what came with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Where the run stands now.
    pub cursor: Cursor,
    /// W = E[D(real)] - E[D(fake)], if it was a critic update.
    pub wasserstein: Option<f32>,
    /// The iteration that a generator update ends.
    pub iteration: Option<IterationReport>,
    /// The validation behind it, if one was due.
    pub validation: Option<ValidationReport>,
    /// Whether the state should be saved now.
    pub checkpoint_due: bool,
    /// Whether a rank wants to stop now.
    pub stop: bool,
    /// How long this rank waited for patches.
    pub data_wait: Duration,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The group of workers broke. Everything is as it was before the step, which another group can make again.
    #[error(transparent)]
    Group(#[from] Failure),
    /// It cannot be made, by anyone.
    #[error(transparent)]
    Run(#[from] Error),
}

/// A run in progress.
pub struct Trainer {
    config: TrainConfig,
    feed: Feed,
    prepared: Arc<Prepared>,
    /// Indices of the validation pairs in use.
    validation: Vec<usize>,
    device: Device,
    gan: Gan,
    standing: Standing,
}

/// All that a step changes. Tensors are shared until one of the two changes them.
struct Snapshot {
    generator: Trained,
    critic: Option<Trained>,
    standing: Standing,
}

impl Trainer {
    /// A fresh run on a prepared cache.
    ///
    /// # Errors
    /// If the cache has no training pairs, or no labels where the system needs them.
    pub fn new(config: &TrainConfig, prepared: Prepared, device: Device) -> Result<Self> {
        if config.system.uses_dice() && prepared.organs.is_empty() {
            return Err(Error::input(
                format!("the data lists no organs, but {} learns from contours", config.system.name()),
                "Prepare data with labels, or train Reg-CNN or Reg-GAN",
            ));
        }
        let mut validation: Vec<usize> =
            (0..prepared.pairs.len()).filter(|&i| prepared.pairs[i].split == Split::Validation).collect();
        if config.validation.max_pairs > 0 {
            validation.truncate(config.validation.max_pairs);
        }
        let gan = fresh(config, &prepared, &device);
        let prepared = Arc::new(prepared);
        let feed = Feed::new(config, Arc::clone(&prepared), &device)?;
        let standing = Standing::default();
        Ok(Self { config: config.clone(), feed, prepared, validation, device, gan, standing })
    }

    /// Continues from a checkpoint's or another worker's state.
    ///
    /// # Errors
    /// If the state is not this configuration's.
    pub fn restore(&mut self, state: &[u8]) -> Result<()> {
        self.standing = state::restore(state, &mut self.gan, &self.device)?;
        Ok(())
    }

    /// Goes back to the beginning of the run.
    pub fn reset(&mut self) {
        self.gan = fresh(&self.config, &self.prepared, &self.device);
        self.standing = Standing::default();
    }

    /// The state, for [`restore`](Self::restore). Equal states are equal bytes.
    pub fn state(&self) -> Vec<u8> {
        state::to_bytes(&self.gan, &self.standing)
    }

    /// Where the run stands.
    pub fn cursor(&self) -> Cursor {
        self.standing.cursor
    }

    /// Whether the next update is the critic's.
    pub fn critic_is_next(&self) -> bool {
        let Cursor { iteration, critic_done, .. } = self.standing.cursor;
        critic_done < self.config.critic_steps(iteration)
    }

    /// Samples of a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.config.sampling.micro_batch
    }

    /// Micro-batches of a step.
    pub fn micro_batches(&self) -> usize {
        self.config.sampling.batch / self.config.sampling.micro_batch
    }

    /// Positions in the run's sample order of the next step's micro-batches `mine`.
    pub fn positions(&self, mine: &Range<usize>) -> Range<u64> {
        let (count, size) = (self.micro_batches() as u64, self.micro_batch() as u64);
        let first = self.standing.cursor.updates * count;
        (first + mine.start as u64) * size..(first + mine.end as u64) * size
    }

    /// How the run ended, if there is nothing left to do.
    pub fn ended(&self) -> Option<Outcome> {
        let patience = self.config.validation.patience;
        if self.standing.cursor.iteration >= self.config.iterations {
            return Some(Outcome::Finished);
        }
        let tired = |best: &Arc<Best>| patience > 0 && best.since >= patience;
        self.standing.best.as_ref().filter(|best| tired(best)).map(|_| Outcome::EarlyStop)
    }

    /// Trains alone until the end, an early stop or a request to stop.
    ///
    /// # Errors
    /// If the data cannot be read, training diverges, or the observer fails.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        loop {
            if let Some(outcome) = self.ended() {
                return Ok(outcome);
            }
            if observer.stop_requested() {
                observer.checkpoint(self.cursor(), self.state())?;
                return Ok(Outcome::Interrupted);
            }
            let mut group = Group { collective: &mut Alone, watch: &() };
            let committed = self.step(0..self.micro_batches(), &mut group).map_err(|error| match error {
                StepError::Run(error) => error,
                // Alone, only the device can fail.
                StepError::Group(failure) => Error::input(
                    failure.to_string(),
                    "Continue with --resume from the last checkpoint, when the device works again or on another",
                ),
            })?;
            self.tell(&committed, observer)?;
        }
    }

    /// Reports a step, and has the state saved if it is time.
    ///
    /// # Errors
    /// Those of the observer.
    pub fn tell(&self, committed: &Committed, observer: &mut dyn Observer) -> Result<()> {
        if let Some(report) = &committed.iteration {
            observer.iteration(report)?;
        }
        if let Some(report) = &committed.validation {
            observer.validated(report)?;
        }
        if committed.checkpoint_due {
            observer.checkpoint(committed.cursor, self.state())?;
        }
        Ok(())
    }

    /// Makes one update of the critic or the generator, and the validation behind it if one is due, together with the
    /// other ranks of `group`. This rank computes the micro-batches `mine`.
    ///
    /// # Errors
    /// [`StepError::Group`] if the others are lost; the step then never happened.
    pub fn step(&mut self, mine: Range<usize>, group: &mut Group<'_>) -> Result<Committed, StepError> {
        let before = Snapshot {
            generator: self.gan.generator.clone(),
            critic: self.gan.critic.clone(),
            standing: self.standing.clone(),
        };
        let result = self.advance(mine, group);
        if result.is_err() {
            let Snapshot { generator, critic, standing } = before;
            (self.gan.generator, self.gan.critic, self.standing) = (generator, critic, standing);
        }
        result
    }

    /// The model of this run: the best by validation, or the last if there was no validation.
    pub fn model(&self) -> Model {
        let (values, statistics, iteration) = match &self.standing.best {
            Some(best) => (best.values.clone(), &best.statistics, best.iteration),
            None => {
                let g = &self.gan.generator;
                (g.parameters.to_vec(), &g.statistics, self.standing.cursor.iteration)
            }
        };
        let best_msd = self.standing.best.as_ref().map(|b| b.msd_mm);
        validation::model(&self.config, &self.prepared, &values, statistics, iteration, best_msd)
    }

    fn advance(&mut self, mine: Range<usize>, group: &mut Group<'_>) -> Result<Committed, StepError> {
        let Cursor { updates, iteration, critic_done } = self.standing.cursor;
        let progress = iteration as f64 / self.config.iterations as f64;

        group.watch.enter(Phase::Data);
        let waiting = Instant::now();
        let samples = self.feed.samples(self.positions(&mine), self.config.sampling.batch as u64)?;
        let data_wait = waiting.elapsed();

        group.watch.enter(Phase::Forward);
        let share = Share { count: self.micro_batches(), mine, patches: samples.patches() };
        let mut committed = if self.critic_is_next() {
            let updated = self.gan.update_critic(&share, progress, group)?;
            self.standing.cursor = Cursor { updates: updates + 1, iteration, critic_done: critic_done + 1 };
            self.standing.wasserstein = Some(updated.losses);
            Committed {
                cursor: self.standing.cursor,
                wasserstein: Some(updated.losses),
                iteration: None,
                validation: None,
                checkpoint_due: false,
                stop: updated.stop,
                data_wait,
            }
        } else {
            let learning_rate = learning_rate(&self.config.generator, progress);
            let updated = self.gan.update_generator(&share, progress, group)?;
            let iteration = iteration + 1;
            self.standing.cursor = Cursor { updates: updates + 1, iteration, critic_done: 0 };
            let report = IterationReport {
                iteration,
                updates: updates + 1,
                learning_rate,
                losses: updated.losses,
                wasserstein: self.standing.wasserstein.take(),
            };
            Committed {
                cursor: self.standing.cursor,
                wasserstein: None,
                iteration: Some(report),
                validation: None,
                checkpoint_due: self.due(self.config.checkpoint.every),
                stop: updated.stop,
                data_wait,
            }
        };
        if let Some(report) = &committed.iteration {
            check_finite(report)?;
            if self.due(self.config.validation.every) && !self.validation.is_empty() {
                committed.validation = Some(self.validate(group)?);
            }
        }
        group.watch.enter(Phase::Commit);
        Ok(committed)
    }

    /// True at every `every`-th iteration and at the last; never if `every` is 0.
    fn due(&self, every: u64) -> bool {
        let iteration = self.standing.cursor.iteration;
        every > 0 && (iteration.is_multiple_of(every) || iteration == self.config.iterations)
    }

    /// Validation pairs are shared out between the ranks; all of them learn the result.
    fn validate(&mut self, group: &mut Group<'_>) -> Result<ValidationReport, StepError> {
        group.watch.enter(Phase::Validate);
        group.collective.begin(self.standing.cursor.updates, VALIDATION_PATIENCE);
        let g = &self.gan.generator;
        let iteration = self.standing.cursor.iteration;
        let (values, statistics) = (g.parameters.to_vec(), g.statistics.clone());
        let model = validation::model(&self.config, &self.prepared, &values, &statistics, iteration, None);
        let (rank, size, count) = (group.collective.rank(), group.collective.size(), self.validation.len());
        let mut mine = Vec::new();
        for number in (rank..count).step_by(size) {
            let pair = self.prepared.load(self.validation[number])?;
            mine.push((number, validation::distances(&model, pair, &self.prepared)?));
        }
        let parts = mine.iter().map(|(number, distances)| (*number, &distances[..]));
        let msd_mm = validation::mean_distance(&collect(group.collective, count, parts)?)?;
        let best = match &self.standing.best {
            Some(best) if msd_mm >= best.msd_mm => {
                self.standing.best = Some(Arc::new(Best { since: best.since + 1, ..(**best).clone() }));
                false
            }
            _ => {
                let best = Best { iteration, msd_mm, values, statistics, since: 0 };
                self.standing.best = Some(Arc::new(best));
                true
            }
        };
        Ok(ValidationReport { iteration, msd_mm, best })
    }
}

fn fresh(config: &TrainConfig, prepared: &Prepared, device: &Device) -> Gan {
    let organs: Vec<u8> = prepared.organs.iter().map(|o| o.id).collect();
    Gan::new(config, &organs, prepared.spacing_mm as f32, device)
}

fn check_finite(report: &IterationReport) -> Result<()> {
    if report.losses.total.is_finite() && report.losses.gradient_norm.is_finite() {
        return Ok(());
    }
    Err(Error::input(
        format!("the loss became {} at iteration {}", report.losses.total, report.iteration),
        "Lower generator.learning_rate or set generator.clip_norm, and resume from an earlier checkpoint",
    ))
}
