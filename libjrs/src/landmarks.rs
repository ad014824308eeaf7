//! Points and landmarks as CSV, LPS mm.
//!
//! Points: `name,x,y,z`. Landmarks: `name,fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z`. The first line
//! is that header, word for word, so that columns in another order or unit are not taken for these.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::atomic::write_atomically;
use crate::geometry::Point;
use crate::{Error, Result};

/// A point with a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedPoint {
    /// Free text.
    pub name: String,
    /// Place, LPS mm.
    pub point: Point,
}

/// One anatomical place in both images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Landmark {
    /// Free text.
    pub name: String,
    /// Where it is in the fixed image, LPS mm.
    pub fixed: Point,
    /// Where it is in the moving image, LPS mm.
    pub moving: Point,
}

const POINT_COLUMNS: [&str; 4] = ["name", "x", "y", "z"];
const LANDMARK_COLUMNS: [&str; 7] =
    ["name", "fixed_x", "fixed_y", "fixed_z", "moving_x", "moving_y", "moving_z"];

/// Reads points (`name,x,y,z`).
///
/// # Errors
/// If the file cannot be read, its header is another one, or a value is not a finite number; the message
/// names the line and the value.
pub fn read_points(path: impl AsRef<Path>) -> Result<Vec<NamedPoint>> {
    let rows = read_table::<3>(path.as_ref(), &POINT_COLUMNS)?;
    Ok(rows.into_iter().map(|(name, point)| NamedPoint { name, point }).collect())
}

/// Reads landmarks (`name,fixed_x,...,moving_z`).
///
/// # Errors
/// As [`read_points`].
pub fn read_landmarks(path: impl AsRef<Path>) -> Result<Vec<Landmark>> {
    let rows = read_table::<6>(path.as_ref(), &LANDMARK_COLUMNS)?;
    let landmark = |(name, [a, b, c, d, e, f]): (String, [f64; 6])| Landmark {
        name,
        fixed: [a, b, c],
        moving: [d, e, f],
    };
    Ok(rows.into_iter().map(landmark).collect())
}

/// Writes points (`name,x,y,z`).
///
/// # Errors
/// If the file cannot be written.
pub fn write_points(path: impl AsRef<Path>, points: &[NamedPoint]) -> Result<()> {
    write_table(path.as_ref(), &POINT_COLUMNS, points.iter().map(|p| (&p.name[..], p.point.to_vec())))
}

/// Writes landmarks (`name,fixed_x,...,moving_z`).
///
/// # Errors
/// If the file cannot be written.
pub fn write_landmarks(path: impl AsRef<Path>, landmarks: &[Landmark]) -> Result<()> {
    let rows = landmarks.iter().map(|l| (&l.name[..], [l.fixed, l.moving].concat()));
    write_table(path.as_ref(), &LANDMARK_COLUMNS, rows)
}

/// Rows of a name and `N` numbers under exactly the header `columns`.
fn read_table<const N: usize>(path: &Path, columns: &[&str]) -> Result<Vec<(String, [f64; N])>> {
    let expected = columns.join(",");
    let bytes = std::fs::read(path)
        .map_err(|e| Error::io(path, e, "Check the name and that the file may be read"))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes); // spreadsheets like to write this mark
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text);
    let mut rows = Vec::new();
    let mut has_header = false;
    for record in reader.records() {
        let record = record.map_err(|e| {
            Error::file(path, format!("this is not CSV text: {e}"), format!("Write it as {expected}"))
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        if !has_header {
            if !record.iter().eq(columns.iter().copied()) {
                let found: Vec<&str> = record.iter().collect();
                return Err(Error::file(
                    path,
                    format!("line {line} is {:?} and not the header", found.join(",")),
                    format!("Begin the file with the line {expected}"),
                ));
            }
            has_header = true;
            continue;
        }
        if record.len() != columns.len() {
            return Err(Error::file(
                path,
                format!("line {line} has {} values where {} are needed", record.len(), columns.len()),
                format!("Give {expected} on every line"),
            ));
        }
        let mut values = [0.0; N];
        for (i, value) in values.iter_mut().enumerate() {
            let text = &record[i + 1];
            *value = text.parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(|| {
                Error::file(
                    path,
                    format!("line {line}: {} is {text:?}, which is not a number", columns[i + 1]),
                    "Give LPS millimetres with a decimal point",
                )
            })?;
        }
        rows.push((record[0].to_owned(), values));
    }
    if has_header {
        return Ok(rows);
    }
    Err(Error::file(path, "the file is empty", format!("Begin it with the line {expected}")))
}

fn write_table<'a>(
    path: &Path,
    columns: &[&str],
    rows: impl Iterator<Item = (&'a str, Vec<f64>)>,
) -> Result<()> {
    write_atomically(path, |file| {
        let mut writer = csv::Writer::from_writer(file);
        writer.write_record(columns)?;
        for (name, values) in rows {
            // Shortest text that reads back to the same number.
            let numbers = values.iter().map(f64::to_string);
            writer.write_record(std::iter::once(name.to_owned()).chain(numbers))?;
        }
        writer.flush()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("points.csv");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, path) = file("");
        let points = vec![
            NamedPoint { name: "apex, left".into(), point: [0.1, -2.5e-7, 1e6] },
            NamedPoint { name: String::new(), point: [1.0 / 3.0, 0.0, -7.25] },
        ];
        write_points(&path, &points).unwrap();
        assert_eq!(read_points(&path).unwrap(), points);
        let landmarks =
            vec![Landmark { name: "seed 1".into(), fixed: [1.0, 2.0, 3.0], moving: [4.0, 5.0, 6.5] }];
        write_landmarks(&path, &landmarks).unwrap();
        assert_eq!(read_landmarks(&path).unwrap(), landmarks);
    }

    #[test]
    fn spreadsheet_habits_are_accepted() {
        let (_folder, path) = file("\u{feff}name, x, y, z\r\n# a remark\r\na, 1, 2, 3\r\n\r\n");
        assert_eq!(read_points(&path).unwrap()[0].point, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn errors_name_the_line_and_the_value() {
        let said = |text: &str, words: &[&str]| {
            let (_folder, path) = file(text);
            let message = read_points(&path).unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{message}");
        };
        said("name,x,y,z\na,1,2,3\nb,1,two,3\n", &["points.csv", "line 3", "\"two\"", "y"]);
        said("name,x,y,z\na,1,2\n", &["line 2", "3 values", "4"]);
        said("name,x,y,z\na,1,2,inf\n", &["line 2", "\"inf\""]);
        said("a,1,2,3\n", &["line 1", "header", "name,x,y,z"]);
        said("", &["empty"]);
        said("name,x,y,z\n\u{0}\n", &["line 2"]);
    }
}
