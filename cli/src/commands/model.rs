//! `jrs model show | verify`.

use libjrs::model::Model;
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
    /// Check format, tensors, values and hashes.
    Verify {
        /// The model file.
        file: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Show { file } => {
            let model = Model::load(file)?;
            println!("{}", serde_json::to_string_pretty(&model.manifest)?);
        }
        Action::Verify { file } => {
            let model = Model::load(file)?;
            model.verify()?;
            println!("{}: valid, SHA-256 {}", file.display(), model.sha256());
        }
    }
    Ok(ExitCode::SUCCESS)
}
