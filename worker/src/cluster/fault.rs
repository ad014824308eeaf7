//! Failures on purpose, for tests: `JRS_FAULT="kill@rank=1,step=7,phase=reduce"`.
//!
//! Several are separated by semicolons. What happens: `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself), `exit` (ends with
//! status 1), `cut` (the collective's connections are reset) or `delay=MS`. When: at the first moment at which all of `rank`, `step` (updates done), `phase` (`data`, `forward`,
//! `reduce`, `apply`, `validate`, `commit`, `save`) and `kind` (`critic` or `generator`) that are given hold; each happens once.

use crate::collective::tcp::Abort;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The environment variable that `jrs worker` reads.
pub const FAULT_VARIABLE: &str = "JRS_FAULT";

/// One failure and its moment.
#[derive(Debug)]
pub struct Fault {
    action: Action,
    conditions: Vec<(Key, String)>,
    done: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Stop,
    Exit,
    Cut,
    Delay(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Rank,
    Step,
    Phase,
    Kind,
}

/// Where a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub rank: usize,
    pub step: u64,
    pub phase: &'static str,
    pub kind: &'static str,
}

impl Fault {
    /// Reads the variable's text; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        text.split(';').map(str::trim).filter(|fault| !fault.is_empty()).map(Self::parse_one).collect()
    }

    fn parse_one(text: &str) -> Result<Self, String> {
        let (action, conditions) = text.split_once('@').ok_or_else(|| format!("{text:?} has no @"))?;
        let action = match action {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            "exit" => Action::Exit,
            "cut" => Action::Cut,
            _ => match action.strip_prefix("delay=").and_then(|ms| ms.parse().ok()) {
                Some(ms) => Action::Delay(Duration::from_millis(ms)),
                None => return Err(format!("{action:?} is none of kill, stop, exit, cut, delay=MS")),
            },
        };
        let condition = |text: &str| {
            let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no ="))?;
            let key = match key {
                "rank" => Key::Rank,
                "step" => Key::Step,
                "phase" => Key::Phase,
                "kind" => Key::Kind,
                _ => return Err(format!("{key:?} is none of rank, step, phase, kind")),
            };
            Ok((key, value.to_owned()))
        };
        let conditions = conditions.split(',').map(condition).collect::<Result<_, _>>()?;
        Ok(Self { action, conditions, done: AtomicBool::new(false) })
    }

    fn due(&self, moment: Moment) -> bool {
        self.conditions.iter().all(|(key, value)| match key {
            Key::Rank => *value == moment.rank.to_string(),
            Key::Step => *value == moment.step.to_string(),
            Key::Phase => value == moment.phase,
            Key::Kind => value == moment.kind,
        })
    }

    /// Happens now, if it is due and has not happened.
    pub(super) fn strike(&self, moment: Moment, collective: &Abort) {
        if !self.due(moment) || self.done.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(action = ?self.action, ?moment, "fault injected");
        match self.action {
            Action::Kill => raise(signal_hook::consts::SIGKILL),
            Action::Stop => raise(signal_hook::consts::SIGSTOP),
            Action::Exit => std::process::exit(1),
            Action::Cut => collective.pull(),
            Action::Delay(time) => std::thread::sleep(time),
        }
    }
}

fn raise(signal: i32) {
    signal_hook::low_level::raise(signal).expect("a process may send itself any signal");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_due_when_everything_given_holds() {
        let faults = Fault::parse("kill@rank=1,step=7,phase=reduce; delay=20@kind=critic").unwrap();
        let moment = Moment { rank: 1, step: 7, phase: "reduce", kind: "generator" };
        assert!(faults[0].due(moment) && !faults[1].due(moment));
        for other in
            [Moment { rank: 0, ..moment }, Moment { step: 8, ..moment }, Moment { phase: "data", ..moment }]
        {
            assert!(!faults[0].due(other), "{other:?}");
        }
        faults[1].strike(Moment { kind: "critic", ..moment }, &Abort::default());
        assert!(faults[1].done.load(Ordering::Relaxed));
        assert!(Fault::parse("").unwrap().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, problem) in [
            ("kill", "no @"),
            ("explode@rank=1", "explode"),
            ("delay=x@rank=1", "delay=x"),
            ("kill@rank", "no ="),
            ("kill@when=1", "when"),
        ] {
            let error = Fault::parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
