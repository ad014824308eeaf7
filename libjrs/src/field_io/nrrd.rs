//! Fields as NRRD: a text header followed by interleaved little-endian vectors, LPS.

use std::io::Write;
use std::path::Path;

use crate::Result;
use crate::atomic::write_atomically;
use crate::volume::DisplacementField;

/// Writes `field` as NRRD: float, raw, `space: left-posterior-superior`, the components as the fastest axis.
///
/// # Errors
/// If the file cannot be written.
pub fn write_nrrd(path: impl AsRef<Path>, field: &DisplacementField) -> Result<()> {
    let grid = &field.grid;
    let vector = |v: [f64; 3]| format!("({},{},{})", v[0], v[1], v[2]);
    let axis = |a: usize| vector(std::array::from_fn(|r| grid.direction[r][a] * grid.spacing[a]));
    let header = format!(
        "NRRD0004\n# displacement field, mm\ntype: float\ndimension: 4\nspace: left-posterior-superior\n\
         sizes: 3 {} {} {}\nspace directions: none {} {} {}\nkinds: vector domain domain domain\nendian: little\n\
         encoding: raw\nspace origin: {}\n\n",
        grid.size[0],
        grid.size[1],
        grid.size[2],
        axis(0),
        axis(1),
        axis(2),
        vector(grid.origin),
    );
    write_atomically(path.as_ref(), |file| {
        file.write_all(header.as_bytes())?;
        let [x, y, z] = &field.u;
        for ((x, y), z) in x.iter().zip(y).zip(z) {
            file.write_all(&x.to_le_bytes())?;
            file.write_all(&y.to_le_bytes())?;
            file.write_all(&z.to_le_bytes())?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::oblique_field;
    use super::*;

    #[test]
    fn header_and_vectors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("u.nrrd");
        let mut field = oblique_field();
        field.grid.direction = crate::geometry::IDENTITY;
        write_nrrd(&path, &field).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let data = &bytes[bytes.len() - 12 * field.grid.len()..];
        let header = std::str::from_utf8(&bytes[..bytes.len() - data.len()]).unwrap();
        assert!(header.contains("sizes: 3 5 4 3\n") && header.ends_with("\n\n"), "{header}");
        assert!(header.contains("space directions: none (0.9,0,0) (0,1.25,0) (0,0,3)\n"), "{header}");
        assert!(header.contains("space origin: (-100.5,42.25,-730)\n"), "{header}");
        let value = |n: usize| f32::from_le_bytes(data[4 * n..][..4].try_into().unwrap());
        assert_eq!([value(21), value(22), value(23)], field.at(7));
    }
}
