//! A NIfTI file from anywhere, read as an image, as labels and as a displacement field.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libjrs::field_io::read_nifti;
use libjrs::nifti::{read_image, read_labels};

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("jrs-fuzz-{}.nii", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    if let Ok(image) = read_image(&path) {
        assert_eq!(image.data.len(), image.grid.len());
    }
    let _ = read_labels(&path);
    if let Ok(field) = read_nifti(&path) {
        assert_eq!(field.u[2].len(), field.grid.len());
    }
});
