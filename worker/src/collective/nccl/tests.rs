//! What happens when NCCL fails, on a simulated one. That it works is the common suite's business.

use super::simulated::{Flaws, Simulated, World};
use super::{Agreement, Nccl, Offer, Settings, Wanted, agree, form};
use crate::collective::conformance::rings;
use crate::collective::tcp::{Abort, Group, Rendezvous};
use crate::collective::{Cause, Choice, Collective, Failure, threads};
use jrs_nccl::FaultKind;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);
const SOUND: Flaws = Flaws {
    missing: false,
    version: 0,
    no_identity: false,
    wrong_identity: false,
    never_joins: false,
    fails_after: None,
    silent_after: None,
    never_begins_after: None,
    abort_hangs: false,
    finalize_hangs: false,
    no_memory: false,
};
/// Operations that forming takes: one exchange.
const FORMING: usize = 1;

type Member = (Nccl<Simulated>, Abort);

/// What forming a group gives on each rank.
fn formed(flaws: &[Flaws], patience: Duration) -> (World, Vec<Result<Member, Failure>>) {
    formed_as(flaws, patience, &vec![7; flaws.len()])
}

fn formed_as(
    flaws: &[Flaws],
    patience: Duration,
    credentials: &[u64],
) -> (World, Vec<Result<Member, Failure>>) {
    let world = World::default();
    let settings = Settings { bucket: 64, let_go: SHORT };
    let members = std::thread::scope(|scope| {
        let joining: Vec<_> = rings(flaws.len())
            .into_iter()
            .zip(flaws.iter().zip(credentials))
            .map(|((ring, abort), (&flaws, &credential))| {
                let library = world.library(flaws);
                scope.spawn(move || {
                    let deadline = Instant::now() + patience;
                    form(&library, ring, credential, settings, deadline, &abort).map(|nccl| (nccl, abort))
                })
            })
            .collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (world, members)
}

/// A group that formed.
fn group(flaws: &[Flaws]) -> (World, Vec<Member>) {
    let (world, members) = formed(flaws, LONG);
    (world, members.into_iter().map(|member| member.map_err(|f| f.to_string()).unwrap()).collect())
}

/// How a sum ends on all `members`.
fn summed(members: Vec<Member>, patience: Duration) -> Vec<Result<(), Failure>> {
    on_all(members, |nccl| {
        nccl.begin(12, patience);
        nccl.sum(&mut [1; 100])
    })
}

fn on_all<T: Send>(members: Vec<Member>, work: impl Fn(&mut Nccl<Simulated>) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let working: Vec<_> =
            members.into_iter().map(|(mut nccl, _)| scope.spawn(move || work(&mut nccl))).collect();
        working.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn failures<T>(results: Vec<Result<T, Failure>>) -> Vec<Failure> {
    results.into_iter().map(|result| result.err().expect("it had to fail")).collect()
}

#[test]
fn joining_has_a_deadline() {
    for flaw in [Flaws { never_joins: true, ..SOUND }, Flaws { wrong_identity: true, ..SOUND }] {
        let clock = Instant::now();
        let (world, members) = formed(&[SOUND, SOUND, flaw], SHORT);
        let failures = failures(members);
        assert!(failures.iter().any(|f| f.cause == Cause::Late), "{failures:?}");
        assert!(failures.iter().all(|f| matches!(f.cause, Cause::Late | Cause::Lost)), "{failures:?}");
        assert!(clock.elapsed() < Duration::from_secs(5), "took {:?}", clock.elapsed());
        assert_eq!(world.freed(), (0, 3));
    }
}

#[test]
fn a_rank_without_identity_or_memory_is_named() {
    let (_, members) = formed(&[Flaws { no_identity: true, ..SOUND }, SOUND], LONG);
    let failed = failures(members);
    assert!(failed[0].reason.contains("no network interface"), "{failed:?}");
    assert_eq!(failed[1].suspect, Some(0));
    assert!(failed[1].reason.contains("no network interface"), "{failed:?}");

    let (world, members) = formed(&[SOUND, Flaws { no_memory: true, ..SOUND }], LONG);
    let failed = failures(members);
    assert_eq!((failed[1].cause, failed[0].cause), (Cause::Unusable, Cause::Lost), "{failed:?}");
    assert_eq!(failed[0].suspect, Some(1));
    assert_eq!(world.freed(), (0, 2));
}

#[test]
fn an_error_on_one_rank_ends_all_at_once() {
    for (kind, cause) in [
        (FaultKind::Device, Cause::Unusable),
        (FaultKind::Usage, Cause::Unusable),
        (FaultKind::Remote, Cause::Lost),
        (FaultKind::System, Cause::Lost),
        (FaultKind::Internal, Cause::Lost),
        (FaultKind::Unknown, Cause::Lost),
    ] {
        // While joining, while a sum's lengths are exchanged, and within the sum.
        for after in [0, FORMING + 1, FORMING + 3] {
            let clock = Instant::now();
            let flaw = Flaws { fails_after: Some((after, kind)), ..SOUND };
            let (world, members) = formed(&[SOUND, flaw, SOUND], LONG);
            let failed = if members.iter().any(Result::is_err) {
                failures(members)
            } else {
                failures(summed(members.into_iter().map(Result::unwrap).collect(), LONG))
            };
            assert_eq!(failed[1].cause, cause, "{kind:?} after {after}: {failed:?}");
            assert!(failed[1].reason.contains("a flaw"), "{failed:?}");
            for other in [&failed[0], &failed[2]] {
                assert_eq!(other.cause, Cause::Lost, "{kind:?} after {after}: {failed:?}");
            }
            assert!(clock.elapsed() < Duration::from_secs(2), "took {:?}", clock.elapsed());
            assert_eq!(world.freed(), (0, 3), "{kind:?} after {after}");
        }
    }
}

#[test]
fn a_rank_that_disappears_is_noticed_although_nccl_does_not() {
    for size in [2, 3, 5] {
        let (_, mut members) = group(&vec![SOUND; size]);
        let (gone, _) = members.remove(1);
        let clock = Instant::now();
        let failed = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(gone);
            });
            failures(summed(members, LONG))
        });
        assert!(failed.iter().all(|f| f.cause == Cause::Lost), "{failed:?}");
        assert!(failed.iter().any(|f| f.suspect == Some(1)), "{failed:?}");
        assert!(clock.elapsed() < Duration::from_secs(2), "{size} ranks took {:?}", clock.elapsed());
    }
}

#[test]
fn a_rank_that_hangs_is_late_and_named() {
    let (_, mut members) = group(&[SOUND; 3]);
    let (hanging, _) = members.remove(2);
    let failed = failures(summed(members, SHORT));
    assert!(failed.iter().any(|f| f.cause == Cause::Late && f.suspect == Some(2)), "{failed:?}");
    drop(hanging);
}

#[test]
fn every_phase_of_an_operation_has_a_deadline() {
    for flaw in [
        Flaws { silent_after: Some(FORMING), ..SOUND }, // the exchange before it
        Flaws { silent_after: Some(FORMING + 1), ..SOUND }, // itself
        Flaws { silent_after: Some(FORMING + 4), ..SOUND }, // its fourth bucket
        Flaws { never_begins_after: Some(FORMING + 1), ..SOUND },
    ] {
        let (world, members) = group(&[SOUND, flaw]);
        let clock = Instant::now();
        let failed = failures(summed(members, SHORT));
        assert!(failed.iter().any(|f| f.cause == Cause::Late), "{flaw:?}: {failed:?}");
        assert!(clock.elapsed() < Duration::from_secs(5), "{flaw:?} took {:?}", clock.elapsed());
        assert_eq!(world.freed(), (0, 2));
    }
}

#[test]
fn waiting_can_be_aborted_from_another_thread() {
    let (_, mut members) = group(&[SOUND; 2]);
    let (silent, _) = members.remove(1);
    let abort = members[0].1.clone();
    let failed = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            abort.pull();
        });
        failures(summed(members, LONG))
    });
    assert_eq!(failed[0].cause, Cause::Aborted, "{failed:?}");
    drop(silent);
}

#[test]
fn an_abort_that_hangs_means_that_the_process_has_to_end() {
    // Whatever failed before, in an operation and while joining.
    let flaw = Flaws { abort_hangs: true, silent_after: Some(FORMING), ..SOUND };
    let (_, members) = group(&[SOUND, flaw]);
    let failed = failures(summed(members, SHORT));
    assert_eq!(failed[1].cause, Cause::Unusable, "{failed:?}");
    assert!(failed[1].reason.contains("Only the end of this process"), "{failed:?}");
    assert_ne!(failed[0].cause, Cause::Unusable, "{failed:?}");

    let (_, members) = formed(&[SOUND, Flaws { abort_hangs: true, never_joins: true, ..SOUND }], SHORT);
    assert_eq!(failures(members)[1].cause, Cause::Unusable);
    let (_, members) = formed(&[SOUND, Flaws { abort_hangs: true, no_memory: true, ..SOUND }], LONG);
    let failed = failures(members);
    assert!(failed[1].reason.contains("Only the end of this process"), "{failed:?}");
}

#[test]
fn a_group_ends_in_peace_however_late_a_rank_is() {
    let (world, members) = group(&[SOUND; 3]);
    let ends = on_all(members, |nccl| {
        nccl.begin(1, LONG);
        nccl.sum(&mut [1; 10])?;
        std::thread::sleep(Duration::from_millis(100) * nccl.rank() as u32);
        nccl.end()?;
        // It has ended: nothing hangs, nothing panics.
        assert_eq!(nccl.max(&mut [1]).unwrap_err().cause, Cause::Aborted);
        Ok::<_, Failure>(())
    });
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    assert_eq!(world.freed(), (3, 0));
}

#[test]
fn an_end_that_hangs_is_broken_off() {
    let (world, members) = group(&[SOUND, Flaws { finalize_hangs: true, ..SOUND }]);
    let ends = on_all(members, |nccl| nccl.end());
    assert!(ends[0].is_ok(), "{ends:?}");
    assert_eq!(ends[1].as_ref().unwrap_err().cause, Cause::Late, "{ends:?}");
    assert_eq!(world.freed(), (1, 1));
}

#[test]
fn a_group_that_failed_stays_failed() {
    let (_, mut members) = group(&[SOUND, Flaws { silent_after: Some(FORMING), ..SOUND }]);
    let (mut nccl, _) = members.remove(0);
    nccl.begin(1, SHORT);
    let first = nccl.sum(&mut [1]).unwrap_err();
    let clock = Instant::now();
    assert_eq!(nccl.gather(vec![1]).unwrap_err(), first);
    assert_eq!(nccl.end().unwrap_err(), first);
    assert!(clock.elapsed() < SHORT, "nothing is waited for again");
}

#[test]
fn ranks_that_do_not_belong_together_refuse_each_other() {
    // The ring would not have let them in; an identity that leaked would.
    let (_, members) = formed_as(&[SOUND; 2], LONG, &[7, 8]);
    for failure in failures(members) {
        assert_eq!(failure.cause, Cause::Garbled);
        assert!(failure.reason.contains("another run or generation"), "{failure}");
    }
    let steps = on_all(group(&[SOUND; 2]).1, |nccl| {
        nccl.begin(12 + nccl.rank() as u64, LONG);
        nccl.sum(&mut [1])
    });
    let failed = failures(steps);
    assert!(failed.iter().any(|f| f.cause == Cause::Garbled && f.reason.contains("step 13")), "{failed:?}");
    let lengths = on_all(group(&[SOUND; 2]).1, |nccl| nccl.max(&mut vec![1; 5 + nccl.rank()]));
    let failed = failures(lengths);
    assert!(failed.iter().any(|f| f.reason.contains("6 numbers, not 5")), "{failed:?}");
    let operations = on_all(group(&[SOUND; 2]).1, |nccl| match nccl.rank() {
        0 => nccl.max(&mut [1]),
        _ => nccl.sum(&mut [1]),
    });
    assert!(
        operations.iter().all(|o| o.as_ref().is_err_and(|f| f.cause == Cause::Garbled)),
        "{operations:?}"
    );
}

/// What a worker's session does: one choice, one address, generation after generation.
#[test]
fn generations_follow_each_other_after_losses_and_planned_ends() {
    let world = World::default();
    let listeners: Vec<_> = (0..3).map(|_| Rendezvous::listen("127.0.0.1:0").unwrap()).collect();
    let choice = |flaws| Choice::with(Wanted::Nccl, || world.library(flaws).load()).unwrap();
    let work = |worker: usize, generation: u64, members: &[usize], choice: &Choice| {
        let abort = Abort::default();
        let group = Group {
            run: "test".into(),
            generation,
            key: b"key".to_vec(),
            rank: members.iter().position(|member| *member == worker).unwrap(),
            addresses: members.iter().map(|member| listeners[*member].address().to_string()).collect(),
        };
        let ring = listeners[worker].join(&group, Instant::now() + LONG, &abort)?;
        let credential = u64::from_le_bytes(group.credential());
        let mut collective = choice.connect(ring, credential, &abort)?;
        assert_eq!(collective.transport(), "NCCL");
        for step in 0..5 {
            collective.begin(step, LONG);
            let mut sum = [worker as i64];
            collective.sum(&mut sum)?;
            assert_eq!(sum[0] as usize, members.iter().sum::<usize>(), "generation {generation}");
        }
        collective.end()
    };
    let ends = |results: Vec<Result<(), Failure>>| results.into_iter().map(|r| r.err().map(|f| f.cause));
    let generation = |number: u64, members: &[usize], choices: &[Choice]| -> Vec<_> {
        let results = std::thread::scope(|scope| {
            let working: Vec<_> = members
                .iter()
                .map(|&worker| scope.spawn(move || work(worker, number, members, &choices[worker])))
                .collect();
            working.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        ends(results).collect()
    };
    let broken = Flaws { fails_after: Some((FORMING + 4, FaultKind::Device)), ..SOUND };
    let mut choices = [choice(SOUND), choice(broken), choice(SOUND)];
    let first = generation(1, &[0, 1, 2], &choices);
    assert_eq!(first, [Some(Cause::Lost), Some(Cause::Unusable), Some(Cause::Lost)]);
    // The others go on, another process takes its place, and ranks change.
    assert_eq!(generation(2, &[2, 0], &choices), [None, None]);
    choices[1] = choice(SOUND);
    assert_eq!(generation(3, &[1, 2, 0], &choices), [None, None, None]);
    assert_eq!(world.freed(), (5, 3));
}

#[test]
fn nccl_is_not_replaced_where_nothing_else_is_allowed() {
    let missing = || World::default().library(Flaws { missing: true, ..SOUND }).load();
    let fault = Choice::with(Wanted::Nccl, missing).err().expect("there is none");
    assert!(fault.to_string().contains("not found"), "{fault}");
    assert!(Choice::with(Wanted::Auto, missing).unwrap().describe().contains("TCP (NCCL was not found)"));
    // On the CPU there is nothing for NCCL to work between.
    assert!(Choice::new(Wanted::Nccl, None).is_err());
    assert!(Choice::new(Wanted::Auto, None).unwrap().describe().contains("trains on the CPU"));
    // One rank without it: all use TCP.
    let without = Choice::default();
    let with = Choice::with(Wanted::Auto, || World::default().library(SOUND).load()).unwrap();
    let transports: Vec<_> = std::thread::scope(|scope| {
        let joining: Vec<_> = rings(2)
            .into_iter()
            .zip([with, without])
            .map(|((ring, abort), choice)| {
                scope.spawn(move || choice.connect(ring, 1, &abort).map(|c| c.transport()))
            })
            .collect();
        joining.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    });
    assert!(transports.iter().all(|transport| transport.starts_with("TCP")), "{transports:?}");
}

#[test]
fn only_known_versions_are_offered() {
    let offer = |wanted, flaws| Offer::new(wanted, || World::default().library(flaws).load());
    assert_eq!(offer(Wanted::Auto, SOUND).0, Offer { nccl: Ok(2_22_03), required: false });
    assert!(offer(Wanted::Nccl, SOUND).1.is_some());
    for (version, problem) in [(2_17_01, "2.17.1"), (3_00_00, "3.0.0"), (-1, "not a version")] {
        let (offer, library) = offer(Wanted::Nccl, Flaws { version, ..SOUND });
        assert!(library.is_none() && offer.required);
        assert!(offer.nccl.as_ref().is_err_and(|e| e.contains(problem)), "{offer:?}");
    }
    let (missing, _) = offer(Wanted::Auto, Flaws { missing: true, ..SOUND });
    assert!(missing.nccl.is_err_and(|e| e.contains("not found")));
    let tcp = Offer::new(Wanted::Tcp, || -> Result<Simulated, _> { panic!("nobody asked for it") });
    assert!(tcp.0.nccl.is_err() && tcp.1.is_none());
}

#[test]
fn all_ranks_agree_on_the_same() {
    let with = |version| Offer { nccl: Ok(version), required: false };
    let without = Offer { nccl: Err("NCCL was not found".into()), required: false };
    let agreed = |offers: &[Offer]| {
        let results: Vec<_> = std::thread::scope(|scope| {
            let rings = threads::ring(offers.len()).into_iter().zip(offers);
            let agreeing: Vec<_> =
                rings.map(|(mut ring, offer)| scope.spawn(move || agree(&mut ring, offer))).collect();
            agreeing.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0].clone()
    };
    assert_eq!(agreed(&[with(2_22_03), with(2_22_03)]), Ok(Agreement::Nccl));
    let tcp = agreed(&[with(2_22_03), without.clone(), with(2_22_03)]);
    assert_eq!(tcp, Ok(Agreement::Tcp("rank 1: NCCL was not found".into())));
    let Ok(Agreement::Tcp(reason)) = agreed(&[with(2_22_03), with(2_27_00)]) else {
        panic!("versions differ")
    };
    assert!(reason.contains("rank 1") && reason.contains("22700"), "{reason}");
    let required = Offer { required: true, ..with(2_22_03) };
    let failure = agreed(&[required, with(2_22_03), without]).unwrap_err();
    assert_eq!((failure.cause, failure.suspect), (Cause::Garbled, Some(2)));
    assert!(failure.reason.contains("rank 0 may use nothing but NCCL"), "{failure}");
}
