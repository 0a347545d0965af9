//! INIT: the flags that kernel and worker agree on, once a connection.
//!
//! `fuser` reads the request and writes the answer; everything after it is our own loop. What was
//! agreed is a plain value: with the descriptor it makes a connection in another process, too.
//! Invariant: passthrough and the writeback cache exclude each other (the kernel refuses backing
//! files under it), and so do skipping OPEN and cutting files in OPEN.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use cowl_core::handover::IoMode;
use fuser::{Config, Filesystem, InitFlags, KernelConfig, Request, Session, SessionACL};

use super::decode::Dialect;

/// Longest write in one request, and so the longest read: 1 MiB.
pub(super) const MAX_WRITE: u32 = 1 << 20;

/// A negotiated connection: the descriptor and what was agreed on it, all that a process needs to
/// serve it.
#[derive(Debug)]
pub(crate) struct Connection {
    device: OwnedFd,
    agreed: Agreed,
}

/// What a mount wants of the kernel.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Wanted {
    /// How files are served.
    pub(crate) io_mode: IoMode,
    /// Whether anything can be changed.
    pub(crate) writable: bool,
    /// Whether ACLs are honoured.
    pub(crate) acls: bool,
}

/// What came of INIT.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Agreed {
    io_mode: IoMode,
    /// How requests are laid out.
    dialect: Dialect,
    /// Whether the kernel keeps what is written for a while before it tells us.
    writes_back: bool,
}

impl Agreed {
    /// As a number other than 0, for another process.
    pub(crate) fn to_word(self) -> u64 {
        let mode = match self.io_mode {
            IoMode::Cached => 0,
            IoMode::Writeback => 1,
            IoMode::Passthrough => 2,
        };
        let bit = |is: bool, bit: u32| u64::from(is) << bit;
        1 | bit(self.dialect.long_setxattr, 1) | bit(self.writes_back, 2) | mode << 3
    }

    /// The inverse of [`to_word`](Self::to_word).
    pub(crate) fn of_word(word: u64) -> Option<Self> {
        let bit = |bit: u32| word >> bit & 1 != 0;
        let io_mode = match word >> 3 {
            0 => IoMode::Cached,
            1 => IoMode::Writeback,
            2 => IoMode::Passthrough,
            _ => return None,
        };
        bit(0).then(|| Self {
            io_mode,
            dialect: Dialect {
                long_setxattr: bit(1),
            },
            writes_back: bit(2),
        })
    }
}

impl Connection {
    /// Answers INIT on `device`.
    ///
    /// # Errors
    /// A kernel that cannot do what `wanted` needs, and those of the connection.
    pub(crate) fn negotiate(device: OwnedFd, wanted: Wanted) -> io::Result<Self> {
        let agreed = Arc::new(OnceLock::new());
        let negotiator = Negotiator {
            wanted,
            agreed: Arc::clone(&agreed),
        };
        // The access check of `SessionACL` is part of fuser's own loop; here the mount's
        // allow_other and default_permissions hold.
        let parley = device.try_clone()?;
        // It owns no mount, so its end is that of a descriptor.
        drop(Session::from_fd(
            negotiator,
            parley,
            SessionACL::All,
            Config::default(),
        )?);
        let agreed = *agreed.get().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { device, agreed })
    }

    /// A connection that another process has negotiated, and from which no process reads any more.
    pub(crate) fn take_over(device: OwnedFd, agreed: Agreed) -> Self {
        Self { device, agreed }
    }

    /// What was agreed on.
    pub(crate) fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// How its requests are laid out.
    pub(super) fn dialect(&self) -> Dialect {
        self.agreed.dialect
    }

    /// Whether the kernel keeps what is written for a while before it tells us.
    pub(super) fn writes_back(&self) -> bool {
        self.agreed.writes_back
    }

    /// Whether OPEN may be answered ENOSYS: nothing depends on being asked, and the kernel was not
    /// told to leave truncation to it.
    pub(super) fn may_skip_open(&self) -> bool {
        !self.agreed.io_mode.has_handles()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

#[derive(Debug)]
struct Negotiator {
    wanted: Wanted,
    agreed: Arc<OnceLock<Agreed>>,
}

impl Filesystem for Negotiator {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let Wanted {
            io_mode,
            writable,
            acls,
        } = self.wanted;
        if io_mode == IoMode::Passthrough && !offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut flags = (always() | flags_of(io_mode, writable)) & offered;
        flags.set(
            InitFlags::FUSE_POSIX_ACL,
            acls && offered.contains(InitFlags::FUSE_POSIX_ACL),
        );
        config
            .add_capabilities(flags)
            .map_err(|missing| io::Error::other(format!("the kernel takes {missing:?} back")))?;
        config
            .set_max_write(MAX_WRITE)
            .map_err(|_nearest| io::ErrorKind::InvalidInput)?;
        if io_mode == IoMode::Passthrough {
            // 1: backing files lie on a plain filesystem, and an overlay may lie on this mount.
            config
                .set_max_stack_depth(1)
                .map_err(|_nearest| io::ErrorKind::InvalidInput)?;
        }
        let dialect = Dialect {
            long_setxattr: flags.contains(InitFlags::FUSE_SETXATTR_EXT),
        };
        let agreed = Agreed {
            io_mode,
            dialect,
            writes_back: flags.contains(InitFlags::FUSE_WRITEBACK_CACHE),
        };
        self.agreed
            .set(agreed)
            .map_err(|_twice| io::ErrorKind::InvalidData.into())
    }
}

/// What each I/O mode wants, where the kernel has it.
///
/// Not among it: `CREATE_SUPP_GROUP` (the system strips set-gid of a new file by the caller's
/// groups before it asks us, so the one group that this would tell is not missed), `SECURITY_CTX`,
/// and locks, which are the kernel's own.
fn always() -> InitFlags {
    InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_CACHE_SYMLINKS
        // Files change by requests only, so the kernel knows which pages go stale.
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_DONT_MASK
        // Without it every write costs a GETXATTR.
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_SETXATTR_EXT
        | InitFlags::FUSE_ALLOW_IDMAP
        | InitFlags::FUSE_ASYNC_DIO
        // Tells an aborted connection (ECONNABORTED) from an unmounted one (ENODEV).
        | InitFlags::FUSE_ABORT_ERROR
}

fn flags_of(io_mode: IoMode, writable: bool) -> InitFlags {
    match io_mode {
        IoMode::Passthrough => InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_ATOMIC_O_TRUNC,
        // Under the writeback cache the kernel believes no `st_blocks` it knew before a close, so
        // it is only for mounts that can be written.
        IoMode::Writeback if writable => InitFlags::FUSE_WRITEBACK_CACHE,
        IoMode::Cached | IoMode::Writeback => InitFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_agreed_survives_as_a_word() {
        for io_mode in [IoMode::Cached, IoMode::Writeback, IoMode::Passthrough] {
            for (long_setxattr, writes_back) in [(false, false), (true, false), (true, true)] {
                let agreed = Agreed {
                    io_mode,
                    dialect: Dialect { long_setxattr },
                    writes_back,
                };
                assert_eq!(Agreed::of_word(agreed.to_word()), Some(agreed));
            }
        }
        assert_eq!(Agreed::of_word(0), None);
        assert_eq!(Agreed::of_word(3 << 3 | 1), None);
    }
}
