//! The decisions under random events: of honest workers in a world full of faults, and of anybody at all.

use std::time::Duration;

use jrs_coordinator::decision::{Arrival, Event, Phase, Policy, Predecessor, Standing, State, WorkerId};
use jrs_coordinator::plan::MicroBatches;
use jrs_coordinator::simulation::{Checker, Fault, Pace, World};
use proptest::prelude::*;
use uuid::Uuid;

fn cut() -> MicroBatches {
    MicroBatches::new(16, 8).unwrap()
}

fn world(workers: usize, seed: u64) -> World {
    let mut world = World::new(Policy::new(workers), cut(), Pace::default(), workers, seed);
    world.pass(Duration::from_secs(20));
    assert!(world.is_whole(), "{:?}", world.state());
    world
}

fn fault() -> impl Strategy<Value = Fault> {
    let which = 0..16_usize;
    prop_oneof![
        4 => which.clone().prop_map(Fault::Kill),
        3 => (which.clone(), 100..20_000_u64).prop_map(|(w, ms)| Fault::Freeze(w, Duration::from_millis(ms))),
        3 => which.clone().prop_map(Fault::Cut),
        1 => which.prop_map(Fault::Leave),
        2 => Just(Fault::Join),
        2 => Just(Fault::Coordinator),
        1 => Just(Fault::Store),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_step_is_lost_and_everyone_works_again(
        workers in 2..7_usize,
        seed: u64,
        faults in prop::collection::vec((0..8_000_u64, fault()), 1..30),
    ) {
        let mut world = world(workers, seed);
        for (wait, fault) in faults {
            world.fault(fault);
            world.pass(Duration::from_millis(wait));
        }
        world.pass(Duration::from_secs(150));
        prop_assert_eq!(world.violations(), &[] as &[String]);
        prop_assert_eq!(world.report().lost_steps, 0);
        prop_assert!(world.is_whole(), "{:?}", world.state());
        let before = world.report().steps;
        world.pass(Duration::from_secs(10));
        prop_assert!(world.report().steps >= before + 9, "{:?}", world.state());
    }

    /// Workers that lie, the store that fails, events in any order: nothing may panic, and what the checker knows
    /// holds all the same.
    #[test]
    fn nobody_can_make_it_break_its_rules(
        adopts: bool,
        events in prop::collection::vec((0..3_000_u64, any_event()), 1..300),
    ) {
        let members = (0..4).map(worker).collect();
        let predecessor = adopts.then_some(Predecessor { generation: 3, members });
        let mut state = State::new(Policy::new(2), cut(), 4, predecessor, Duration::ZERO);
        let (mut checker, mut now, mut asked) = (Checker::new(cut()), Duration::ZERO, 0);
        for (wait, event) in events {
            now += Duration::from_millis(wait);
            let event = match event {
                Event::Claimed { .. } if asked == 0 => Event::Tick,
                Event::Claimed { .. } => {
                    checker.claimed(asked);
                    Event::Claimed { number: std::mem::take(&mut asked) }
                }
                other => other,
            };
            let (next, effects) = state.step(event, now);
            state = next;
            for effect in effects {
                checker.observe(&effect);
                if let jrs_coordinator::decision::Action::Claim { number, .. } = effect.action {
                    asked = number;
                }
            }
        }
        prop_assert_eq!(checker.violations, Vec::<String>::new());
    }
}

#[test]
fn a_dead_worker_costs_seconds() {
    let mut world = world(4, 1);
    for which in 0..20 {
        world.fault(Fault::Kill(which));
        world.pass(Duration::from_secs(40));
    }
    let slowest = world.report().recoveries.iter().max().unwrap();
    assert_eq!(world.report().recoveries.len(), 20);
    assert!(*slowest < Duration::from_secs(5), "{slowest:?}");
    assert_eq!(world.violations(), &[] as &[String]);
}

#[test]
fn a_frozen_worker_is_put_out_and_comes_back_as_another() {
    let mut world = world(3, 2);
    world.fault(Fault::Freeze(1, Duration::from_secs(30)));
    world.pass(Duration::from_secs(15));
    assert_eq!(world.evictions(), 1);
    assert_eq!(world.state().unwrap().ranks().len(), 2);
    let recovery = world.report().recoveries[0];
    assert!(recovery < Duration::from_secs(10), "{recovery:?}");
    world.pass(Duration::from_secs(40));
    assert!(world.is_whole());
    assert_eq!(world.state().unwrap().ranks().len(), 3);
}

#[test]
fn a_lost_coordinator_costs_nothing() {
    let mut world = world(4, 3);
    let generation = world.state().unwrap().generation();
    let before = world.report().steps;
    world.fault(Fault::Coordinator);
    world.pass(Duration::from_secs(20));
    assert_eq!(world.report().steps, before + 20, "steps went on");
    assert_eq!(world.state().unwrap().generation(), generation, "they were adopted as they were");
    assert!(world.state().unwrap().claimed() > generation);
}

/// Six micro-batches on four workers: shares of one and two. Twice the work in two micro-batches is no straggler.
#[test]
fn stragglers_are_judged_by_the_micro_batch() {
    let cut = MicroBatches::new(6, 6).unwrap();
    let mut state = State::new(Policy::new(4), cut, 1, None, Duration::ZERO);
    for number in 0..4 {
        let arrival = Arrival {
            worker: worker(number),
            connection: 0,
            address: "host:7000".to_owned(),
            standing: Standing::Idle,
            generation: 0,
            updates: None,
        };
        state = state.step(Event::Attached(arrival), Duration::ZERO).0;
    }
    state = state.step(Event::Claimed { number: 2 }, Duration::ZERO).0;
    let shares: Vec<usize> = state.workers().iter().map(|worker| worker.micro_batches).collect();
    assert_eq!(shares, [1, 2, 1, 2]);
    for (number, seconds) in [(0, 1), (1, 2), (2, 2), (3, 2)] {
        let heartbeat = Event::Heartbeat {
            worker: worker(number),
            generation: 2,
            updates: 1,
            phase: Phase::Work,
            in_phase: Duration::ZERO,
            compute: Duration::from_secs(seconds),
        };
        state = state.step(heartbeat, Duration::from_secs(4)).0;
    }
    state = state.step(Event::Tick, Duration::from_secs(6)).0;
    let slow: Vec<bool> = state.workers().iter().map(|worker| worker.straggler).collect();
    assert_eq!(slow, [false, false, true, false]);
}

/// Three of four die, and a newcomer waits for the end of the step. The last one has four times the work now; it must not be
/// put out for that, because nobody else has the state.
#[test]
fn a_lone_survivor_has_time_for_its_longer_step() {
    const STEP: Duration = Duration::from_secs(10);
    let mut state = State::new(Policy::new(4), cut(), 1, None, Duration::ZERO);
    let mut now = Duration::ZERO;
    let mut step = |event: Event| {
        let (next, effects) = state.clone().step(event, now);
        state = next;
        for effect in effects {
            if let jrs_coordinator::decision::Action::Claim { number, .. } = effect.action {
                state = state.clone().step(Event::Claimed { number }, now).0;
            }
        }
        now += Duration::from_millis(100);
        state.generation()
    };
    let arrival = |number: u8| Arrival {
        worker: worker(number),
        connection: u64::from(number),
        address: format!("host-{number}:7000"),
        standing: Standing::Idle,
        generation: 0,
        updates: None,
    };
    let mut generation = 0;
    for number in 0..4 {
        generation = step(Event::Attached(arrival(number)));
    }
    for updates in 1..=3 {
        step(Event::Committed { worker: worker(0), generation, updates, took: STEP });
    }
    let gone = |number: u8| Event::Detached { worker: worker(number), connection: u64::from(number) };
    for number in 1..4 {
        step(gone(number));
    }
    let suspects = (1..4).map(worker).collect();
    let reason = "they closed their connections".to_owned();
    let alone = step(Event::Failed { worker: worker(0), generation, updates: 3, suspects, reason });
    assert!(alone > generation);
    step(Event::Attached(arrival(4)));
    // Until it reaches the end of its step, its heart beats and nothing else is heard of it.
    let computing = |seconds: u64| Event::Heartbeat {
        worker: worker(0),
        generation: alone,
        updates: 3,
        phase: Phase::Work,
        in_phase: Duration::from_secs(seconds),
        compute: STEP,
    };
    for tenth in 0..900 {
        step(computing(tenth / 10));
        step(Event::Heartbeat {
            worker: worker(4),
            generation: 0,
            updates: 0,
            phase: Phase::Idle,
            in_phase: Duration::ZERO,
            compute: Duration::ZERO,
        });
        step(Event::Tick);
    }
    let both = step(Event::Stopped { worker: worker(0), generation: alone, updates: 4, leaving: false });
    assert!(both > alone && !state.is_fenced(worker(0)));
    assert_eq!(state.ranks().len(), 2);
}

fn worker(number: u8) -> WorkerId {
    Uuid::from_u128(u128::from(number) + 1)
}

fn any_event() -> impl Strategy<Value = Event> {
    let who = || (0..8_u8).prop_map(worker);
    let standing = prop_oneof![
        Just(Standing::Joining),
        Just(Standing::Idle),
        Just(Standing::Stepping),
        Just(Standing::Completed)
    ];
    let arrival = (who(), 0..4_u64, standing, 0..8_u64, prop::option::of(0..50_u64)).prop_map(
        |(worker, connection, standing, generation, updates)| {
            let address = format!("host-{}:1", worker.as_u128() % 3);
            Event::Attached(Arrival { worker, connection, address, standing, generation, updates })
        },
    );
    let phase = prop_oneof![Just(Phase::Idle), Just(Phase::Reduce), Just(Phase::Work), Just(Phase::Long)];
    let heartbeat = (who(), 0..8_u64, 0..50_u64, phase, 0..100_000_u64).prop_map(
        |(worker, generation, updates, phase, millis)| Event::Heartbeat {
            worker,
            generation,
            updates,
            phase,
            in_phase: Duration::from_millis(millis),
            compute: Duration::from_millis(millis),
        },
    );
    let stopped =
        (who(), 0..8_u64, 0..50_u64, any::<bool>()).prop_map(|(worker, generation, updates, leaving)| {
            Event::Stopped { worker, generation, updates, leaving }
        });
    let failed = (who(), 0..8_u64, 0..50_u64, prop::collection::vec(who(), 0..4)).prop_map(
        |(worker, generation, updates, suspects)| Event::Failed {
            worker,
            generation,
            updates,
            suspects,
            reason: "so it says".to_owned(),
        },
    );
    prop_oneof![
        8 => arrival,
        3 => (who(), 0..4_u64).prop_map(|(worker, connection)| Event::Detached { worker, connection }),
        6 => who().prop_map(|worker| Event::Ready { worker }),
        4 => heartbeat,
        2 => (who(), 0..8_u64, 0..50_u64).prop_map(|(worker, generation, updates)| Event::Committed {
            worker, generation, updates, took: Duration::from_millis(20)
        }),
        4 => stopped,
        4 => failed,
        1 => who().prop_map(|worker| Event::Leaving { worker }),
        1 => (who(), 0..8_u64).prop_map(|(worker, generation)| Event::Completed {
            worker, generation, outcome: "finished".to_owned()
        }),
        8 => Just(Event::Claimed { number: 0 }),
        1 => Just(Event::ClaimFailed { reason: "503".to_owned() }),
        8 => Just(Event::Tick),
    ]
}

/// A coordinator whose store says yes, and how it goes on.
struct Led {
    state: State,
    now: Duration,
}

impl Led {
    /// The workers 0, 1, ... are ready, and have committed a step.
    fn by(policy: Policy, workers: u8) -> Self {
        let mut led = Self { state: State::new(policy, cut(), 1, None, Duration::ZERO), now: Duration::ZERO };
        (0..workers).for_each(|number| led.arrives(number));
        assert_eq!(led.state.ranks().len(), usize::from(workers));
        let took = Duration::from_secs(1);
        let generation = led.state.generation();
        led.happens(Event::Committed { worker: worker(0), generation, updates: 1, took });
        led
    }

    fn arrives(&mut self, number: u8) {
        self.happens(Event::Attached(Arrival {
            worker: worker(number),
            connection: u64::from(number),
            address: format!("host-{number}:7000"),
            standing: Standing::Idle,
            generation: 0,
            updates: None,
        }));
    }

    fn fails(&mut self, number: u8, updates: u64, suspects: &[u8]) {
        let reason = "no sign of life".to_owned();
        let generation = self.state.generation();
        let suspects = suspects.iter().copied().map(worker).collect();
        self.happens(Event::Failed { worker: worker(number), generation, updates, suspects, reason });
    }

    fn happens(&mut self, event: Event) {
        let (next, effects) = self.state.clone().step(event, self.now);
        self.state = next;
        for effect in effects {
            if let jrs_coordinator::decision::Action::Claim { number, .. } = effect.action {
                self.happens(Event::Claimed { number });
            }
        }
    }

    /// Lets time pass, with heartbeats of those that are there, until another generation works.
    fn until_reformed(&mut self, alive: &[u8]) -> Duration {
        let (began, before) = (self.now, self.state.generation());
        while self.state.generation() == before {
            self.now += Duration::from_millis(100);
            assert!(self.now < began + Duration::from_secs(60), "nothing happens any more");
            for &number in alive {
                self.happens(Event::Heartbeat {
                    worker: worker(number),
                    generation: 0,
                    updates: 0,
                    phase: Phase::Idle,
                    in_phase: Duration::ZERO,
                    compute: Duration::ZERO,
                });
            }
            self.happens(Event::Tick);
        }
        self.now - began
    }
}

/// The stream of the only worker ends, as it does when its process dies: it may come back for 3 s, and then another one begins.
#[test]
fn a_lone_worker_that_dies_is_followed_by_a_newcomer() {
    let mut led = Led::by(Policy::new(1), 1);
    led.happens(Event::Detached { worker: worker(0), connection: 0 });
    led.arrives(1);
    let waited = led.until_reformed(&[1]);
    assert!((2.9..3.3).contains(&waited.as_secs_f64()), "{waited:?}");

    // Nobody is there at that time: whoever comes later need not wait again.
    let mut led = Led::by(Policy::new(1), 1);
    led.happens(Event::Detached { worker: worker(0), connection: 0 });
    for _ in 0..50 {
        led.now += Duration::from_millis(100);
        led.happens(Event::Tick);
    }
    led.arrives(1);
    let waited = led.until_reformed(&[1]);
    assert!(waited <= Duration::from_millis(200), "{waited:?}");
}

/// Workers 1 and 2 stepped and no longer hear each other, but both hear the coordinator: the first generation that cannot even begin is
/// enough to put one of them out.
#[test]
fn two_that_lost_each_other_are_parted_after_one_attempt() {
    let mut led = Led::by(Policy::new(3), 3);
    for updates in [1, 1] {
        led.fails(1, updates, &[2]);
        led.fails(2, updates, &[1]);
        led.fails(0, updates, &[2]);
    }
    assert!(led.state.is_fenced(worker(2)));
    assert_eq!(led.state.ranks().len(), 2);
}

/// Worker 2 reaches nobody, nobody reaches it, and all of them reach the coordinator.
#[test]
fn a_member_that_nobody_reaches_is_put_out() {
    let mut led = Led::by(Policy::new(3), 3);
    for _ in 0..2 {
        led.fails(0, 1, &[2]);
        led.fails(1, 1, &[2]);
        led.fails(2, 1, &[0, 1]);
    }
    assert_eq!(led.state.ranks().len(), 2);
    assert!(led.state.is_fenced(worker(2)) && !led.state.is_fenced(worker(0)));
}

/// A connection breaks, and in the next generation worker 2 dies: worker 0 notices and lets go of the others, so worker 1
/// suspects it. Nobody is to blame for that; put out, worker 0 would take its copy of the state with it.
#[test]
fn who_gives_up_because_of_a_death_is_not_put_out() {
    let mut led = Led::by(Policy::new(3), 3);
    led.fails(0, 1, &[1]);
    led.fails(1, 1, &[0]);
    led.fails(2, 1, &[0]);
    led.happens(Event::Detached { worker: worker(2), connection: 2 });
    led.fails(0, 1, &[2]);
    led.fails(1, 1, &[0]);
    assert!(led.state.is_fenced(worker(2)));
    assert!(!led.state.is_fenced(worker(0)) && !led.state.is_fenced(worker(1)));
    assert_eq!(led.state.ranks().len(), 2);
}
