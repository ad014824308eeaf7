//! The displacement as files: each of the four formats says what the interface says, read byte by byte as its format's
//! own specification has it, and by libjrs where that reads it. What other programs make of these files is the matter of
//! `libjrs/tests/fields_in_other_programs.rs`.

use std::ffi::CString;
use std::path::Path;
use std::ptr::{null, null_mut};

use jrs::model::jrs_model_free;
use jrs::register::jrs_register;
use jrs::result::{jrs_result, jrs_result_dvf, jrs_result_free};
use jrs::session::jrs_session_free;
use jrs::status::JRS_OK;
use jrs::volume::jrs_volume;
use jrs::write::*;
use libjrs::{Grid, field_io};

mod support;
use support::{input, last_error, load, scan, session, untrained, volume};

const SIZE: [usize; 3] = [12, 11, 10];

/// Turned and anisotropic, so that no axis, sign or spacing can be taken for another.
fn oblique() -> Grid {
    let (s, c) = 0.3f64.sin_cos();
    Grid {
        size: SIZE,
        spacing: [2.0, 2.5, 3.0],
        origin: [-11.0, 21.0, -130.5],
        direction: [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]],
    }
}

/// A result, and its displacement of every voxel: [x, y, z] in LPS mm.
fn registered() -> (*mut jrs_result, Vec<[f32; 3]>) {
    let (fixed, moving, grid) = (scan(SIZE, 2.0), scan(SIZE, 0.0), oblique());
    let placed = |v: jrs_volume| jrs_volume {
        spacing: grid.spacing,
        origin: grid.origin,
        direction: grid.direction.as_flattened().try_into().unwrap(),
        ..v
    };
    let (f, m) = (placed(volume(&fixed)), placed(volume(&moving)));
    let (model, session, mut result) = (load(&untrained(10_000.0)), session(|_| {}), null_mut());
    let mut u = vec![[0.0f32; 3]; grid.len()];
    let mut needed = 0;
    // SAFETY: handles are live, the input borrows what is here, and the buffer has three floats per voxel.
    unsafe {
        let code = jrs_register(session, model, &input(&f, &m), null(), &mut result);
        assert_eq!(code, JRS_OK, "{}", last_error());
        assert_eq!(jrs_result_dvf(result, u.as_mut_ptr().cast(), 3 * u.len(), &mut needed), JRS_OK);
        jrs_session_free(session);
        jrs_model_free(model);
    }
    let longest = u.iter().flatten().fold(0.0f32, |most, mm| most.max(mm.abs()));
    eprintln!("components of up to {longest} mm");
    assert!(longest > 0.1, "a field of zeros would prove nothing");
    (result, u)
}

fn write(result: *const jrs_result, format: u32, path: &Path) -> Vec<u8> {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the result is live and the name is a string.
    assert_eq!(unsafe { jrs_result_write(result, format, name.as_ptr()) }, JRS_OK, "{}", last_error());
    std::fs::read(path).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn close(numbers: &[f64], expected: &[f64]) -> bool {
    numbers.len() == expected.len() && numbers.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// All numbers of the header's line that starts with `key`.
fn numbers(header: &str, key: &str) -> Vec<f64> {
    let line =
        header.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("no {key}: {header}"));
    let words = line[key.len()..].split(|c: char| !(c.is_ascii_digit() || "-.e".contains(c)));
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Columns of the direction, one after another, each times a factor.
fn columns(grid: &Grid, times: [f64; 3]) -> Vec<f64> {
    (0..3).flat_map(|a| (0..3).map(move |r| grid.direction[r][a] * times[a])).collect()
}

#[test]
fn mha_and_nrrd_hold_lps_vectors_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let ((result, u), grid) = (registered(), oblique());
    let voxels = 12 * grid.len();
    // MetaImage: TransformMatrix has the axes one after another.
    let path = folder.path().join("u.mha");
    let mha = write(result, JRS_FILE_DVF_MHA, &path);
    let (header, data) = mha.split_at(mha.len() - voxels);
    let header = std::str::from_utf8(header).unwrap();
    assert!(floats(data) == *u.as_flattened(), "the vectors are not those of the interface");
    assert!(
        header.ends_with("ElementDataFile = LOCAL\n") && header.contains("ElementType = MET_FLOAT"),
        "{header}"
    );
    assert!(close(&numbers(header, "ElementNumberOfChannels"), &[3.0]));
    assert!(close(&numbers(header, "DimSize"), &SIZE.map(|n| n as f64)));
    assert!(close(&numbers(header, "ElementSpacing"), &grid.spacing));
    assert!(close(&numbers(header, "Offset"), &grid.origin));
    assert!(close(&numbers(header, "TransformMatrix"), &columns(&grid, [1.0; 3])));
    let back = field_io::read(&path).unwrap();
    assert!((0..u.len()).all(|i| back.at(i) == u[i]) && back.grid.same_space(&grid, 1e-6));

    // NRRD: space directions have the spacing in them.
    let nrrd = write(result, JRS_FILE_DVF_NRRD, &folder.path().join("u.nrrd"));
    let (header, data) = nrrd.split_at(nrrd.len() - voxels);
    let header = std::str::from_utf8(header).unwrap();
    assert!(floats(data) == *u.as_flattened(), "the vectors are not those of the interface");
    assert!(header.starts_with("NRRD000") && header.ends_with("\n\n"), "{header}");
    for line in ["type: float", "encoding: raw", "endian: little", "space: left-posterior-superior"] {
        assert!(header.lines().any(|l| l == line), "{line}: {header}");
    }
    assert!(close(&numbers(header, "sizes:"), &[3.0, 12.0, 11.0, 10.0]));
    assert!(close(&numbers(header, "space directions: none"), &columns(&grid, grid.spacing)));
    assert!(close(&numbers(header, "space origin:"), &grid.origin));
    // SAFETY: freed once.
    unsafe { jrs_result_free(result) };
}

#[test]
fn nifti_holds_ras_vectors_for_itk_and_lps_vectors_for_ants() {
    let folder = tempfile::tempdir().unwrap();
    let ((result, u), grid) = (registered(), oblique());
    // Intent codes of NIfTI-1: 1006 DISPVECT, 1007 VECTOR.
    for (format, intent, signs) in
        [(JRS_FILE_DVF_NIFTI, 1006, [-1.0, -1.0, 1.0]), (JRS_FILE_DVF_NIFTI_ANTS, 1007, [1.0f32; 3])]
    {
        let path = folder.path().join(format!("{intent}.nii"));
        let file = write(result, format, &path);
        let short = |at: usize| i16::from_le_bytes([file[at], file[at + 1]]);
        let float = |at: usize| f64::from(floats(&file[at..at + 4])[0]);
        assert_eq!(std::array::from_fn(|n| short(40 + 2 * n)), [5, 12, 11, 10, 1, 3], "dim");
        assert_eq!([short(68), short(70)], [intent, 16], "intent and float32");
        let start = float(108) as usize;
        let stored = floats(&file[start..]);
        assert_eq!(stored.len(), 3 * u.len());
        for (c, sign) in signs.into_iter().enumerate() {
            let component = &stored[c * u.len()..][..u.len()];
            assert!(component.iter().zip(&u).all(|(v, u)| *v == sign * u[c]), "component {c} of {intent}");
        }
        // srow_x, _y, _z: from indices to RAS mm, whose x and y are the negatives of LPS.
        assert!(short(254) > 0, "sform_code");
        let index = [1.0, 2.0, 3.0];
        let row = |r: usize| {
            (0..3).map(|c| float(280 + 16 * r + 4 * c) * index[c]).sum::<f64>() + float(292 + 16 * r)
        };
        let [x, y, z] = grid.to_physical(index);
        assert!(close(&[row(0), row(1), row(2)], &[-x, -y, z]), "{intent}");

        let zipped = folder.path().join(format!("{intent}.nii.gz"));
        assert_eq!(write(result, format, &zipped)[..2], [0x1f, 0x8b], "gzip");
        for path in [path, zipped] {
            let back = field_io::read(&path).unwrap();
            assert!((0..u.len()).all(|i| back.at(i) == u[i]), "{}", path.display());
            assert!(back.grid.same_space(&grid, 1e-3));
        }
    }
    // SAFETY: freed once.
    unsafe { jrs_result_free(result) };
}
