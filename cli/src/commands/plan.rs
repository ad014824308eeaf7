//! `jrs plan`: what a run will do, without doing it.

use jrs_data::cache::Prepared;
use jrs_data::dataset::Split;
use jrs_worker::config::TrainConfig;
use libjrs::network::{GENERATOR, Layer, critic};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `jrs plan`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  jrs plan --config run.toml --data cache")]
pub struct Args {
    /// The run's TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Prepared cache, for the number of steps per epoch.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = TrainConfig::load(&args.config)?;
    print!("{}", config.to_toml());
    println!("\n# digest            {}", config.digest());
    println!("# updates in all     {}", config.updates_before(config.iterations));
    if let Some(data) = &args.data {
        let prepared = Prepared::open(data)?;
        let pairs = prepared.pairs.iter().filter(|p| p.split == Split::Train).count();
        let samples = pairs * config.sampling.patches_per_pair;
        println!("# training pairs     {pairs}");
        println!("# updates per epoch  {}", samples.div_ceil(config.sampling.batch));
    }
    println!("# parameters         {}", parameters(&config));
    println!("# checkpoint         about {:.1} MB", checkpoint_bytes(&config) as f64 / 1e6);
    println!("# activations        about {:.1} GB per micro-batch", activation_bytes(&config) as f64 / 1e9);
    Ok(ExitCode::SUCCESS)
}

fn networks(config: &TrainConfig) -> Vec<(Vec<Layer>, usize)> {
    let edge = config.sampling.patch;
    let mut networks = vec![(GENERATOR.to_vec(), edge)];
    networks.extend(config.system.critic_channels().map(|c| (critic(c).to_vec(), edge - 40)));
    networks
}

fn parameters(config: &TrainConfig) -> usize {
    networks(config).iter().flat_map(|(layers, _)| layers).map(Layer::parameters).sum()
}

/// Values, one or two moments each, and the best model beside the current one.
fn checkpoint_bytes(config: &TrainConfig) -> usize {
    let moments = |rule| if rule == jrs_worker::config::Rule::Adam { 2 } else { 1 };
    let own: usize = networks(config)
        .iter()
        .zip([config.generator.rule, config.critic.optimizer.rule])
        .map(|((layers, _), rule)| layers.iter().map(Layer::parameters).sum::<usize>() * (1 + moments(rule)))
        .sum();
    4 * (own + GENERATOR.iter().map(Layer::parameters).sum::<usize>())
}

/// Two tensors kept per block (the convolution's and the block's output) for both directions, plus as much again
/// for their gradients at the widest place.
fn activation_bytes(config: &TrainConfig) -> usize {
    let items = 2 * config.sampling.micro_batch;
    let per_item: usize = networks(config)
        .iter()
        .map(|(layers, edge)| {
            let mut n = *edge;
            let mut sum = 0;
            for layer in layers {
                n = match layer.name {
                    "x10" | "x14" => 2 * n,
                    _ => n,
                };
                n = layer.output(n);
                sum += 2 * layer.c_out * n.pow(3);
            }
            sum
        })
        .sum();
    4 * items * per_item * 3 / 2
}
