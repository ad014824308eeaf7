//! gRPC streams become inputs of the shell. What is malformed, of another run or of another version goes no further.

use crate::leadership::Identity;
use crate::metrics::Metrics;
use jrs_coordinator::decision::{Event, WorkerId};
use jrs_protocol::check;
use jrs_protocol::message::{
    FromCoordinator, FromWorker, Hello, LeaderReply, LeaderRequest, Refused, from_coordinator,
    from_worker::Body,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use jrs_protocol::tonic;

/// How long a stream may stand without its hello.
const HELLO: Duration = Duration::from_secs(10);

/// Messages that may wait for one worker. One that does not read is cut off.
const WAITING: usize = 64;

/// Exit code for a configuration that cannot work.
const BAD_CONFIG: u32 = 78;

/// What goes to a worker.
pub(crate) type Outgoing = mpsc::Sender<Result<FromCoordinator, Status>>;

/// What the shell receives.
pub(crate) enum Input {
    /// A worker's stream began.
    Attached { worker: WorkerId, connection: u64, generation: u64, hello: Box<Hello>, outgoing: Outgoing },
    /// A worker said something, already checked.
    Said { worker: WorkerId, connection: u64, message: Box<FromWorker> },
    /// A worker's stream ended.
    Gone { worker: WorkerId, connection: u64 },
    /// Something that concerns the decisions alone.
    Decided(Event),
}

/// The service; clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    run: Arc<str>,
    coordinator: Arc<str>,
    claimed: u64,
    inputs: mpsc::Sender<Input>,
    connections: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Service {
    pub(crate) fn new(
        run: &str,
        me: &Identity,
        claimed: u64,
        inputs: mpsc::Sender<Input>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let connections = Arc::new(AtomicU64::new(0));
        Self { run: run.into(), coordinator: me.id.as_str().into(), claimed, inputs, connections, metrics }
    }

    /// The hello that must come first, checked.
    async fn hello(&self, incoming: &mut Streaming<FromWorker>) -> Result<(WorkerId, u64, Hello), Refusal> {
        let first = tokio::time::timeout(HELLO, incoming.message())
            .await
            .map_err(|_| Refusal::Malformed("no hello came".to_owned()))?;
        let message =
            first.map_err(Refusal::Broken)?.ok_or_else(|| Refusal::Malformed("no hello came".to_owned()))?;
        check::from_worker(&message).map_err(Refusal::Malformed)?;
        if !message.run.is_empty() && *message.run != *self.run {
            let reason = format!("this coordinator leads run {:?}, not {:?}", self.run, message.run);
            return Err(Refusal::Unwanted(reason));
        }
        let Some(Body::Hello(hello)) = message.body else {
            return Err(Refusal::Malformed("a stream begins with a hello".to_owned()));
        };
        let ours = env!("CARGO_PKG_VERSION");
        if hello.version != ours {
            let reason = format!("the coordinator has version {ours}, this worker {:?}", hello.version);
            return Err(Refusal::Unwanted(reason));
        }
        let worker = check::worker_id(&hello.worker).map_err(Refusal::Malformed)?;
        Ok((worker, message.generation, hello))
    }

    async fn forward(
        self,
        worker: WorkerId,
        connection: u64,
        mut incoming: Streaming<FromWorker>,
        outgoing: mpsc::WeakSender<Result<FromCoordinator, Status>>,
    ) {
        loop {
            let message = match incoming.message().await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%worker, %status, "a stream broke");
                    break;
                }
            };
            let wrong = match check::from_worker(&message) {
                Err(wrong) => Some(wrong),
                Ok(Body::Hello(_)) => Some("a second hello".to_owned()),
                Ok(_) if !message.run.is_empty() && *message.run != *self.run => {
                    Some(format!("run {:?}", message.run))
                }
                Ok(_) => None,
            };
            if let Some(wrong) = wrong {
                self.metrics.refused();
                tracing::warn!(%worker, wrong, "a message was refused and its stream closed");
                if let Some(outgoing) = outgoing.upgrade() {
                    let _ = outgoing.try_send(Err(Status::invalid_argument(wrong)));
                }
                break;
            }
            let message = Box::new(message);
            if self.inputs.send(Input::Said { worker, connection, message }).await.is_err() {
                break;
            }
        }
        let _ = self.inputs.send(Input::Gone { worker, connection }).await;
    }
}

#[tonic::async_trait]
impl jrs_protocol::server::Coordinator for Service {
    type AttachStream = ReceiverStream<Result<FromCoordinator, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let (outgoing, receiver) = mpsc::channel(WAITING);
        let service = self.clone();
        // The reply must not wait for the hello: a client may send it only once the stream stands.
        tokio::spawn(async move {
            match service.hello(&mut incoming).await {
                Ok((worker, generation, hello)) => {
                    let connection = service.connections.fetch_add(1, Ordering::Relaxed) + 1;
                    // The shell alone keeps the sender: when it lets go, the stream ends.
                    let weak = outgoing.downgrade();
                    let attached =
                        Input::Attached { worker, connection, generation, hello: Box::new(hello), outgoing };
                    if service.inputs.send(attached).await.is_ok() {
                        service.forward(worker, connection, incoming, weak).await;
                    }
                }
                Err(refusal) => {
                    service.metrics.refused();
                    tracing::warn!(reason = refusal.reason(), "a stream was refused");
                    let _ = outgoing.send(refusal.message(&service.run)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderReply>, Status> {
        if request.get_ref().run != *self.run {
            return Err(Status::not_found("this coordinator leads another run"));
        }
        Ok(Response::new(LeaderReply { coordinator: self.coordinator.to_string(), generation: self.claimed }))
    }
}

/// Why a stream is not accepted.
enum Refusal {
    Broken(Status),
    Malformed(String),
    Unwanted(String),
}

impl Refusal {
    fn reason(&self) -> &str {
        match self {
            Self::Broken(status) => status.message(),
            Self::Malformed(reason) | Self::Unwanted(reason) => reason,
        }
    }

    fn message(self, run: &str) -> Result<FromCoordinator, Status> {
        match self {
            Self::Broken(status) => Err(status),
            Self::Malformed(reason) => Err(Status::invalid_argument(reason)),
            Self::Unwanted(reason) => {
                let body = from_coordinator::Body::Refused(Refused { reason, exit_code: BAD_CONFIG });
                Ok(FromCoordinator { run: run.to_owned(), body: Some(body), ..FromCoordinator::default() })
            }
        }
    }
}
