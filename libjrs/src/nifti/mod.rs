//! CT images, label maps and masks as single-file NIfTI-1 (`.nii`, `.nii.gz`).
//!
//! Voxels are decoded by the `nifti` crate. The header is checked here first, because that crate panics on some
//! damaged headers, and the geometry is taken here too: sform before qform (as ITK and nibabel), RAS to LPS,
//! no shear. Slope and intercept are applied in f32.

pub(crate) mod header;

use std::io::Write;
use std::path::Path;

use nifti::{InMemNiftiVolume, IntoNdArray, NiftiHeader};
use rayon::prelude::*;

use crate::atomic::write_atomically;
use crate::geometry::voxel_count;
use crate::volume::{Volume, first_not_finite};
use crate::{Error, Result, gzip};
use header::{HEADER_BYTES, Kind, RawHeader, contents, is_gzip};

/// Fewest slices along every axis: less is a localiser or a screenshot, not a CT to register.
const MIN_SLICES: usize = 4;
/// Most voxels of one image (8 GiB as f32): more is a damaged header.
const MAX_VOXELS: usize = 1 << 31;

/// How image values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Rounded to whole HU, as scanners do.
    Int16,
    /// As they are.
    Float32,
}

/// Reads a CT image in HU: (u)int8, (u)int16, (u)int32, float32 or float64 with slope and intercept.
///
/// # Errors
/// One clear paragraph for anything that is not a finite 3-D volume with an orthonormal geometry.
pub fn read_image(path: impl AsRef<Path>) -> Result<Volume<f32>> {
    let path = path.as_ref();
    let volume = read(path)?;
    if let Some(first) = first_not_finite(&volume.data) {
        let bad = volume.data.iter().filter(|v| !v.is_finite()).count();
        let [nx, ny, _] = volume.grid.size;
        let voxel = [first % nx, first / nx % ny, first / (nx * ny)];
        return Err(Error::file(
            path,
            format!("{bad} voxels are NaN or infinite, the first at {voxel:?}"),
            "Replace them, for instance by -1024 HU (air)",
        ));
    }
    Ok(volume)
}

/// Reads a label map: whole numbers 0..=255 in any datatype.
///
/// # Errors
/// As [`read_image`], and if a value is no label.
pub fn read_labels(path: impl AsRef<Path>) -> Result<Volume<u8>> {
    let path = path.as_ref();
    let volume = read_image(path)?;
    if let Some(v) = volume.data.par_iter().find_first(|&&v| v.fract() != 0.0 || !(0.0..=255.0).contains(&v))
    {
        return Err(Error::file(
            path,
            format!("{v} is not a label: labels are whole numbers from 0 to 255"),
            "Give the label map, not the image, and resample label maps by nearest neighbour",
        ));
    }
    Ok(volume.map(|v| v as u8))
}

/// Reads a mask: every voxel other than 0 becomes 1.
///
/// # Errors
/// As [`read_image`], and if the mask is empty.
pub fn read_mask(path: impl AsRef<Path>) -> Result<Volume<u8>> {
    let path = path.as_ref();
    let mask = read_image(path)?.map(|v| u8::from(v != 0.0));
    if mask.data.par_iter().all(|&v| v == 0) {
        return Err(Error::file(
            path,
            "the mask is empty",
            "Give a mask that covers the patient, or none to have it made from the image",
        ));
    }
    Ok(mask)
}

/// Writes an image (gzip if the name ends in `.gz`), with equal qform and sform.
///
/// # Errors
/// If the file cannot be written; nothing is left half-written.
pub fn write_image(path: impl AsRef<Path>, image: &Volume<f32>, sample: Sample) -> Result<()> {
    match sample {
        Sample::Int16 => {
            let hu = |v: &f32| v.round().clamp(f32::from(i16::MIN), f32::from(i16::MAX)) as i16;
            write(path.as_ref(), image, (4, 16), |v| hu(v).to_le_bytes())
        }
        Sample::Float32 => write(path.as_ref(), image, (16, 32), |v| v.to_le_bytes()),
    }
}

/// Writes a label map or mask as uint8; otherwise as [`write_image`].
///
/// # Errors
/// As [`write_image`].
pub fn write_labels(path: impl AsRef<Path>, labels: &Volume<u8>) -> Result<()> {
    write(path.as_ref(), labels, (2, 8), |v| [*v])
}

fn write<T: Sync, const N: usize>(
    path: &Path,
    volume: &Volume<T>,
    (datatype, bits): (i16, i16),
    bytes: impl Fn(&T) -> [u8; N] + Sync,
) -> Result<()> {
    let kind = Kind { dim: [3, 0, 0, 0, 1, 1, 1, 1], intent: 0, datatype, bits, description: "jrs" };
    let header = header::header(path, &volume.grid, &kind)?;
    write_file(path, &header, &[&volume.data], |_, value| bytes(value))
}

/// Writes header and voxels, through gzip if the name says so. `bytes(p, v)` are those of value `v` of part `p`; the
/// parts follow each other.
pub(crate) fn write_file<T: Sync, const N: usize>(
    path: &Path,
    header: &[u8],
    parts: &[&[T]],
    bytes: impl Fn(usize, &T) -> [u8; N] + Sync,
) -> Result<()> {
    let blocks: Vec<(usize, &[T])> = parts
        .iter()
        .enumerate()
        .flat_map(|(p, part)| part.chunks(gzip::BLOCK / N).map(move |b| (p, b)))
        .collect();
    // The header is block 0.
    let block = |i: usize| match i.checked_sub(1).map(|i| blocks[i]) {
        None => header.to_vec(),
        Some((part, values)) => {
            let encoded: Vec<[u8; N]> = values.iter().map(|value| bytes(part, value)).collect();
            encoded.into_flattened()
        }
    };
    let count = blocks.len() + 1;
    // Whole numbers are worth a little time, floats only where they hold little: constant regions, whole HU.
    let worth = if N < size_of::<f32>() { 0.75 } else { 0.5 };
    write_atomically(path, |file| match is_gzip(path) {
        true => gzip::write(file, worth, count, block),
        false => gzip::in_order(count, block, |bytes| file.write_all(&bytes)),
    })
}

fn read(path: &Path) -> Result<Volume<f32>> {
    let bytes = contents(path)?;
    let raw = RawHeader::parse(path, &bytes)?;
    let size = image_size(path, &raw)?;
    check_spacing(path, &raw)?;
    let grid = raw.grid(size)?;

    let bits = match raw.i16(70) {
        2 | 256 => 8,
        4 | 512 => 16,
        8 | 768 | 16 => 32,
        64 => 64,
        other => {
            return Err(Error::file(
                path,
                format!("datatype {other} is none of 8-, 16- and 32-bit integers, float32 and float64"),
                "Convert the image to int16 or float32",
            ));
        }
    };
    if raw.i16(72) != bits {
        return Err(Error::file(
            path,
            format!("bitpix {} does not go with datatype {}", raw.i16(72), raw.i16(70)),
            "The header is damaged; write the file again",
        ));
    }
    // Stored as a float by the standard; a negative or NaN offset becomes 0 and then fails the check below.
    let offset = raw.f32(108) as usize;
    let needed = voxel_count(path, size)? * bits as usize / 8;
    if offset < HEADER_BYTES || bytes.len() < offset.saturating_add(needed) {
        return Err(Error::file(
            path,
            format!("{} bytes with voxels from {offset}, where {size:?} voxels need {needed}", bytes.len()),
            "The file is cut; copy it again",
        ));
    }
    let decoded = NiftiHeader::from_reader(&bytes[..HEADER_BYTES])
        .and_then(|mut h| {
            // A scanner's "slope 0" means "not scaled"; some writers store NaN for the same.
            if !(h.scl_slope.is_finite() && h.scl_inter.is_finite()) {
                (h.scl_slope, h.scl_inter) = (1.0, 0.0);
            }
            InMemNiftiVolume::from_reader(&bytes[offset..], &h)
        })
        .and_then(|volume| volume.into_ndarray::<f32>())
        .map_err(|e| {
            Error::file(path, format!("the voxels cannot be decoded: {e}"), "Write the file again")
        })?;
    // NIfTI stores x fastest, which is the order of a transposed (reversed-axes) iteration.
    let data: Vec<f32> = decoded.t().iter().copied().collect();
    Ok(Volume::new(grid, data))
}

fn image_size(path: &Path, raw: &RawHeader<'_>) -> Result<[usize; 3]> {
    let dim: [i16; 8] = std::array::from_fn(|i| raw.i16(40 + 2 * i));
    if !(1..=7).contains(&dim[0]) {
        return Err(Error::file(
            path,
            format!("dim[0] is {}", dim[0]),
            "The header is damaged; write the file again",
        ));
    }
    if let Some(axis) = (4..=dim[0] as usize).find(|&a| dim[a] > 1) {
        return Err(Error::file(
            path,
            format!(
                "the image has {} axes ({} along axis {axis}), and one 3-D volume is wanted",
                dim[0], dim[axis]
            ),
            "Split it and give one volume",
        ));
    }
    let axis = |a: usize| if a <= dim[0] as usize { dim[a] } else { 1 };
    let size = [axis(1), axis(2), axis(3)];
    if size.iter().any(|&n| (n as isize) < MIN_SLICES as isize) {
        return Err(Error::file(
            path,
            format!("the size is {size:?}, and at least {MIN_SLICES} voxels are needed along every axis"),
            "Give a volume, not a single slice",
        ));
    }
    let size = size.map(|n| n as usize);
    if voxel_count(path, size)? > MAX_VOXELS {
        return Err(Error::file(
            path,
            format!("the size {size:?} exceeds {MAX_VOXELS} voxels"),
            "Crop or resample the image, or check that the header is whole",
        ));
    }
    Ok(size)
}

fn check_spacing(path: &Path, raw: &RawHeader<'_>) -> Result<()> {
    let pixdim: [f32; 3] = std::array::from_fn(|a| raw.f32(80 + 4 * a));
    if pixdim.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(Error::file(
            path,
            format!("the spacing (pixdim) is {pixdim:?} mm, and it must be positive"),
            "Write the image again with its spacing; orientation belongs into sform or qform",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
