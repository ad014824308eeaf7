//! How the decisions hold up in a large cluster: imagined workers, failures at a published rate, real decisions.
//!
//! ```text
//! cargo run -p jrs-coordinator --example simulate -- --workers 1000 --hours 24 --mttf-hours 1.8
//! ```
//!
//! Prints one JSON line: generations, recoveries, goodput, and what the decisions cost in time and memory.

use std::time::{Duration, Instant};

use jrs_coordinator::decision::{Arrival, Event, Policy, Standing, State};
use jrs_coordinator::plan::MicroBatches;
use jrs_coordinator::simulation::{Fault, Pace, World};

/// Share of the failures in which a worker stands still instead of dying: the slower one to notice.
const FROZEN: f64 = 0.2;

fn main() {
    let workers = argument("--workers", 1000.0) as usize;
    let hours = argument("--hours", 24.0);
    let mttf = argument("--mttf-hours", 1.8);
    let step = Duration::from_secs_f64(argument("--step-seconds", 5.0));
    let cut = MicroBatches::new(2 * workers as u64, workers).expect("two samples a worker");
    let (bytes, empty) = state_bytes(workers, cut);

    let pace =
        Pace { step, start: Duration::from_secs(60), replace: Duration::from_secs(30), ..Pace::default() };
    let mut world = World::new(Policy::new(workers), cut, pace, workers, 1);
    world.pass(Duration::from_secs(120));
    assert!(world.is_whole(), "the cluster did not start");
    let (began, start) = (Instant::now(), world.report().clone());
    let mut failures = 0;
    let mut left = hours * 3600.0;
    loop {
        // Exponential gaps: failures that know nothing of each other.
        let gap = -(1.0 - world.draw(1.0)).ln() * mttf * 3600.0;
        if gap > left {
            break;
        }
        left -= gap;
        world.pass(Duration::from_secs_f64(gap));
        let which = world.draw(workers as f64) as usize;
        let frozen = world.draw(1.0) < FROZEN;
        world.fault(if frozen { Fault::Freeze(which, Duration::from_secs(600)) } else { Fault::Kill(which) });
        failures += 1;
    }
    world.pass(Duration::from_secs_f64(left));
    let report = world.report();
    assert_eq!(world.violations(), &[] as &[String]);
    let mut recoveries: Vec<f64> = report.recoveries.iter().map(Duration::as_secs_f64).collect();
    recoveries.sort_by(f64::total_cmp);
    let seconds = report.elapsed.as_secs_f64() - start.elapsed.as_secs_f64();
    let steps = report.steps - start.steps;
    let result = serde_json::json!({
        "workers": workers,
        "imagined_hours": hours,
        "mttf_hours": mttf,
        "step_seconds": step.as_secs_f64(),
        "failures": failures,
        "generations": report.generations,
        "steps": steps,
        "lost_steps": report.lost_steps,
        "goodput": (steps - report.lost_steps) as f64 * step.as_secs_f64() / seconds,
        "recovery_seconds": { "median": percentile(&recoveries, 0.5), "max": percentile(&recoveries, 1.0) },
        "decisions": report.decisions,
        "decisions_per_second": report.decisions as f64 / report.deciding.as_secs_f64(),
        "share_of_a_core": report.deciding.as_secs_f64() / report.elapsed.as_secs_f64(),
        "slowest_decision_ms": 1e3 * report.slowest.as_secs_f64(),
        "messages_per_worker_and_second": report.messages as f64 / report.elapsed.as_secs_f64() / workers as f64,
        "state_bytes": bytes.saturating_sub(empty),
        "wall_seconds": began.elapsed().as_secs_f64(),
    });
    println!("{result}");
}

/// Resident memory with and without the state of `workers` attached workers.
fn state_bytes(workers: usize, cut: MicroBatches) -> (u64, u64) {
    let empty = resident();
    let mut state = State::new(Policy::new(workers), cut, 1, None, Duration::ZERO);
    for number in 0..workers as u64 {
        let arrival = Arrival {
            worker: uuid::Uuid::from_u128(u128::from(number) + 1),
            connection: number,
            address: format!("jrs-worker-{number}.jrs.default.svc:7100"),
            standing: Standing::Idle,
            generation: 0,
            updates: None,
        };
        state = state.step(Event::Attached(arrival), Duration::ZERO).0;
    }
    let number = state.claimed() + 1;
    state = state.step(Event::Claimed { number }, Duration::ZERO).0;
    assert_eq!(state.ranks().len(), workers);
    let full = resident();
    drop(state);
    (full, empty)
}

/// Resident memory of this process in bytes, 0 where the system does not tell.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied()
}

fn argument(name: &str, default: f64) -> f64 {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments
        .next()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text} is no number")))
}
