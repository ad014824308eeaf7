//! `jrs_model`: a trained network, immutable and shared between threads.

use std::ffi::{CStr, c_char, c_void};

use libjrs::Error;
use libjrs::model::Model;

use crate::status::{
    Failure, JRS_E_ARGUMENT, JRS_E_BUFFER_TOO_SMALL, JRS_E_INTERNAL, JRS_E_MODEL_INVALID,
    JRS_E_MODEL_UNREADABLE, guard,
};

/// The opaque handle behind `jrs_model *`.
#[allow(non_camel_case_types)] // the C name
pub struct jrs_model {
    model: Model,
}

// "Threads may share it" in the header rests on this.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<jrs_model>();
};

/// Reads and checks a model file.
///
/// # Safety
/// `path` is NULL or a NUL-terminated string; `model` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_load(path: *const c_char, model: *mut *mut jrs_model) -> i32 {
    guard(|| {
        if path.is_null() {
            return Err(null("path"));
        }
        // SAFETY: not NULL, so by the contract a NUL-terminated string.
        let path = unsafe { CStr::from_ptr(path) };
        let path =
            path.to_str().map_err(|e| Failure::new(JRS_E_ARGUMENT, format!("path is not UTF-8 ({e})")))?;
        // SAFETY: passed on under the same contract.
        unsafe { hand_out(model, || Model::load(path)) }
    })
}

/// Checks a model file's content in memory.
///
/// # Safety
/// `bytes` is NULL or readable for `length` bytes during the call; `model` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_load_memory(
    bytes: *const c_void,
    length: usize,
    model: *mut *mut jrs_model,
) -> i32 {
    guard(|| {
        if bytes.is_null() {
            return Err(null("bytes"));
        }
        if length > isize::MAX as usize {
            return Err(Failure::new(
                JRS_E_ARGUMENT,
                format!("length {length} is more than an object can have"),
            ));
        }
        // SAFETY: not NULL and of a possible length, so by the contract readable for `length` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
        // SAFETY: passed on under the same contract.
        unsafe { hand_out(model, || Model::from_bytes(bytes, "model in memory")) }
    })
}

/// Ends a model; NULL does nothing.
///
/// # Safety
/// `model` is NULL or a handle that has not been freed and that no other thread uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_free(model: *mut jrs_model) {
    guard(|| {
        if !model.is_null() {
            // SAFETY: by the contract a live handle, which `hand_out` made from a box.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// The model's manifest as JSON into the caller's buffer.
///
/// # Safety
/// `model` is NULL or a live handle; `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for
/// a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_manifest_json(
    model: *const jrs_model,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: NULL or a live handle by the contract.
        let model = unsafe { model.as_ref() }.ok_or_else(|| null("model"))?;
        if needed.is_null() {
            return Err(null("needed"));
        }
        if buffer.is_null() && capacity != 0 {
            return Err(null("buffer"));
        }
        let json = serde_json::to_string(&model.model.manifest).map_err(|e| {
            Failure::new(JRS_E_INTERNAL, format!("the manifest cannot be written as JSON ({e})"))
        })?;
        let size = json.len() + 1;
        // SAFETY: not NULL, so by the contract valid for a write.
        unsafe { needed.write(size) };
        if buffer.is_null() {
            return Ok(());
        }
        if capacity < size {
            let message = format!(
                "the manifest takes {size} bytes, the buffer has {capacity}. Call again with a larger one"
            );
            return Err(Failure::new(JRS_E_BUFFER_TOO_SMALL, message));
        }
        // SAFETY: `buffer` is writable for `capacity` >= `size` bytes and cannot overlap our own string.
        unsafe {
            std::ptr::copy_nonoverlapping(json.as_ptr(), buffer.cast::<u8>(), json.len());
            buffer.add(json.len()).write(0);
        }
        Ok(())
    })
}

/// Loads and, on success only, writes the new handle.
///
/// # Safety
/// `out` is NULL or valid for a write.
unsafe fn hand_out(
    out: *mut *mut jrs_model,
    load: impl FnOnce() -> libjrs::Result<Model>,
) -> Result<(), Failure> {
    if out.is_null() {
        return Err(null("model"));
    }
    let model = load().map_err(|e| {
        let code = if matches!(e, Error::Io { .. }) { JRS_E_MODEL_UNREADABLE } else { JRS_E_MODEL_INVALID };
        Failure::new(code, e.to_string())
    })?;
    let handle = Box::into_raw(Box::new(jrs_model { model }));
    // SAFETY: not NULL, so by the contract valid for a write.
    unsafe { out.write(handle) };
    Ok(())
}

fn null(name: &str) -> Failure {
    Failure::new(JRS_E_ARGUMENT, format!("{name} is NULL"))
}
