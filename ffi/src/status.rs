//! Status codes, the message of the last failure, and the guard that every fallible entry runs in.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, PoisonError};

use libjrs::Error;

/// Success. The hundreds of all other codes are their class; a number is never reused.
pub const JRS_OK: i32 = 0;
/// Argument: NULL where a pointer is needed, text that is not UTF-8, or a value that is not allowed.
pub const JRS_E_ARGUMENT: i32 = 100;
/// Argument: the caller's buffer is too small; the needed size was written.
pub const JRS_E_BUFFER_TOO_SMALL: i32 = 101;
/// Argument: struct_size is not set, or the struct is of a newer version and uses what this library does not know.
pub const JRS_E_STRUCT_SIZE: i32 = 102;
/// Argument: the session is in a call already; a session serves one call at a time.
pub const JRS_E_BUSY: i32 = 103;
/// Argument: the option exists and this build or this machine does not have it.
pub const JRS_E_UNSUPPORTED: i32 = 104;
/// Geometry: sizes, strides, spacing, origin or axes that cannot be those of a scan.
pub const JRS_E_GEOMETRY: i32 = 200;
/// Model: the file cannot be read.
pub const JRS_E_MODEL_UNREADABLE: i32 = 300;
/// Model: damaged, of another network or of a newer format.
pub const JRS_E_MODEL_INVALID: i32 = 301;
/// Model: not signed, or not with the key that was given.
pub const JRS_E_MODEL_SIGNATURE: i32 = 302;
/// Input: the volumes, contours or points cannot be registered (no CT, no overlap, contours off the slices).
pub const JRS_E_INPUT: i32 = 400;
/// Device: it is not there, or was lost. There is no fall-back to another one.
pub const JRS_E_DEVICE: i32 = 500;
/// Memory: the call needs more than the limit, or than the system has; nothing was begun.
pub const JRS_E_MEMORY: i32 = 600;
/// Cancelled by the token or by the progress callback.
pub const JRS_E_CANCELLED: i32 = 700;
/// File: a result cannot be written.
pub const JRS_E_FILE: i32 = 800;
/// Internal: a defect of libjrs. Please report the message.
pub const JRS_E_INTERNAL: i32 = 900;

/// A failure on its way to the caller: the code and the words.
#[derive(Debug)]
pub(crate) struct Failure {
    /// One of the `JRS_E_*` codes.
    pub code: i32,
    /// One paragraph: what, and what to do.
    pub message: String,
}

impl Failure {
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A NULL where a pointer is needed.
    pub fn null(name: &str) -> Self {
        Self::new(JRS_E_ARGUMENT, format!("{name} is NULL"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Io { .. } | Error::File { .. } => JRS_E_FILE,
            Error::Cancelled => JRS_E_CANCELLED,
            Error::Device { .. } => JRS_E_DEVICE,
            Error::Memory { .. } => JRS_E_MEMORY,
            Error::Unsupported { .. } => JRS_E_UNSUPPORTED,
            _ => JRS_E_INPUT,
        };
        Self::new(code, error.to_string())
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
    /// True while the thread works for this library.
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Where the last panic happened: the hook knows it, the payload does not.
static PANIC_PLACE: Mutex<String> = Mutex::new(String::new());

/// Why the last failing call on this thread failed; "" if none did. Valid until the next call on this thread that
/// fails; not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn jrs_last_error() -> *const c_char {
    // A thread that is being torn down has no message any more.
    LAST_ERROR.try_with(|e| e.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs an entry's body; a failure or panic becomes a status code and a message, never unwinding into C.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let Err(failure) = caught(body) else { return JRS_OK };
    let _ = LAST_ERROR.try_with(|e| *e.borrow_mut() = c_text(&failure.message));
    failure.code
}

/// Runs `body`; a panic becomes a failure.
pub(crate) fn caught<T>(body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    silence_own_panics();
    IS_OURS.with(|ours| {
        let before = ours.replace(true);
        // Bodies write to their outputs as the last thing they do, so nothing is seen half-done after a panic.
        let outcome = catch_unwind(AssertUnwindSafe(body));
        ours.set(before);
        outcome.unwrap_or_else(|payload| {
            let place = std::mem::take(&mut *PANIC_PLACE.lock().unwrap_or_else(PoisonError::into_inner));
            Err(Failure::new(JRS_E_INTERNAL, panic_text(payload.as_ref(), &place)))
        })
    })
}

/// Marks a thread as one of a session's own.
pub(crate) fn adopt_thread() {
    IS_OURS.with(|ours| ours.set(true));
}

/// Text for C; a NUL inside (from a file name, say) would cut it short.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

/// The default hook writes panics to the host's stderr. Those inside of this library go into messages instead; a
/// host in Rust that shares the standard library keeps its hook for its own.
fn silence_own_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hosts = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_OURS.with(Cell::get) {
                return hosts(panic);
            }
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            *PANIC_PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place;
        }));
    });
}

fn panic_text(payload: &(dyn Any + Send), place: &str) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let place = if place.is_empty() { String::new() } else { format!(" at {place}") };
    format!(
        "internal error in libjrs: {text}{place}. Please report this with the version and what was being done"
    )
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
    fn every_kind_of_error_has_its_class() {
        let codes = [
            (Error::device("no driver", "Install one"), JRS_E_DEVICE),
            (Error::memory("too much", "Ask for less"), JRS_E_MEMORY),
            (Error::unsupported("no such unit", "Use another"), JRS_E_UNSUPPORTED),
            (Error::input("no overlap", "Align them"), JRS_E_INPUT),
            (Error::Cancelled, JRS_E_CANCELLED),
        ];
        for (error, code) in codes {
            assert_eq!(Failure::from(error).code, code);
        }
    }

    #[test]
    fn messages_belong_to_their_thread_and_survive_success() {
        let code = guard(|| Err(Failure::new(JRS_E_ARGUMENT, "here\0there")));
        assert_eq!((code, last_error().as_str()), (JRS_E_ARGUMENT, "here\u{fffd}there"));
        assert_eq!(guard(|| Ok(())), JRS_OK);
        assert_eq!(last_error(), "here\u{fffd}there");
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
    }
}
