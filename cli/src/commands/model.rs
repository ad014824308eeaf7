//! `jrs model show | verify | sign | untrained`.

use libjrs::model::{GeneratorWeights, Model, Provenance, PublicKey, SecretKey};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `jrs model`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jrs model show model.safetensors\n  jrs model verify model.safetensors")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Print the manifest: network, preprocessing, conventions, how it was trained.
    Show {
        /// The model file.
        file: PathBuf,
    },
    /// Check format, tensors, values and hashes, and with --key the signature.
    Verify {
        /// The model file.
        file: PathBuf,
        /// The vendor's public key, 64 hexadecimal digits.
        #[arg(long, value_name = "HEX")]
        key: Option<String>,
    },
    /// Sign a model with Ed25519 and print the public key, which hosts of libjrs.so may ask for.
    Sign {
        /// The model file.
        file: PathBuf,
        /// Secret key: 32 random bytes (`openssl rand -out key 32`).
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The signed model.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write a model with random weights: it registers nothing, but takes as long as a trained one.
    Untrained {
        /// The model file to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Same seed, same weights.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Show { file } => {
            let model = Model::load(file)?;
            println!("{}", serde_json::to_string_pretty(&model.manifest)?);
        }
        Action::Verify { file, key } => {
            let model = Model::load(file)?;
            model.verify()?;
            if let Some(key) = key {
                model.verify_signature(&PublicKey::from_hex(key)?)?;
            }
            println!("{}: valid, SHA-256 {}", file.display(), model.sha256());
        }
        Action::Sign { file, key, out } => {
            let mut model = Model::load(file)?;
            let key = SecretKey::load(key)?;
            model.sign(&key);
            model.save(out)?;
            println!("{}: signed, public key {}", out.display(), key.public().to_hex());
        }
        Action::Untrained { out, seed } => {
            let training = Provenance { system: "untrained".into(), ..Default::default() };
            Model::new(GeneratorWeights::random(*seed), training).save(out)?;
            println!("{}: untrained, seed {seed}", out.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
