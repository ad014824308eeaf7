//! The memory of this process, as Linux counts it.

/// Peak resident memory of this process so far in MB (10^6 bytes); `None` where the system does not tell (it is
/// read from `/proc/self/status`, so elsewhere than on Linux).
pub fn peak_rss_mb() -> Option<f64> {
    field_mb(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// Resident memory of this process now in MB; `None` as for [`peak_rss_mb`].
pub fn rss_mb() -> Option<f64> {
    field_mb(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// A line `VmHWM:     1234 kB`, where the kernel's kB is 1024 bytes (proc(5)).
fn field_mb(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_kilobytes_are_1024_bytes() {
        let status = "Name:\tjrs\nVmPeak:\t 9 kB\nVmHWM:\t   62500 kB\nVmRSS:\t 1000 kB\n";
        assert_eq!(field_mb(status, "VmHWM"), Some(64.0));
        assert_eq!(field_mb(status, "VmSwap"), None);
        assert_eq!(field_mb("VmHWM:\tx kB", "VmHWM"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_use() {
        let before = peak_rss_mb().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64_000_000]);
        let after = peak_rss_mb().unwrap();
        assert!(after > before + 30.0, "{before} -> {after}");
        drop(block);
        // The kernel gathers pages per thread before it counts them, hence the margin.
        assert!(peak_rss_mb().unwrap() > after - 4.0);
        assert!(rss_mb().unwrap() < after - 30.0, "the block is gone from what is resident now");
    }
}
