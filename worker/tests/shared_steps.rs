//! A step shared between any number of ranks changes the state to the same bits.

use burn::tensor::Device;
use jrs_data::sampling::{Patch, SampleId};
use jrs_worker::batch::Patches;
use jrs_worker::collective::{Alone, Cause, Collective, Failure, threads};
use jrs_worker::config::TrainConfig;
use jrs_worker::gan::{Gan, GeneratorLosses};
use jrs_worker::state::{Standing, to_bytes};
use jrs_worker::step::{Group, Share};
use std::ops::Range;
use std::time::Duration;

const MICRO_BATCHES: usize = 3;
const EDGE: usize = 76;

/// State and losses after a critic and a generator update of which this rank computed the micro-batches `mine`.
fn two_updates(mine: Range<usize>, collective: &mut dyn Collective) -> (Vec<u8>, f32, GeneratorLosses) {
    let text = format!(
        "system = \"JRS-GANa\"\nsampling = {{ patch = {EDGE}, batch = {MICRO_BATCHES}, micro_batch = 1 }}\n\
         generator = {{ rule = \"adam\", clip_norm = 1.0 }}"
    );
    let config = TrainConfig::parse(&text).unwrap();
    let mut gan = Gan::new(&config, &[1, 2], 1.0, &Device::flex());
    let patches: Vec<Patch> = mine.clone().map(|k| patch(k, EDGE)).collect();
    let share = Share { count: MICRO_BATCHES, mine, patches: Patches::Host(&patches) };
    let mut group = Group { collective, watch: &() };
    let wasserstein = gan.update_critic(&share, 0.0, &mut group).unwrap().losses;
    let losses = gan.update_generator(&share, 0.0, &mut group).unwrap().losses;
    (to_bytes(&gan, &Standing::default()), wasserstein, losses)
}

/// A patch whose content differs from micro-batch to micro-batch.
fn patch(k: usize, edge: usize) -> Patch {
    let wave = |phase: f32| -> Vec<f32> {
        (0..edge.pow(3)).map(|i| ((i as f32) * 0.013 * (k + 1) as f32 + phase).sin()).collect()
    };
    let labels = |shift: usize| -> Vec<u8> {
        (0..edge.pow(3)).map(|i| ((i / edge / 9 + shift + k) % 3) as u8).collect()
    };
    Patch {
        id: SampleId { epoch: 0, pair: 0, k },
        edge,
        fixed: wave(0.0),
        moving: wave(0.4),
        fixed_labels: labels(0),
        moving_labels: labels(1),
    }
}

#[test]
fn who_computes_what_changes_no_bit() {
    let alone = two_updates(0..MICRO_BATCHES, &mut Alone);
    // Unequal shares, and a rank without work.
    let shares = [0..2, 2..2, 2..3];
    let results: Vec<_> = std::thread::scope(|scope| {
        let ranks: Vec<_> = threads::ring(shares.len())
            .into_iter()
            .zip(shares)
            .map(|(mut ring, mine)| scope.spawn(move || two_updates(mine, &mut ring)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for (rank, result) in results.iter().enumerate() {
        assert_eq!((result.1, result.2), (alone.1, alone.2), "losses of rank {rank}");
        assert!(result.0 == alone.0, "state of rank {rank} differs");
    }
}

/// A group whose operation number `failing` fails.
struct Breaking {
    failing: usize,
    done: usize,
}

impl Breaking {
    fn operation(&mut self) -> Result<(), Failure> {
        self.done += 1;
        if self.done <= self.failing {
            return Ok(());
        }
        Err(Failure { cause: Cause::Lost, suspect: Some(1), reason: "on purpose".into() })
    }
}

impl Collective for Breaking {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn transport(&self) -> &'static str {
        "none"
    }

    fn begin(&mut self, _: u64, _: Duration) {}

    fn max(&mut self, _: &mut [i32]) -> Result<(), Failure> {
        self.operation()
    }

    fn sum(&mut self, _: &mut [i64]) -> Result<(), Failure> {
        self.operation()
    }

    fn gather(&mut self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, Failure> {
        self.operation().map(|()| vec![bytes])
    }

    fn broadcast(&mut self, _: usize, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        self.operation().map(|()| bytes)
    }
}

#[test]
fn a_step_that_breaks_never_happened() {
    let config = TrainConfig::parse("system = \"JRS-CNN\"\nsampling = { patch = 44, batch = 1 }").unwrap();
    let mut gan = Gan::new(&config, &[1, 2], 1.0, &Device::flex());
    let before = to_bytes(&gan, &Standing::default());
    let patches = [patch(0, 44)];
    let share = Share::whole(Patches::Host(&patches), 1);
    let mut operations = 0;
    loop {
        let mut collective = Breaking { failing: operations, done: 0 };
        let mut group = Group { collective: &mut collective, watch: &() };
        if gan.update_generator(&share, 0.0, &mut group).is_ok() {
            break;
        }
        assert!(to_bytes(&gan, &Standing::default()) == before, "broken at operation {operations}");
        operations += 1;
    }
    assert_eq!(operations, 3, "maximum, sum and reports");
    assert!(to_bytes(&gan, &Standing::default()) != before, "the unbroken step changed nothing");
}
