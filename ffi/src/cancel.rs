//! `jrs_cancel`: stopping a call from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::status::{Failure, guard};

/// A token by which any thread may stop a running call. One token may serve several calls.
#[allow(non_camel_case_types)] // the C name
pub struct jrs_cancel {
    pub(crate) is_set: Arc<AtomicBool>,
}

/// A new token, not set.
///
/// # Safety
/// `cancel` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_cancel_create(cancel: *mut *mut jrs_cancel) -> i32 {
    guard(|| {
        if cancel.is_null() {
            return Err(Failure::null("cancel"));
        }
        let handle = Box::into_raw(Box::new(jrs_cancel { is_set: Arc::default() }));
        // SAFETY: not NULL, so by the contract valid for a write.
        unsafe { cancel.write(handle) };
        Ok(())
    })
}

/// Asks all calls with this token to stop: they return JRS_E_CANCELLED after the tile they are in. Any thread may call
/// it at any time until the token is freed; it does not wait.
///
/// # Safety
/// `cancel` is NULL (which does nothing) or a handle that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_cancel_request(cancel: *const jrs_cancel) {
    // SAFETY: NULL or a live handle by the contract.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.is_set.store(true, Ordering::Relaxed);
    }
}

/// Makes a token usable again.
///
/// # Safety
/// As jrs_cancel_request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_cancel_reset(cancel: *const jrs_cancel) {
    // SAFETY: NULL or a live handle by the contract.
    if let Some(cancel) = unsafe { cancel.as_ref() } {
        cancel.is_set.store(false, Ordering::Relaxed);
    }
}

/// Ends a token; NULL does nothing. A call that still runs with it goes on and cannot be cancelled any more.
///
/// # Safety
/// `cancel` is NULL or a handle that has not been freed and that no other thread uses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jrs_cancel_free(cancel: *mut jrs_cancel) {
    guard(|| {
        if !cancel.is_null() {
            // SAFETY: by the contract a live handle, which jrs_cancel_create made from a box.
            drop(unsafe { Box::from_raw(cancel) });
        }
        Ok(())
    });
}
