//! Between the messages on the wire and the events and actions of the decisions.

use jrs_coordinator::decision::{Arrival, Event, Member, Phase, Standing, WorkerId};
use jrs_protocol::message::{self, FromWorker, Hello, from_worker::Body};
use std::time::Duration;

/// The arrival that a checked hello announces.
pub(crate) fn arrival(worker: WorkerId, hello: &Hello, generation: u64, connection: u64) -> Arrival {
    let standing = match hello.standing() {
        message::Standing::Waiting => Standing::Idle,
        message::Standing::Stepping => Standing::Stepping,
        message::Standing::Completed => Standing::Completed,
        message::Standing::Joining | message::Standing::Unspecified => Standing::Joining,
    };
    Arrival {
        worker,
        connection,
        address: hello.address.clone(),
        standing,
        generation,
        updates: hello.updates,
    }
}

/// What a checked message means for the decisions; `None` if it only matters for the record.
pub(crate) fn event(worker: WorkerId, message: &FromWorker) -> Option<Event> {
    let (generation, updates) = (message.generation, message.step);
    Some(match message.body.as_ref()? {
        Body::Ready(_) => Event::Ready { worker },
        Body::Heartbeat(heartbeat) => Event::Heartbeat {
            worker,
            generation,
            updates,
            phase: phase(heartbeat.phase()),
            in_phase: seconds(heartbeat.phase_seconds),
            compute: seconds(heartbeat.compute_seconds),
        },
        Body::Committed(committed) => {
            Event::Committed { worker, generation, updates, took: seconds(committed.seconds) }
        }
        Body::Stopped(stopped) => Event::Stopped { worker, generation, updates, leaving: stopped.leaving },
        Body::Failed(failed) => {
            let suspects = failed.suspects.iter().filter_map(|text| WorkerId::try_parse(text).ok()).collect();
            let reason = format!("in {}: {}", phase_name(failed.phase()), failed.reason);
            Event::Failed { worker, generation, updates, suspects, reason }
        }
        Body::Leaving(_) => Event::Leaving { worker },
        Body::Completed(completed) => {
            Event::Completed { worker, generation, outcome: completed.outcome.clone() }
        }
        Body::Hello(_) | Body::Saved(_) | Body::Validated(_) => return None,
    })
}

/// A generation for the wire. Its key is made once for all its members.
pub(crate) fn generation(number: u64, members: &[Member], key: &[u8], reason: &str) -> message::Generation {
    let member = |member: &Member| message::Member {
        worker: member.worker.to_string(),
        address: member.address.clone(),
        first_micro_batch: member.micro_batches.start as u32,
        end_micro_batch: member.micro_batches.end as u32,
    };
    message::Generation {
        number,
        members: members.iter().map(member).collect(),
        key: key.to_vec(),
        reason: reason.to_owned(),
    }
}

/// The name of a phase for people.
pub(crate) fn phase_name(phase: message::Phase) -> &'static str {
    match phase {
        message::Phase::Unspecified => "unknown",
        message::Phase::Idle => "idle",
        message::Phase::Connect => "connect",
        message::Phase::Sync => "sync",
        message::Phase::Data => "data",
        message::Phase::Forward => "forward",
        message::Phase::Reduce => "reduce",
        message::Phase::Apply => "apply",
        message::Phase::Commit => "commit",
        message::Phase::Save => "save",
        message::Phase::Validate => "validate",
    }
}

fn phase(phase: message::Phase) -> Phase {
    match phase {
        message::Phase::Unspecified | message::Phase::Idle => Phase::Idle,
        message::Phase::Reduce => Phase::Reduce,
        message::Phase::Data | message::Phase::Forward | message::Phase::Apply | message::Phase::Commit => {
            Phase::Work
        }
        message::Phase::Connect | message::Phase::Sync | message::Phase::Save | message::Phase::Validate => {
            Phase::Long
        }
    }
}

/// A duration that a peer claims; what is beyond reason counts as the longest.
fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.min(1e9)).unwrap_or_default()
}
