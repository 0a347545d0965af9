//! `seccomp(2)`.

use rustix::io::Errno;

use crate::seccomp::Program;

/// Puts the calling thread, and all that it becomes and makes, under a filter for good.
///
/// EACCES without CAP_SYS_ADMIN in its user namespace and without no_new_privs. The filter does not ask for the defence against speculative
/// store bypass (which kernels before 5.16 gave to whoever had a filter, at a price for every program): nor does runc's.
pub(crate) fn load(program: &Program) -> Result<(), Errno> {
    let instructions = program.instructions();
    let filter = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_range| Errno::TOOBIG)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the struct and the instructions live during the call, which copies and checks them.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const filter,
        )
    };
    super::checked(returned).map(drop)
}
