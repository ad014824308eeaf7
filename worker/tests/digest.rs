use burn::tensor::Device;
use jrs_data::sampling::{Patch, SampleId};
use jrs_worker::collective::Alone;
use jrs_worker::config::TrainConfig;
use jrs_worker::gan::Gan;
use jrs_worker::state::{Standing, to_bytes};
use jrs_worker::step::{Group, Share};
use std::hash::{DefaultHasher, Hash, Hasher};

fn patch(k: usize, edge: usize, modulus: usize) -> Patch {
    let wave = |phase: f32| -> Vec<f32> {
        (0..edge.pow(3)).map(|i| ((i as f32) * 0.013 * (k + 1) as f32 + phase).sin()).collect()
    };
    let labels = |shift: usize| -> Vec<u8> {
        (0..edge.pow(3)).map(|i| ((i / edge / 9 + shift + k) % modulus) as u8).collect()
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
fn digest() {
    for (text, edge, modulus) in [
        (
            "system = \"JRS-GANa\"\nsampling = { patch = 76, batch = 2, micro_batch = 1 }\ngenerator = { rule = \"adam\", clip_norm = 1.0 }",
            76,
            3,
        ),
        (
            "system = \"JRS-GANb\"\nsampling = { patch = 76, batch = 2, micro_batch = 1 }\nloss = {contour_blur = 1}\ngenerator = { rule = \"adam\", clip_norm = 1e-4 }",
            76,
            2,
        ),
        ("system = \"JRS-CNN\"\nsampling = { patch = 48, batch = 4, micro_batch = 2 }", 48, 4),
        ("system = \"JRS-CNN\"\nsampling = { patch = 48, batch = 4, micro_batch = 2 }", 48, 1),
        (
            "system = \"Reg-GAN\"\nsampling = { patch = 76, batch = 2, micro_batch = 2 }\nloss = { similarity = { local = { window = 5 } } }",
            76,
            1,
        ),
        (
            "system = \"Reg-CNN\"\nloss = {smoothness = 0.0}\nsampling = { patch = 48, batch = 4, micro_batch = 2 }",
            48,
            1,
        ),
    ] {
        let config = TrainConfig::parse(text).unwrap();
        let mut gan = Gan::new(&config, &[1, 2], 1.0, &Device::flex());
        let patches: Vec<Patch> = (0..config.sampling.batch).map(|k| patch(k, edge, modulus)).collect();
        let share = Share::whole(&patches, config.sampling.micro_batch);
        let mut group = Group { collective: &mut Alone, watch: &() };
        let mut w = 0.0;
        for _ in 0..2 {
            if gan.critic.is_some() {
                w = gan.update_critic(&share, 0.0, &mut group).unwrap().losses;
            }
            let losses = gan.update_generator(&share, 0.0, &mut group).unwrap().losses;
            let mut h = DefaultHasher::new();
            to_bytes(&gan, &Standing::default()).hash(&mut h);
            println!("{} {:016x} {w:?} {losses:?}", config.system.name(), h.finish());
        }
    }
}
