//! The trainable networks, the losses and the optimisers against PyTorch (`tests/reference/README.md`), on the device that
//! `JRS_TEST_DEVICE` names.

mod device;

use burn::tensor::{Tensor, TensorData};
use device::device;
use jrs_tests::reference::{Reference, TOLERANCE, hash, uniform, weight};
use jrs_worker::config::{Optimizer as OptimizerConfig, Rule};
use jrs_worker::losses::{
    Reduction, Similarity, bending_energy, expectation, ncc, soft_dice, soft_dice_of_soft_contours,
};
use jrs_worker::nets::{Leaves, Parameters, RunningStatistics, critic, generator, moments};
use jrs_worker::ops::warp;
use jrs_worker::optimizer::Optimizer;
use libjrs::network::{self, GENERATOR, Layer};

/// A loss on a small array has little but rounding between it and the reference.
const TIGHT: f64 = 1e-5;
/// One LeakyReLU input that rounding sends to the other side of 0 moves all gradients before it this much (1.4e-2 at most
/// where it was seen) and none behind it. A mistake between the samples of a batch would move them by their own size.
const ONE_KINK: f64 = 2e-2;
/// Size z, y, x of the arrays in the losses' cases.
const SIZE: [usize; 3] = [10, 11, 12];

type Forward = fn(&Leaves, Tensor<5>) -> (Tensor<5>, Vec<(Tensor<2>, usize)>);

#[test]
fn generator_and_its_gradients() {
    network_case("generator", &GENERATOR, generator, 100, [1, 2, 44, 44, 44], 10000, None);
    // The closest input of x14 is 4e-6 from 0, and float32 is off by up to 1e-5 there.
    network_case("generator_batch", &GENERATOR, generator, 100, [2, 2, 44, 48, 52], 20014, Some("x14"));
}

#[test]
fn critic_and_its_gradients() {
    network_case("critic", &network::critic(3), critic, 300, [2, 3, 36, 36, 36], 30000, None);
    network_case("critic_2_channels", &network::critic(2), critic, 500, [1, 2, 40, 36, 44], 40194, None);
}

/// Output, gradients for the input and every parameter, and the running statistics after one update; `kink` names the
/// layer whose LeakyReLU has an input within rounding of 0.
fn network_case(
    case: &str,
    layers: &[Layer],
    forward: Forward,
    first_stream: u64,
    shape: [usize; 5],
    input_stream: u64,
    kink: Option<&str>,
) {
    let reference = Reference::new();
    let parameters = reference_parameters(layers, first_stream);
    let leaves = parameters.leaves(true);
    let x = tensor(by_formula(input_stream, shape), shape).autodiff().require_grad();
    let (y, statistics) = forward(&leaves, x.clone());
    reference.assert_close(&format!("{case}.output"), &host(y.clone()), TOLERANCE);

    let c = tensor(by_formula(input_stream + 1, y.dims()), y.dims()).autodiff();
    let mut gradients = (y * c).sum().backward();
    let dx = x.grad_remove(&mut gradients).expect("the output depends on the input");
    let mut tolerance = if kink.is_some() { ONE_KINK } else { TOLERANCE };
    reference.assert_gradient(&format!("{case}.grad.input"), &host(dx), tolerance);
    let flat = host(leaves.gradient(&mut gradients));
    for (name, values) in by_name(layers, &flat) {
        if kink.is_some_and(|layer| name == format!("{layer}.bn.gamma")) {
            tolerance = TOLERANCE; // BatchNorm comes behind LeakyReLU
        }
        reference.assert_gradient(&format!("{case}.grad.{name}"), values, tolerance);
    }

    let mut running = start_statistics(layers, first_stream);
    running.update(&host(moments(statistics)));
    for (layer, [mean, var]) in layers.iter().zip(&running.blocks) {
        reference.assert_close(&format!("{case}.running.{}.mean", layer.name), mean, TIGHT);
        reference.assert_close(&format!("{case}.running.{}.var", layer.name), var, TIGHT);
    }
}

#[test]
fn dice_and_its_gradient() {
    let reference = Reference::new();
    let n: usize = SIZE.iter().product();
    let mut s = one_hot(2000, 2, n, 5);
    let mut p = uniform(2001, 2 * 5 * n, 0.5, 0.5);
    let channel = |sample: usize, organ: usize| (sample * 5 + organ) * n..(sample * 5 + organ + 1) * n;
    s[channel(0, 2)].fill(0.0); // absent in both
    p[channel(0, 2)].fill(0.0);
    s[channel(1, 4)].fill(0.0); // only in the moving patch
    let per_organ = reference.values("dsc.per_organ");
    let gradient = reference.values("dsc.grad.p");

    // One sample at a time: the reference averages over the batch after averaging over each sample's organs.
    for (sample, present) in [(0, 4.0), (1, 5.0)] {
        let shape = [1, 5, SIZE[0], SIZE[1], SIZE[2]];
        let part = |all: &[f32]| tensor(all[sample * 5 * n..(sample + 1) * 5 * n].to_vec(), shape);
        let prediction = part(&p).autodiff().require_grad();
        let dice = soft_dice(prediction.clone(), part(&s).autodiff());
        let mean = per_organ[sample * 5..(sample + 1) * 5].iter().sum::<f64>() / present;
        assert_near("dsc", &dice, mean);

        let mut gradients = (dice.neg() + 1.0).backward();
        let ours = host(prediction.grad_remove(&mut gradients).unwrap());
        let expected: Vec<f64> =
            gradient[sample * 5 * n..(sample + 1) * 5 * n].iter().map(|g| 2.0 * g).collect();
        jrs_tests::reference::assert_close("dsc.grad.p", &ours, &expected, TIGHT);
    }
}

#[test]
fn dice_of_soft_contours_and_its_gradient() {
    let shape = [1, 2, SIZE[0], SIZE[1], SIZE[2]];
    let soft = |stream| tensor(uniform(stream, shape.iter().product(), 0.5, 0.5), shape);
    loss_case("dsc_of_soft", "p", soft(2002), |p| {
        soft_dice_of_soft_contours(p, soft(2003).autodiff()).neg() + 1.0
    });
}

#[test]
fn both_kinds_of_dice_agree_on_hard_masks() {
    let n: usize = SIZE.iter().product();
    let hard = |stream| tensor(one_hot(stream, 1, n, 5), [1, 5, SIZE[0], SIZE[1], SIZE[2]]);
    let paper = soft_dice(hard(2000), hard(2004));
    let soft = soft_dice_of_soft_contours(hard(2000), hard(2004));
    assert_eq!(host(paper), host(soft));
}

#[test]
fn ncc_and_its_gradient() {
    let shape = [2, 1, SIZE[0], SIZE[1], SIZE[2]];
    let fixed = by_formula(2010, shape);
    let noise = by_formula(2011, shape);
    let mix = |(f, n): (&f32, &f32)| (0.6 * f64::from(*f) + 0.3 * f64::from(*n) + 0.1) as f32;
    let moving: Vec<f32> = fixed.iter().zip(&noise).map(mix).collect();
    let fixed = tensor(fixed, shape).autodiff();
    for (case, similarity) in [("ncc", Similarity::Global), ("local_ncc", Similarity::Local { window: 9 })] {
        loss_case(case, "moving", tensor(moving.clone(), shape), |m| {
            ncc(fixed.clone(), m, similarity).neg() + 1.0
        });
    }
}

#[test]
fn bending_energy_and_its_gradient() {
    let shape = [2, 3, SIZE[0], SIZE[1], SIZE[2]];
    let u = uniform(2020, shape.iter().product(), 2.0, 0.0);
    for (case, spacing) in [("bending", 1.0), ("bending_spacing_1_5", 1.5)] {
        loss_case(case, "u", tensor(u.clone(), shape), |u| bending_energy(u, spacing));
    }
}

#[test]
fn adversarial_losses_and_their_gradients() {
    let shape = [2, 1, 7, 7, 7];
    let fake = tensor(by_formula(2050, shape), shape);
    let real = tensor(uniform(2051, 2 * 343, 1.0, 0.25), shape);
    for (name, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
        loss_case(&format!("adversarial_{name}"), "fake", fake.clone(), |d| expectation(d, reduction).neg());
        let critic_loss = format!("critic_loss_{name}");
        loss_case(&critic_loss, "fake", fake.clone(), |d| {
            expectation(d, reduction) - expectation(real.clone().autodiff(), reduction)
        });
        loss_case(&critic_loss, "real", real.clone(), |d| {
            expectation(fake.clone().autodiff(), reduction) - expectation(d, reduction)
        });
    }
}

/// JRS-CNN in one direction: every loss through the warp and the generator to every parameter.
#[test]
fn whole_loss_reaches_every_parameter() {
    let reference = Reference::new();
    let (edge, n) = (48, 48 * 48 * 48);
    let shape = |channels| [1, channels, edge, edge, edge];
    let (f, m) = (by_formula(50002, shape(1)), by_formula(50003, shape(1)));
    let (s_f, s_m) = (one_hot(2102, 1, n, 2), one_hot(2103, 1, n, 2));
    let inner = |t: Tensor<5>| (2..5).fold(t, |t, axis| t.narrow(axis, 20, edge - 40)).autodiff();
    let fixed = inner(tensor(f.clone(), shape(1)));
    let fixed_masks = inner(tensor(s_f, shape(2)));

    let leaves = reference_parameters(&GENERATOR, 100).leaves(true);
    let (u, _) = generator(&leaves, tensor([f, m.clone()].concat(), shape(2)).autodiff());
    reference.assert_close("jrs_cnn.u", &host(u.clone()), TOLERANCE);
    let source = tensor([m, s_m].concat(), shape(3)).autodiff();
    let warped = warp(source, u.clone(), 20);
    let similarity = ncc(fixed, warped.clone().narrow(1, 0, 1), Similarity::Global).neg() + 1.0;
    let dice = soft_dice(warped.narrow(1, 1, 2), fixed_masks).neg() + 1.0;
    let smoothness = bending_energy(u, 1.0);
    for (name, value) in [("ncc", &similarity), ("dsc", &dice), ("bending", &smoothness)] {
        assert_near(name, value, reference.values(&format!("jrs_cnn.{name}"))[0]);
    }

    let mut gradients = (similarity + dice + smoothness).backward();
    let flat = host(leaves.gradient(&mut gradients));
    for (name, values) in by_name(&GENERATOR, &flat) {
        reference.assert_gradient(&format!("jrs_cnn.grad.{name}"), values, TOLERANCE);
    }
}

#[test]
fn optimisers_take_the_same_steps() {
    let reference = Reference::new();
    let to_f32 = |values: Vec<f64>| -> Vec<f32> { values.into_iter().map(|v| v as f32).collect() };
    let gradients = to_f32(reference.values("optimiser.gradients"));
    for (case, rule, learning_rate) in
        [("rmsprop_eps_outside_ms0_0", Rule::Rmsprop, 1e-3), ("adam", Rule::Adam, 1.5e-3)]
    {
        let mut optimiser =
            Optimizer::new(&OptimizerConfig { rule, learning_rate, ..OptimizerConfig::default() });
        let start = to_f32(reference.values("optimiser.start"));
        let mut values = vector(start.clone());
        let expected = reference.values(&format!("{case}.weights"));
        for (gradient, expected) in gradients.chunks(12).zip(expected.chunks(12)) {
            values = optimiser.step(values, vector(gradient.to_vec()), 0.0);
            // Compare the way walked, not the weights: a step is a thousandth of a weight.
            let walked: Vec<f32> = host(values.clone()).iter().zip(&start).map(|(w, s)| w - s).collect();
            let expected: Vec<f64> = expected.iter().zip(&start).map(|(w, s)| w - f64::from(*s)).collect();
            jrs_tests::reference::assert_close(case, &walked, &expected, TOLERANCE);
        }
    }
}

/// A loss of one tensor: its value and its gradient.
fn loss_case(case: &str, of: &str, x: Tensor<5>, loss: impl FnOnce(Tensor<5>) -> Tensor<1>) {
    let reference = Reference::new();
    let leaf = x.autodiff().require_grad();
    let value = loss(leaf.clone());
    assert_near(case, &value, reference.values(&format!("{case}.value"))[0]);
    let gradient = leaf.grad_remove(&mut value.backward()).expect("the loss depends on its argument");
    reference.assert_close(&format!("{case}.grad.{of}"), &host(gradient), TIGHT);
}

fn assert_near(name: &str, ours: &Tensor<1>, reference: f64) {
    let ours = f64::from(host(ours.clone())[0]);
    assert!(
        (ours - reference).abs() <= TIGHT * reference.abs().max(0.1),
        "{name}: {ours}, PyTorch {reference}"
    );
}

/// Trainable values of the layers, in parameter order.
fn reference_parameters(layers: &[Layer], first_stream: u64) -> Parameters {
    let trainable = streams(layers, first_stream).filter(|(_, name, _)| trained(name));
    let values = trainable.flat_map(|(stream, name, shape)| weight(stream, without_layer(&name), &shape));
    Parameters::from_values(layers, values.collect(), &device())
}

fn start_statistics(layers: &[Layer], first_stream: u64) -> RunningStatistics {
    let all: Vec<Vec<f32>> = streams(layers, first_stream)
        .filter(|(_, name, _)| !trained(name))
        .map(|(stream, name, shape)| weight(stream, without_layer(&name), &shape))
        .collect();
    RunningStatistics { blocks: all.chunks(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect() }
}

/// (stream, name, shape) of every tensor in the order of the layer table.
fn streams(layers: &[Layer], first: u64) -> impl Iterator<Item = (u64, String, Vec<usize>)> {
    layers.iter().flat_map(Layer::tensors).zip(first..).map(|((name, shape), stream)| (stream, name, shape))
}

/// Cuts a flat gradient into the trainable tensors.
fn by_name<'a>(layers: &[Layer], flat: &'a [f32]) -> Vec<(String, &'a [f32])> {
    let mut rest = flat;
    let mut parts = Vec::new();
    for (_, name, shape) in streams(layers, 0).filter(|(_, name, _)| trained(name)) {
        let (head, tail) = rest.split_at(shape.iter().product());
        parts.push((name, head));
        rest = tail;
    }
    assert!(rest.is_empty());
    parts
}

fn trained(name: &str) -> bool {
    !name.ends_with("bn.mean") && !name.ends_with("bn.var")
}

fn without_layer(name: &str) -> &str {
    name.split_once('.').expect("layer.kind.name").1
}

/// Organ of voxel i = hash % (organs + 1), as channels 1..=organs.
fn one_hot(stream: u64, batch: usize, voxels: usize, organs: usize) -> Vec<f32> {
    let label = |sample: usize, i: usize| hash(stream, (sample * voxels + i) as u64) % (organs as u64 + 1);
    let channels = (0..batch).flat_map(|b| (1..=organs as u64).map(move |o| (b, o)));
    channels.flat_map(|(b, o)| (0..voxels).map(move |i| f32::from(u8::from(label(b, i) == o)))).collect()
}

fn by_formula(stream: u64, shape: [usize; 5]) -> Vec<f32> {
    uniform(stream, shape.iter().product(), 1.0, 0.0)
}

fn tensor(values: Vec<f32>, shape: [usize; 5]) -> Tensor<5> {
    Tensor::from_data(TensorData::new(values, shape), &device())
}

fn vector(values: Vec<f32>) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), &device())
}

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.without_autodiff().to_data().try_into_vec().expect("values are f32")
}
