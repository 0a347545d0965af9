//! Kernel keyrings, keyctl(2).

use rustix::io::Errno;

/// linux/keyctl.h.
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Joins a new, empty session keyring, so that the container can't reach the caller's keys.
pub(crate) fn join_new_session() -> Result<(), Errno> {
    // SAFETY: without a name the kernel reads no memory of ours.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    match super::checked(returned) {
        // A kernel without keyrings.
        Ok(_) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of the calling thread's session keyring (KEYCTL_GET_KEYRING_ID,
    /// KEY_SPEC_SESSION_KEYRING).
    fn session() -> libc::c_long {
        // SAFETY: reads no memory.
        unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }
    }

    #[test]
    fn join_new_session_changes_the_session_keyring() {
        let before = session();
        join_new_session().unwrap();
        let after = session();
        // Both are -1 on a kernel without keys.
        assert!(after != before || before == -1);
    }
}
