//! Mean, standard deviation and percentile, as numpy defines them, in a fixed order of summation.

use rayon::prelude::*;

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

/// [`percentile`]s of values that come in parts, without sorting them: values are counted by their leading 16 bits,
/// then those of one such bin by the other 16. `None` of nothing; no value may be NaN.
pub(crate) fn percentiles<const N: usize>(parts: &[Vec<f32>], p: [f64; N]) -> Option<[f64; N]> {
    let leading = Counts::of(parts, |key| Some(key >> 16));
    let total: usize = leading.0.iter().sum();
    let mut bin = None;
    let mut value_at = |rank: usize| {
        let (high, rank) = leading.place(rank);
        let counts = match bin.take() {
            Some((last, counts)) if last == high => counts,
            _ => Counts::of(parts, |key| (key >> 16 == high).then_some(key & 0xffff)),
        };
        let (low, _) = counts.place(rank);
        bin = Some((high, counts));
        f64::from(from_key(high << 16 | low))
    };
    (total > 0).then(|| {
        p.map(|p| {
            let position = p / 100.0 * (total - 1) as f64;
            let lower = position as usize;
            let low = value_at(lower);
            low + (position - lower as f64) * (value_at((lower + 1).min(total - 1)) - low)
        })
    })
}

/// How many values have each of the 2^16 numbers.
struct Counts(Vec<usize>);

impl Counts {
    fn of(parts: &[Vec<f32>], number: impl Fn(u32) -> Option<u32> + Sync) -> Self {
        let none = || vec![0usize; 1 << 16];
        let count = |mut counts: Vec<usize>, part: &Vec<f32>| {
            part.iter().filter_map(|&v| number(key(v))).for_each(|n| counts[n as usize & 0xffff] += 1);
            counts
        };
        let sum = |mut all: Vec<usize>, counts: Vec<usize>| {
            all.iter_mut().zip(counts).for_each(|(a, c)| *a += c);
            all
        };
        Self(parts.par_iter().fold(none, count).reduce(none, sum))
    }

    /// The number that the value of this rank has, and its rank among those with the same.
    fn place(&self, mut rank: usize) -> (u32, usize) {
        for (number, &count) in self.0.iter().enumerate() {
            if rank < count {
                return (number as u32, rank);
            }
            rank -= count;
        }
        unreachable!("a rank is less than the count of all values")
    }
}

/// Integers in the order of the values.
fn key(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn from_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key })
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

    #[test]
    fn parts_give_the_percentiles_of_the_whole() {
        for n in [1usize, 2, 3, 100, 4001] {
            // Both signs, many equal ones, many orders of magnitude.
            let value = |i: usize| (((i * 7919 % 401) as f32 - 150.0) / 40.0).powi(5);
            let all: Vec<f32> = (0..n).map(value).collect();
            let parts: Vec<Vec<f32>> = all.chunks(97).map(<[f32]>::to_vec).chain([vec![]]).collect();
            let wide: Vec<f64> = all.iter().map(|&v| f64::from(v)).collect();
            let p = [0.0, 1.0, 50.0, 95.0, 99.9, 100.0];
            assert_eq!(percentiles(&parts, p), Some(p.map(|p| percentile(&wide, p).unwrap())), "{n}");
        }
        assert_eq!(percentiles(&[vec![]], [50.0]), None);
    }
}
