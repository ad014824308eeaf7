//! Wilcoxon's signed-rank test for paired samples, two-sided (science.md section 7; the paper's daggers).

use serde::{Deserialize, Serialize};

/// How the p-value was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Exact distribution of the statistic.
    Exact,
    /// Normal approximation with tie correction, without continuity correction.
    Normal,
}

/// Result of the test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Number of pairs that differ.
    pub n: usize,
    /// The smaller of the sums of positive and of negative ranks.
    pub statistic: f64,
    /// Two-sided p-value.
    pub p: f64,
    /// How it was found.
    pub method: Method,
}

/// Up to this many pairs the exact distribution is used, if there are no ties and no zeros (as SciPy does).
const EXACT_UP_TO: usize = 50;

/// Tests whether paired values differ. Pairs without a difference are left out (Wilcoxon's treatment of zeros).
/// `None` if there are no finite pairs; p = 1 if no pair differs.
pub fn signed_rank(pairs: &[(f64, f64)]) -> Option<Test> {
    let finite: Vec<f64> = pairs.iter().map(|(a, b)| a - b).filter(|d| d.is_finite()).collect();
    if finite.is_empty() {
        return None;
    }
    let mut differences: Vec<f64> = finite.iter().copied().filter(|&d| d != 0.0).collect();
    let n = differences.len();
    if n == 0 {
        return Some(Test { n, statistic: 0.0, p: 1.0, method: Method::Exact });
    }
    differences.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let (positive, tie_term) = positive_rank_sum(&differences);
    let total = (n * (n + 1)) as f64 / 2.0;
    let statistic = positive.min(total - positive);
    let exact = n <= EXACT_UP_TO && tie_term == 0.0 && n == finite.len();
    let (p, method) = if exact {
        // Without ties the rank sum is a whole number.
        (2.0 * exact_cdf(statistic as usize, n), Method::Exact)
    } else {
        let n = n as f64;
        let variance = (n * (n + 1.0) * (2.0 * n + 1.0) - tie_term / 2.0) / 24.0;
        let z = (statistic - total / 2.0) / variance.sqrt();
        // 2 Φ(-|z|)
        (libm::erfc(z.abs() / std::f64::consts::SQRT_2), Method::Normal)
    };
    Some(Test { n, statistic, p: p.min(1.0), method })
}

/// Sum of the ranks of positive differences (mean ranks within ties) and Σ(t³ - t) over groups of ties.
fn positive_rank_sum(sorted: &[f64]) -> (f64, f64) {
    let (mut positive, mut tie_term) = (0.0, 0.0);
    let mut start = 0;
    while start < sorted.len() {
        let magnitude = sorted[start].abs();
        let tied = sorted[start..].iter().take_while(|d| d.abs() == magnitude).count();
        let mean_rank = start as f64 + (tied as f64 + 1.0) / 2.0;
        let group = &sorted[start..start + tied];
        positive += mean_rank * group.iter().filter(|d| **d > 0.0).count() as f64;
        tie_term += (tied as f64).powi(3) - tied as f64;
        start += tied;
    }
    (positive, tie_term)
}

/// P(W <= w) when every sign is a fair coin: counts the subsets of 1..=n by their sum.
fn exact_cdf(w: usize, n: usize) -> f64 {
    let mut probability = vec![0f64; n * (n + 1) / 2 + 1];
    probability[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..probability.len()).rev() {
            let with = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = 0.5 * (probability[sum] + with);
        }
    }
    probability[..=w].iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by tests/reference/wilcoxon_reference.py with SciPy.
    const REFERENCE: &str = include_str!("../tests/reference/wilcoxon_reference.json");

    #[derive(Deserialize)]
    struct Expected {
        name: String,
        a: Vec<f64>,
        b: Vec<f64>,
        method: Method,
        statistic: f64,
        p: f64,
    }

    #[test]
    fn matches_scipy() {
        let cases: Vec<Expected> = serde_json::from_str(REFERENCE).unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let pairs: Vec<_> = case.a.iter().copied().zip(case.b.iter().copied()).collect();
            let test = signed_rank(&pairs).unwrap();
            assert_eq!(test.method, case.method, "{}", case.name);
            assert!((test.statistic - case.statistic).abs() < 1e-9, "{}: {test:?}", case.name);
            let error = (test.p - case.p).abs() / case.p;
            assert!(error < 1e-9, "{}: p {} against SciPy's {}", case.name, test.p, case.p);
        }
    }

    #[test]
    fn nothing_to_test() {
        assert!(signed_rank(&[]).is_none());
        assert!(signed_rank(&[(f64::NAN, 1.0)]).is_none());
        assert_eq!(signed_rank(&[(2.0, 2.0), (3.0, 3.0)]).unwrap().p, 1.0);
    }

    #[test]
    fn swapping_the_samples_changes_nothing() {
        let pairs = [(1.0, 2.5), (3.0, 2.0), (4.0, 4.7), (5.0, 9.0), (2.0, 2.2)];
        let swapped = pairs.map(|(a, b)| (b, a));
        assert_eq!(signed_rank(&pairs).unwrap().p, signed_rank(&swapped).unwrap().p);
    }
}
