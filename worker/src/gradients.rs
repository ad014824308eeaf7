//! The mean of all ranks' gradients, where they lie: the same bits on the host and on a device ([`exact_sum`]).

use crate::collective::{Collective, Failure, exact_sum};
use crate::device::read;
use burn::tensor::{Device, Tensor, TensorData};

/// What a step's gradients become.
pub(crate) struct Mean {
    /// Over all micro-batches of all ranks, on the step's device.
    pub gradient: Tensor<1>,
    /// Whether a rank wishes to stop: the wish travels with the exponents, so that all ranks learn of it in the same step.
    pub stop: bool,
}

/// The mean of `terms` gradients of `parameters` values, of which this rank has `own`.
///
/// # Errors
/// If the collective or the device fails.
pub(crate) fn mean(
    collective: &mut dyn Collective,
    own: &[Tensor<1>],
    parameters: usize,
    terms: usize,
    stop: bool,
    device: &Device,
) -> Result<Mean, Failure> {
    #[cfg(feature = "cube")]
    if let Some(device) = crate::device::cube(device) {
        return cube::mean(collective, own, parameters, terms, stop, &device);
    }
    let own: Vec<Vec<f32>> = own.iter().cloned().map(read).collect::<Result<_, _>>()?;
    let mut exponents = exponents(parameters, stop);
    let (_, blocks) = exponents.split_last_mut().expect("it has at least the wish");
    own.iter().for_each(|gradient| exact_sum::raise_exponents(blocks, gradient));
    collective.max(&mut exponents)?;
    let stop = exponents.pop() != Some(0);

    let mut sums = vec![0; parameters];
    own.iter().for_each(|gradient| exact_sum::add(&mut sums, gradient, &exponents, terms));
    collective.sum(&mut sums)?;
    let gradient = exact_sum::mean(&sums, &exponents, terms);
    Ok(Mean { gradient: Tensor::from_data(TensorData::new(gradient, [parameters]), device), stop })
}

/// One for each block, and the wish to stop behind them.
fn exponents(parameters: usize, stop: bool) -> Vec<i32> {
    let mut exponents = vec![0; exact_sum::blocks(parameters) + 1];
    exponents[exact_sum::blocks(parameters)] = i32::from(stop);
    exponents
}

#[cfg(feature = "cube")]
mod cube {
    use super::{Mean, exponents};
    use crate::collective::device::DeviceValues;
    use crate::collective::{Collective, Failure};
    use burn::backend::Cube;
    use burn::tensor::{DType, Shape, Tensor};
    use burn_cubecl::CubeDevice;
    use burn_cubecl::kernel::into_contiguous;
    use burn_cubecl::ops::numeric::zeros_client;
    use burn_cubecl::tensor::CubeTensor;
    use jrs_cube::exact_sum;

    /// Nothing leaves the device but what the collective carries, and the wish at the end.
    pub fn mean(
        collective: &mut dyn Collective,
        own: &[Tensor<1>],
        parameters: usize,
        terms: usize,
        stop: bool,
        device: &CubeDevice,
    ) -> Result<Mean, Failure> {
        let client = device.client();
        let own: Vec<CubeTensor> = own.iter().map(primitive).collect();
        let exponents = DeviceValues::from_slice(&client, &exponents(parameters, stop));
        for gradient in &own {
            exact_sum::raise_exponents(&client, exponents.handle(), &gradient.handle, parameters);
        }
        collective.max_on_device(&exponents)?;

        let zeros = zeros_client(client.clone(), device.clone(), Shape::new([parameters]), DType::I64);
        let sums = DeviceValues::new(client.clone(), zeros.handle, parameters);
        for gradient in &own {
            exact_sum::add(&client, sums.handle(), &gradient.handle, parameters, exponents.handle(), terms);
        }
        collective.sum_on_device(&sums)?;
        let gradient = exact_sum::mean(&client, sums.handle(), parameters, exponents.handle(), terms);

        let shape = Shape::new([parameters]);
        let gradient = CubeTensor::new_contiguous(client, device.clone(), shape, gradient, DType::F32);
        let stop = exponents.read::<i32>()?.last() != Some(&0);
        Ok(Mean { gradient: Tensor::from_primitive::<Cube>(gradient), stop })
    }

    fn primitive(gradient: &Tensor<1>) -> CubeTensor {
        into_contiguous(
            gradient.clone().try_into_primitive::<Cube>().expect("gradients are on the step's device"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{Alone, threads};
    use crate::device::Place;
    use std::ops::Range;

    const TERMS: usize = 3;
    const PARAMETERS: usize = 2500;

    /// Magnitudes from 2^-40 to 2^20, both signs, and one block with an infinity.
    fn gradient(term: usize) -> Vec<f32> {
        let value = |i: usize| {
            let wave = ((i * 37 + term * 101) as f32).sin();
            wave * 2f32.powi((i as i32 * 7 + term as i32) % 61 - 40)
        };
        let mut gradient: Vec<f32> = (0..PARAMETERS).map(value).collect();
        if term == 1 {
            gradient[2400] = f32::INFINITY;
        }
        gradient
    }

    /// What ranks get that have the terms of `shares`; rank 0 wishes to stop.
    fn shared(shares: &[Range<usize>], place: Place) -> Vec<(Vec<u32>, bool)> {
        let device = crate::device::open(place).unwrap();
        let rank = |mut ring: Box<dyn Collective>, mine: Range<usize>| {
            let tensor = |term| Tensor::from_data(TensorData::new(gradient(term), [PARAMETERS]), &device);
            let own: Vec<Tensor<1>> = mine.map(tensor).collect();
            let stop = ring.rank() == 0;
            let mean = mean(&mut *ring, &own, PARAMETERS, TERMS, stop, &device).unwrap();
            let values: Vec<f32> = mean.gradient.to_data().try_into_vec().unwrap();
            (values.iter().map(|v| v.to_bits()).collect(), mean.stop)
        };
        std::thread::scope(|scope| {
            let rank = &rank;
            let ranks: Vec<Box<dyn Collective>> = match shares.len() {
                1 => vec![Box::new(Alone)],
                n => threads::ring(n)
                    .into_iter()
                    .map(|ring| -> Box<dyn Collective> { Box::new(ring) })
                    .collect(),
            };
            let ranks: Vec<_> = ranks
                .into_iter()
                .zip(shares.iter().cloned())
                .map(|(ring, mine)| scope.spawn(move || rank(ring, mine)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn same_bits(place: Place) {
        let whole = 0..TERMS;
        let (reference, stop) = shared(std::slice::from_ref(&whole), Place::Cpu).remove(0);
        assert!(stop && reference.iter().any(|v| f32::from_bits(*v).is_nan()), "the block with the infinity");
        for shares in [std::slice::from_ref(&whole), &[0..2, 2..2, 2..3][..]] {
            for (rank, (bits, stop)) in shared(shares, place).into_iter().enumerate() {
                assert!(stop, "rank {rank} of {} on {place} learns of the wish", shares.len());
                assert!(bits == reference, "rank {rank} of {} on {place} has other bits", shares.len());
            }
        }
    }

    #[test]
    fn any_sharing_gives_the_same_bits() {
        same_bits(Place::Cpu);
    }

    #[cfg(feature = "cube-cpu")]
    #[test]
    fn a_device_gives_the_hosts_bits() {
        same_bits(Place::CubeCpu);
    }
}
