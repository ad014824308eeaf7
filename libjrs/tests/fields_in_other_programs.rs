//! Our displacement fields applied by SimpleITK and by nibabel + SciPy (`tests/reference/fields_check.py`).

use std::fmt::Write as _;
use std::path::Path;

use jrs_tests::external::python;
use libjrs::field::{warp_image, warp_labels};
use libjrs::field_io::{NiftiFlavour, write_mha, write_nifti, write_nrrd};
use libjrs::geometry::mat_mul;
use libjrs::{DisplacementField, Grid, Volume};

fn rotation(about_z: f64, about_x: f64) -> [[f64; 3]; 3] {
    let ((s, c), (t, d)) = (about_z.sin_cos(), about_x.sin_cos());
    mat_mul(&[[c, -s, 0.], [s, c, 0.], [0., 0., 1.]], &[[1., 0., 0.], [0., d, -t], [0., t, d]])
}

/// Applies `f` to the place of every voxel.
fn at_voxels<T>(grid: &Grid, f: impl Fn([f64; 3]) -> T) -> Vec<T> {
    let [nx, ny, _] = grid.size;
    (0..grid.len())
        .map(|i| f(grid.to_physical([(i % nx) as f64, (i / nx % ny) as f64, (i / (nx * ny)) as f64])))
        .collect()
}

/// A scalar MetaImage for the other side (the library itself writes images as NIfTI).
fn write_scalar_mha(path: &Path, grid: &Grid, kind: &str, bytes: &[u8]) {
    let mut header = String::from("ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix =");
    for a in 0..3 {
        for r in 0..3 {
            write!(header, " {}", grid.direction[r][a]).unwrap();
        }
    }
    let row = |v: [f64; 3]| format!("{} {} {}", v[0], v[1], v[2]);
    let [nx, ny, nz] = grid.size;
    write!(
        header,
        "\nOffset = {}\nElementSpacing = {}\nDimSize = {nx} {ny} {nz}\nElementType = {kind}\nElementDataFile = LOCAL\n",
        row(grid.origin),
        row(grid.spacing)
    )
    .unwrap();
    std::fs::write(path, [header.as_bytes(), bytes].concat()).unwrap();
}

#[test]
fn simpleitk_and_nibabel_warp_as_we_do() {
    let fixed = Grid {
        size: [23, 19, 14],
        spacing: [1.7, 2.1, 3.0],
        origin: [-31.0, 22.0, -140.0],
        direction: rotation(0.31, -0.17),
    };
    let moving = Grid {
        size: [26, 28, 17],
        spacing: [1.5, 1.4, 2.5],
        origin: [-24.0, 27.0, -137.0],
        direction: rotation(0.12, -0.25),
    };
    // Waves with no symmetry in x, y, z, so that a wrong sign or order cannot pass.
    let field = DisplacementField {
        grid: fixed.clone(),
        u: [0, 1, 2].map(|c| {
            let phase = c as f64;
            at_voxels(&fixed, |p| {
                (2.0 + phase + 3.0 * (0.11 * p[0] + 0.07 * p[1] - 0.05 * p[2] + phase).sin()) as f32
            })
        }),
    };
    let image = Volume::new(
        moving.clone(),
        at_voxels(&moving, |p| {
            (300.0 * (0.15 * p[0]).sin() + 200.0 * (0.1 * p[1] - 0.3).cos() + 2.0 * p[2]) as f32
        }),
    );
    let labels = Volume::new(
        moving.clone(),
        at_voxels(&moving, |p| match (0.2 * p[0]).sin() + (0.15 * p[1]).cos() + (0.17 * p[2]).sin() {
            v if v > 1.0 => 5u8,
            v if v > 0.2 => 1,
            v if v < -1.0 => 4,
            _ => 0,
        }),
    );

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write_mha(file("field.mha"), &field).unwrap();
    write_nrrd(file("field.nrrd"), &field).unwrap();
    write_nifti(file("field_itk.nii.gz"), &field, NiftiFlavour::Itk).unwrap();
    write_nifti(file("field_ants.nii.gz"), &field, NiftiFlavour::Ants).unwrap();
    let floats = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let warped = warp_image(&image, &field, None, -1000.0);
    write_scalar_mha(&file("fixed.mha"), &fixed, "MET_FLOAT", &floats(&vec![0.0; fixed.len()]));
    write_scalar_mha(&file("moving.mha"), &moving, "MET_FLOAT", &floats(&image.data));
    write_scalar_mha(&file("warped.mha"), &fixed, "MET_FLOAT", &floats(&warped.data));
    write_scalar_mha(&file("labels.mha"), &moving, "MET_UCHAR", &labels.data);
    let warped_labels = warp_labels(&labels, &field, None);
    write_scalar_mha(&file("warped_labels.mha"), &fixed, "MET_UCHAR", &warped_labels.data);

    if let Some(said) = python("fields_check.py", &[folder.path()]) {
        println!("{said}");
    }
}
