//! `jrs coordinator`: leads the workers of one run.

use super::data::Copies;
use crate::failure;
use jrs_cluster::{Ending, Error, Job, MicroBatches, Options, Outcome, Policy};
use jrs_coordinator::{RunStore, Start};
use jrs_protocol::tls::TlsFiles;
use jrs_protocol::token::Token;
use jrs_worker::config::TrainConfig;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Ended because another coordinator leads, or for a reason that may pass: start it again.
const RETRY: u8 = 75;

/// Ended because its configuration cannot work: starting it again is no use.
const BAD_CONFIG: u8 = 78;

/// Ended by Ctrl-C, with the run stopped in order.
const STOPPED: u8 = 130;

/// Ended by SIGTERM.
const TERMINATED: u8 = 143;

/// Arguments of `jrs coordinator`.
#[derive(clap::Args)]
#[command(
    after_help = "Workers attach with `jrs worker --coordinator HOST:PORT`. They go on stepping while the coordinator is \
                        away: start it again with the same arguments.\n\nExit codes: 0 the run is finished, 75 another \
                        coordinator leads (or the store is out of reach), 78 bad configuration, 130 stopped by Ctrl-C with the \
                        workers, 143 by SIGTERM without them.\n\nExample:\n  jrs coordinator --config run.toml --data cache \
                        --out runs --run first --listen 0.0.0.0:7000 --http 0.0.0.0:8080 --workers 2"
)]
pub struct Args {
    /// The run's TOML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Prepared cache (`jrs prepare`), as workers find it too.
    #[arg(long, value_name = "URL")]
    data: String,
    /// Object store for generations and checkpoints: a folder or a URL.
    #[arg(long, value_name = "URL")]
    out: String,
    /// Name of the run inside the store. An existing one is continued from its newest checkpoint.
    #[arg(long, default_value = "default")]
    run: String,
    /// Address for workers; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7000")]
    listen: SocketAddr,
    /// How workers and other coordinators reach this one, if not by --listen.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Workers to wait for before the first step. Later the run goes on with any number.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,
    /// Address for the status page, /status, /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Begin from the checkpoint of this update and no other.
    #[arg(long, value_name = "UPDATES")]
    resume_step: Option<u64>,
    #[command(flatten)]
    copies: Copies,
    #[command(flatten)]
    security: Security,
}

/// Who may join.
#[derive(clap::Args)]
pub struct Security {
    /// File with the secret that workers and coordinator share.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate of the authority that signs the other side's certificates. With it, each side proves who it is.
    #[arg(long, value_name = "PEM")]
    tls_ca: Option<PathBuf>,
    /// This side's certificate.
    #[arg(long, value_name = "PEM")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key.
    #[arg(long, value_name = "PEM")]
    tls_key: Option<PathBuf>,
    /// Name in the coordinator's certificate, if it is not the host that is connected to.
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
}

impl Security {
    /// The join token, if one is used.
    pub fn token(&self) -> anyhow::Result<Option<Token>> {
        Ok(self.token_file.as_deref().map(Token::read).transpose()?)
    }

    /// The certificates.
    pub fn tls(&self) -> TlsFiles {
        TlsFiles {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            name: self.tls_name.clone(),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = match options(args) {
        Ok(options) => options,
        Err(error) => {
            // Which failures of a store pass is the store's secret; those of reaching it may.
            let store = error.downcast_ref::<jrs_coordinator::Error>();
            let passes = matches!(store, Some(jrs_coordinator::Error::Store { .. }));
            return Ok(failure::report_as(&error, if passes { RETRY } else { BAD_CONFIG }));
        }
    };
    Ok(match jrs_cluster::run(options) {
        Ok(Outcome::Ended(Ending::Finished)) => ExitCode::SUCCESS,
        Ok(Outcome::Ended(Ending::Superseded)) => ExitCode::from(RETRY),
        Ok(Outcome::Ended(Ending::Drained)) => ExitCode::from(STOPPED),
        Ok(Outcome::Terminated) => ExitCode::from(TERMINATED),
        Err(error) => {
            let code = match &error {
                Error::Superseded { .. } | Error::Store(_) | Error::Listen { .. } => RETRY,
                _ => BAD_CONFIG,
            };
            failure::report_as(&error.into(), code)
        }
    })
}

fn options(args: &Args) -> anyhow::Result<Options> {
    let config = TrainConfig::load(&args.config)?;
    anyhow::ensure!(args.workers > 0, "--workers is 0; a run needs at least one");
    let (token, tls) = (args.security.token()?, args.security.tls());
    let sampling = &config.sampling;
    let cut = MicroBatches::new(sampling.batch as u64, sampling.batch / sampling.micro_batch)?;
    let dataset_digest = args.copies.open(&args.data)?.digest;
    jrs_telemetry::logging::join_trace(&format!("{}/{}", args.out, args.run));
    let store = RunStore::open(&args.out, &args.run)?;
    let config_toml = config.to_toml();
    store.start_run(&config_toml, &dataset_digest, Start::ResumeOrNew)?;
    if let Some(step) = args.resume_step {
        store.load_step(step)?;
    }
    let advertise = args.advertise.clone().unwrap_or_else(|| args.listen.to_string());
    Ok(Options {
        store,
        listen: args.listen,
        advertise,
        http: args.http,
        token,
        tls,
        policy: Policy::new(args.workers),
        job: Job {
            config_toml,
            dataset_digest,
            data_url: args.data.clone(),
            store_url: args.out.clone(),
            resume_step: args.resume_step,
            cut,
            updates: config.updates_before(config.iterations),
            iterations: config.iterations,
        },
    })
}
