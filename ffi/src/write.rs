//! Results as files that other programs read.

use std::ffi::c_char;

use libjrs::field_io::{NiftiFlavour, write_mha, write_nifti, write_nrrd};
use libjrs::nifti::{Sample, write_image, write_labels};

use crate::model::text;
use crate::result::{jrs_result, live};
use crate::status::{Failure, JRS_E_ARGUMENT, guard};

/// Displacement as MetaImage (.mha), LPS vectors: ITK, SimpleITK, elastix, 3D Slicer.
pub const JRS_FILE_DVF_MHA: u32 = 1;
/// Displacement as NRRD (.nrrd), LPS vectors: ITK, 3D Slicer.
pub const JRS_FILE_DVF_NRRD: u32 = 2;
/// Displacement as 5-D NIfTI (.nii, .nii.gz), intent 1006, RAS vectors: ITK and 3D Slicer convert.
pub const JRS_FILE_DVF_NIFTI: u32 = 3;
/// Displacement as 5-D NIfTI, intent 1007, LPS vectors: ANTs.
pub const JRS_FILE_DVF_NIFTI_ANTS: u32 = 4;
/// The warped scan as NIfTI, int16.
pub const JRS_FILE_WARPED_NIFTI: u32 = 5;
/// The carried labels as NIfTI, uint8.
pub const JRS_FILE_LABELS_NIFTI: u32 = 6;

/// Writes a part of a result; format is JRS_FILE_*. The file appears whole or not at all. NIfTI is compressed where the
/// name ends in .gz.
///
/// JRS_E_FILE; JRS_E_INPUT for labels where there are none.
///
/// # Safety
/// `result` is NULL or a live handle; `path` is NULL or a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_result_write(
    result: *const jrs_result,
    format: u32,
    path: *const c_char,
) -> i32 {
    guard(|| {
        // SAFETY: by the contract.
        let (result, path) = unsafe { (live(result)?, text(path, "path")?) };
        match format {
            JRS_FILE_DVF_MHA => write_mha(path, &result.field)?,
            JRS_FILE_DVF_NRRD => write_nrrd(path, &result.field)?,
            JRS_FILE_DVF_NIFTI => write_nifti(path, &result.field, NiftiFlavour::Itk)?,
            JRS_FILE_DVF_NIFTI_ANTS => write_nifti(path, &result.field, NiftiFlavour::Ants)?,
            JRS_FILE_WARPED_NIFTI => write_image(path, &result.warped, Sample::Int16)?,
            JRS_FILE_LABELS_NIFTI => write_labels(path, result.labels()?)?,
            other => {
                return Err(Failure::new(JRS_E_ARGUMENT, format!("format {other} is none of JRS_FILE_*")));
            }
        }
        Ok(())
    })
}
