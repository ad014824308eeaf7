//! What coordinator and workers say to each other.
//!
//! * [`message`] has the messages of `proto/cluster.proto`. One bidirectional stream per worker carries them; each names
//!   the run, the generation and the step.
//! * [`check`] refuses messages that no honest peer sends: before anything else looks at them.
//! * [`client`] keeps a worker attached: it connects, says hello, and comes back when the coordinator was away.
//! * [`server`] is the generated service with the limits that both sides agree on.
//! * [`token`] and [`tls`] decide who may join: a shared secret, and certificates.
//!
//! The protocol never sits inside a training step: workers step on their own, and whatever they report is not awaited.

#![forbid(unsafe_code)]

pub mod check;
pub mod client;
mod error;
pub mod server;
pub mod tls;
pub mod token;

/// The messages, generated from `proto/cluster.proto`, which is where they are explained.
#[allow(missing_docs, clippy::all)]
pub mod message {
    tonic::include_proto!("jrs.cluster.v1");
}

pub use error::{Error, Result};
pub use tonic;

/// Longest message a worker may send, in bytes: a heartbeat has 50, a failure with a thousand suspects 40,000.
pub const FROM_WORKER_LIMIT: usize = 64 << 10;

/// Longest message a coordinator may send, in bytes: a generation of 16,384 members has 1.6 million.
pub const FROM_COORDINATOR_LIMIT: usize = 8 << 20;

/// How often each side asks whether the other is there, when nothing else is said.
pub const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

/// How long the answer may take.
pub const KEEP_ALIVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::message::{FromCoordinator, Generation, Member, from_coordinator::Body};
    use prost::Message;

    #[test]
    fn a_generation_of_16384_members_fits() {
        let member = |rank: u32| Member {
            worker: uuid::Uuid::new_v4().to_string(),
            address: format!("jrs-worker-{rank}.jrs.default.svc:7100"),
            first_micro_batch: rank,
            end_micro_batch: rank + 1,
        };
        let members = (0..16_384).map(member).collect();
        let formed = Generation { number: 1, members, key: vec![0; 32], reason: String::new() };
        let message = FromCoordinator { body: Some(Body::Formed(formed)), ..FromCoordinator::default() };
        let length = message.encoded_len();
        eprintln!("{length} bytes");
        assert!(length < super::FROM_COORDINATOR_LIMIT / 4, "{length}");
    }
}
