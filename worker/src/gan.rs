//! The adversarial step: one update of the critic or of the generator (science.md sections 3 to 5).

use crate::batch::{Batch, Patches, RealPair};
use crate::collective::Failure;
use crate::config::{Loss, System, TrainConfig};
use crate::device::read;
use crate::losses::{bending_energy, expectation, ncc, soft_dice, soft_dice_of_soft_contours};
use crate::nets::{BatchStatistics, Leaves, Parameters, RunningStatistics, critic, generator, moments};
use crate::ops::sums::sum;
use crate::ops::warp;
use crate::optimizer::Optimizer;
use crate::step::{Contribution, Group, Share, Updated};
use burn::tensor::{Device, Tensor};
use jrs_data::random::{Purpose, stream};
use libjrs::network::{self, GENERATOR, MARGIN};
use rand::Rng;
use rand_distr::StandardNormal;

/// A network with what its training carries along.
#[derive(Clone)]
pub struct Trained {
    /// Trainable values.
    pub parameters: Parameters,
    /// BatchNorm's running statistics.
    pub statistics: RunningStatistics,
    /// Update rule and its state.
    pub optimizer: Optimizer,
}

/// Generator, critic and both optimisers: the state that a step changes.
pub struct Gan {
    /// The run's configuration.
    pub config: TrainConfig,
    /// Label ids that are channels of the Dice loss; empty for systems without contours.
    pub organs: Vec<u8>,
    /// Edge of a voxel in mm.
    pub spacing: f32,
    /// G.
    pub generator: Trained,
    /// D, for the systems that have one.
    pub critic: Option<Trained>,
    device: Device,
}

/// Loss values of one generator update, averaged over its micro-batches.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GeneratorLosses {
    /// L_G of equation 1.
    pub total: f32,
    /// 1 - DSC (0 where no organ is in any patch or the system has no contours).
    pub dice: f32,
    /// 1 - DSC of the same patches without any displacement: what `dice` has to be compared with.
    pub dice_at_rest: f32,
    /// 1 - NCC.
    pub ncc: f32,
    /// Bending energy, 1/mm².
    pub smoothness: f32,
    /// L_adv = -E[D(fake)].
    pub adversarial: f32,
    /// ‖∂(λ2 L_adv)/∂u‖ / ‖∂L_sim/∂u‖: how loud the critic is.
    pub adversarial_ratio: f32,
    /// L2 norm of the gradient for all parameters, before clipping.
    pub gradient_norm: f32,
    /// Largest |component of u|, mm.
    pub max_displacement: f32,
}

impl Gan {
    /// Fresh networks for `config`; `organs` as in the data.
    pub fn new(config: &TrainConfig, organs: &[u8], spacing: f32, device: &Device) -> Self {
        let mut draws = stream(config.seed, Purpose::Weights, &[]);
        let mut fresh = |layers: &[network::Layer], optimizer| Trained {
            parameters: Parameters::init(layers, || draws.sample(StandardNormal), device),
            statistics: RunningStatistics::init(layers),
            optimizer: Optimizer::new(optimizer),
        };
        let generator = fresh(&GENERATOR, &config.generator);
        let critic = config
            .system
            .critic_channels()
            .map(|channels| fresh(&network::critic(channels), &config.critic.optimizer));
        let organs = if config.system.uses_dice() { organs.to_vec() } else { Vec::new() };
        Self { config: config.clone(), organs, spacing, generator, critic, device: device.clone() }
    }

    /// One critic update on fresh patches: minimises L_D = E[D(fake)] - E[D(real)] (equation 2), then clips.
    ///
    /// # Errors
    /// If the collective fails; nothing has changed then.
    pub fn update_critic(
        &mut self,
        share: &Share<'_>,
        progress: f64,
        group: &mut Group<'_>,
    ) -> Result<Updated<f32>, Failure> {
        let trained = self.critic.as_ref().expect("only systems with a critic update one");
        let parameters = trained.parameters.len();
        let contributions = group.compute(share, |number, patches| self.critic_gradient(number, patches))?;
        let combined = group.combine(share.count, parameters, &contributions, &self.device)?;

        let mut wasserstein = 0.0;
        let weight = 1.0 / share.count as f32;
        let critic = self.critic.as_mut().expect("checked above");
        for report in &combined.reports {
            let (loss, moments) = report.split_first().expect("a report begins with L_D");
            wasserstein += weight * -loss;
            critic.statistics.update(moments);
        }
        critic.update(combined.gradient, progress);
        critic.parameters.clip_convolutions(self.config.critic.clip);
        Ok(Updated { losses: wasserstein, stop: combined.stop })
    }

    /// One generator update: minimises L_G of equation 1.
    ///
    /// # Errors
    /// If the collective or the device fails. Changes may have been made then: take the state from before.
    pub fn update_generator(
        &mut self,
        share: &Share<'_>,
        progress: f64,
        group: &mut Group<'_>,
    ) -> Result<Updated<GeneratorLosses>, Failure> {
        let parameters = self.generator.parameters.len();
        let contributions =
            group.compute(share, |number, patches| self.generator_gradient(number, patches))?;
        let combined = group.combine(share.count, parameters, &contributions, &self.device)?;

        let mut losses = GeneratorLosses::default();
        let weight = 1.0 / share.count as f32;
        for report in &combined.reports {
            let (terms, moments) = report.split_first_chunk().expect("a report begins with the terms");
            losses.add(&GeneratorLosses::of(terms, &self.config.loss), weight);
            self.generator.statistics.update(moments);
        }
        let norm = l2(&combined.gradient);
        self.generator.update(combined.gradient, progress);
        losses.gradient_norm = read(norm)?[0];
        Ok(Updated { losses, stop: combined.stop })
    }

    /// u in mm. The network gives it in voxels of the working grid, which on the paper's 1 mm grid is the same: what
    /// its head has to reach then does not depend on the grid.
    fn displacement(&self, leaves: &Leaves, batch: &Batch) -> (Tensor<5>, BatchStatistics) {
        let (voxels, statistics) = generator(leaves, batch.images.clone());
        (voxels * (self.config.head_gain * self.spacing), statistics)
    }

    fn critic_gradient(&self, micro_batch: usize, patches: Patches<'_>) -> Contribution {
        let batch = patches.batch(&self.organs, 0, &self.device);
        let (u, _) = self.displacement(&self.generator.parameters.leaves(false), &batch);
        let warped = warp(batch.source.clone(), u / self.spacing, MARGIN);
        let fake = self.fake_input(&batch, warped);
        let real = self.real_input(&batch, self.real_pairs(patches));

        let reduction = self.config.critic.reduction;
        let trained = self.critic.as_ref().expect("a system with a critic");
        let leaves = trained.parameters.leaves(true);
        let (fake, real, statistics) = scores(&leaves, fake, real);
        let loss = expectation(fake, reduction) - expectation(real, reduction);
        let report = Tensor::cat(vec![loss.clone().without_autodiff(), moments(statistics)], 0);
        Contribution { micro_batch, gradient: leaves.gradient(&mut loss.backward()), report }
    }

    /// The gradient for the parameters, in two stages: first ∂L/∂u per term, then through the network. The first
    /// stage gives the ratio of the terms at no extra pass through the generator.
    fn generator_gradient(&self, micro_batch: usize, patches: Patches<'_>) -> Contribution {
        let batch = patches.batch(&self.organs, self.config.loss.contour_blur, &self.device);
        let leaves = self.generator.parameters.leaves(true);
        let (u, statistics) = self.displacement(&leaves, &batch);

        let fixed_u = u.clone().without_autodiff();
        let mut terms = Terms::none(&self.device);
        terms.max_displacement = fixed_u.clone().abs().max();
        if let Some(masks) = &batch.fixed_masks {
            let inner = masks.dims()[4];
            let contours = batch.source.clone().narrow(1, 1, self.organs.len());
            let resting = (2..5).fold(contours, |t, axis| t.narrow(axis, MARGIN, inner));
            terms.dice_at_rest = one_minus(self.dice(resting, masks.clone()));
        }
        let similarity = gradient_of(&fixed_u, |u| self.similarity(&batch, u, &mut terms));
        let mut at_u = similarity.clone();
        if self.config.loss.smoothness > 0.0 {
            at_u = at_u
                + gradient_of(&fixed_u, |u| {
                    let energy = bending_energy(u, self.spacing);
                    terms.smoothness = energy.clone().without_autodiff();
                    energy * self.config.loss.smoothness
                });
        }
        if let Some(trained) = &self.critic {
            let critic_leaves = trained.parameters.leaves(false);
            // The critic judges sharp contours, whatever the Dice loss sees.
            let sharp = match self.config.loss.contour_blur {
                0 => batch,
                _ => patches.batch(&self.organs, 0, &self.device),
            };
            let real = self.real_input(&sharp, self.real_pairs(patches));
            let adversarial = gradient_of(&fixed_u, |u| {
                let loss = self.adversarial(&sharp, u, real, &critic_leaves);
                terms.adversarial = loss.clone().without_autodiff();
                loss * self.config.loss.adversarial
            });
            terms.adversarial_gradient = l2(&adversarial);
            terms.similarity_gradient = l2(&similarity);
            at_u = at_u + adversarial;
        }

        // d/dθ Σ u(θ) · ∂L/∂u is dL/dθ.
        let surrogate = (u * at_u.autodiff()).sum();
        let report = Tensor::cat(terms.in_order().chain([moments(statistics)]).collect(), 0);
        Contribution { micro_batch, gradient: leaves.gradient(&mut surrogate.backward()), report }
    }

    /// (1 - DSC) + (1 - NCC).
    fn similarity(&self, batch: &Batch, u: Tensor<5>, terms: &mut Terms) -> Tensor<1> {
        let warped = warp(batch.source.clone(), u / self.spacing, MARGIN);
        let image = warped.clone().narrow(1, 0, 1);
        let mut loss = one_minus(ncc(batch.fixed.clone(), image, self.config.loss.similarity));
        terms.ncc = loss.clone().without_autodiff();
        if let Some(masks) = &batch.fixed_masks {
            let dice = one_minus(self.dice(warped.narrow(1, 1, self.organs.len()), masks.clone()));
            terms.dice = dice.clone().without_autodiff();
            loss = loss + dice;
        }
        loss
    }

    /// DSC of warped and fixed contours; blurred ones need the form for soft contours.
    fn dice(&self, warped: Tensor<5>, fixed: Tensor<5>) -> Tensor<1> {
        match self.config.loss.contour_blur {
            0 => soft_dice(warped, fixed),
            _ => soft_dice_of_soft_contours(warped, fixed),
        }
    }

    /// L_adv = -E[D(fake)]: the sign that makes G raise the critic's score (science.md section 4).
    fn adversarial(&self, batch: &Batch, u: Tensor<5>, real: Tensor<5>, critic_leaves: &Leaves) -> Tensor<1> {
        let warped = warp(batch.source.clone(), u / self.spacing, MARGIN);
        let (fake, _, _) = scores(critic_leaves, self.fake_input(batch, warped), real.autodiff());
        expectation(fake, self.config.critic.reduction).neg()
    }

    fn real_pairs(&self, patches: Patches<'_>) -> RealPair {
        let segmentation = self.config.critic.real_segmentation;
        patches.real_pairs(&self.organs, segmentation, self.config.seed, &self.device)
    }

    fn fake_input(&self, batch: &Batch, warped: Tensor<5>) -> Tensor<5> {
        let image = warped.clone().narrow(1, 0, 1);
        let mask = (!self.organs.is_empty()).then(|| warped.narrow(1, 1, self.organs.len()).sum_dim(1));
        self.critic_input(batch, image, mask)
    }

    fn real_input(&self, batch: &Batch, real: RealPair) -> Tensor<5> {
        self.critic_input(batch, real.image, real.mask)
    }

    /// What D sees of a candidate (image, mask) for the fixed image, per system (science.md section 3).
    fn critic_input(&self, batch: &Batch, image: Tensor<5>, mask: Option<Tensor<5>>) -> Tensor<5> {
        let fixed = batch.fixed.clone();
        let channels = match (self.config.system, mask) {
            (System::JrsGanA, Some(mask)) => vec![fixed, image, mask],
            (System::JrsGanB, Some(mask)) => {
                let fixed_masks = batch.fixed_masks.clone().expect("JRS systems have contours");
                vec![fixed * fixed_masks.sum_dim(1), image * mask]
            }
            _ => vec![fixed, image],
        };
        let tracked = channels.iter().any(Tensor::is_autodiff);
        let lift = |t: Tensor<5>| if tracked && !t.is_autodiff() { t.autodiff() } else { t };
        Tensor::cat(channels.into_iter().map(lift).collect(), 1)
    }
}

/// What the losses of one micro-batch are made of, each \[1\] on the device: nothing waits for them within a step.
struct Terms {
    dice: Tensor<1>,
    dice_at_rest: Tensor<1>,
    ncc: Tensor<1>,
    smoothness: Tensor<1>,
    adversarial: Tensor<1>,
    /// ‖∂(λ2 L_adv)/∂u‖.
    adversarial_gradient: Tensor<1>,
    /// ‖∂L_sim/∂u‖.
    similarity_gradient: Tensor<1>,
    max_displacement: Tensor<1>,
}

impl Terms {
    const COUNT: usize = 8;

    /// A system has some of the terms; the others are 0.
    fn none(device: &Device) -> Self {
        let zero = Tensor::zeros([1], device);
        Self {
            dice: zero.clone(),
            dice_at_rest: zero.clone(),
            ncc: zero.clone(),
            smoothness: zero.clone(),
            adversarial: zero.clone(),
            adversarial_gradient: zero.clone(),
            similarity_gradient: zero.clone(),
            max_displacement: zero,
        }
    }

    /// In the order that [`GeneratorLosses::of`] reads.
    fn in_order(self) -> impl Iterator<Item = Tensor<1>> {
        let all: [Tensor<1>; Self::COUNT] = [
            self.dice,
            self.dice_at_rest,
            self.ncc,
            self.smoothness,
            self.adversarial,
            self.adversarial_gradient,
            self.similarity_gradient,
            self.max_displacement,
        ];
        all.into_iter()
    }
}

impl GeneratorLosses {
    /// Of one micro-batch, from its [`Terms`].
    fn of(terms: &[f32; Terms::COUNT], weights: &Loss) -> Self {
        let &[dice, dice_at_rest, ncc, smoothness, adversarial, at_critic, at_similarity, max_displacement] =
            terms;
        Self {
            total: dice + ncc + weights.smoothness * smoothness + weights.adversarial * adversarial,
            dice,
            dice_at_rest,
            ncc,
            smoothness,
            adversarial,
            adversarial_ratio: at_critic / at_similarity.max(1e-20),
            gradient_norm: 0.0, // of the whole step's gradient
            max_displacement,
        }
    }

    /// Adds one micro-batch's losses.
    fn add(&mut self, one: &Self, weight: f32) {
        let means = [
            (&mut self.total, one.total),
            (&mut self.dice, one.dice),
            (&mut self.dice_at_rest, one.dice_at_rest),
            (&mut self.ncc, one.ncc),
            (&mut self.smoothness, one.smoothness),
            (&mut self.adversarial, one.adversarial),
            (&mut self.adversarial_ratio, one.adversarial_ratio),
        ];
        means.into_iter().for_each(|(mean, value)| *mean += weight * value);
        self.max_displacement = self.max_displacement.max(one.max_displacement);
    }
}

impl Trained {
    /// One step along `gradient`.
    fn update(&mut self, gradient: Tensor<1>, progress: f64) {
        let values = self.parameters.values.clone();
        self.parameters.values = self.optimizer.step(values, gradient, progress);
    }
}

/// D's score maps of fake and of real pairs, in one pass: BatchNorm sees both together. Were each normalised by
/// itself, its mean score would be w·β + b whatever the images are (the score layer follows a BatchNorm
/// directly), and neither loss would have a gradient (measured: docs/method.md).
fn scores(leaves: &Leaves, fake: Tensor<5>, real: Tensor<5>) -> (Tensor<5>, Tensor<5>, BatchStatistics) {
    let n = fake.dims()[0];
    let (scores, statistics) = critic(leaves, Tensor::cat(vec![fake, real], 0));
    (scores.clone().narrow(0, 0, n), scores.narrow(0, n, n), statistics)
}

/// ∂loss/∂u at `u`, on a device without autodiff.
fn gradient_of(u: &Tensor<5>, loss: impl FnOnce(Tensor<5>) -> Tensor<1>) -> Tensor<5> {
    let leaf = u.clone().autodiff().require_grad();
    let mut gradients = loss(leaf.clone()).backward();
    match leaf.grad_remove(&mut gradients) {
        Some(gradient) => gradient.without_autodiff(),
        None => u.zeros_like(),
    }
}

fn one_minus(t: Tensor<1>) -> Tensor<1> {
    t.neg() + 1.0
}

/// The Euclidean norm, \[1\].
fn l2<const D: usize>(t: &Tensor<D>) -> Tensor<1> {
    sum(t.clone().square()).sqrt()
}
