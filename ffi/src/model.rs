//! `jrs_model`: a trained network, immutable and shared between threads.

use std::ffi::{CStr, c_char, c_void};

use libjrs::Error;
use libjrs::model::{Model, PublicKey};

use crate::status::{
    Failure, JRS_E_ARGUMENT, JRS_E_INTERNAL, JRS_E_MODEL_INVALID, JRS_E_MODEL_SIGNATURE,
    JRS_E_MODEL_UNREADABLE, guard,
};
use crate::structs::copy_text;

/// A trained network. Never changes; threads and sessions may share it.
#[allow(non_camel_case_types)] // the C name
pub struct jrs_model {
    pub(crate) model: Model,
}

// "Threads may share it" rests on this.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<jrs_model>();
};

/// Reads a model file and checks every weight against its hash. With a public_key (32 bytes, Ed25519) the model must
/// also carry the signature of that key; NULL asks for none. On success *model is a new handle.
///
/// JRS_E_ARGUMENT, JRS_E_MODEL_UNREADABLE, JRS_E_MODEL_INVALID, JRS_E_MODEL_SIGNATURE.
///
/// # Safety
/// `path` is NULL or a NUL-terminated string; `public_key` is NULL or readable for 32 bytes; `model` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_load(
    path: *const c_char,
    public_key: *const u8,
    model: *mut *mut jrs_model,
) -> i32 {
    guard(|| {
        // SAFETY: NULL or a string by the contract.
        let path = unsafe { text(path, "path") }?;
        // SAFETY: passed on under the same contract.
        unsafe { hand_out(model, public_key, || Model::load(path)) }
    })
}

/// The same from a file's content in memory, which is not needed after the call.
///
/// # Safety
/// As jrs_model_load; `bytes` is NULL or readable for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_load_memory(
    bytes: *const c_void,
    length: usize,
    public_key: *const u8,
    model: *mut *mut jrs_model,
) -> i32 {
    guard(|| {
        if bytes.is_null() {
            return Err(Failure::null("bytes"));
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
        unsafe { hand_out(model, public_key, || Model::from_bytes(bytes, "model in memory")) }
    })
}

/// Ends a model; NULL does nothing. Results that were made with it stay.
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

/// The model card as JSON: network, preprocessing, conventions, organs, training provenance, hash of every tensor.
///
/// Writes text with its final NUL into buffer, and the bytes that takes into *needed. buffer = NULL with capacity = 0
/// asks for the size only and succeeds. JRS_E_BUFFER_TOO_SMALL: *needed is written, the buffer is untouched.
///
/// # Safety
/// `model` is NULL or a live handle; `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for
/// a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_card_json(
    model: *const jrs_model,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: NULL or a live handle by the contract.
        let model = unsafe { model.as_ref() }.ok_or_else(|| Failure::null("model"))?;
        let json = serde_json::to_string(&model.model.manifest).map_err(|e| {
            Failure::new(JRS_E_INTERNAL, format!("the manifest cannot be written as JSON ({e})"))
        })?;
        // SAFETY: passed on under the same contract.
        unsafe { copy_text(&json, buffer, capacity, needed) }
    })
}

/// SHA-256 of the model file as 64 hexadecimal digits: the model's identity in audit trails. As jrs_model_card_json.
///
/// # Safety
/// As jrs_model_card_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_model_sha256(
    model: *const jrs_model,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: NULL or a live handle by the contract.
        let model = unsafe { model.as_ref() }.ok_or_else(|| Failure::null("model"))?;
        // SAFETY: passed on under the same contract.
        unsafe { copy_text(&model.model.sha256(), buffer, capacity, needed) }
    })
}

/// A string of the caller.
///
/// # Safety
/// `at` is NULL or a NUL-terminated string that stays as it is during `'a`.
pub(crate) unsafe fn text<'a>(at: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if at.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: not NULL, so by the contract a NUL-terminated string.
    let text = unsafe { CStr::from_ptr(at) };
    text.to_str().map_err(|e| Failure::new(JRS_E_ARGUMENT, format!("{name} is not UTF-8 ({e})")))
}

/// Loads and, on success only, writes the new handle.
///
/// # Safety
/// `out` is NULL or valid for a write; `key` is NULL or readable for 32 bytes.
unsafe fn hand_out(
    out: *mut *mut jrs_model,
    key: *const u8,
    load: impl FnOnce() -> libjrs::Result<Model>,
) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::null("model"));
    }
    // SAFETY: NULL or 32 readable bytes by the contract; an array of bytes has no alignment.
    let key = unsafe { key.cast::<[u8; 32]>().as_ref() };
    let key = key.map(PublicKey::from_bytes).transpose();
    let key = key.map_err(|e| Failure::new(JRS_E_ARGUMENT, e.to_string()))?;
    let model = load().map_err(|e| {
        let code = if matches!(e, Error::Io { .. }) { JRS_E_MODEL_UNREADABLE } else { JRS_E_MODEL_INVALID };
        Failure::new(code, e.to_string())
    })?;
    if let Some(key) = key {
        model.verify_signature(&key).map_err(|e| Failure::new(JRS_E_MODEL_SIGNATURE, e.to_string()))?;
    }
    let handle = Box::into_raw(Box::new(jrs_model { model }));
    // SAFETY: not NULL, so by the contract valid for a write.
    unsafe { out.write(handle) };
    Ok(())
}
