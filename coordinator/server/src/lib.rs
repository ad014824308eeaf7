//! The coordinator's process: everything that talks, around decisions that do not.
//!
//! * [`run`] starts it and returns when the run is over, the operator stops it, or another coordinator leads.
//! * `leadership` claims generations in the store, on a thread of its own, because a store may be slow.
//! * `service` turns gRPC streams into events; `shell` is the one task that owns the state, asks
//!   [`jrs_coordinator::decision`] what follows, and does it.
//! * `record` remembers what people want to see; `http` shows it: status page, JSON, metrics, probes.
//!
//! A training step never waits for anything here. If this process dies, workers step on and attach to the next one.

#![forbid(unsafe_code)]

mod convert;
mod error;
mod http;
mod leadership;
mod metrics;
mod record;
mod service;
mod shell;
mod status;

pub use error::{Error, Result};
pub use jrs_coordinator::decision::{Ending, Policy};

pub use jrs_coordinator::plan::MicroBatches;

use jrs_coordinator::RunStore;
use jrs_coordinator::decision::State;
use jrs_protocol::tls::TlsFiles;
use jrs_protocol::token::Token;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

/// What a coordinator needs to know.
#[derive(Debug)]
pub struct Options {
    /// The run, opened for writing and started.
    pub store: RunStore,
    /// Where to listen for workers.
    pub listen: SocketAddr,
    /// How workers and other coordinators reach this one, `host:port`.
    pub advertise: String,
    /// Where to show the status page, metrics and probes; nowhere if absent.
    pub http: Option<SocketAddr>,
    /// The secret that workers must know.
    pub token: Option<Token>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How patient the decisions are.
    pub policy: Policy,
    /// What workers are told, and what progress is reckoned from.
    pub job: Job,
}

/// The work of the run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The resolved configuration.
    pub config_toml: String,
    /// Digest of the prepared data.
    pub dataset_digest: String,
    /// Where workers find it.
    pub data_url: String,
    /// The object store of the run.
    pub store_url: String,
    /// Step to resume from on purpose; normally the newest checkpoint.
    pub resume_step: Option<u64>,
    /// How a step is cut.
    pub cut: MicroBatches,
    /// Updates of the whole run.
    pub updates: u64,
    /// Generator iterations of the whole run.
    pub iterations: u64,
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As decided.
    Ended(Ending),
    /// SIGTERM: the workers go on and wait for the next coordinator.
    Terminated,
}

/// Coordinates until the end.
///
/// # Errors
/// If another coordinator leads the run ([`Error::Superseded`]), an address cannot be listened on, a certificate cannot be
/// used, or the store fails at the start.
pub fn run(options: Options) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("coordinator")
        .enable_all()
        .build()
        .map_err(|e| Error::input(format!("no runtime can be started: {e}"), "Raise the limit of threads"))?;
    let outcome = runtime.block_on(serve(options));
    // Streams of workers that do not read must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

async fn serve(options: Options) -> Result<Outcome> {
    let Options { store, listen, advertise, http, token, tls, policy, job } = options;
    let listener = bind(listen).await?;
    let local = listener.local_addr().unwrap_or(listen);
    let http_listener = match http {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let advertise = leadership::with_port(&advertise, local.port());
    let me = leadership::Identity::new(advertise);
    let contact = leadership::Contact { token: token.clone(), tls: tls.clone() };
    let run = store.run().to_owned();
    let (lead, first) = leadership::take(store, me.clone(), contact).await?;

    let clock = shell::Clock::start();
    let state = State::new(policy, job.cut, first.claimed, first.predecessor, clock.now());
    let (inputs, received) = tokio::sync::mpsc::channel(4096);
    let metrics = Arc::new(metrics::Metrics::new(&run));
    let mut server = jrs_protocol::server::builder();
    if let Some(tls) = tls.server()? {
        server = server.tls_config(tls).map_err(|e| Error::tls(&e))?;
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    health.set_service_status("jrs.cluster.v1.Coordinator", tonic_health::ServingStatus::Serving).await;
    let service = service::Service::new(&run, &me, first.claimed, inputs.clone(), Arc::clone(&metrics));
    let workers = server
        .add_service(health_service)
        .add_service(jrs_protocol::server::service(service, token))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let (publish, shown) = tokio::sync::watch::channel(Arc::new(status::Status::starting(&run, &me, &job)));
    let shell = shell::Shell::new(shell::Setup {
        run,
        me,
        job,
        state,
        clock,
        lead,
        publish,
        metrics: Arc::clone(&metrics),
    });
    tracing::info!(address = %local, http = ?http_listener.as_ref().and_then(|l| l.local_addr().ok()), "listening");
    let pages = async {
        match http_listener {
            Some(listener) => http::serve(listener, shown, metrics).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        outcome = shell.run(received, inputs) => Ok(outcome),
        served = workers => Err(Error::server(served.err().map_or_else(|| "it ended".into(), |e| e.to_string()))),
        served = pages => Err(Error::server(served.err().map_or_else(|| "it ended".into(), |e| e.to_string()))),
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}
