//! Target registration error on landmarks (AAPM TG-132).

use serde::{Deserialize, Serialize};

use super::statistics::mean;
use crate::field::map_point;
use crate::geometry::{Affine, distance};
use crate::landmarks::Landmark;
use crate::volume::DisplacementField;

/// Distances between where the fixed landmarks are sent and where they are in the moving image, mm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetRegistrationError {
    /// Mean over the landmarks inside the field.
    pub mean_mm: f64,
    /// Maximum over the landmarks inside the field.
    pub max_mm: f64,
    /// Each landmark inside the field, by name.
    pub each: Vec<(String, f64)>,
    /// Names of the landmarks outside the field's grid, which are not counted.
    pub outside: Vec<String>,
}

/// `|T(fixed) - moving|` over `landmarks`, with `T(x) = affine(x + u(x))`; `None` if none is inside the field.
pub fn target_registration_error(
    landmarks: &[Landmark],
    field: &DisplacementField,
    affine: Option<&Affine>,
) -> Option<TargetRegistrationError> {
    let (mut each, mut outside) = (Vec::new(), Vec::new());
    for landmark in landmarks {
        match map_point(field, affine, landmark.fixed) {
            Some(found) => each.push((landmark.name.clone(), distance(found, landmark.moving))),
            None => outside.push(landmark.name.clone()),
        }
    }
    let errors: Vec<f64> = each.iter().map(|(_, mm)| *mm).collect();
    let mean_mm = mean(&errors)?;
    let max_mm = errors.iter().copied().fold(0.0, f64::max);
    Some(TargetRegistrationError { mean_mm, max_mm, each, outside })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Grid;

    #[test]
    fn distances_after_the_transform() {
        let mut field = DisplacementField::zero(Grid::axis_aligned([10, 10, 10], [1.0; 3], [0.0; 3]));
        field.u[2].fill(3.0);
        let landmark = |name: &str, fixed, moving| Landmark { name: name.into(), fixed, moving };
        let landmarks = [
            landmark("hit", [1.0, 2.0, 3.0], [1.0, 2.0, 6.0]),
            landmark("miss", [5.0, 5.0, 5.0], [8.0, 9.0, 8.0]),
            landmark("away", [50.0, 5.0, 5.0], [0.0, 0.0, 0.0]),
        ];
        let tre = target_registration_error(&landmarks, &field, None).unwrap();
        assert_eq!((tre.mean_mm, tre.max_mm), (2.5, 5.0));
        assert_eq!((tre.each.len(), tre.outside), (2, vec!["away".to_owned()]));
        assert_eq!(target_registration_error(&landmarks[2..], &field, None), None);
    }
}
