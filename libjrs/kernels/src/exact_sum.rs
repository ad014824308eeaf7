//! The mean of gradients, the same to the last bit in whatever order and grouping they are added.
//!
//! Floating-point addition is not associative, so a sum over workers would depend on how many there are. Integers are:
//! values are cut into blocks, each block gets one exponent that is large enough for all micro-batches (a maximum, which
//! does not depend on order either), and every value becomes a multiple of the block's unit. What is added are 64-bit
//! integers that cannot overflow.
//!
//! With M terms of magnitude below 2^e, the unit is 2^(e - 62 + log2 M): each term is off by at most half of it, 2^-38 of
//! the last bit of the block's largest f32 for M = 1. An ordinary f32 sum loses that bit.

/// Values that share an exponent. Fixed, because the bits of the result depend on it.
pub const BLOCK: usize = 1024;
/// Sums stay below 2^62 in magnitude: one bit for the sign, one to spare.
pub const BITS: i32 = 62;
/// Biased exponent of infinities and NaN.
pub const NOT_FINITE: i32 = 255;

/// Number of blocks of `n` values.
pub fn blocks(n: usize) -> usize {
    n.div_ceil(BLOCK)
}

/// Raises `exponents`, one for each block, to what `values` needs. They start at 0.
pub fn raise_exponents(exponents: &mut [i32], values: &[f32]) {
    assert_eq!(exponents.len(), blocks(values.len()), "one exponent per block");
    for (exponent, block) in exponents.iter_mut().zip(values.chunks(BLOCK)) {
        // Without its sign bit, an f32 is ordered as the integer of its bits.
        let largest = block.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        *exponent = (*exponent).max((largest >> 23) as i32);
    }
}

/// Adds `values`, in units of their blocks, to `sums`. `exponents` are the maxima over all `terms` that will be added
/// anywhere.
pub fn add(sums: &mut [i64], values: &[f32], exponents: &[i32], terms: usize) {
    assert_eq!(sums.len(), values.len(), "one sum per value");
    for ((sums, values), &exponent) in sums.chunks_mut(BLOCK).zip(values.chunks(BLOCK)).zip(exponents) {
        if exponent == NOT_FINITE {
            continue; // the mean will be NaN, whatever is added
        }
        let scale = power_of_two(-unit(exponent, terms));
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += (f64::from(value) * scale).round_ties_even() as i64;
        }
    }
}

/// The mean of `terms` terms whose sums are `sums`. A block in which any term was infinite or NaN is NaN.
pub fn mean(sums: &[i64], exponents: &[i32], terms: usize) -> Vec<f32> {
    let mut mean = Vec::with_capacity(sums.len());
    for (sums, &exponent) in sums.chunks(BLOCK).zip(exponents) {
        let scale = match exponent {
            NOT_FINITE => f64::NAN,
            exponent => power_of_two(unit(exponent, terms)),
        };
        mean.extend(sums.iter().map(|&sum| (sum as f64 * scale / terms as f64) as f32));
    }
    mean
}

/// Exponent of the unit of a block whose values have a biased exponent of at most `exponent`, so are below
/// 2^(exponent - 126).
fn unit(exponent: i32, terms: usize) -> i32 {
    exponent - 126 - BITS + headroom(terms)
}

/// Bits that a sum of so many terms may grow by.
pub fn headroom(terms: usize) -> i32 {
    terms.next_power_of_two().ilog2() as i32
}

/// 2^n, exact on every machine, which `powi` does not promise; n within an f64's normal exponents.
fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The mean of `terms` when they are added in `groups`, each by itself, and the groups afterwards.
    fn grouped(terms: &[Vec<f32>], groups: &[Vec<usize>]) -> Vec<f32> {
        let n = terms[0].len();
        let mut exponents = vec![0; blocks(n)];
        for group in groups {
            let mut own = vec![0; blocks(n)];
            group.iter().for_each(|&t| raise_exponents(&mut own, &terms[t]));
            exponents.iter_mut().zip(own).for_each(|(e, own)| *e = (*e).max(own));
        }
        let mut sums = vec![0; n];
        for group in groups {
            let mut own = vec![0; n];
            group.iter().for_each(|&t| add(&mut own, &terms[t], &exponents, terms.len()));
            sums.iter_mut().zip(own).for_each(|(s, own)| *s += own);
        }
        mean(&sums, &exponents, terms.len())
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// Finite values of every magnitude f32 has, with zeros and subnormal ones among them.
    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite()),
            8 => -1.0..1.0f32,
            1 => Just(0.0f32),
            1 => Just(f32::MAX),
            1 => Just(f32::MIN_POSITIVE / 8.0),
        ]
    }

    /// Terms, an order of them, and after how many of that order a group ends.
    fn case() -> impl Strategy<Value = (Vec<Vec<f32>>, Vec<usize>, Vec<bool>)> {
        (1..9_usize, 1..2_200_usize).prop_flat_map(|(terms, n)| {
            (
                prop::collection::vec(prop::collection::vec(value(), n), terms),
                Just((0..terms).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(any::<bool>(), terms),
            )
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_order_and_grouping_gives_the_same_bits((terms, order, ends) in case()) {
            let mut groups = vec![Vec::new()]; // some stay empty: ranks without work
            for (term, end) in order.into_iter().zip(ends) {
                groups.last_mut().unwrap().push(term);
                if end {
                    groups.push(Vec::new());
                }
            }
            let one_by_one: Vec<usize> = (0..terms.len()).collect();
            prop_assert_eq!(bits(&grouped(&terms, &groups)), bits(&grouped(&terms, &[one_by_one])));
        }

        #[test]
        fn the_mean_is_as_good_as_the_f64_one((terms, _, _) in case()) {
            let m = terms.len() as f64;
            let ours = grouped(&terms, &[(0..terms.len()).collect()]);
            for start in (0..ours.len()).step_by(BLOCK) {
                let end = (start + BLOCK).min(ours.len());
                let largest =
                    terms.iter().flat_map(|t| &t[start..end]).fold(0f64, |max, v| max.max(f64::from(v.abs())));
                for i in start..end {
                    let exact: f64 = terms.iter().map(|t| f64::from(t[i])).sum::<f64>() / m;
                    // Half a unit for each term, what f64 itself loses, and the rounding to f32.
                    let bound = largest * 2f64.powi(-58) * m
                        + largest * 2f64.powi(-52) * m
                        + exact.abs() * 2f64.powi(-24)
                        + f64::from(f32::from_bits(1));
                    let error = (f64::from(ours[i]) - exact).abs();
                    prop_assert!(error <= bound, "value {}: {} instead of {}", i, ours[i], exact);
                }
            }
        }
    }

    #[test]
    fn a_single_term_comes_back_unchanged() {
        // Down to 2^-36 of the largest, with all 24 bits in use.
        let term: Vec<f32> =
            (0..3000).map(|i| (1.0 + (i as f32).sin().abs() / 2.0) * 2f32.powi(-(i % 37))).collect();
        assert!(bits(&grouped(std::slice::from_ref(&term), &[vec![0]])) == bits(&term));
    }

    #[test]
    fn nothing_overflows_and_infinities_are_told() {
        let extremes = vec![vec![f32::MAX; 4]; 7];
        assert_eq!(grouped(&extremes, &[(0..7).collect()]), vec![f32::MAX; 4]);
        let mut terms = vec![vec![1.0; BLOCK + 1]; 2];
        terms[1][3] = f32::INFINITY;
        let mean = grouped(&terms, &[vec![0, 1]]);
        assert!(mean[..BLOCK].iter().all(|v| v.is_nan()), "the block with the infinity");
        assert_eq!(mean[BLOCK], 1.0);
    }
}
