//! The command line that `ps` shows of this process.
#![expect(unsafe_code, reason = "the kernel reads it from this process's memory")]

use std::ffi::{CStr, c_char};
use std::ptr;

unsafe extern "C" {
    /// `argv[0]` as the program was started with it (program_invocation_name(3), glibc and musl).
    static program_invocation_name: *const c_char;
}

/// Writes `to` over the first argument, if that is `from`. For a forked process, which has another
/// role than its parent: both are of one length. To be called with one thread.
pub(crate) fn replace_first_argument(from: &CStr, to: &CStr) {
    if from.count_bytes() != to.count_bytes() {
        return;
    }
    // SAFETY: the C library sets it before `main`, and nobody here changes it.
    let program = unsafe { program_invocation_name };
    if program.is_null() {
        return;
    }
    // SAFETY: `argv[0]` lives as long as the process and ends with a NUL.
    let length = unsafe { CStr::from_ptr(program) }.count_bytes();
    // SAFETY: the kernel lays the arguments out one after another, each with a NUL, then the
    // environment, then the program's path (fs/exec.c, copy_strings): more follows that NUL.
    let argument = unsafe { program.add(length + 1) };
    // SAFETY: what follows it is a string, for the same reason.
    if unsafe { CStr::from_ptr(argument) } != from {
        return;
    }
    // SAFETY: the stack is this process's own and writable, nothing holds a reference to it, and
    // `to` is as long as what it replaces.
    unsafe { ptr::copy_nonoverlapping(to.as_ptr(), argument.cast_mut(), to.count_bytes()) };
}
