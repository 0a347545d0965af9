//! Freed memory that the allocator keeps.

use rustix::io::Errno;

use crate::sys;

/// Has the allocator keep little of what is freed. For the start of a process.
///
/// By default glibc raises its thresholds to the largest block ever freed, up to 32 MiB, and keeps
/// twice as much at the end of each arena; blocks below the threshold leave holes where they grew.
pub fn keep_little() -> Result<(), Errno> {
    sys::set_allocator_thresholds(128 << 10)
}

/// Gives free memory back to the system, where the allocator can.
pub fn give_back() {
    sys::trim_allocator();
}
