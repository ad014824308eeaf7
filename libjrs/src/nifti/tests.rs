//! Round trips, and one test per way a file can be bad.

use super::*;
use crate::geometry::Grid;

fn oblique() -> Grid {
    let (s, c) = 0.3f64.sin_cos();
    Grid {
        size: [6, 5, 4],
        spacing: [0.9, 1.25, 3.0],
        origin: [-100.5, 42.25, -730.0],
        direction: [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]],
    }
}

fn image() -> Volume<f32> {
    let grid = oblique();
    let data = (0..grid.len()).map(|i| i as f32 * 13.0 - 1000.0).collect();
    Volume::new(grid, data)
}

/// The bytes of a valid int16 file, to be damaged.
fn valid() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ct.nii");
    write_image(&path, &image(), Sample::Int16).unwrap();
    std::fs::read(path).unwrap()
}

fn message_of(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let message = read_image(&path).expect_err("a damaged file").to_string();
    assert!(message.contains(name), "names the file: {message}");
    message
}

fn damaged(at: usize, bytes: &[u8]) -> String {
    let mut file = valid();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    message_of("ct.nii", &file)
}

#[test]
fn images_come_back() {
    let folder = tempfile::tempdir().unwrap();
    for (name, sample) in
        [("a.nii", Sample::Int16), ("b.nii.gz", Sample::Int16), ("c.nii.gz", Sample::Float32)]
    {
        let path = folder.path().join(name);
        write_image(&path, &image(), sample).unwrap();
        let back = read_image(&path).unwrap();
        assert!(back.grid.same_space(&oblique(), 1e-3), "{:?}", back.grid);
        assert_eq!(back.data, image().data);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "no temporary file stays");
}

#[test]
fn same_content_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = folder.path().join(name);
        write_image(&path, &image(), Sample::Int16).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(bytes("a.nii.gz"), bytes("b.nii.gz"));
}

#[test]
fn slope_and_intercept_are_applied() {
    let mut file = valid();
    file[112..116].copy_from_slice(&2.0f32.to_le_bytes());
    file[116..120].copy_from_slice(&(-10.0f32).to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scaled.nii");
    std::fs::write(&path, file).unwrap();
    let back = read_image(&path).unwrap();
    assert!(back.data.iter().zip(&image().data).all(|(b, v)| *b == 2.0 * v - 10.0));
}

#[test]
fn qform_is_used_without_sform() {
    let mut file = valid();
    file[254..256].copy_from_slice(&0i16.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qform.nii");
    std::fs::write(&path, file).unwrap();
    assert!(read_image(&path).unwrap().grid.same_space(&oblique(), 1e-3));
}

#[test]
fn labels_must_be_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("labels.nii.gz");
    let labels = Volume::new(oblique(), (0..oblique().len()).map(|i| (i % 6) as u8).collect());
    write_labels(&path, &labels).unwrap();
    assert_eq!(read_labels(&path).unwrap().data, labels.data);
    write_image(&path, &image().map(|v| v / 2.0), Sample::Float32).unwrap();
    assert!(read_labels(&path).unwrap_err().to_string().contains("not a label"));
    write_labels(&path, &Volume::filled(oblique(), 0)).unwrap();
    assert!(read_mask(&path).unwrap_err().to_string().contains("empty"));
}

#[test]
fn damaged_files_are_refused_with_the_value() {
    assert!(damaged(344, b"ni1\0").contains("not a single-file NIfTI-1"));
    assert!(damaged(46, &1i16.to_le_bytes()).contains("[6, 5, 1]"));
    assert!(damaged(80, &(-0.9f32).to_le_bytes()).contains("-0.9"));
    assert!(damaged(84, &0f32.to_le_bytes()).contains("positive"));
    assert!(damaged(70, &128i16.to_le_bytes()).contains("128"));
    assert!(damaged(72, &8i16.to_le_bytes()).contains("bitpix 8"));
    assert!(damaged(40, &9i16.to_le_bytes()).contains("dim[0] is 9"));
    assert!(damaged(280, &0.5f32.to_le_bytes()).contains("not orthonormal"));
    assert!(damaged(108, &f32::NAN.to_le_bytes()).contains("cut"));
    let file = valid();
    assert!(message_of("cut.nii", &file[..file.len() - 5]).contains("cut"));
    assert!(message_of("head.nii", &file[..200]).contains("not a single-file"));
    assert!(message_of("empty.nii", &[]).contains("not a single-file"));
}

#[test]
fn four_dimensional_image_is_refused() {
    let mut file = valid();
    file[40..42].copy_from_slice(&4i16.to_le_bytes());
    file[48..50].copy_from_slice(&3i16.to_le_bytes());
    assert!(message_of("series.nii", &file).contains("4 axes"));
}

#[test]
fn truncated_gzip_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ct.nii.gz");
    write_image(&path, &image(), Sample::Int16).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(message_of("short.nii.gz", &bytes[..bytes.len() / 2]).contains("gzip"));
}

#[test]
fn nan_is_counted_and_placed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.nii");
    let mut bad = image();
    bad.data[8] = f32::NAN;
    bad.data[9] = f32::INFINITY;
    write_image(&path, &bad, Sample::Float32).unwrap();
    let message = read_image(&path).unwrap_err().to_string();
    assert!(message.contains("2 voxels") && message.contains("[2, 1, 0]"), "{message}");
}

#[test]
fn missing_file_names_the_fix() {
    let message = read_image("nowhere/ct.nii.gz").unwrap_err().to_string();
    assert!(message.contains("nowhere/ct.nii.gz"), "{message}");
}
