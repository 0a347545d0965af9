//! Freed memory that the allocator keeps.
#![expect(
    unsafe_code,
    reason = "mallopt(3) and malloc_trim(3) have no safe wrappers"
)]

/// Has the allocator keep little of what is freed. For the start of a process.
///
/// By default glibc raises its thresholds to the largest block ever freed, and keeps twice as much
/// at the end of each arena.
pub(crate) fn keep_little() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        const THRESHOLD: libc::c_int = 128 << 10;
        // SAFETY: the parameters are numbers; the allocator locks itself.
        if unsafe { libc::mallopt(parameter, THRESHOLD) } != 1 {
            tracing::warn!(parameter, "the allocator keeps what it likes");
        }
    }
}

/// Gives free memory back to the system, where the allocator can.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no argument is a pointer; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
