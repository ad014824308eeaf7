//! Normalised cross-correlation of two images, as a figure (the loss of the same name is the trainer's).

use rayon::prelude::*;

/// Global NCC (Pearson correlation) over the voxels that `selected` accepts, from -1 to 1; `None` if fewer than
/// two are selected or one image is constant there.
///
/// Sums run over fixed chunks joined in order, so the figure does not depend on the number of threads.
pub fn correlation(a: &[f32], b: &[f32], selected: impl Fn(usize) -> bool + Sync) -> Option<f64> {
    const CHUNK: usize = 1 << 16;
    let parts: Vec<Moments> = a
        .par_chunks(CHUNK)
        .zip(b.par_chunks(CHUNK))
        .enumerate()
        .map(|(chunk, (a, b))| {
            let mut part = Moments::default();
            for (i, (&p, &q)) in a.iter().zip(b).enumerate() {
                if selected(chunk * CHUNK + i) {
                    part.add(f64::from(p), f64::from(q));
                }
            }
            part
        })
        .collect();
    parts.iter().fold(Moments::default(), Moments::joined).correlation()
}

/// Sums over pairs of values from which their correlation follows, in one pass.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moments {
    count: f64,
    /// The first pair. Sums are of differences to it: they stay small, and exactly 0 for constant images.
    pivot: [f64; 2],
    sum: [f64; 2],
    /// Of products: a a, b b, a b.
    products: [f64; 3],
}

impl Moments {
    #[inline]
    pub fn add(&mut self, a: f64, b: f64) {
        if self.count == 0.0 {
            self.pivot = [a, b];
        }
        self.count += 1.0;
        let (a, b) = (a - self.pivot[0], b - self.pivot[1]);
        self.sum[0] += a;
        self.sum[1] += b;
        self.products[0] += a * a;
        self.products[1] += b * b;
        self.products[2] += a * b;
    }

    /// Those of both, about the pivot of the first.
    pub fn joined(self, other: &Moments) -> Moments {
        if self.count == 0.0 {
            return *other;
        }
        let [da, db]: [f64; 2] = std::array::from_fn(|i| other.pivot[i] - self.pivot[i]);
        let (n, [sa, sb], [aa, bb, ab]) = (other.count, other.sum, other.products);
        let moved = [aa + 2.0 * da * sa + n * da * da, bb + 2.0 * db * sb + n * db * db, {
            ab + da * sb + db * sa + n * da * db
        }];
        Moments {
            count: self.count + n,
            pivot: self.pivot,
            sum: [self.sum[0] + sa + n * da, self.sum[1] + sb + n * db],
            products: std::array::from_fn(|i| self.products[i] + moved[i]),
        }
    }

    /// Pearson's; `None` if fewer than two pairs were added or one side is constant.
    pub fn correlation(&self) -> Option<f64> {
        let (n, [sa, sb], [aa, bb, ab]) = (self.count, self.sum, self.products);
        let (var_a, var_b) = (aa - sa * sa / n, bb - sb * sb / n);
        (n > 1.0 && var_a > 0.0 && var_b > 0.0).then(|| (ab - sa * sb / n) / (var_a.sqrt() * var_b.sqrt()))
    }
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

    #[test]
    fn joining_is_adding_all() {
        let pair = |i: usize| ((i * 37 % 101) as f64 + 900.0, (i * 53 % 89) as f64 - 400.0);
        let of = |range: std::ops::Range<usize>| {
            let mut moments = Moments::default();
            range.map(pair).for_each(|(a, b)| moments.add(a, b));
            moments
        };
        let joined = of(0..30).joined(&of(30..30)).joined(&of(30..77)).correlation().unwrap();
        assert!((joined - of(0..77).correlation().unwrap()).abs() < 1e-12);
    }
}
