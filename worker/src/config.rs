//! The run's configuration: one TOML file, every key with a default, unknown keys refused.

use crate::losses::{Reduction, Similarity};
use libjrs::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The five learned systems of the paper (its Tables 1 and 2): one key apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum System {
    /// NCC + smoothness.
    #[serde(rename = "Reg-CNN")]
    RegCnn,
    /// NCC + Dice + smoothness.
    #[serde(rename = "JRS-CNN")]
    JrsCnn,
    /// NCC + smoothness + adversarial.
    #[serde(rename = "Reg-GAN")]
    RegGan,
    /// NCC + Dice + smoothness + adversarial; the critic sees (I_f, I_m∘Φ, S_m∘Φ).
    #[serde(rename = "JRS-GANa")]
    JrsGanA,
    /// As JRS-GANa; the critic sees (I_f·S_f, I_m∘Φ·S_m∘Φ).
    #[serde(rename = "JRS-GANb")]
    JrsGanB,
}

impl System {
    /// True if contours are part of the loss.
    pub fn uses_dice(self) -> bool {
        matches!(self, Self::JrsCnn | Self::JrsGanA | Self::JrsGanB)
    }

    /// Channels the critic sees, or `None` for a system without a critic.
    pub fn critic_channels(self) -> Option<usize> {
        match self {
            Self::RegCnn | Self::JrsCnn => None,
            Self::RegGan | Self::JrsGanB => Some(2),
            Self::JrsGanA => Some(3),
        }
    }

    /// The paper's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RegCnn => "Reg-CNN",
            Self::JrsCnn => "JRS-CNN",
            Self::RegGan => "Reg-GAN",
            Self::JrsGanA => "JRS-GANa",
            Self::JrsGanB => "JRS-GANb",
        }
    }
}

/// Everything that decides what model a run gives, together with the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Which system of the paper.
    pub system: System,
    /// Seed of every draw.
    pub seed: u64,
    /// Generator iterations in all.
    pub iterations: u64,
    /// Displacement, in working voxels, per unit of the generator's last layer \[paper: 1\]. Weights all learn at one
    /// rate; a larger gain lets displacements grow before the other layers are shaken. Part of the last
    /// layer's weights in the model file.
    pub head_gain: f32,
    /// Patches.
    pub sampling: Sampling,
    /// Loss terms.
    pub loss: Loss,
    /// Generator updates.
    pub generator: Optimizer,
    /// Critic updates.
    pub critic: Critic,
    /// Choice of the best model.
    pub validation: Validation,
    /// When state is saved.
    pub checkpoint: Checkpoint,
}

/// How patches are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Edge of a patch in voxels: a multiple of 4, at least 44; with a critic at least 76.
    pub patch: usize,
    /// Patches per pair and epoch \[paper: 1000\].
    pub patches_per_pair: usize,
    /// Share of the patches centred in an organ (each organ alike) instead of anywhere in the torso \[paper: 0\].
    pub around_organs: f64,
    /// Pairs held in memory at a time.
    pub window: usize,
    /// Patch pairs per update (each used in both directions).
    pub batch: usize,
    /// Patch pairs per forward pass; BatchNorm's statistics belong to it. Divides `batch`.
    pub micro_batch: usize,
}

/// Terms of equation 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// λ1, weight of the bending energy \[paper: 1\].
    pub smoothness: f32,
    /// λ2, weight of the adversarial term \[paper: 0.01\].
    pub adversarial: f32,
    /// Voxels by which contours are softened for the Dice loss \[paper: 0\]. Softened ones are compared by the Dice
    /// coefficient of soft contours (`losses::soft_dice_of_soft_contours`).
    pub contour_blur: usize,
    /// `global` \[paper\] or `{ local = { window = 9 } }`.
    pub similarity: Similarity,
}

/// An update rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Rule.
    pub rule: Rule,
    /// Step size \[paper: 1e-5\].
    pub learning_rate: f64,
    /// How the step size changes over the generator iterations.
    pub schedule: Schedule,
    /// Largest L2 norm of the whole gradient; 0 leaves it alone.
    pub clip_norm: f32,
}

/// Update rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Decay 0.9, epsilon 1e-10, no momentum \[paper: RMSProp; values: TensorFlow's defaults\].
    Rmsprop,
    /// β 0.9 and 0.999, epsilon 1e-8.
    Adam,
}

/// Learning-rate schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same all along.
    Constant,
    /// Half a cosine down to 0 at the last iteration.
    Cosine,
}

/// The critic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Critic {
    /// Generator iterations with `warmup_steps` critic updates each \[paper: 25\].
    pub warmup_iterations: u64,
    /// Critic updates per generator iteration at first \[paper: 100\].
    pub warmup_steps: u64,
    /// Critic updates per generator iteration afterwards \[paper: 5\].
    pub steps: u64,
    /// After the warm-up, only every so many generator iterations are preceded by `steps` updates \[paper: 1\].
    pub every: u64,
    /// Convolution weights and biases are clipped to this after every update \[paper: 0.01\].
    pub clip: f32,
    /// `mean` or `sum` over the score map.
    pub reduction: Reduction,
    /// `raw` \[paper\] or `theta`: what the critic sees as segmentation of a real pair.
    pub real_segmentation: RealSegmentation,
    /// Its updates.
    pub optimizer: Optimizer,
}

/// The segmentation of a real pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RealSegmentation {
    /// S_f as contoured.
    Raw,
    /// S_f moved by Θ's field, so that its edges are interpolated as those of S_m∘Φ are.
    Theta,
}

/// Choice of the best model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Validation {
    /// Generator iterations between validations; 0 never validates and keeps the last model.
    pub every: u64,
    /// Validations without a better MSD before training stops early; 0 never stops early.
    pub patience: u64,
    /// Validation pairs used (the first ones); 0 uses all.
    pub max_pairs: usize,
}

/// When state is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Generator iterations between checkpoints.
    pub every: u64,
    /// Newest checkpoints kept (at least 2).
    pub keep_last: usize,
    /// Besides, every checkpoint whose iteration is a multiple of this is kept; 0 keeps none.
    pub keep_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            system: System::JrsGanA,
            seed: 1,
            iterations: 20_000,
            head_gain: 1.0,
            sampling: Sampling::default(),
            loss: Loss::default(),
            generator: Optimizer::default(),
            critic: Critic::default(),
            validation: Validation::default(),
            checkpoint: Checkpoint::default(),
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { patch: 96, patches_per_pair: 1000, around_organs: 0.0, window: 4, batch: 2, micro_batch: 1 }
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self { smoothness: 1.0, adversarial: 0.01, contour_blur: 0, similarity: Similarity::Global }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self { rule: Rule::Rmsprop, learning_rate: 1e-5, schedule: Schedule::Constant, clip_norm: 0.0 }
    }
}

impl Default for Critic {
    fn default() -> Self {
        Self {
            warmup_iterations: 25,
            warmup_steps: 100,
            steps: 5,
            every: 1,
            clip: 0.01,
            reduction: Reduction::Mean,
            real_segmentation: RealSegmentation::Raw,
            optimizer: Optimizer::default(),
        }
    }
}

impl Default for Validation {
    fn default() -> Self {
        Self { every: 500, patience: 0, max_pairs: 0 }
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 500, keep_last: 3, keep_every: 0 }
    }
}

impl TrainConfig {
    /// Reads and checks a TOML file.
    ///
    /// # Errors
    /// If the file cannot be read, a key is unknown or a value is out of its range.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(path, e, "Give --config the path of a run's TOML file"))?;
        Self::parse(&text).map_err(|problem| {
            Error::file(path, problem, "`jrs plan --config FILE` prints every key with its default")
        })
    }

    /// Parses and checks TOML text; the error is a clause.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| {
            // The error's own text spans several lines.
            let line = 1 + text[..e.span().map_or(0, |s| s.start)].matches('\n').count();
            format!("line {line}: {}", e.message().trim_end())
        })?;
        config.check()?;
        Ok(config)
    }

    /// The whole configuration with all defaults, as TOML. Equal configurations give equal text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("plain values always serialise")
    }

    /// SHA-256 of [`TrainConfig::to_toml`], hexadecimal.
    pub fn digest(&self) -> String {
        Sha256::digest(self.to_toml()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Critic updates that precede the generator's update of `iteration` \[paper: 100 for 0..24, then 5\].
    pub fn critic_steps(&self, iteration: u64) -> u64 {
        match self.system.critic_channels() {
            None => 0,
            Some(_) if iteration < self.critic.warmup_iterations => self.critic.warmup_steps,
            Some(_) if iteration.is_multiple_of(self.critic.every) => self.critic.steps,
            Some(_) => 0,
        }
    }

    /// Updates (critic and generator) before generator iteration `iteration` begins.
    pub fn updates_before(&self, iteration: u64) -> u64 {
        if self.system.critic_channels().is_none() {
            return iteration;
        }
        let c = &self.critic;
        let warm = iteration.min(c.warmup_iterations);
        let rounds = iteration.div_ceil(c.every) - warm.div_ceil(c.every);
        iteration + warm * c.warmup_steps + rounds * c.steps
    }

    fn check(&self) -> std::result::Result<(), String> {
        let s = &self.sampling;
        let need = if self.system.critic_channels().is_some() { 76 } else { 44 };
        let positive = [
            ("iterations", self.iterations > 0),
            ("head_gain", self.head_gain > 0.0),
            ("sampling.patches_per_pair", s.patches_per_pair > 0),
            ("sampling.window", s.window > 0),
            ("sampling.batch", s.batch > 0),
            ("sampling.micro_batch", s.micro_batch > 0),
            ("critic.every", self.critic.every > 0),
            ("generator.learning_rate", self.generator.learning_rate > 0.0),
            ("critic.optimizer.learning_rate", self.critic.optimizer.learning_rate > 0.0),
            ("critic.clip", self.critic.clip > 0.0),
            ("checkpoint.every", self.checkpoint.every > 0),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, ok)| !ok) {
            return Err(format!("{key} must be greater than 0"));
        }
        if !s.patch.is_multiple_of(4) || s.patch < need {
            return Err(format!(
                "sampling.patch is {}; {} needs a multiple of 4 of at least {need}",
                s.patch,
                self.system.name()
            ));
        }
        if !(0.0..=1.0).contains(&s.around_organs) {
            return Err(format!("sampling.around_organs is {}; it is a share from 0 to 1", s.around_organs));
        }
        if !s.batch.is_multiple_of(s.micro_batch) {
            return Err(format!(
                "sampling.micro_batch {} does not divide sampling.batch {}",
                s.micro_batch, s.batch
            ));
        }
        if let Similarity::Local { window } = self.loss.similarity
            && (window % 2 == 0 || window < 3 || window > s.patch - 40)
        {
            return Err(format!(
                "loss.similarity.local.window is {window}; it needs an odd number from 3 up"
            ));
        }
        if self.checkpoint.keep_last < 2 {
            return Err(format!(
                "checkpoint.keep_last is {}; at least 2 are kept",
                self.checkpoint.keep_last
            ));
        }
        if !(self.loss.smoothness >= 0.0 && self.loss.adversarial >= 0.0) {
            return Err("loss.smoothness and loss.adversarial must not be negative".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_papers() {
        let c = TrainConfig::parse("").unwrap();
        assert_eq!((c.sampling.patch, c.sampling.patches_per_pair), (96, 1000));
        assert_eq!((c.loss.smoothness, c.loss.adversarial, c.critic.clip), (1.0, 0.01, 0.01));
        assert_eq!((c.generator.rule, c.generator.learning_rate), (Rule::Rmsprop, 1e-5));
        assert_eq!((c.critic_steps(0), c.critic_steps(24), c.critic_steps(25)), (100, 100, 5));
        assert_eq!(c.updates_before(26), 25 * 101 + 6);
    }

    #[test]
    fn updates_before_is_the_sum_of_all_earlier_updates() {
        let mut c = TrainConfig::default();
        for (warmup, every) in [(0, 1), (0, 4), (3, 1), (3, 2), (5, 4)] {
            (c.critic.warmup_iterations, c.critic.every) = (warmup, every);
            let mut updates = 0;
            for iteration in 0..20 {
                assert_eq!(c.updates_before(iteration), updates, "{iteration} with {warmup}, {every}");
                updates += c.critic_steps(iteration) + 1;
            }
        }
    }

    #[test]
    fn one_key_apart() {
        for name in ["Reg-CNN", "JRS-CNN", "Reg-GAN", "JRS-GANa", "JRS-GANb"] {
            let c = TrainConfig::parse(&format!("system = \"{name}\"")).unwrap();
            assert_eq!(c.system.name(), name);
        }
    }

    #[test]
    fn unknown_key_is_named() {
        let error = TrainConfig::parse("[sampling]\npatchsize = 96").unwrap_err();
        assert!(error.contains("patchsize"), "{error}");
    }

    #[test]
    fn printed_config_reads_back() {
        let c = TrainConfig::default();
        assert_eq!(TrainConfig::parse(&c.to_toml()).unwrap(), c);
        assert_eq!(TrainConfig::parse(&c.to_toml()).unwrap().digest(), c.digest());
    }

    #[test]
    fn bad_values_are_refused() {
        for (text, word) in [
            ("[sampling]\npatch = 50", "patch"),
            ("[sampling]\nbatch = 3\nmicro_batch = 2", "micro_batch"),
            ("iterations = 0", "iterations"),
            ("[checkpoint]\nkeep_last = 1", "keep_last"),
        ] {
            let error = TrainConfig::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
