//! Large buffers and the allocator.

/// Asks the C allocator to keep freed large buffers instead of returning them to the system: every training or
/// refinement step frees and takes the same ones, and mapping them anew cost 13 % of a JRS-GANa step.
///
/// Call it once, early. Does nothing where the allocator is not glibc's. A library should not call it: the
/// setting is the whole process's.
pub fn keep_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator and takes its lock while it does.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        libc::mallopt(libc::M_TOP_PAD, 256 << 20);
    }
}

/// A buffer for a result that is about to be overwritten whole: its values are whatever lay there. Zeroing the tensors of a training step, which
/// the kernels then overwrite, took 7 % of a JRS-GANa step. Where debug assertions are on it is filled with NaN, so that tests see
/// what is not overwritten.
pub fn for_overwriting(len: usize) -> Vec<f32> {
    let mut values = Vec::<f32>::with_capacity(len);
    if cfg!(debug_assertions) {
        values.resize(len, f32::NAN);
        return values;
    }
    // SAFETY: there is room for `len` values. The assembly is empty, but it is told the address and may write anywhere, so the compiler
    // has to take the memory as initialised by it, with values unknown; every pattern is an f32.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) values.as_mut_ptr(), options(nostack, preserves_flags));
        values.set_len(len);
    }
    values
}
