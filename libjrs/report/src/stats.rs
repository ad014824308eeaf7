//! Summaries of a sample.

use serde::{Deserialize, Serialize};

/// Mean, spread and quartiles of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sample standard deviation (n - 1); `None` for a single value.
    pub std: Option<f64>,
    /// Smallest value.
    pub min: f64,
    /// First quartile.
    pub q1: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub q3: f64,
    /// Largest value.
    pub max: f64,
}

impl Summary {
    /// The summary of the finite values, `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|v| (v - mean).powi(2)).sum();
        (n > 0).then(|| Self {
            n,
            mean,
            std: (n > 1).then(|| (squares / (n as f64 - 1.0)).sqrt()),
            min: sorted[0],
            q1: quantile(&sorted, 0.25),
            median: quantile(&sorted, 0.5),
            q3: quantile(&sorted, 0.75),
            max: sorted[n - 1],
        })
    }

    /// Ends of a box plot's whiskers: the farthest values within 1.5 interquartile ranges of the box (Tukey), and
    /// the values beyond them.
    pub fn whiskers(&self, values: &[f64]) -> ([f64; 2], Vec<f64>) {
        let reach = 1.5 * (self.q3 - self.q1);
        let finite = values.iter().copied().filter(|v| v.is_finite());
        let (inside, outside): (Vec<f64>, Vec<f64>) =
            finite.partition(|&v| v >= self.q1 - reach && v <= self.q3 + reach);
        let low = inside.iter().copied().fold(self.q1, f64::min);
        let high = inside.iter().copied().fold(self.q3, f64::max);
        ([low, high], outside)
    }
}

/// Quantile of sorted values by linear interpolation (NumPy's default).
///
/// # Panics
/// If `sorted` is empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (position - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_numpy() {
        // numpy: x = [2, 4, 4, 5, 7, 9]; mean 5.1667, std(ddof=1) 2.4833, percentile 25/50/75 = 4, 4.5, 6.5
        let s = Summary::of(&[7.0, 2.0, 4.0, f64::NAN, 9.0, 4.0, 5.0]).unwrap();
        assert_eq!(s.n, 6);
        assert!((s.mean - 31.0 / 6.0).abs() < 1e-12);
        assert!((s.std.unwrap() - 2.483277404291889).abs() < 1e-12);
        assert_eq!((s.q1, s.median, s.q3), (4.0, 4.5, 6.5));
    }

    #[test]
    fn few_values() {
        assert!(Summary::of(&[]).is_none());
        assert!(Summary::of(&[f64::NAN]).is_none());
        let one = Summary::of(&[3.0]).unwrap();
        assert_eq!((one.mean, one.std, one.median), (3.0, None, 3.0));
    }

    #[test]
    fn whiskers_stop_at_values() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 50.0];
        let (ends, outliers) = Summary::of(&values).unwrap().whiskers(&values);
        assert_eq!(ends, [1.0, 5.0]);
        assert_eq!(outliers, [50.0]);
    }
}
