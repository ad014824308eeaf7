//! Status codes, the message of the last failure, and the guard that every fallible entry runs in.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Success.
pub const JRS_OK: i32 = 0;
/// NULL where a pointer is needed, or text that is not UTF-8.
pub const JRS_E_ARGUMENT: i32 = 100;
/// The caller's buffer is too small; the needed size was written.
pub const JRS_E_BUFFER_TOO_SMALL: i32 = 101;
/// The model file cannot be read.
pub const JRS_E_MODEL_UNREADABLE: i32 = 300;
/// The model is damaged, of another network or of a newer format.
pub const JRS_E_MODEL_INVALID: i32 = 301;
/// A defect of this library.
pub const JRS_E_INTERNAL: i32 = 900;

/// A failure on its way to the caller: the code and the words.
#[derive(Debug)]
pub struct Failure {
    /// One of the `JRS_E_*` codes.
    pub code: i32,
    /// One paragraph: what, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with its words.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Why the last failing call on this thread failed; valid until the next failing one.
#[unsafe(no_mangle)]
pub extern "C" fn jrs_last_error() -> *const c_char {
    // A thread that is being torn down has no message any more.
    LAST_ERROR.try_with(|e| e.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs an entry's body; a failure or panic becomes a status code and a message, never unwinding into C.
pub fn guard(body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    silence_panics();
    // Bodies only write to their outputs as the last thing they do, so nothing is seen half-done after a panic.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return JRS_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::new(JRS_E_INTERNAL, panic_text(payload.as_ref())),
    };
    // A NUL inside a message (from a file name, say) would cut it short.
    let text = CString::new(failure.message.replace('\0', "\u{fffd}")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|e| *e.borrow_mut() = text);
    failure.code
}

/// The default hook writes panics to the host's stderr. This library carries its own copy of the standard
/// library, so replacing the hook changes nothing for a host that is itself in Rust.
fn silence_panics() {
    static ONCE: Once = Once::new();
    if cfg!(not(test)) {
        ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    format!("internal error in libjrs: {text}. Please report this with the version and what was being done")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last_error() -> String {
        // SAFETY: the pointer is to this thread's message, which no call replaces while it is copied.
        unsafe { CStr::from_ptr(jrs_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        let code = guard(|| panic!("weights on fire"));
        assert_eq!(code, JRS_E_INTERNAL);
        assert!(last_error().contains("weights on fire"));
    }

    #[test]
    fn messages_belong_to_their_thread_and_survive_success() {
        let code = guard(|| Err(Failure::new(JRS_E_ARGUMENT, "here\0there")));
        assert_eq!((code, last_error().as_str()), (JRS_E_ARGUMENT, "here\u{fffd}there"));
        assert_eq!(guard(|| Ok(())), JRS_OK);
        assert_eq!(last_error(), "here\u{fffd}there");
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
    }

    /// The header is written by hand, so its numbers are compared with ours.
    #[test]
    fn header_macros_agree() {
        let header = include_str!("../include/jrs.h");
        let defined: Vec<(&str, i64)> = header
            .lines()
            .filter_map(|line| line.strip_prefix("#define JRS_")?.split_once(' '))
            .map(|(name, value)| (name, value.trim_end_matches('u').parse().unwrap()))
            .collect();
        let ours = [
            ("ABI_VERSION", i64::from(crate::version::ABI_VERSION)),
            ("OK", JRS_OK.into()),
            ("E_ARGUMENT", JRS_E_ARGUMENT.into()),
            ("E_BUFFER_TOO_SMALL", JRS_E_BUFFER_TOO_SMALL.into()),
            ("E_MODEL_UNREADABLE", JRS_E_MODEL_UNREADABLE.into()),
            ("E_MODEL_INVALID", JRS_E_MODEL_INVALID.into()),
            ("E_INTERNAL", JRS_E_INTERNAL.into()),
        ];
        assert_eq!(defined, ours);
    }
}
