//! Normalised cross-correlation of two images, as a figure (the loss of the same name is the trainer's).

use rayon::prelude::*;

/// Global NCC (Pearson correlation) over the voxels that `selected` accepts, from -1 to 1; `None` if fewer than
/// two are selected or one image is constant there.
///
/// Sums run over fixed chunks joined in order, so the figure does not depend on the number of threads.
pub fn correlation(a: &[f32], b: &[f32], selected: impl Fn(usize) -> bool + Sync) -> Option<f64> {
    const CHUNK: usize = 1 << 16;
    let sums = |term: &(dyn Fn(f64, f64) -> [f64; 3] + Sync)| -> ([f64; 3], usize) {
        let parts: Vec<([f64; 3], usize)> = a
            .par_chunks(CHUNK)
            .zip(b.par_chunks(CHUNK))
            .enumerate()
            .map(|(chunk, (a, b))| {
                let mut part = ([0.0; 3], 0);
                for (i, (&p, &q)) in a.iter().zip(b).enumerate() {
                    if selected(chunk * CHUNK + i) {
                        let t = term(f64::from(p), f64::from(q));
                        part = (std::array::from_fn(|k| part.0[k] + t[k]), part.1 + 1);
                    }
                }
                part
            })
            .collect();
        parts
            .into_iter()
            .fold(([0.0; 3], 0), |all, part| (std::array::from_fn(|k| all.0[k] + part.0[k]), all.1 + part.1))
    };
    let ([sum_a, sum_b, _], n) = sums(&|p, q| [p, q, 0.0]);
    let (mean_a, mean_b) = (sum_a / n as f64, sum_b / n as f64);
    let ([var_a, var_b, both], _) = sums(&|p, q| {
        let (p, q) = (p - mean_a, q - mean_b);
        [p * p, q * q, p * q]
    });
    (n > 1 && var_a > 0.0 && var_b > 0.0).then(|| both / (var_a.sqrt() * var_b.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_numpy_corrcoef() {
        // numpy.corrcoef([1, 2, 3, 5, 4], [2, 1, 4, 6, 7])[0, 1]
        let (a, b) = ([1., 2., 3., 5., 4.], [2., 1., 4., 6., 7.]);
        assert!((correlation(&a, &b, |_| true).unwrap() - 0.8682431421244593).abs() < 1e-12);
        assert_eq!(correlation(&a, &[3.0; 5], |_| true), None);
        assert_eq!(correlation(&a, &b, |_| false), None);
        assert!((correlation(&a, &a.map(|v| 5.0 - 2.0 * v), |i| i > 0).unwrap() + 1.0).abs() < 1e-12);
    }
}
