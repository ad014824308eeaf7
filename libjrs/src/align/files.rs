//! Affine maps made elsewhere: JSON of [`Affine`], ITK transform text files, plain 4x4 matrices.
//!
//! All map fixed points to moving points in LPS mm, as ITK and elastix do.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::solve::rotation;
use crate::atomic::write_atomically;
use crate::geometry::{Affine, IDENTITY, determinant, mat_mul, mat_vec};
use crate::{Error, Result};

/// Reads an affine map: `.json` (matrix and translation), an ITK text transform (`.tfm`, or `.txt` with ITK's
/// first line: affine, Euler 3-D, versor rigid, translation or identity, with their centre), or 16 plain numbers.
///
/// # Errors
/// If the file cannot be read, is none of these, or its map is not finite, mirrors, or scales beyond 2.
pub fn read_affine(path: impl AsRef<Path>) -> Result<Affine> {
    let path = path.as_ref();
    let text = fs::read_to_string(path)
        .map_err(|e| Error::io(path, e, "give a text file with an affine map (.json, .tfm or 4x4 .txt)"))?;
    let parsed = match text.trim_start() {
        t if t.starts_with('{') => serde_json::from_str(t).map_err(|e| e.to_string()),
        t if t.starts_with("#Insight Transform File") => from_itk(t),
        t => from_matrix(t),
    };
    let fix =
        "give JSON with matrix and translation, an ITK .tfm file, or a 4x4 matrix (fixed to moving, LPS mm)";
    let affine = parsed.map_err(|problem| Error::file(path, problem, fix))?;
    check(&affine).map_err(|problem| {
        Error::file(path, problem, "give the map from fixed to moving points in LPS mm")
    })?;
    Ok(affine)
}

/// Writes an affine map: as an ITK transform if the name ends in `.tfm` or `.txt`, else as JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_affine(path: impl AsRef<Path>, affine: &Affine) -> Result<()> {
    let path = path.as_ref();
    let is_itk = path.extension().is_some_and(|e| e == "tfm" || e == "txt");
    let text = if is_itk {
        let numbers: Vec<String> =
            affine.matrix.as_flattened().iter().chain(&affine.translation).map(f64::to_string).collect();
        format!(
            "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n\
             Parameters: {}\nFixedParameters: 0 0 0\n",
            numbers.join(" ")
        )
    } else {
        let json = serde_json::to_string_pretty(affine).expect("a struct of numbers serialises");
        json + "\n"
    };
    write_atomically(path, |file| file.write_all(text.as_bytes()))
}

fn check(affine: &Affine) -> Result<(), String> {
    let numbers = || affine.matrix.as_flattened().iter().chain(&affine.translation);
    if let Some(bad) = numbers().find(|v| !v.is_finite()) {
        return Err(format!("the map holds {bad}"));
    }
    let det = determinant(&affine.matrix);
    // Scaling every axis by 2 is far beyond one patient on two days.
    if !(0.125..=8.0).contains(&det) {
        return Err(format!(
            "the determinant of the map is {det}, so it mirrors or changes volumes too much"
        ));
    }
    Ok(())
}

/// ITK's text format: `Transform:`, `Parameters:` and `FixedParameters:` lines.
fn from_itk(text: &str) -> Result<Affine, String> {
    let field = |name: &str| {
        let mut values = text.lines().filter_map(|l| l.trim().strip_prefix(name)?.strip_prefix(':'));
        let value = values.next().map(str::trim);
        match values.next() {
            Some(_) => Err(format!("several `{name}` lines: a composite transform")),
            None => Ok(value),
        }
    };
    let kind = field("Transform")?.ok_or("no `Transform:` line")?;
    let parameters = numbers(field("Parameters")?.unwrap_or(""))?;
    let fixed = numbers(field("FixedParameters")?.unwrap_or(""))?;
    let wrong = || format!("{kind} with {} parameters and {} fixed ones", parameters.len(), fixed.len());
    let centre: [f64; 3] = match fixed.len() {
        0 => [0.0; 3],
        n if n >= 3 => [fixed[0], fixed[1], fixed[2]],
        _ => return Err(wrong()),
    };
    let p = &parameters;
    let (matrix, translation) = match (kind.split('_').next().unwrap_or(kind), p.len()) {
        ("AffineTransform" | "MatrixOffsetTransformBase", 12) => {
            (std::array::from_fn(|r| std::array::from_fn(|c| p[3 * r + c])), [p[9], p[10], p[11]])
        }
        ("Euler3DTransform", 6) => {
            let [x, y, z] = std::array::from_fn(|a| {
                let mut axis = [0.0; 3];
                axis[a] = p[a];
                rotation(axis)
            });
            // ITK: R = Rz Rx Ry, or Rz Ry Rx where the fourth fixed parameter (ComputeZYX) is set.
            let is_zyx = fixed.get(3).is_some_and(|&f| f != 0.0);
            let inner = if is_zyx { mat_mul(&y, &x) } else { mat_mul(&x, &y) };
            (mat_mul(&z, &inner), [p[3], p[4], p[5]])
        }
        ("VersorRigid3DTransform", 6) => {
            let sine = (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt();
            if sine > 1.0 {
                return Err(format!("a versor of length {sine}, more than 1"));
            }
            let scale = if sine > 0.0 { 2.0 * sine.asin() / sine } else { 0.0 };
            (rotation([p[0] * scale, p[1] * scale, p[2] * scale]), [p[3], p[4], p[5]])
        }
        ("TranslationTransform", 3) => (IDENTITY, [p[0], p[1], p[2]]),
        ("IdentityTransform", _) => (IDENTITY, [0.0; 3]),
        (
            "AffineTransform" | "MatrixOffsetTransformBase" | "Euler3DTransform" | "VersorRigid3DTransform",
            _,
        ) => {
            return Err(wrong());
        }
        _ => return Err(format!("`{kind}` is not a transform that can be read here")),
    };
    let turned = mat_vec(&matrix, centre);
    Ok(Affine { matrix, translation: std::array::from_fn(|a| translation[a] + centre[a] - turned[a]) })
}

/// Sixteen numbers, row by row.
fn from_matrix(text: &str) -> Result<Affine, String> {
    let m = numbers(text)?;
    if m.len() != 16 {
        return Err(format!("{} numbers, and a 4x4 matrix has 16", m.len()));
    }
    if m[12..] != [0.0, 0.0, 0.0, 1.0] {
        return Err(format!("the last row of the matrix is {:?}, not 0 0 0 1", &m[12..]));
    }
    Ok(Affine {
        matrix: std::array::from_fn(|r| std::array::from_fn(|c| m[4 * r + c])),
        translation: [m[3], m[7], m[11]],
    })
}

fn numbers(text: &str) -> Result<Vec<f64>, String> {
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().map_err(|_| {
                let start: String = word.chars().take(40).collect();
                format!("`{start}` is not a number")
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::distance;

    fn read(name: &str, text: &str) -> Result<Affine> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        read_affine(&path)
    }

    fn itk(kind: &str, parameters: &str, fixed: &str) -> String {
        format!(
            "#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\nParameters: {parameters}\n\
             FixedParameters: {fixed}\n"
        )
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let matrix =
            mat_mul(&rotation([0.1, -0.2, 0.05]), &[[1.01, 0.0, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.0]]);
        let affine = Affine { matrix, translation: [1.0 / 3.0, -12.5, 4e-7] };
        for name in ["a.json", "a.tfm", "a.txt"] {
            let path = folder.path().join(name);
            write_affine(&path, &affine).unwrap();
            assert_eq!(read_affine(&path).unwrap(), affine, "{name}");
        }
    }

    /// Angles 0.1, 0.2, 0.3 about x, y, z with a centre: the centre itself moves by the translation alone, and
    /// a small rotation about one axis turns counter-clockwise. Entry (2, 1) = sin x tells Z X Y from Z Y X, where
    /// entry (2, 0) = -sin y (the definitions in ITK's Euler3DTransform).
    #[test]
    fn itk_transforms_have_their_centre_and_order() {
        let a =
            read("t.tfm", &itk("Euler3DTransform_double_3_3", "0.1 0.2 0.3 5 6 7", "10 20 30 0")).unwrap();
        assert!(distance(a.apply([10.0, 20.0, 30.0]), [15.0, 26.0, 37.0]) < 1e-12);
        assert!((a.matrix[2][1] - 0.1f64.sin()).abs() < 1e-12);
        let b =
            read("t.tfm", &itk("Euler3DTransform_double_3_3", "0.1 0.2 0.3 5 6 7", "10 20 30 1")).unwrap();
        assert!((b.matrix[2][0] + 0.2f64.sin()).abs() < 1e-12);
        let half = 0.15f64.sin();
        let c =
            read("t.tfm", &itk("VersorRigid3DTransform_double_3_3", &format!("0 0 {half} 0 0 0"), "0 0 0"));
        assert!(distance(c.unwrap().apply([1.0, 0.0, 0.0]), [0.3f64.cos(), 0.3f64.sin(), 0.0]) < 1e-12);
        let d =
            read("t.txt", &itk("AffineTransform_double_3_3", "2 0 0 0 1 0 0 0 1 1 2 3", "10 0 0")).unwrap();
        assert_eq!(d.apply([11.0, 0.0, 0.0]), [13.0, 2.0, 3.0]);
        let e = read("t.txt", "1 0 0 5\n0 1 0 6\n0,0,1,7\n0 0 0 1\n").unwrap();
        assert_eq!(e.translation, [5.0, 6.0, 7.0]);
    }

    #[test]
    fn bad_files_are_refused_with_the_value() {
        let identity = "1 0 0 0 1 0 0 0 1 0 0 0";
        let cases = [
            ("1 0 0 0\n0 1 0 0\n0 0 1 0\n", "12 numbers"),
            ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "last row"),
            ("1 0 0 0\n0 1 0 0\n0 0 -1 0\n0 0 0 1\n", "determinant of the map is -1"),
            ("1 0 0 0\n0 1 0 nan\n0 0 1 0\n0 0 0 1\n", "holds NaN"),
            ("hello", "`hello` is not a number"),
            ("", "0 numbers"),
            ("{\"matrix\": 3}", "invalid type"),
            (&itk("BSplineTransform_double_3_3", "0", "0 0 0"), "`BSplineTransform_double_3_3`"),
            (&itk("AffineTransform_double_3_3", "1 2", "0 0 0"), "with 2 parameters"),
            (&itk("AffineTransform_double_3_3", identity, "0 0"), "2 fixed ones"),
            (&itk("VersorRigid3DTransform_double_3_3", "1 1 1 0 0 0", "0 0 0"), "versor of length"),
            (&(itk("AffineTransform_double_3_3", identity, "0 0 0") + "Transform: X\n"), "composite"),
        ];
        for (text, expected) in cases {
            let message = read("t.txt", text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("t.txt"), "{expected}: {message}");
        }
        assert!(read_affine("no/such.tfm").unwrap_err().to_string().contains("no/such.tfm"));
    }
}
