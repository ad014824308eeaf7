//! Fields as MetaImage (`.mha`): a text header followed by interleaved little-endian vectors, LPS.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use crate::atomic::write_atomically;
use crate::geometry::{checked_grid, voxel_count};
use crate::gzip::in_order;
use crate::volume::DisplacementField;
use crate::{Error, Result};

/// Voxels that are put together at a time.
const VOXELS: usize = 1 << 17;

/// Writes `field` as MetaImage: `MET_FLOAT`, 3 channels, uncompressed, LPS geometry and vectors.
///
/// # Errors
/// If the file cannot be written.
pub fn write_mha(path: impl AsRef<Path>, field: &DisplacementField) -> Result<()> {
    let grid = &field.grid;
    let row = |v: &[f64]| v.iter().map(f64::to_string).collect::<Vec<_>>().join(" ");
    // MetaImage lists the matrix axis by axis: the first three numbers are the direction of index axis x.
    let axes: Vec<f64> = (0..3).flat_map(|a| (0..3).map(move |r| grid.direction[r][a])).collect();
    let header = format!(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n\
         CompressedData = False\nTransformMatrix = {}\nOffset = {}\nCenterOfRotation = 0 0 0\n\
         AnatomicalOrientation = RAI\nElementSpacing = {}\nDimSize = {} {} {}\n\
         ElementNumberOfChannels = 3\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n",
        row(&axes),
        row(&grid.origin),
        row(&grid.spacing),
        grid.size[0],
        grid.size[1],
        grid.size[2],
    );
    write_atomically(path.as_ref(), |file| {
        file.write_all(header.as_bytes())?;
        let [x, y, z] = field.u.each_ref().map(|component| component.chunks(VOXELS).collect::<Vec<_>>());
        let interleaved = |i: usize| {
            let vectors = x[i].iter().zip(y[i]).zip(z[i]);
            let bytes: Vec<[[u8; 4]; 3]> =
                vectors.map(|((x, y), z)| [x, y, z].map(|c| c.to_le_bytes())).collect();
            bytes.into_flattened().into_flattened()
        };
        in_order(x.len(), interleaved, |bytes| file.write_all(&bytes))
    })
}

/// Reads a MetaImage vector field (3-D, 3 channels, `MET_FLOAT` or `MET_DOUBLE`, little-endian, plain or
/// zlib-compressed, data in the same file).
///
/// # Errors
/// If the file cannot be read or is anything else than that.
pub fn read_mha(path: impl AsRef<Path>) -> Result<DisplacementField> {
    let path = path.as_ref();
    let bytes =
        fs::read(path).map_err(|e| Error::io(path, e, "Check the name and that the file may be read"))?;
    let header = Header::parse(path, &bytes)?;
    header.expect("NDims", "3")?;
    header.expect("ElementNumberOfChannels", "3")?;
    header.expect("ElementDataFile", "LOCAL")?;
    for key in ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"] {
        if header.find(key).is_some() {
            header.expect(key, "False")?;
        }
    }
    let [nx, ny, nz] = header.numbers::<3, usize>("DimSize")?;
    let size = [nx, ny, nz];
    let axes = header.numbers::<9, f64>("TransformMatrix")?;
    let direction = std::array::from_fn(|r| std::array::from_fn(|a| axes[3 * a + r]));
    let spacing = header.numbers("ElementSpacing")?;
    let grid = checked_grid(path, size, spacing, header.numbers("Offset")?, direction)?;

    let width = match header.require("ElementType")? {
        "MET_FLOAT" => 4,
        "MET_DOUBLE" => 8,
        other => {
            return Err(Error::file(
                path,
                format!("ElementType is {other}"),
                "Write the field as MET_FLOAT or MET_DOUBLE",
            ));
        }
    };
    let n = voxel_count(path, size)?;
    let expected = n * 3 * width;
    let mut inflated = Vec::new();
    let data = if header.find("CompressedData").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        flate2::read::ZlibDecoder::new(header.data)
            .take(expected as u64)
            .read_to_end(&mut inflated)
            .map_err(|e| Error::io(path, e, "The compressed part is damaged; copy the file again"))?;
        &inflated[..]
    } else {
        header.data
    };
    if data.len() < expected {
        return Err(Error::file(
            path,
            format!("{} bytes of vectors where {size:?} voxels need {expected}", data.len()),
            "The file is cut; copy it again",
        ));
    }
    let value = |i: usize| match width {
        4 => f32::from_le_bytes(std::array::from_fn(|b| data[4 * i + b])),
        _ => f64::from_le_bytes(std::array::from_fn(|b| data[8 * i + b])) as f32,
    };
    Ok(DisplacementField { grid, u: std::array::from_fn(|c| (0..n).map(|i| value(3 * i + c)).collect()) })
}

/// `Key = value` lines up to and including `ElementDataFile`, and what follows.
struct Header<'a> {
    path: &'a Path,
    fields: Vec<(String, String)>,
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        const FIX: &str = "Check that it is a MetaImage (.mha) file";
        let mut fields = Vec::new();
        let mut rest = bytes;
        // No header of ours or of ITK comes near 100 lines; a file without the last key is no MetaImage.
        for _ in 0..100 {
            let Some(end) = rest.iter().take(4096).position(|&b| b == b'\n') else { break };
            let line = String::from_utf8_lossy(&rest[..end]);
            rest = &rest[end + 1..];
            let Some((key, value)) = line.split_once('=') else {
                return Err(Error::file(
                    path,
                    format!("the header line {:?} is not `Key = value`", line.trim()),
                    FIX,
                ));
            };
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            let last = key == "ElementDataFile";
            fields.push((key, value));
            if last {
                return Ok(Self { path, fields, data: rest });
            }
        }
        Err(Error::file(path, "no ElementDataFile line in the header", FIX))
    }

    fn find(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn require(&self, key: &str) -> Result<&str> {
        self.find(key).ok_or_else(|| {
            Error::file(
                self.path,
                format!("the header has no {key}"),
                "Write the field again with ITK or jrs",
            )
        })
    }

    fn expect(&self, key: &str, wanted: &str) -> Result<()> {
        let value = self.require(key)?;
        if value.eq_ignore_ascii_case(wanted) {
            return Ok(());
        }
        Err(Error::file(
            self.path,
            format!("{key} is {value}, and a displacement field has {wanted}"),
            "Write the field as 3-D little-endian vectors in one .mha file",
        ))
    }

    fn numbers<const N: usize, T: std::str::FromStr>(&self, key: &str) -> Result<[T; N]> {
        let text = self.require(key)?;
        let values: Vec<T> = text.split_whitespace().filter_map(|v| v.parse().ok()).collect();
        values.try_into().map_err(|_| {
            Error::file(self.path, format!("{key} = {text} is not {N} numbers"), "Correct the header line")
        })
    }
}
