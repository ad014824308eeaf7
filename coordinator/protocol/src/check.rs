//! Refusing messages that no honest peer sends. What passes has every text short, every number finite, every id a UUID.

use crate::message::{FromWorker, Heartbeat, Hello, from_worker::Body};
use uuid::Uuid;

/// Longest free text, in bytes.
const TEXT: usize = 4096;

/// Longest address or name, in bytes.
const NAME: usize = 300;

/// Most values of one committed step.
const VALUES: usize = 64;

/// Most suspects of one failure.
const SUSPECTS: usize = 1024;

/// Checks a worker's message; the error says what is wrong with it.
///
/// # Errors
/// A clause for the log and the refusal.
pub fn from_worker(message: &FromWorker) -> Result<&Body, String> {
    short("run", &message.run, NAME)?;
    let body = message.body.as_ref().ok_or("it has no content that this version understands")?;
    match body {
        Body::Hello(hello) => check_hello(hello)?,
        Body::Heartbeat(heartbeat) => check_heartbeat(heartbeat)?,
        Body::Committed(committed) => {
            positive("seconds", committed.seconds)?;
            positive("data_wait_seconds", committed.data_wait_seconds)?;
            at_most("values", committed.values.len(), VALUES)?;
            committed.values.iter().try_for_each(|value| short("the name of a value", &value.name, NAME))?;
        }
        Body::Saved(saved) => {
            positive("seconds", saved.seconds)?;
            positive("stall_seconds", saved.stall_seconds)?;
        }
        Body::Stopped(stopped) => digest(&stopped.state_digest)?,
        Body::Failed(failed) => {
            at_most("suspects", failed.suspects.len(), SUSPECTS)?;
            failed.suspects.iter().try_for_each(|suspect| worker_id(suspect).map(drop))?;
            short("reason", &failed.reason, TEXT)?;
        }
        Body::Leaving(leaving) => short("reason", &leaving.reason, TEXT)?,
        Body::Completed(completed) => {
            short("outcome", &completed.outcome, NAME)?;
            short("model_sha256", &completed.model_sha256, 64)?;
        }
        Body::Ready(_) | Body::Validated(_) => {}
    }
    Ok(body)
}

/// The id of a worker.
///
/// # Errors
/// A clause, if it is no UUID.
pub fn worker_id(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| format!("the worker {:?} is no UUID", clip(text)))
}

fn check_hello(hello: &Hello) -> Result<(), String> {
    worker_id(&hello.worker)?;
    short("address", &hello.address, NAME)?;
    let port = hello.address.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(1..))) {
        return Err(format!("the address {:?} is not host:port", clip(&hello.address)));
    }
    short("version", &hello.version, NAME)?;
    short("host", &hello.host, NAME)?;
    digest(&hello.state_digest)
}

fn check_heartbeat(heartbeat: &Heartbeat) -> Result<(), String> {
    positive("phase_seconds", heartbeat.phase_seconds)?;
    positive("samples_per_second", heartbeat.samples_per_second)?;
    positive("compute_seconds", heartbeat.compute_seconds)?;
    short("collective", &heartbeat.collective, NAME)?;
    positive("data_wait_share", heartbeat.data_wait_share)
}

fn short(name: &str, text: &str, limit: usize) -> Result<(), String> {
    at_most(name, text.len(), limit)
}

fn at_most(name: &str, length: usize, limit: usize) -> Result<(), String> {
    if length <= limit {
        Ok(())
    } else {
        Err(format!("{name} has a length of {length}, at most {limit} is allowed"))
    }
}

fn positive(name: &str, value: f64) -> Result<(), String> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(format!("{name} is {value}")) }
}

fn digest(bytes: &[u8]) -> Result<(), String> {
    if matches!(bytes.len(), 0 | 32) {
        Ok(())
    } else {
        Err(format!("a digest has {} bytes, not 32", bytes.len()))
    }
}

fn clip(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Committed, Completed, Failed, Stopped, Value};

    fn hello() -> Hello {
        Hello { worker: Uuid::new_v4().to_string(), address: "10.0.0.7:7100".into(), ..Hello::default() }
    }

    fn refusal(body: Body) -> String {
        let message = FromWorker { run: "r".into(), body: Some(body), ..FromWorker::default() };
        from_worker(&message).unwrap_err()
    }

    #[test]
    fn an_honest_hello_passes() {
        let body = Some(Body::Hello(hello()));
        assert!(from_worker(&FromWorker { body, ..FromWorker::default() }).is_ok());
    }

    #[test]
    fn what_no_honest_worker_sends_is_named() {
        let long = "x".repeat(5000);
        let cases = [
            (refusal(Body::Hello(Hello { worker: "me".into(), ..hello() })), "UUID"),
            (refusal(Body::Hello(Hello { address: "nowhere".into(), ..hello() })), "host:port"),
            (refusal(Body::Hello(Hello { address: "h:0".into(), ..hello() })), "host:port"),
            (refusal(Body::Hello(Hello { host: long.clone(), ..hello() })), "5000"),
            (refusal(Body::Hello(Hello { state_digest: vec![1; 5], ..hello() })), "digest"),
            (refusal(Body::Stopped(Stopped { state_digest: vec![1; 33], leaving: false })), "digest"),
            (refusal(Body::Heartbeat(Heartbeat { phase_seconds: f64::NAN, ..Heartbeat::default() })), "NaN"),
            (refusal(Body::Heartbeat(Heartbeat { data_wait_share: -1.0, ..Heartbeat::default() })), "-1"),
            (
                refusal(Body::Heartbeat(Heartbeat { collective: "x".repeat(301), ..Heartbeat::default() })),
                "301",
            ),
            (
                refusal(Body::Committed(Committed {
                    values: vec![Value::default(); 65],
                    ..Committed::default()
                })),
                "65",
            ),
            (refusal(Body::Failed(Failed { suspects: vec!["x".into()], ..Failed::default() })), "UUID"),
            (refusal(Body::Completed(Completed { model_sha256: long, ..Completed::default() })), "64"),
        ];
        for (said, word) in cases {
            assert!(said.contains(word), "{said}");
        }
        assert!(from_worker(&FromWorker::default()).is_err());
    }
}
