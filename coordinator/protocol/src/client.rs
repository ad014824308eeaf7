//! A worker's end of the stream, for plain threads: it connects, says hello, and comes back when the coordinator was away.

use crate::error::{Error, Result};
use crate::message::coordinator_client::CoordinatorClient;
use crate::message::{
    FromCoordinator, FromWorker, LeaderReply, LeaderRequest, Refused, from_coordinator, from_worker::Body,
};
use crate::tls::TlsFiles;
use crate::token::Token;
use crate::{FROM_COORDINATOR_LIMIT, FROM_WORKER_LIMIT, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT};
use std::collections::VecDeque;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Waits between attempts to connect: the first, doubled up to the last.
const BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Messages kept while the coordinator is away; then the oldest go.
const KEPT: usize = 1000;

/// Exit code for a configuration that cannot work, as `sysexits.h` has it.
const BAD_CONFIG: u32 = 78;

/// Where the coordinator is, and how to be let in.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// `http://host:port`, or `https://` with TLS. Without a scheme, TLS decides.
    pub url: String,
    /// The join token, if the coordinator wants one.
    pub token: Option<Token>,
    /// Certificates, if the coordinator uses TLS.
    pub tls: TlsFiles,
}

/// What happens on the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The stream stands and the hello is on its way.
    Connected,
    /// The coordinator is away, or could not be reached once more; the client keeps trying.
    Disconnected {
        /// Why, in words.
        reason: String,
    },
    /// The coordinator says something. After a refusal nothing follows: the client has ended.
    Message(FromCoordinator),
}

/// Keeps one worker attached, on a thread of its own. Dropping it sends what is queued, for a moment, and ends the stream.
#[derive(Debug)]
pub struct Client {
    outbox: Arc<Outbox>,
    events: mpsc::Receiver<Event>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    /// Begins to connect. `hello` is asked anew at every attempt, because it says where the worker stands at that moment.
    ///
    /// # Errors
    /// If the options cannot work: a bad URL, or files that cannot be read.
    pub fn start(options: &ClientOptions, hello: impl Fn() -> FromWorker + Send + 'static) -> Result<Self> {
        let endpoint = endpoint(options)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let outbox = Arc::new(Outbox::default());
        let (sender, events) = mpsc::channel();
        let link =
            Link { endpoint, token: options.token.clone(), outbox: Arc::clone(&outbox), events: sender };
        let thread = std::thread::Builder::new()
            .name("coordinator".to_owned())
            .spawn(move || runtime.block_on(link.keep(hello)))
            .map_err(no_thread)?;
        Ok(Self { outbox, events, thread: Some(thread) })
    }

    /// Sends without waiting. While the coordinator is away heartbeats are dropped and the newest thousand others kept.
    pub fn send(&self, message: FromWorker) {
        self.outbox.push(message);
    }

    /// The next event, or `None` if there is none within `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                // The client has ended: keep the caller's rhythm.
                std::thread::sleep(timeout);
                None
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.outbox.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who leads `run` at the other end, for a second coordinator. `None` if nobody answers in time.
///
/// # Errors
/// If the options cannot work.
pub async fn leader(options: &ClientOptions, run: &str, within: Duration) -> Result<Option<LeaderReply>> {
    let endpoint = endpoint(options)?;
    let ask = async {
        let mut request = Request::new(LeaderRequest { run: run.to_owned() });
        if let Some(token) = &options.token {
            token.attach(request.metadata_mut());
        }
        let reply = client(endpoint.connect().await.ok()?).leader(request).await;
        reply.ok().map(tonic::Response::into_inner)
    };
    Ok(tokio::time::timeout(within, ask).await.unwrap_or(None))
}

/// What is to be sent, in order.
#[derive(Debug, Default)]
struct Outbox {
    state: Mutex<OutboxState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    queue: VecDeque<FromWorker>,
    connected: bool,
    closed: bool,
}

impl Outbox {
    fn push(&self, message: FromWorker) {
        let mut state = self.lock();
        if !state.connected && matches!(message.body, Some(Body::Heartbeat(_))) {
            return;
        }
        if state.queue.len() == KEPT {
            state.queue.pop_front();
        }
        state.queue.push_back(message);
        drop(state);
        self.changed.notify_one();
    }

    fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        state.connected = connected;
        if !connected {
            state.queue.retain(|message| !matches!(message.body, Some(Body::Heartbeat(_))));
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn closed(&self) -> bool {
        self.lock().closed
    }

    /// The next message; `None` once the client is dropped and everything is sent.
    async fn next(&self) -> Option<FromWorker> {
        loop {
            {
                let mut state = self.lock();
                if let Some(message) = state.queue.pop_front() {
                    return Some(message);
                }
                if state.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Waits until the client is dropped.
    async fn until_closed(&self) {
        while !self.closed() {
            self.changed.notified().await;
        }
        // The notification may have been meant for `next`.
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a stream ended.
enum End {
    /// Try again; whether it had stood, and why it ended.
    Lost { stood: bool, reason: String },
    /// The coordinator does not want this worker, or the worker is done.
    ForGood,
}

struct Link {
    endpoint: Endpoint,
    token: Option<Token>,
    outbox: Arc<Outbox>,
    events: mpsc::Sender<Event>,
}

impl Link {
    async fn keep(self, hello: impl Fn() -> FromWorker) {
        let mut wait = BACKOFF[0];
        while !self.outbox.closed() {
            let end = self.attach_once(&hello).await;
            self.outbox.set_connected(false);
            match end {
                End::ForGood => return,
                End::Lost { stood, reason } => {
                    if stood {
                        wait = BACKOFF[0];
                    }
                    self.tell(Event::Disconnected { reason });
                }
            }
            let _ = tokio::time::timeout(wait, self.outbox.until_closed()).await;
            wait = BACKOFF[1].min(wait * 2);
        }
    }

    async fn attach_once(&self, hello: &impl Fn() -> FromWorker) -> End {
        let lost = |stood: bool, reason: String| End::Lost { stood, reason };
        let channel = match self.endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return lost(false, in_words(&error)),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = &self.token {
            token.attach(request.metadata_mut());
        }
        let _ = sender.send(hello()).await;
        let mut incoming = match client(channel).attach(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return self.refused_or_lost(false, status),
        };
        self.outbox.set_connected(true);
        self.tell(Event::Connected);
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => {
                        let last = matches!(message.body, Some(from_coordinator::Body::Refused(_)));
                        self.tell(Event::Message(message));
                        if last {
                            return End::ForGood;
                        }
                    }
                    Ok(None) => return lost(true, "the coordinator closed the stream".to_owned()),
                    Err(status) => return self.refused_or_lost(true, status),
                },
                message = self.outbox.next() => match message {
                    Some(message) => if sender.send(message).await.is_err() {
                        return lost(true, "the stream is closed".to_owned());
                    },
                    None => {
                        drop(sender);
                        // Lets the last messages leave; the coordinator closes its side when it has read them.
                        let end = async { while let Ok(Some(_)) = incoming.message().await {} };
                        let _ = tokio::time::timeout(Duration::from_secs(1), end).await;
                        return End::ForGood;
                    }
                },
            }
        }
    }

    /// A wrong token does not become right by waiting.
    fn refused_or_lost(&self, stood: bool, status: Status) -> End {
        if status.code() != Code::Unauthenticated {
            return End::Lost { stood, reason: status.message().to_owned() };
        }
        let refused = Refused { reason: status.message().to_owned(), exit_code: BAD_CONFIG };
        let body = Some(from_coordinator::Body::Refused(refused));
        self.tell(Event::Message(FromCoordinator { body, ..FromCoordinator::default() }));
        End::ForGood
    }

    /// A worker that dropped its client no longer listens, which is fine.
    fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

fn client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel)
        .max_decoding_message_size(FROM_COORDINATOR_LIMIT)
        .max_encoding_message_size(FROM_WORKER_LIMIT)
}

fn endpoint(options: &ClientOptions) -> Result<Endpoint> {
    let tls = options.tls.client()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = match options.url.split_once("://") {
        Some((given, _)) if given == scheme => options.url.clone(),
        Some(("https", _)) => {
            return Err(bad_url(&options.url, "https needs an authority to trust; give --tls-ca"));
        }
        Some(_) => return Err(bad_url(&options.url, "write host:port, or https://host:port with TLS")),
        None => format!("{scheme}://{}", options.url),
    };
    let endpoint = Endpoint::from_shared(url)
        .map_err(|e| bad_url(&options.url, &format!("{e}; write host:port")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    match tls {
        None => Ok(endpoint),
        Some(tls) => endpoint
            .tls_config(tls)
            .map_err(|e| Error::input(in_words(&e), "Give --tls-ca, --tls-cert and --tls-key PEM files")),
    }
}

fn bad_url(url: &str, why: &str) -> Error {
    Error::input(format!("the coordinator's address {url:?} cannot be used"), why)
}

fn no_thread(source: std::io::Error) -> Error {
    Error::input(
        format!("no thread for talking to the coordinator can be started: {source}"),
        "Raise the limits of processes and open files",
    )
}

/// An error with its causes: tonic's own text is only "transport error".
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        cause = error.source();
    }
    words
}
