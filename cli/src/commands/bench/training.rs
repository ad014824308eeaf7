//! One iteration of training.

use super::{Bench, pair};
use burn::tensor::Device;
use jrs_data::sampling::SampleId;
use jrs_worker::batch::{Cutter, Scans};
use jrs_worker::collective::Alone;
use jrs_worker::config::{System, TrainConfig};
use jrs_worker::gan::Gan;
use jrs_worker::step::{Group, Share};
use std::sync::Arc;

/// Critic updates, then one of the generator, on one pair of patches of `size` voxels in both directions; the
/// paper's losses and RMSProp.
pub fn step(
    system: System,
    size: usize,
    critic_steps: u64,
    device: &Device,
) -> libjrs::Result<Bench<'static>> {
    let text = format!("system = \"{}\"\nsampling.patch = {size}\nsampling.batch = 1", system.name());
    let config = TrainConfig::parse(&text)
        .map_err(|problem| libjrs::Error::input(problem, "Choose a larger --size"))?;
    let critic_steps = system.critic_channels().map_or(0, |_| critic_steps);
    let mut gan = Gan::new(&config, &[1, 2, 3, 4, 5], 1.0, device);
    let scans = [Arc::new(Scans::from(pair()))];
    let cutter = Cutter::new(&config, 1000.0, device);
    let samples = cutter.samples(&[SampleId { epoch: 0, pair: 0, k: 0 }], &scans);
    let critic = if critic_steps > 0 { format!(", {critic_steps} critic updates") } else { String::new() };
    Ok(Bench {
        name: format!("{} iteration, patch {size}^3{critic}", system.name()),
        flops: None,
        run: Box::new(move || {
            let share = Share::whole(samples.patches(), 1);
            let mut group = Group { collective: &mut Alone, watch: &() };
            for _ in 0..critic_steps {
                gan.update_critic(&share, 0.0, &mut group).expect("alone, nobody is lost");
            }
            gan.update_generator(&share, 0.0, &mut group).expect("alone, nobody is lost");
            Ok(())
        }),
    })
}
