//! A quantity that changes with height, tabulated so that a voxel costs one interpolation.

const LOW: f64 = -300.0;
const STEP: f64 = 2.0;
const COUNT: usize = 311;

/// Values every 2 mm from -300 to 320 mm (template z); constant beyond.
#[derive(Debug, Clone)]
pub struct Profile(Vec<f64>);

impl Profile {
    /// Through the `(height, value)` pairs of `table` (ascending), rounded over ±8 mm.
    pub fn through(table: &[(f64, f64)]) -> Self {
        let at = |z: f64| {
            let next = table.partition_point(|&(height, _)| height < z).clamp(1, table.len() - 1);
            let ((z0, v0), (z1, v1)) = (table[next - 1], table[next]);
            v0 + (v1 - v0) * ((z - z0) / (z1 - z0)).clamp(0.0, 1.0)
        };
        Self::of(|z| 0.25 * (at(z - 8.0) + 2.0 * at(z) + at(z + 8.0)))
    }

    /// Of any function of height.
    pub fn of(value: impl Fn(f64) -> f64) -> Self {
        Self((0..COUNT).map(|n| value(LOW + STEP * n as f64)).collect())
    }

    /// The value at height `z`.
    #[inline]
    pub fn at(&self, z: f64) -> f64 {
        let t = ((z - LOW) / STEP).clamp(0.0, (COUNT - 2) as f64 + 0.999);
        let n = t as usize;
        self.0[n] + (t - n as f64) * (self.0[n + 1] - self.0[n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straight_table_is_kept() {
        let profile = Profile::through(&[(-320.0, -32.0), (340.0, 34.0)]);
        assert!((profile.at(12.34) - 1.234).abs() < 1e-9);
        assert!((profile.at(-900.0) - profile.at(-300.0)).abs() < 1e-9);
    }
}
