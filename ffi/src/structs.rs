//! Sized structs and texts across the border: what grows must be readable by older and newer libraries.
//!
//! Every struct begins with `struct_size`, which the caller sets to its own `sizeof`. A shorter one is filled up with
//! defaults; a longer one is accepted as long as nothing beyond what this library knows is set.

use std::ffi::c_char;

use crate::status::{Failure, JRS_E_BUFFER_TOO_SMALL, JRS_E_STRUCT_SIZE};

/// Larger than any struct will ever be: more is a struct that was not initialised.
const MOST_BYTES: usize = 4096;

/// A struct of the ABI.
///
/// # Safety
/// `repr(C)`, the first field is `struct_size: usize`, every bit pattern is valid for every field, and there is no
/// padding.
pub(crate) unsafe trait AbiStruct: Copy {
    /// What a field is when the caller's struct does not have it, with `struct_size` set.
    const DEFAULT: Self;
}

/// `struct_size` of the caller's struct.
///
/// # Safety
/// `at` is valid for reading a `usize`.
unsafe fn size_of_callers<T>(at: *const T, name: &str) -> Result<usize, Failure> {
    // SAFETY: by the contract.
    let size = unsafe { at.cast::<usize>().read() };
    if size < size_of::<usize>() || size > MOST_BYTES || !size.is_multiple_of(8) {
        let message = format!("struct_size of {name} is {size}. Initialise it with {name}_init");
        return Err(Failure::new(JRS_E_STRUCT_SIZE, message));
    }
    Ok(size)
}

/// The caller's struct; NULL is the default.
///
/// # Safety
/// `from` is NULL or points to a `T` of its own version, as long as its `struct_size` says.
pub(crate) unsafe fn read_struct<T: AbiStruct>(from: *const T, name: &str) -> Result<T, Failure> {
    let mut value = T::DEFAULT;
    if from.is_null() {
        return Ok(value);
    }
    // SAFETY: a struct begins with its size.
    let size = unsafe { size_of_callers(from, name) }?;
    let known = size.min(size_of::<T>());
    // SAFETY: `size` bytes are readable by the contract; beyond `known` only bytes are looked at.
    let tail = unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|&b| b != 0) {
        let message = format!(
            "{name} has {size} bytes and uses some beyond the {known} that this library knows. Update the library or leave the new fields at zero"
        );
        return Err(Failure::new(JRS_E_STRUCT_SIZE, message));
    }
    // SAFETY: `known` bytes are readable on one side and fit on the other; every bit pattern is valid for `T`.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast::<u8>(), known) };
    Ok(value)
}

/// Writes a result into the caller's struct, as far as that reaches; what it has beyond becomes zero.
///
/// # Safety
/// `to` is NULL or valid for writing as many bytes as its `struct_size` says.
pub(crate) unsafe fn write_struct<T: AbiStruct>(to: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: a struct begins with its size.
    let size = unsafe { size_of_callers(to, name) }?;
    let known = size.min(size_of::<T>());
    let head = size_of::<usize>();
    // SAFETY: `size` bytes are writable by the contract; the first word, the caller's size, stays.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(head),
            to.cast::<u8>().add(head),
            known - head,
        );
        std::ptr::write_bytes(to.cast::<u8>().add(known), 0, size - known);
    }
    Ok(())
}

/// `*_init`: fills `size` bytes with defaults.
///
/// # Safety
/// `to` is NULL or valid for writing `size` bytes.
pub(crate) unsafe fn init_struct<T: AbiStruct>(to: *mut T, size: usize, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(name));
    }
    if size < size_of::<usize>() || size > MOST_BYTES || !size.is_multiple_of(8) {
        return Err(Failure::new(JRS_E_STRUCT_SIZE, format!("{size} is no size of {name}. Give sizeof")));
    }
    // SAFETY: valid for `size` bytes, of which the first are the size.
    unsafe { to.cast::<usize>().write(size) };
    // SAFETY: as above.
    unsafe { write_struct(to, T::DEFAULT, name) }
}

/// Copies text with its NUL into the caller's buffer and writes the bytes it takes.
///
/// # Safety
/// `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for a write.
pub(crate) unsafe fn copy_text(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    let text = text.replace('\0', "\u{fffd}");
    let bytes = [text.as_bytes(), &[0]].concat();
    // SAFETY: passed on; c_char and u8 have one layout.
    unsafe { copy_out(&bytes, buffer.cast(), capacity, needed) }
}

/// Copies values into the caller's buffer of `capacity` values and writes how many there are. `buffer` = NULL with
/// `capacity` = 0 asks for the number only.
///
/// # Safety
/// `buffer` is NULL or writable for `capacity` values; `needed` is NULL or valid for a write.
pub(crate) unsafe fn copy_out<T: Copy>(
    values: &[T],
    buffer: *mut T,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    if needed.is_null() {
        return Err(Failure::null("needed"));
    }
    if buffer.is_null() && capacity != 0 {
        return Err(Failure::null("buffer"));
    }
    // SAFETY: not NULL, so by the contract valid for a write.
    unsafe { needed.write(values.len()) };
    if buffer.is_null() {
        return Ok(());
    }
    if capacity < values.len() {
        let message = format!(
            "{} are needed and the buffer takes {capacity}. Call again with a larger one",
            values.len()
        );
        return Err(Failure::new(JRS_E_BUFFER_TOO_SMALL, message));
    }
    // SAFETY: the buffer is writable for at least as many values and cannot overlap what is ours.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), buffer, values.len()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: usize,
        a: u64,
        b: u64,
    }

    // SAFETY: repr(C), the size first, plain integers of one width.
    unsafe impl AbiStruct for Now {
        const DEFAULT: Self = Self { struct_size: size_of::<Self>(), a: 5, b: 7 };
    }

    #[test]
    fn shorter_structs_get_defaults_and_longer_ones_must_be_zero_there() {
        let read = |words: &[u64]| {
            // SAFETY: every test case is as long as its first word says, but for those refused by that word alone.
            unsafe { read_struct(words.as_ptr().cast::<Now>(), "now") }.map(|n| [n.a, n.b])
        };
        assert_eq!(read(&[16, 1]).unwrap(), [1, 7]);
        assert_eq!(read(&[24, 1, 2]).unwrap(), [1, 2]);
        assert_eq!(read(&[32, 1, 2, 0]).unwrap(), [1, 2]);
        for bad in [&[32, 1, 2, 3][..], &[0, 1, 2], &[13, 1, 2], &[1 << 40, 1, 2]] {
            assert_eq!(read(bad).unwrap_err().code, JRS_E_STRUCT_SIZE, "{bad:?}");
        }
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { read_struct(std::ptr::null::<Now>(), "now") }.unwrap(), Now::DEFAULT);
    }

    #[test]
    fn results_fill_what_the_caller_has() {
        for (words, filled) in [([16u64, 9, 9, 9], [16, 5, 9, 9]), ([32, 9, 9, 9], [32, 5, 7, 0])] {
            let mut words = words;
            // SAFETY: as long as the first word says.
            unsafe { write_struct(words.as_mut_ptr().cast(), Now::DEFAULT, "now") }.unwrap();
            assert_eq!(words, filled);
        }
    }
}
