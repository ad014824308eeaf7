//! Who leads: generations are claimed in the store, and a newcomer asks the holder of the newest whether it lives.

use crate::error::{Error, Result};
use crate::service::Input;
use jrs_coordinator::decision::{Event, Predecessor, WorkerId};
use jrs_coordinator::{Error as StoreError, RunStore};
use jrs_protocol::client::{ClientOptions, leader};
use jrs_protocol::tls::TlsFiles;
use jrs_protocol::token::Token;
use serde::{Deserialize, Serialize};
use std::sync::mpsc;
use std::time::Duration;

/// How long the holder of the newest generation has to answer before it counts as dead.
const ANSWER: Duration = Duration::from_secs(3);

/// How often a leader looks whether it was superseded.
const LOOK: Duration = Duration::from_secs(3);

/// This process.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) address: String,
    host: String,
}

/// How to talk to another coordinator.
pub(crate) struct Contact {
    pub(crate) token: Option<Token>,
    pub(crate) tls: TlsFiles,
}

/// What a claim says about its holder and its workers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Info {
    coordinator: String,
    address: String,
    host: String,
    process: u32,
    /// The generation whose ranks `members` are; 0 if there is none yet.
    #[serde(default)]
    working: u64,
    #[serde(default)]
    members: Vec<WorkerId>,
}

/// The generation that a coordinator begins with, and who may still step in an earlier one.
pub(crate) struct First {
    pub(crate) claimed: u64,
    pub(crate) predecessor: Option<Predecessor>,
}

impl Identity {
    pub(crate) fn new(address: String) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self { id: uuid::Uuid::new_v4().to_string(), address, host }
    }

    fn info(&self, working: u64, members: Vec<WorkerId>) -> serde_json::Value {
        let info = Info {
            coordinator: self.id.clone(),
            address: self.address.clone(),
            host: self.host.clone(),
            process: std::process::id(),
            working,
            members,
        };
        serde_json::to_value(info).expect("plain values always serialise")
    }
}

/// `host:port` with the port that was really bound, where 0 was asked for.
pub(crate) fn with_port(advertise: &str, port: u16) -> String {
    match advertise.rsplit_once(':') {
        Some((host, "0")) => format!("{host}:{port}"),
        _ => advertise.to_owned(),
    }
}

/// Takes the lead of the run, unless its holder is alive.
///
/// # Errors
/// [`Error::Superseded`] if another coordinator answers, or wins the race for the generation.
pub(crate) async fn take(store: RunStore, me: Identity, contact: Contact) -> Result<(Lead, First)> {
    let (store, newest) = in_thread(store, RunStore::newest_claim).await;
    let holder: Info =
        newest?.map_or_else(Info::default, |claim| serde_json::from_value(claim.info).unwrap_or_default());
    if !holder.address.is_empty() && holder.address != me.address {
        let options = ClientOptions { url: holder.address.clone(), token: contact.token, tls: contact.tls };
        if let Some(reply) = leader(&options, store.run(), ANSWER).await? {
            let reason = format!(
                "coordinator {} at {} leads this run, in generation {}",
                reply.coordinator, holder.address, reply.generation
            );
            return Err(Error::Superseded { reason });
        }
    }
    let (working, members) = (holder.working, holder.members);
    let info = me.info(working, members.clone());
    let (store, claimed) = in_thread(store, move |store| claim_next(store, &info)).await;
    let claimed = claimed.map_err(|error| match error {
        StoreError::GenerationTaken { .. } => Error::Superseded { reason: error.to_string() },
        other => other.into(),
    })?;
    tracing::info!(generation = claimed, coordinator = me.id, "leading");
    let predecessor = (working > 0).then_some(Predecessor { generation: working, members });
    Ok((Lead { store, me, claimed }, First { claimed, predecessor }))
}

/// The next free number. That another one claims at the same time is a race that one of them loses; a number whose
/// claim cannot be read is skipped.
fn claim_next(store: &RunStore, info: &serde_json::Value) -> jrs_coordinator::Result<u64> {
    let newest = store.latest_generation()?.unwrap_or(0);
    store.claim_generation(newest + 1, info.clone()).map(|claim| claim.generation)
}

/// The claims of a leader, and its regular look at the store.
pub(crate) struct Lead {
    store: RunStore,
    me: Identity,
    claimed: u64,
}

/// Asks the thread of [`Lead::start`] for a generation.
pub(crate) struct Ask {
    pub(crate) number: u64,
    pub(crate) members: Vec<WorkerId>,
}

impl Lead {
    /// Serves claims on a thread of its own, one after the other, until the sender is dropped. Results arrive as events.
    pub(crate) fn start(self, inputs: tokio::sync::mpsc::Sender<Input>) -> Result<mpsc::Sender<Ask>> {
        let (sender, asks) = mpsc::channel();
        std::thread::Builder::new()
            .name("claims".to_owned())
            .spawn(move || self.serve(&asks, &inputs))
            .map_err(|e| {
                Error::input(format!("no thread can be started: {e}"), "Raise the limit of threads")
            })?;
        Ok(sender)
    }

    fn serve(mut self, asks: &mpsc::Receiver<Ask>, inputs: &tokio::sync::mpsc::Sender<Input>) {
        loop {
            let event = match asks.recv_timeout(LOOK) {
                Ok(ask) => Some(self.claim(ask)),
                Err(mpsc::RecvTimeoutError::Timeout) => self.look(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            if let Some(event) = event
                && inputs.blocking_send(Input::Decided(event)).is_err()
            {
                return;
            }
        }
    }

    /// A number of ours whose success was not heard of is skipped: the next one is asked for.
    fn claim(&mut self, ask: Ask) -> Event {
        let info = self.me.info(ask.number, ask.members);
        match self.store.claim_generation(ask.number, info) {
            Ok(claim) => {
                self.claimed = claim.generation;
                Event::Claimed { number: claim.generation }
            }
            Err(StoreError::GenerationTaken { newest, .. }) if self.is_mine(newest) => {
                Event::ClaimFailed { reason: format!("generation {newest} is ours already") }
            }
            Err(error @ StoreError::GenerationTaken { .. }) => Event::ClaimLost { reason: error.to_string() },
            Err(error) => Event::ClaimFailed { reason: error.to_string() },
        }
    }

    /// Whether someone else claimed a generation since.
    fn look(&self) -> Option<Event> {
        let newest = match self.store.latest_generation() {
            Ok(newest) => newest.unwrap_or(0),
            Err(error) => {
                tracing::warn!(%error, "the store cannot be asked who leads");
                return None;
            }
        };
        (newest > self.claimed && !self.is_mine(newest))
            .then(|| Event::ClaimLost { reason: format!("another coordinator claimed generation {newest}") })
    }

    fn is_mine(&self, generation: u64) -> bool {
        let Ok(Some(claim)) = self.store.newest_claim() else { return false };
        let info: Info = serde_json::from_value(claim.info).unwrap_or_default();
        claim.generation == generation && info.coordinator == self.me.id
    }
}

/// Runs blocking `work` on the store beside the asynchronous tasks.
async fn in_thread<T: Send + 'static>(
    store: RunStore,
    work: impl FnOnce(&RunStore) -> T + Send + 'static,
) -> (RunStore, T) {
    let done = tokio::task::spawn_blocking(move || {
        let result = work(&store);
        (store, result)
    });
    done.await.expect("the store's work does not panic")
}
