//! A device (`JRS_TEST_DEVICE`) against the CPU: single operations, whole updates, and a run that changes over.
//!
//! The CPU's results are the reference; they are compared with PyTorch's in `pytorch_training`, as are the device's.

mod device;

use burn::tensor::{Device, Tensor, TensorData};
use device::device;
use jrs_data::sampling::{Patch, SampleId};
use jrs_tests::reference::uniform;
use jrs_worker::batch::Patches;
use jrs_worker::collective::Alone;
use jrs_worker::config::TrainConfig;
use jrs_worker::gan::{Gan, GeneratorLosses};
use jrs_worker::ops::{ConvSpec, conv3d, leaky_norm, leaky_statistics, upsample_concat, warp};
use jrs_worker::state::{Standing, restore, to_bytes};
use jrs_worker::step::{Group, Share};

/// One operation: sums of at most some thousand products, in another order.
const TIGHT: f32 = 2e-5;

/// Values and gradients of `operation` for every input, on the device and on the CPU. The inputs arrive as views with
/// gaps, as tensors do that were narrowed.
fn case<const N: usize>(
    name: &str,
    shapes: [[usize; 5]; N],
    operation: impl Fn([Tensor<5>; N]) -> Tensor<5>,
    differentiable: [bool; N],
) {
    let run = |device: &Device| -> Vec<Vec<f32>> {
        let leaves: [Tensor<5>; N] = std::array::from_fn(|i| {
            let mut wide = shapes[i];
            wide[4] += 3;
            let wide = tensor(uniform(900 + i as u64, wide.iter().product(), 1.0, 0.0), wide, device);
            let view = wide.narrow(4, 2, shapes[i][4]).autodiff();
            if differentiable[i] { view.require_grad() } else { view }
        });
        let y = operation(leaves.clone());
        let weights = tensor(uniform(990, y.shape().num_elements(), 1.0, 0.0), y.dims(), device).autodiff();
        let mut gradients = (y.clone() * weights).sum().backward();
        let of = |leaf: &Tensor<5>| host(leaf.grad_remove(&mut gradients).expect("it depends on its input"));
        let differentiable = leaves.iter().zip(differentiable).filter(|(_, d)| *d).map(|(leaf, _)| leaf);
        let mut results: Vec<_> = differentiable.map(of).collect();
        results.push(host(y));
        results
    };
    let (ours, cpu) = (run(&device()), run(&Device::flex()));
    for (part, (ours, cpu)) in ours.iter().zip(&cpu).enumerate() {
        assert_close(&format!("{name}, part {part}"), ours, cpu, TIGHT);
    }
}

fn vector(t: Tensor<5>) -> Tensor<1> {
    let n = t.shape().num_elements();
    t.reshape([n])
}

#[test]
fn convolutions() {
    for (c_in, c_out, size, kernel, stride, padding) in [
        (2, 5, [7, 8, 9], 3, 1, 0),
        (16, 16, [6, 7, 8], 3, 1, 0),
        (3, 8, [8, 9, 10], 3, 2, 1),
        (5, 3, [4, 5, 6], 1, 1, 0),
        (4, 4, [6, 6, 6], 3, 1, 1),
    ] {
        let [d, h, w] = size;
        let shapes = [[2, c_in, d, h, w], [c_out, c_in, kernel, kernel, kernel], [1, 1, 1, 1, c_out]];
        let name = format!("{kernel}^3 from {c_in} to {c_out}, stride {stride}, padding {padding}");
        let spec = ConvSpec { stride, padding };
        case(&name, shapes, |[x, weight, bias]| conv3d(x, weight, vector(bias), spec), [true; 3]);
    }
}

#[test]
fn leaky_relu_with_batch_norm() {
    let shapes = [[2, 6, 5, 6, 7], [1, 1, 1, 1, 6], [1, 1, 1, 1, 6]];
    let operation = |[x, gamma, beta]: [Tensor<5>; 3]| {
        let statistics = leaky_statistics(x.clone());
        leaky_norm(x, vector(gamma), vector(beta), statistics)
    };
    case("LeakyReLU and BatchNorm", shapes, operation, [true; 3]);
}

#[test]
fn upsampling_and_concatenation() {
    let shapes = [[2, 3, 2, 3, 4], [2, 5, 8, 10, 12]];
    case("upsampling", shapes, |[deep, skip]| upsample_concat(deep, skip, 2), [true; 2]);
}

#[test]
fn warps() {
    let shapes = [[2, 4, 12, 13, 14], [2, 3, 6, 7, 8]];
    // Far enough to leave the source on all sides.
    case("warp", shapes, |[source, u]| warp(source, u * 7.0, 3), [false, true]);
}

fn run_of(text: &str, edge: usize, device: &Device) -> (Gan, Vec<Patch>) {
    let config = TrainConfig::parse(text).unwrap();
    let gan = Gan::new(&config, &[1, 2], 1.0, device);
    (gan, (0..config.sampling.batch).map(|k| patch(k, edge)).collect())
}

fn generator_update(gan: &mut Gan, patches: &[Patch]) -> GeneratorLosses {
    let mut group = Group { collective: &mut Alone, watch: &() };
    let share = Share::whole(Patches::Host(patches), gan.config.sampling.micro_batch);
    gan.update_generator(&share, 0.0, &mut group).unwrap().losses
}

/// The gradient of the update that Adam made first: its first moment is a tenth of it.
fn first_moments(gan: &Gan, network: &str) -> Vec<f32> {
    let state = to_bytes(gan, &Standing::default());
    let tensors = safetensors::SafeTensors::deserialize(&state).unwrap();
    bytemuck::pod_collect_to_vec(tensors.tensor(&format!("{network}.moment0")).unwrap().data())
}

/// f32 through twenty layers.
const LOSS: f32 = 1e-4;
/// W is a small difference of scores, so their rounding counts and not its own size: 3e-7 was measured, where W is 2.5e-3.
const SCORES: f32 = 1e-6;
/// One LeakyReLU input that rounding sends to the other side of 0 moves all gradients before it by up to 1.4e-2 of their size
/// (`ONE_KINK` in `pytorch_training`). A mistake would move them by their own size.
const GRADIENT: f64 = 2e-2;

fn updates_agree(text: &str, edge: usize) {
    let update = |device: &Device| {
        let (mut gan, patches) = run_of(text, edge, device);
        let share = Share::whole(Patches::Host(&patches), gan.config.sampling.micro_batch);
        let mut group = Group { collective: &mut Alone, watch: &() };
        let critic = gan.critic.is_some().then(|| {
            let wasserstein = gan.update_critic(&share, 0.0, &mut group).unwrap().losses;
            (wasserstein, first_moments(&gan, "critic"))
        });
        let losses = generator_update(&mut gan, &patches);
        (critic, losses, first_moments(&gan, "generator"))
    };
    let (critic, losses, gradient) = update(&device());
    let (cpu_critic, cpu_losses, cpu_gradient) = update(&Device::flex());
    let values = |l: &GeneratorLosses| {
        [l.total, l.dice, l.dice_at_rest, l.ncc, l.smoothness, l.adversarial, l.max_displacement]
    };
    assert_close("losses", &values(&losses), &values(&cpu_losses), LOSS);
    assert_parallel("generator's gradient", &gradient, &cpu_gradient);
    if let (Some((w, gradient)), Some((cpu_w, cpu_gradient))) = (critic, cpu_critic) {
        assert!((w - cpu_w).abs() <= SCORES, "W: {w}, on the CPU {cpu_w}");
        assert_parallel("critic's gradient", &gradient, &cpu_gradient);
    }
}

/// The length of the difference in terms of the reference's.
fn assert_parallel(name: &str, ours: &[f32], reference: &[f32]) {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let length = norm(&mut reference.iter().map(|&v| v.into()));
    let off = norm(&mut ours.iter().zip(reference).map(|(a, b)| f64::from(a - b))) / length;
    println!("{name}: off by {off:.2e}");
    assert!(length > 0.0 && off < GRADIENT, "{name}: off by {off:.2e}, at most {GRADIENT:.0e}");
}

#[test]
fn an_update_without_a_critic_gives_the_cpus_losses_and_gradient() {
    updates_agree(
        "system = \"JRS-CNN\"\nsampling = { patch = 44, batch = 2, micro_batch = 1 }\ngenerator.rule = \"adam\"",
        44,
    );
}

#[test]
fn an_update_of_both_networks_gives_the_cpus_losses_and_gradients() {
    updates_agree(
        "system = \"JRS-GANa\"\nsampling = { patch = 76, batch = 1 }\ngenerator.rule = \"adam\"\n\
         critic.optimizer.rule = \"adam\"",
        76,
    );
}

#[test]
fn the_same_update_gives_the_same_bits() {
    let text = "system = \"JRS-CNN\"\nsampling = { patch = 44, batch = 2, micro_batch = 1 }\n\
                generator = { rule = \"adam\", clip_norm = 1e-3 }";
    let once = || {
        let (mut gan, patches) = run_of(text, 44, &device());
        let losses = generator_update(&mut gan, &patches);
        (losses, to_bytes(&gan, &Standing::default()))
    };
    let (first, second) = (once(), once());
    assert_eq!(first.0, second.0);
    assert!(first.1 == second.1, "the states differ");
}

#[test]
fn a_run_goes_on_on_another_device() {
    let text = "system = \"JRS-CNN\"\nsampling = { patch = 44, batch = 1 }\n\
                generator = { rule = \"adam\", learning_rate = 1e-3, clip_norm = 1.0 }";
    let (there, here) = (device(), Device::flex());
    let continued = |from: &Gan, device: &Device| {
        let (mut gan, patches) = run_of(text, 44, device);
        let state = to_bytes(from, &Standing::default());
        restore(&state, &mut gan, device).unwrap();
        assert!(to_bytes(&gan, &Standing::default()) == state, "the change of device changed the state");
        let losses = generator_update(&mut gan, &patches);
        (gan, losses)
    };
    let (fresh, _) = run_of(text, 44, &here);
    let (first, a) = continued(&fresh, &there);
    let (second, b) = continued(&first, &here);
    let (_, c) = continued(&second, &there);
    let on_one_device = {
        let (mut gan, patches) = run_of(text, 44, &here);
        [(); 3].map(|()| generator_update(&mut gan, &patches).total)
    };
    assert_close("losses of a run that moves", &[a.total, b.total, c.total], &on_one_device, 1e-3);
    assert!(
        on_one_device[2] < on_one_device[0],
        "three steps on one patch lower the loss: {on_one_device:?}"
    );
}

/// A patch whose content differs from number to number.
fn patch(k: usize, edge: usize) -> Patch {
    let wave = |phase: f32| -> Vec<f32> {
        let at = |i: usize| [i % edge, i / edge % edge, i / edge / edge].map(|v| v as f32 * 0.37);
        (0..edge.pow(3)).map(|i| at(i).map(|v| (v + phase + k as f32).sin()).iter().product()).collect()
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

fn assert_close(name: &str, ours: &[f32], reference: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), reference.len(), "{name}: number of values");
    let scale = reference.iter().fold(1e-3f32, |max, v| max.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(reference).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{name}, value {i}: {a}, on the CPU {b}");
    }
}

fn tensor(values: Vec<f32>, shape: [usize; 5], device: &Device) -> Tensor<5> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn host(t: Tensor<5>) -> Vec<f32> {
    t.without_autodiff().to_data().try_into_vec().expect("values are f32")
}
