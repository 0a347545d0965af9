//! The loopback interface of the network namespace that the process is in.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// IFF_UP and IFF_RUNNING (linux/if.h) in the width of `ifru_flags`.
const UP_AND_RUNNING: libc::c_short = 0x41;

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1 itself.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    let socket: OwnedFd = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is made of integers and byte arrays, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = from.cast_signed();
    }
    // `lo` of a new namespace has no flag but IFF_LOOPBACK, which can't be changed: there is
    // nothing to read first.
    request.ifr_ifru.ifru_flags = UP_AND_RUNNING;
    // SAFETY: SIOCSIFFLAGS reads a whole ifreq, which lives during the call.
    let returned =
        unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    super::checked(libc::c_long::from(returned)).map(drop)
}
