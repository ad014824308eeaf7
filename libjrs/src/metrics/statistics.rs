//! Mean, standard deviation and percentile, as numpy defines them, in a fixed order of summation.

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Population standard deviation (`numpy.std`); `None` of nothing.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((squares / values.len() as f64).sqrt())
}

/// Percentile `p` (0..=100) by linear interpolation between order statistics (`numpy.percentile`).
/// `None` of nothing.
pub fn percentile(values: &[f64], p: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(percentile_of_sorted(&sorted, p))
}

/// As [`percentile`], of values that are sorted already and not empty.
pub(crate) fn percentile_of_sorted(sorted: &[f64], p: f64) -> f64 {
    let position = p / 100.0 * (sorted.len() - 1) as f64;
    let lower = position as usize;
    let upper = (lower + 1).min(sorted.len() - 1);
    sorted[lower] + (position - lower as f64) * (sorted[upper] - sorted[lower])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_numpy() {
        // numpy 2.4: a = [4, 1, 3, 2.5, 10]; mean, std, percentile(a, 95), percentile(a, 1)
        let a = [4.0, 1.0, 3.0, 2.5, 10.0];
        assert!((mean(&a).unwrap() - 4.1).abs() < 1e-12);
        assert!((standard_deviation(&a).unwrap() - 3.104834939252005).abs() < 1e-12);
        assert!((percentile(&a, 95.0).unwrap() - 8.8).abs() < 1e-12);
        assert!((percentile(&a, 1.0).unwrap() - 1.06).abs() < 1e-12);
        assert_eq!(percentile(&[7.0], 95.0), Some(7.0));
        assert_eq!((mean(&[]), standard_deviation(&[]), percentile(&[], 95.0)), (None, None, None));
    }
}
