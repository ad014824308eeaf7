//! One random failure after the other. The model is that of the undisturbed run, and no sample is used twice.
//!
//! `scripts/chaos` runs this longer: `JRS_CHAOS_STEPS`, `JRS_CHAOS_SEED`.

use crate::cluster::{Cluster, Commit, alone, quick, undisturbed, wait};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Workers that are kept alive.
const WORKERS: usize = 3;
/// Between two failures.
const PAUSE: Duration = Duration::from_secs(2);
/// Frozen for longer than the coordinator waits for a heartbeat.
const FROZEN: Duration = Duration::from_secs(7);

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// xorshift64: which failure comes next.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

#[test]
fn random_failures_change_nothing() {
    let _alone = alone();
    let steps = from_environment("JRS_CHAOS_STEPS", 60);
    let mut dice = Dice(from_environment("JRS_CHAOS_SEED", 1) | 1 << 40);
    let config = quick(steps);
    let expected = undisturbed("undisturbed-chaos", &config);
    let mut cluster = Cluster::new("chaos", &config);
    cluster.coordinate(WORKERS);
    let cut = |dice: &mut Dice| format!("cut@step={},phase=reduce", dice.throw(steps as usize));
    let mut alive: Vec<usize> = (0..WORKERS).map(|_| cluster.work(&cut(&mut dice))).collect();
    cluster.reach(2);

    let mut survived = BTreeMap::<&str, u32>::new();
    let clock = Instant::now();
    while cluster.progress() < steps * 9 / 10 && !cluster.is_over() {
        let victim = dice.throw(alive.len());
        let what = match dice.throw(4) {
            0 | 1 => {
                cluster.signal(alive[victim], "KILL");
                cluster.ended(alive[victim]);
                alive[victim] = cluster.work(&cut(&mut dice));
                "kill -9 of a worker"
            }
            2 => {
                cluster.signal(alive[victim], "STOP");
                std::thread::sleep(FROZEN);
                cluster.signal(alive[victim], "CONT");
                "SIGSTOP of a worker"
            }
            _ => {
                cluster.kill_coordinator();
                cluster.coordinate(1);
                "kill -9 of the coordinator"
            }
        };
        *survived.entry(what).or_default() += 1;
        let before = cluster.progress();
        let deadline = Instant::now() + Duration::from_secs(60);
        wait("a step after the failure", || {
            cluster.progress() > before || cluster.is_over() || Instant::now() > deadline
        });
        assert!(cluster.progress() > before || cluster.is_over(), "no step within a minute after {what}");
        std::thread::sleep(PAUSE);
    }
    let cuts = cluster.faults_struck();
    let model = cluster.finish(&alive);
    assert!(model == expected, "the model differs from the undisturbed run's");

    let commits = cluster.commits();
    ledger(&commits, steps);
    let seconds = clock.elapsed().as_secs_f64();
    let lost = time_lost(&commits);
    eprintln!(
        "survived {survived:?} and {cuts} cut connections in {steps} steps and {seconds:.0} s; {:.0} % of the time was spent on \
         steps that count",
        100.0 * (1.0 - lost / seconds).max(0.0)
    );
    assert!(!survived.is_empty(), "the run was over before anything happened");
}

/// Every step was committed, in one generation only. Within a step the workers themselves refuse a micro-batch that comes
/// twice or not at all, and step s is positions \[sB, (s+1)B) of the order, in which each sample is once per epoch.
fn ledger(commits: &[Commit], steps: u64) {
    let mut generations = BTreeMap::<u64, Vec<u64>>::new();
    for commit in commits {
        let of_step = generations.entry(commit.updates).or_default();
        if !of_step.contains(&commit.generation) {
            of_step.push(commit.generation);
        }
    }
    for step in 1..=steps {
        let by = generations.get(&step).unwrap_or_else(|| panic!("step {step} was never committed"));
        assert_eq!(by.len(), 1, "step {step} was committed in generations {by:?}");
    }
    assert_eq!(generations.len() as u64, steps, "steps beyond the end were committed");
}

/// Seconds between steps, beyond three times the median.
fn time_lost(commits: &[Commit]) -> f64 {
    let mut first = BTreeMap::<u64, f64>::new();
    for commit in commits {
        first.entry(commit.updates).or_insert(commit.at);
    }
    let at: Vec<f64> = first.into_values().collect();
    let gaps: Vec<f64> = at.windows(2).map(|pair| (pair[1] - pair[0]).max(0.0)).collect();
    let mut sorted = gaps.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    gaps.iter().filter(|gap| **gap > 3.0 * median).map(|gap| gap - median).sum()
}
