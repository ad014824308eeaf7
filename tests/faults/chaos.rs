//! One random failure after the other. The model is that of the undisturbed run, and no sample is used twice.
//!
//! `scripts/chaos` runs this longer: `JRS_CHAOS_STEPS`, `JRS_CHAOS_SEED`, `JRS_CHAOS_PAUSE` (seconds between two failures),
//! `JRS_CHAOS_CUTS` (cut connections of each worker), `JRS_CHAOS_DELAY` (milliseconds by which workers hold up every step, so that a
//! long run is not one of more steps than the undisturbed one has time for).

use crate::cluster::{
    BATCH, Cluster, Commit, PAIRS, PATCHES_PER_PAIR, SEED, alone, quick, undisturbed, wait,
};
use crate::http::{Fate, Proxy};
use crate::seaweed::{SECRET, Seaweed, variables};
use jrs_data::sampling::SampleOrder;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Workers that are kept alive.
const WORKERS: usize = 3;
/// Seconds between two failures.
const PAUSE: u64 = 2;
/// Frozen for longer than the coordinator waits for a heartbeat.
const FROZEN: Duration = Duration::from_secs(7);
/// How long the store fails.
const STORE_FAILS: Duration = Duration::from_secs(3);
/// Of so many steps of a worker, one finds its connections cut.
const STEPS_PER_CUT: u64 = 50;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// xorshift64: which failure comes next.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// The run, and what can be broken in it.
struct Chaos {
    cluster: Cluster,
    store: Option<(Seaweed, Proxy)>,
    steps: u64,
    dice: Dice,
    alive: Vec<usize>,
}

impl Chaos {
    /// The run is kept in a real object store where there is one, else in a folder, which never fails.
    fn start(steps: u64, config: &str, dice: Dice) -> Self {
        let store = Seaweed::start("chaos-store").map(|store| {
            let proxy = Proxy::before(&store.address());
            (store, proxy)
        });
        let cluster = match &store {
            Some((_, proxy)) => {
                Cluster::in_store("chaos", config, "s3://runs", variables(&proxy.address(), SECRET))
            }
            None => Cluster::new("chaos", config),
        };
        let mut chaos = Self { cluster, store, steps, dice, alive: Vec::new() };
        chaos.cluster.coordinate(WORKERS);
        chaos.alive = (0..WORKERS).map(|_| chaos.work()).collect();
        chaos.cluster.reach(2);
        chaos
    }

    /// A worker whose connections to the others are cut now and then.
    fn work(&mut self) -> usize {
        let cuts = from_environment("JRS_CHAOS_CUTS", self.steps.div_ceil(STEPS_PER_CUT));
        let mut faults: Vec<String> = (0..cuts)
            .map(|_| format!("cut@step={},phase=reduce", self.dice.throw(self.steps as usize)))
            .collect();
        let delay = from_environment("JRS_CHAOS_DELAY", 0);
        if delay > 0 {
            faults.extend((0..self.steps).map(|step| format!("delay={delay}@step={step},phase=data")));
        }
        self.cluster.work(&faults.join(";"))
    }

    /// Something breaks, and is repaired if it does not repair itself. Returns what it was.
    fn strike(&mut self) -> &'static str {
        let victim = self.dice.throw(self.alive.len());
        match self.dice.throw(if self.store.is_some() { 6 } else { 4 }) {
            0 | 1 => {
                self.cluster.signal(self.alive[victim], "KILL");
                self.cluster.ended(self.alive[victim]);
                self.alive[victim] = self.work();
                "kill -9 of a worker"
            }
            2 => {
                self.cluster.signal(self.alive[victim], "STOP");
                std::thread::sleep(FROZEN);
                self.cluster.signal(self.alive[victim], "CONT");
                "SIGSTOP of a worker"
            }
            3 => {
                self.cluster.kill_coordinator();
                self.cluster.coordinate(1);
                "kill -9 of the coordinator"
            }
            4 => {
                let (store, _) = self.store.as_mut().expect("there is one");
                store.kill();
                std::thread::sleep(STORE_FAILS);
                store.restart();
                "kill -9 of the store"
            }
            _ => {
                let (_, proxy) = self.store.as_ref().expect("there is one");
                let mut dice = self.dice.clone();
                proxy.rule(move |_| match dice.throw(5) {
                    0 => Fate::Answer(500),
                    1 => Fate::Answer(503),
                    2 => Fate::Cut { done: false },
                    3 => Fate::Cut { done: true },
                    _ => Fate::Wait(Duration::from_millis(500)),
                });
                std::thread::sleep(STORE_FAILS);
                proxy.rule(|_| Fate::Pass);
                "errors of the store"
            }
        }
    }

    fn finish(mut self) -> (Vec<u8>, Vec<Commit>, usize) {
        self.cluster.end(&self.alive);
        let model = match &self.store {
            Some((store, _)) => store.read("runs/r/model.safetensors"),
            None => self.cluster.model(),
        };
        (model, self.cluster.commits(), self.cluster.cuts())
    }
}

#[test]
fn random_failures_change_nothing() {
    let _alone = alone();
    let steps = from_environment("JRS_CHAOS_STEPS", 60);
    let dice = Dice(from_environment("JRS_CHAOS_SEED", 1) | 1 << 40);
    let pause = Duration::from_secs(from_environment("JRS_CHAOS_PAUSE", PAUSE));
    let config = quick(steps);
    let expected = undisturbed(&config);
    let mut chaos = Chaos::start(steps, &config, dice);

    let mut survived = BTreeMap::<&str, u32>::new();
    let clock = Instant::now();
    while chaos.cluster.progress() < steps * 9 / 10 && !chaos.cluster.is_over() {
        let what = chaos.strike();
        *survived.entry(what).or_default() += 1;
        let before = chaos.cluster.progress();
        let deadline = Instant::now() + Duration::from_secs(60);
        wait("a step after the failure", || {
            chaos.cluster.progress() > before || chaos.cluster.is_over() || Instant::now() > deadline
        });
        assert!(
            chaos.cluster.progress() > before || chaos.cluster.is_over(),
            "no step within a minute after {what}"
        );
        std::thread::sleep(pause);
    }
    let struck: u32 = survived.values().sum();
    let (model, commits, cuts) = chaos.finish();
    let seconds = clock.elapsed().as_secs_f64();
    assert!(model == expected, "the model differs from the undisturbed run's");

    ledger(&commits, steps);
    samples(&commits, steps, struck as usize);
    let lost = time_lost(&commits);
    eprintln!(
        "survived {struck} failures, {survived:?}, and {cuts} cut connections in {steps} steps and {seconds:.0} s, one in {:.0} s; \
         {:.0} % of the time was spent on steps that count",
        seconds / (f64::from(struck) + cuts as f64),
        100.0 * (1.0 - lost / seconds).max(0.0)
    );
    assert!(!survived.is_empty(), "the run was over before anything happened");
}

/// Every step was committed, in one generation only.
pub fn ledger(commits: &[Commit], steps: u64) {
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

/// What the workers computed for committed steps: every sample of an epoch once. A worker that dies in the moment of a commit
/// cannot say any more that it was there, so of each `failures` a share of a step may be missing here (a step is not
/// committed without it), but none may be there twice.
fn samples(commits: &[Commit], steps: u64, failures: usize) {
    let order = SampleOrder::new(SEED, PAIRS, PATCHES_PER_PAIR, 1);
    let mut used = BTreeMap::new();
    for position in commits.iter().flat_map(|commit| commit.positions.clone()) {
        *used.entry(order.at(position)).or_insert(0_usize) += 1;
    }
    let twice: Vec<_> = used.iter().filter(|&(_, &times)| times > 1).collect();
    assert!(twice.is_empty(), "used more than once: {twice:?}");
    let wanted = steps as usize * BATCH;
    assert!(
        (0..wanted as u64).filter(|&position| !used.contains_key(&order.at(position))).count()
            <= failures * BATCH
    );
    assert!(used.len() <= wanted, "{} samples were used, and the run has {wanted}", used.len());
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
