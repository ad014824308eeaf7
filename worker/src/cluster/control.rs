//! The thread that talks to the coordinator, so that heartbeats go out while the other one computes.

use super::status::Shared;
use jrs_protocol::client::{Client, Event};
use jrs_protocol::message::from_coordinator::Body;
use jrs_protocol::message::{FromWorker, Generation, Leaving, Standing, Welcome, from_worker};
use jrs_telemetry::interrupt::Interrupt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, atomic::AtomicBool};
use std::time::{Duration, Instant};

/// How often the thread looks at everything it serves.
const TICK: Duration = Duration::from_millis(10);
/// Between heartbeats until the coordinator says otherwise.
const HEARTBEAT_MS: u64 = 1000;

/// What the training thread has to act on.
#[derive(Debug)]
pub(super) enum Order {
    /// The run's settings; once for every time the worker attached.
    Welcome(Box<Welcome>, String),
    /// A generation with this worker in it.
    Join(Generation),
    /// This worker was taken for dead; it begins anew.
    Evicted(String),
    /// It may leave.
    Drained,
    /// All is done.
    Finished,
    /// It is not wanted.
    Refused(String, u8),
}

/// The training thread's end.
pub(super) struct Control {
    orders: Receiver<Order>,
    outgoing: Sender<FromWorker>,
    attached: Arc<AtomicBool>,
    leaving: Arc<AtomicBool>,
    heartbeat_ms: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Control {
    /// Starts the thread; `attach` connects to the coordinator, once now and again in a new life.
    ///
    /// # Errors
    /// If the options of the coordinator cannot work, or there is no thread left.
    pub fn start(
        attach: impl Fn() -> jrs_protocol::Result<Client> + Send + 'static,
        shared: Shared,
        interrupt: Interrupt,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let client = attach()?;
        let (order, orders) = channel();
        let (outgoing, messages) = channel();
        let attached = Arc::new(AtomicBool::new(false));
        let leaving = Arc::new(AtomicBool::new(false));
        let heartbeat_ms = Arc::new(AtomicU64::new(HEARTBEAT_MS));
        let mut server = Server {
            client,
            attach: Box::new(attach),
            shared,
            interrupt,
            order,
            attached: Arc::clone(&attached),
            leaving: Arc::clone(&leaving),
            heartbeat_ms: Arc::clone(&heartbeat_ms),
        };
        let thread =
            std::thread::Builder::new().name("control".into()).spawn(move || server.serve(&messages))?;
        Ok(Self { orders, outgoing, attached, leaving, heartbeat_ms, thread: Some(thread) })
    }

    /// The next order, if one comes within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<Order> {
        self.orders.recv_timeout(timeout).ok()
    }

    /// Sends without waiting.
    pub fn send(&self, message: FromWorker) {
        let _ = self.outgoing.send(message); // the thread ends only when this end does
    }

    /// Whether the coordinator is there.
    pub fn attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Whether this worker was asked to leave.
    pub fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Sets the time between heartbeats.
    pub fn heartbeat_every(&self, ms: u64) {
        self.heartbeat_ms.store(ms.max(10), Ordering::Relaxed);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Closing the channel is what the thread waits for; it then sends what is left.
        self.outgoing = channel().0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    client: Client,
    attach: Box<dyn Fn() -> jrs_protocol::Result<Client> + Send>,
    shared: Shared,
    interrupt: Interrupt,
    order: Sender<Order>,
    attached: Arc<AtomicBool>,
    leaving: Arc<AtomicBool>,
    heartbeat_ms: Arc<AtomicU64>,
}

impl Server {
    fn serve(&mut self, messages: &Receiver<FromWorker>) {
        let mut beat = Instant::now();
        loop {
            loop {
                match messages.try_recv() {
                    Ok(message) => self.client.send(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if let Some(event) = self.client.recv_timeout(TICK) {
                self.react(event);
            }
            if self.interrupt.requested() && !self.leaving.load(Ordering::Relaxed) {
                self.leave("asked to end by a signal");
            }
            if self.leaving.load(Ordering::Relaxed) && !self.attached.load(Ordering::Relaxed) {
                // Nobody is there to end the generation for the leaver. The others wait for the next coordinator.
                self.shared.lock().end_generation();
            }
            if beat.elapsed() >= Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed)) {
                beat = Instant::now();
                self.client.send(self.shared.heartbeat());
            }
        }
    }

    fn react(&mut self, event: Event) {
        let message = match event {
            Event::Connected => {
                self.attached.store(true, Ordering::Relaxed);
                tracing::info!("attached to the coordinator");
                if self.leaving.load(Ordering::Relaxed) {
                    self.say_leaving("asked to end");
                }
                return;
            }
            Event::Disconnected { reason } => {
                if self.attached.swap(false, Ordering::Relaxed) {
                    tracing::warn!(reason, "the coordinator is away; going on without it");
                } else {
                    tracing::debug!(reason, "the coordinator cannot be reached");
                }
                return;
            }
            Event::Message(message) => message,
        };
        match message.body {
            Some(Body::Welcome(welcome)) => {
                self.tell(Order::Welcome(Box::new(welcome), message.run));
            }
            Some(Body::Formed(generation)) => {
                // Whatever this worker still does belongs to an older generation.
                let mut status = self.shared.lock();
                if generation.number > status.generation {
                    status.abort_up_to(generation.number - 1);
                    drop(status);
                    self.tell(Order::Join(generation));
                }
            }
            Some(Body::Reform(reform)) => {
                let mut status = self.shared.lock();
                if message.generation < status.generation {
                    return;
                }
                tracing::info!(reason = reform.reason, urgent = reform.urgent, "the membership changes");
                status.ending = status.ending.max(message.generation);
                if reform.urgent {
                    status.abort_up_to(message.generation);
                }
            }
            Some(Body::Drain(drain)) => self.leave(&drain.reason),
            Some(Body::Drained(_)) => self.tell(Order::Drained),
            Some(Body::Evicted(evicted)) => {
                let mut status = self.shared.lock();
                // The next hello is that of another worker, on a stream of its own.
                status.worker = uuid::Uuid::new_v4();
                let generation = status.generation;
                status.abort_up_to(generation);
                status.generation = 0;
                status.state = None;
                status.standing = Standing::Waiting;
                drop(status);
                self.tell(Order::Evicted(evicted.reason));
                match (self.attach)() {
                    Ok(client) => self.client = client,
                    Err(error) => tracing::error!(%error, "this worker cannot attach again"),
                }
            }
            Some(Body::Refused(refused)) => {
                self.shared.lock().end_generation();
                self.tell(Order::Refused(refused.reason, u8::try_from(refused.exit_code).unwrap_or(1)));
            }
            Some(Body::Finished(_)) => self.tell(Order::Finished),
            None => tracing::warn!("the coordinator sent something that this version does not know"),
        }
    }

    fn leave(&self, reason: &str) {
        if !self.leaving.swap(true, Ordering::Relaxed) {
            tracing::info!(reason, "leaving behind the step under way");
            self.say_leaving(reason);
        }
    }

    fn say_leaving(&self, reason: &str) {
        let leaving = Leaving { reason: reason.to_owned() };
        self.client.send(self.shared.message(from_worker::Body::Leaving(leaving)));
    }

    fn tell(&self, order: Order) {
        let _ = self.order.send(order); // without a reader, the process is ending
    }
}
