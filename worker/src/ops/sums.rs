//! Sums that are the same every time, and fast, on every device.
//!
//! Burn's own on CubeCL devices either add with atomics, in an order that no two runs share, or give each result to one
//! thread. There, sums are taken in steps instead.

use burn::tensor::Tensor;

/// Values that one thread adds up.
const PARTS: usize = 64;

/// Sum of all values, \[1\].
pub fn sum<const D: usize>(t: Tensor<D>) -> Tensor<1> {
    if !in_steps(&t) {
        return t.sum();
    }
    let n = t.shape().num_elements();
    step_by_step(t.reshape([1, n])).reshape([1])
}

/// Mean of all values, \[1\].
pub fn mean<const D: usize>(t: Tensor<D>) -> Tensor<1> {
    if !in_steps(&t) {
        return t.mean();
    }
    let n = t.shape().num_elements();
    sum(t) / n as f32
}

/// Sum of every row of \[rows, n\], \[rows, 1\].
pub fn row_sums(t: Tensor<2>) -> Tensor<2> {
    if in_steps(&t) { step_by_step(t) } else { t.sum_dim(1) }
}

/// Mean of every row of \[rows, n\], \[rows, 1\].
pub fn row_means(t: Tensor<2>) -> Tensor<2> {
    if !in_steps(&t) {
        return t.mean_dim(1);
    }
    let n = t.dims()[1];
    step_by_step(t) / n as f32
}

fn in_steps<const D: usize>(t: &Tensor<D>) -> bool {
    crate::device::is_cube(&t.device())
}

fn step_by_step(mut t: Tensor<2>) -> Tensor<2> {
    loop {
        let [rows, n] = t.dims();
        if n == 1 {
            return t;
        }
        let parts = n.min(PARTS);
        let columns = n.div_ceil(parts);
        if parts * columns > n {
            let zeros = Tensor::zeros([rows, parts * columns - n], &t.device());
            t = Tensor::cat(vec![t, zeros], 1);
        }
        t = t.reshape([rows, parts, columns]).sum_dim(1).reshape([rows, columns]);
    }
}
