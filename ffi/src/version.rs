//! Which library is loaded.

use std::ffi::c_char;

/// `JRS_ABI_VERSION` of the header; raised by every incompatible change.
pub const ABI_VERSION: u32 = 0;

/// The library's `JRS_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn jrs_abi_version() -> u32 {
    ABI_VERSION
}

/// The library's version, static and NUL-terminated.
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
