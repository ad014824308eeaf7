//! The allocator's treatment of large buffers.

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
