//! Which library is loaded.

use std::ffi::c_char;

/// Raised by every incompatible change of this header; the library's soname carries it.
pub const JRS_ABI_VERSION: u32 = 0;

/// JRS_ABI_VERSION of the library that is loaded; compare with the header's before any other call.
#[unsafe(no_mangle)]
pub extern "C" fn jrs_abi_version() -> u32 {
    JRS_ABI_VERSION
}

/// The library's version, for instance "0.1.0". Valid for ever; not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn jrs_version_string() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    #[test]
    fn version_is_the_packages() {
        // SAFETY: the function returns a static, NUL-terminated string.
        let text = unsafe { CStr::from_ptr(super::jrs_version_string()) };
        assert_eq!(text.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}
