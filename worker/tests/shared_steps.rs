//! A step shared between any number of ranks changes the state to the same bits.

use burn::tensor::Device;
use jrs_data::sampling::{Patch, SampleId};
use jrs_worker::collective::{Alone, Collective, threads};
use jrs_worker::config::TrainConfig;
use jrs_worker::gan::{Gan, GeneratorLosses};
use jrs_worker::state::{Standing, to_bytes};
use jrs_worker::step::{Group, Share};
use std::ops::Range;

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
    let patches: Vec<Patch> = mine.clone().map(patch).collect();
    let share = Share { count: MICRO_BATCHES, mine, patches: &patches };
    let mut group = Group { collective, watch: &() };
    let wasserstein = gan.update_critic(&share, 0.0, &mut group).unwrap().losses;
    let losses = gan.update_generator(&share, 0.0, &mut group).unwrap().losses;
    (to_bytes(&gan, &Standing::default()), wasserstein, losses)
}

/// A patch whose content differs from micro-batch to micro-batch.
fn patch(k: usize) -> Patch {
    let wave = |phase: f32| -> Vec<f32> {
        (0..EDGE.pow(3)).map(|i| ((i as f32) * 0.013 * (k + 1) as f32 + phase).sin()).collect()
    };
    let labels = |shift: usize| -> Vec<u8> {
        (0..EDGE.pow(3)).map(|i| ((i / EDGE / 9 + shift + k) % 3) as u8).collect()
    };
    Patch {
        id: SampleId { epoch: 0, pair: 0, k },
        edge: EDGE,
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
