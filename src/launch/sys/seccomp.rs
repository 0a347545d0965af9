//! `seccomp(2)`.

use rustix::io::Errno;

use crate::seccomp::Filter;

/// Puts the calling thread under a filter, for good and with all its descendants.
///
/// EACCES without CAP_SYS_ADMIN in its user namespace and without no_new_privs.
pub(crate) fn load(filter: &Filter) -> Result<(), Errno> {
    let instructions = filter.instructions();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(|_range| Errno::TOOBIG)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the struct and the instructions live during the call, which copies and checks them.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::c_ulong::from(filter.flags()),
            &raw const program,
        )
    };
    super::checked(returned).map(drop)
}
