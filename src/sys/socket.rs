//! What a unix socket's peer has not read yet.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Whether the peer of a connected unix socket has read all that was sent to it.
pub fn is_all_read(socket: impl AsFd) -> Result<bool, Errno> {
    crate::sys::outgoing(socket.as_fd()).map(|bytes| bytes == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn all_is_read_when_the_last_byte_is() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(is_all_read(&ours).unwrap());
        ours.write_all(b"ab").unwrap();
        assert!(!is_all_read(&ours).unwrap());
        theirs.read_exact(&mut [0]).unwrap();
        assert!(!is_all_read(&ours).unwrap());
        theirs.read_exact(&mut [0]).unwrap();
        assert!(is_all_read(&ours).unwrap());
        drop(theirs);
        assert!(is_all_read(&ours).unwrap());
    }
}
