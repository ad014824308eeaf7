//! One suite for every implementation of [`Collective`].

#[cfg(feature = "cube-cpu")]
use super::device::DeviceValues;
use super::nccl::simulated::{Flaws, World};
use super::nccl::{Settings, form};
use super::tcp::{Abort, Group, Rendezvous, TcpLink};
use super::{Alone, Cause, Collective, Failure, Ring, exact_sum, threads};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

type Members = Vec<Box<dyn Collective>>;

/// Every implementation with every number of ranks it is tested with.
fn groups() -> Vec<(String, Members)> {
    let mut groups: Vec<(String, Members)> = vec![("alone".into(), vec![Box::new(Alone)])];
    for size in [2, 3, 5] {
        let boxed = |ring| -> Box<dyn Collective> { Box::new(ring) };
        groups.push((format!("{size} threads"), threads::ring(size).into_iter().map(boxed).collect()));
        let tcp = tcp(size).into_iter().map(|(ring, _)| ring).collect();
        groups.push((format!("TCP, {size} ranks"), tcp));
        groups.push((format!("simulated NCCL, {size} ranks"), simulated_nccl(size)));
    }
    groups
}

/// A ring over TCP on this machine.
fn tcp(size: usize) -> Vec<(Box<dyn Collective>, Abort)> {
    let boxed = |(ring, abort)| (Box::new(ring) as Box<dyn Collective>, abort);
    rings(size).into_iter().map(boxed).collect()
}

/// What the tests of NCCL form their groups over.
pub(super) fn rings(size: usize) -> Vec<(Ring<TcpLink>, Abort)> {
    let listeners: Vec<_> = (0..size).map(|_| Rendezvous::listen("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|l| l.address().to_string()).collect();
    std::thread::scope(|scope| {
        let joining: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(rank, listener)| {
                let group = group(rank, &addresses, b"key");
                scope.spawn(move || {
                    let abort = Abort::default();
                    (listener.join(&group, Instant::now() + PATIENCE, &abort).unwrap(), abort)
                })
            })
            .collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// NCCL's state machine over a library that this process plays, with buckets that long sums need many of.
fn simulated_nccl(size: usize) -> Members {
    let world = World::default();
    let settings = Settings { bucket: 1 << 16, ..Settings::default() };
    std::thread::scope(|scope| {
        let joining: Vec<_> = rings(size)
            .into_iter()
            .map(|(ring, abort)| {
                let library = world.library(Flaws::default());
                scope.spawn(move || {
                    let deadline = Instant::now() + PATIENCE;
                    let formed = form(&library, ring, 1, settings, deadline, &abort);
                    Box::new(formed.unwrap_or_else(|failure| panic!("{failure}"))) as Box<dyn Collective>
                })
            })
            .collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn group(rank: usize, addresses: &[String], key: &[u8]) -> Group {
    Group { run: "test".into(), generation: 4, key: key.to_vec(), rank, addresses: addresses.to_vec() }
}

/// What each rank's `work` returns.
fn on_all<T: Send>(
    members: Members,
    work: impl Fn(&mut dyn Collective) -> Result<T, Failure> + Sync,
) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let working: Vec<_> = members
            .into_iter()
            .map(|mut member| {
                scope.spawn(move || {
                    member.begin(12, PATIENCE);
                    work(member.as_mut())
                })
            })
            .collect();
        working.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
    })
}

#[test]
fn maxima_and_sums_are_everyones() {
    // Shorter than the ring, not divisible by it, and long enough for several network packets.
    for n in [0, 1, 7, 200_001] {
        for (name, members) in groups() {
            let size = members.len();
            let value = |rank: usize, i: usize| ((i * 7 + rank * 31) % 1000) as i64 - 500;
            let results = on_all(members, |c| {
                let mut maxima: Vec<i32> = (0..n).map(|i| value(c.rank(), i) as i32).collect();
                c.max(&mut maxima)?;
                let mut sums: Vec<i64> = (0..n).map(|i| value(c.rank(), i) << 40).collect();
                c.sum(&mut sums)?;
                Ok((maxima, sums))
            });
            let all = |i: usize| (0..size).map(move |rank| value(rank, i));
            let maxima: Vec<i32> = (0..n).map(|i| all(i).max().unwrap() as i32).collect();
            let sums: Vec<i64> = (0..n).map(|i| all(i).sum::<i64>() << 40).collect();
            assert!(results.iter().all(|r| r.0 == maxima && r.1 == sums), "{name}, {n} values");
        }
    }
}

#[cfg(feature = "cube-cpu")]
#[test]
fn maxima_and_sums_on_a_device_are_those_of_the_host() {
    let client = cubecl::Device::cpu().unwrap().client();
    for n in [0, 1, 5000] {
        for (name, members) in groups() {
            let size = members.len();
            let value = |rank: usize, i: usize| ((i * 7 + rank * 31) % 1000) as i64 - 500;
            let results = on_all(members, |c| {
                let maxima: Vec<i32> = (0..n).map(|i| value(c.rank(), i) as i32).collect();
                let maxima = DeviceValues::from_slice(&client, &maxima);
                c.max_on_device(&maxima)?;
                let sums: Vec<i64> = (0..n).map(|i| value(c.rank(), i) << 40).collect();
                let sums = DeviceValues::from_slice(&client, &sums);
                c.sum_on_device(&sums)?;
                Ok((maxima.read::<i32>()?, sums.read::<i64>()?))
            });
            let all = |i: usize| (0..size).map(move |rank| value(rank, i));
            let maxima: Vec<i32> = (0..n).map(|i| all(i).max().unwrap() as i32).collect();
            let sums: Vec<i64> = (0..n).map(|i| all(i).sum::<i64>() << 40).collect();
            assert!(results.iter().all(|r| r.0 == maxima && r.1 == sums), "{name}, {n} values");
        }
    }
}

#[test]
fn bytes_are_gathered_in_rank_order_and_handed_on() {
    for (name, members) in groups() {
        let size = members.len();
        let said = |rank: usize| vec![rank as u8; rank * 70_000];
        let results = on_all(members, |c| {
            let gathered = c.gather(said(c.rank()))?;
            // Every root, one after the other, and then a sum: message numbers must agree again.
            let mut given = Vec::new();
            for root in 0..c.size() {
                given.push(c.broadcast(root, said(c.rank() + 1))?);
            }
            let mut one = [1];
            c.sum(&mut one)?;
            Ok((gathered, given, one[0]))
        });
        for (gathered, given, count) in results {
            assert_eq!(gathered, (0..size).map(said).collect::<Vec<_>>(), "{name}");
            assert!(given == (1..=size).map(said).collect::<Vec<_>>(), "{name}");
            assert_eq!(count, size as i64, "{name}");
        }
    }
}

#[test]
fn the_mean_gradient_has_the_same_bits_everywhere() {
    const TERMS: usize = 6;
    let n = 5_000;
    let term = |t: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * (t + 3)) as f32).sin() * 10f32.powi((i % 17) as i32 - 8)).collect()
    };
    let mut first: Option<Vec<f32>> = None;
    for (name, members) in groups() {
        let means = on_all(members, |c| {
            let mine: Vec<Vec<f32>> = (c.rank()..TERMS).step_by(c.size()).map(term).collect();
            let mut exponents = vec![0; exact_sum::blocks(n)];
            mine.iter().for_each(|t| exact_sum::raise_exponents(&mut exponents, t));
            c.max(&mut exponents)?;
            let mut sums = vec![0; n];
            mine.iter().for_each(|t| exact_sum::add(&mut sums, t, &exponents, TERMS));
            c.sum(&mut sums)?;
            Ok(exact_sum::mean(&sums, &exponents, TERMS))
        });
        let expected = first.get_or_insert_with(|| means[0].clone());
        let equal = |m: &Vec<f32>| m.iter().zip(&*expected).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(means.iter().all(equal), "{name}");
    }
}

#[test]
fn a_rank_that_ends_fails_all_others_at_once() {
    for size in [2, 3, 5] {
        let mut members = tcp(size);
        let (dead, _) = members.remove(1);
        let clock = Instant::now();
        let failures = failures(members, move || drop(dead));
        assert!(failures.iter().all(|f| f.cause == Cause::Lost), "{failures:?}");
        assert!(clock.elapsed() < Duration::from_secs(2), "{size} ranks took {:?}", clock.elapsed());
    }
}

#[test]
fn a_silent_rank_is_late_at_the_deadline() {
    let mut members = tcp(3);
    let (silent, _) = members.remove(2);
    for (member, _) in &mut members {
        member.begin(12, Duration::from_millis(300));
    }
    let clock = Instant::now();
    let failures = failures(members, || {});
    assert!(failures.iter().any(|f| f.cause == Cause::Late), "{failures:?}");
    assert!(clock.elapsed() < Duration::from_secs(5), "took {:?}", clock.elapsed());
    drop(silent);
}

#[test]
fn waiting_can_be_aborted_from_another_thread() {
    let mut members = tcp(2);
    let (silent, _) = members.remove(1);
    let abort = members[0].1.clone();
    let failures = failures(members, move || {
        std::thread::sleep(Duration::from_millis(100));
        abort.pull();
    });
    assert_eq!(failures[0].cause, Cause::Aborted, "{failures:?}");
    drop(silent);
}

#[test]
fn a_group_that_is_gone_is_noticed_between_operations() {
    let mut members = tcp(3);
    let standing = |(member, _): &mut (Box<dyn Collective>, Abort)| member.check().is_ok();
    assert!(members.iter_mut().all(standing));
    members[0].1.pull();
    assert_eq!(members[0].0.check().unwrap_err().cause, Cause::Aborted);
    let clock = Instant::now();
    while members.iter_mut().any(standing) {
        assert!(clock.elapsed() < Duration::from_secs(2), "nobody noticed");
        std::thread::sleep(Duration::from_millis(1));
    }
    let failure = members[1].0.check().unwrap_err();
    assert_eq!((failure.cause, failure.suspect), (Cause::Lost, Some(0)));
}

/// How a sum fails on all `members`, while `meanwhile` runs.
fn failures(members: Vec<(Box<dyn Collective>, Abort)>, meanwhile: impl FnOnce() + Send) -> Vec<Failure> {
    std::thread::scope(|scope| {
        let working: Vec<_> = members
            .into_iter()
            .map(|(mut member, _)| scope.spawn(move || member.sum(&mut [1; 100]).unwrap_err()))
            .collect();
        scope.spawn(meanwhile);
        working.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn ranks_in_different_steps_refuse_each_other() {
    let mut members = tcp(2);
    members[1].0.begin(13, PATIENCE);
    members[0].0.begin(12, PATIENCE);
    let failures = failures(members, || {});
    assert!(
        failures.iter().any(|f| f.cause == Cause::Garbled && f.reason.contains("step 13")),
        "{failures:?}"
    );
}

#[test]
fn strangers_and_stale_ranks_are_refused() {
    let listeners = [(); 2].map(|()| Rendezvous::listen("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|i| listeners[i].address().to_string());
    let soon = || Instant::now() + Duration::from_millis(500);
    let stale = Group { generation: 3, ..group(1, &addresses, b"key") };
    for stranger in [stale, group(1, &addresses, b"another key")] {
        let (ours, theirs) = std::thread::scope(|scope| {
            let ours = scope
                .spawn(|| listeners[0].join(&group(0, &addresses, b"key"), soon(), &Abort::default()).err());
            let theirs = scope.spawn(|| listeners[1].join(&stranger, soon(), &Abort::default()).err());
            (ours.join().unwrap(), theirs.join().unwrap())
        });
        assert!(ours.is_some(), "{stranger:?} was let in");
        assert!(theirs.is_some(), "{stranger:?} took part");
    }
}

#[test]
fn a_rank_that_is_early_is_waited_with() {
    let listeners = [(); 2].map(|()| Rendezvous::listen("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|i| listeners[i].address().to_string());
    let (done, ready) = channel();
    std::thread::scope(|scope| {
        let (listeners, addresses) = (&listeners, &addresses);
        scope.spawn(move || {
            let deadline = Instant::now() + PATIENCE;
            done.send(listeners[1].join(&group(1, addresses, b"key"), deadline, &Abort::default()).is_ok())
        });
        std::thread::sleep(Duration::from_millis(300));
        let deadline = Instant::now() + PATIENCE;
        assert!(listeners[0].join(&group(0, addresses, b"key"), deadline, &Abort::default()).is_ok());
    });
    assert!(ready.recv().unwrap());
}
