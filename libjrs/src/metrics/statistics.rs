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

/// [`percentile`]s of values that come in parts, without sorting them, in two passes: values are counted by their leading 16
/// bits, then those of the bins that hold a percentile by the other 16. `None` of nothing; no value may be NaN.
pub(crate) fn percentiles<const N: usize>(parts: &[Vec<f32>], p: [f64; N]) -> Option<[f64; N]> {
    let [leading] = &count(parts, 1, |key| Some((0, key >> 16)))[..] else { unreachable!("one table") };
    let total: usize = leading.iter().sum();
    let last = total.checked_sub(1)?;
    // The two ranks around each percentile.
    let positions = p.map(|p| p / 100.0 * last as f64);
    let ranks = positions.map(|position| [position as usize, (position as usize + 1).min(last)]);
    let places = ranks.map(|ranks| ranks.map(|rank| place(leading, rank)));
    let mut bins: Vec<u32> = places.iter().flatten().map(|&(high, _)| high).collect();
    bins.sort_unstable();
    bins.dedup();
    let table = |high: u32| bins.iter().position(|&bin| bin == high);
    let others = count(parts, bins.len(), |key| Some((table(key >> 16)?, key & 0xffff)));
    let value = |(high, rank): (u32, usize)| {
        let (low, _) = place(&others[table(high).expect("a bin of a percentile")], rank);
        f64::from(from_key(high << 16 | low))
    };
    Some(std::array::from_fn(|i| {
        let [low, high] = places[i].map(value);
        low + (positions[i] - ranks[i][0] as f64) * (high - low)
    }))
}

/// How many values have each of the 2^16 numbers, in one of so many tables.
fn count(
    parts: &[Vec<f32>],
    tables: usize,
    number: impl Fn(u32) -> Option<(usize, u32)> + Sync,
) -> Vec<Vec<usize>> {
    let none = || vec![vec![0usize; 1 << 16]; tables];
    let add = |mut counts: Vec<Vec<usize>>, part: &Vec<f32>| {
        let numbers = part.iter().filter_map(|&v| number(key(v)));
        numbers.for_each(|(table, n)| counts[table][n as usize & 0xffff] += 1);
        counts
    };
    let sum = |mut all: Vec<Vec<usize>>, counts: Vec<Vec<usize>>| {
        all.iter_mut().flatten().zip(counts.iter().flatten()).for_each(|(a, c)| *a += c);
        all
    };
    parts.par_iter().fold(none, add).reduce(none, sum)
}

/// The number that the value of this rank has, and its rank among those with the same.
fn place(counts: &[usize], mut rank: usize) -> (u32, usize) {
    for (number, &count) in counts.iter().enumerate() {
        if rank < count {
            return (number as u32, rank);
        }
        rank -= count;
    }
    unreachable!("a rank is less than the count of all values")
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
