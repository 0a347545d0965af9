//! Bytes of a request, read into what is asked for.
//!
//! Invariant: no bytes make this panic, loop or read outside of them, and nothing is copied: names
//! and contents borrow the buffer. The kernel's own requests always decode; what doesn't is
//! answered with EINVAL by the caller, so the client is not left waiting.

mod cursor;

use cowl_sys::opcode;
use zerocopy::FromBytes;

use super::wire;
use cursor::Cursor;

/// A request that cannot be read.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Malformed;

/// What INIT settled about how requests are laid out.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Dialect {
    /// `SETXATTR_EXT` (Linux 5.14): SETXATTR has flags of its own.
    pub(super) long_setxattr: bool,
}

/// The header: all that an answer needs.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Header {
    /// The number the answer carries back.
    pub(super) unique: u64,
    /// The request code.
    pub(super) opcode: u32,
    /// The node it is about.
    pub(super) node: u64,
    /// The caller's file system user id.
    pub(super) uid: u32,
    /// The caller's file system group id.
    pub(super) gid: u32,
    /// Bytes of body: what is between the header and the extensions, of which none is negotiated.
    body: usize,
}

impl Header {
    /// The length of the request that `bytes` begin with.
    pub(super) fn length(bytes: &[u8]) -> Result<usize, Malformed> {
        let (header, _) = wire::InHeader::read_from_prefix(bytes).map_err(|_short| Malformed)?;
        usize::try_from(header.len).map_err(|_beyond| Malformed)
    }

    /// Reads the header of a request that was received whole.
    pub(super) fn read(request: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) =
            wire::InHeader::read_from_prefix(request).map_err(|_short| Malformed)?;
        if u32::try_from(request.len()) != Ok(header.len) {
            return Err(Malformed);
        }
        let extensions = usize::from(header.total_extlen) * 8;
        Ok(Self {
            unique: header.unique,
            opcode: header.opcode,
            node: header.nodeid,
            uid: header.uid,
            gid: header.gid,
            body: rest.len().checked_sub(extensions).ok_or(Malformed)?,
        })
    }

    /// What is asked for; `request` are the bytes this header was read from.
    pub(super) fn operation<'r>(
        &self,
        request: &'r [u8],
        dialect: Dialect,
    ) -> Result<Operation<'r>, Malformed> {
        let start = size_of::<wire::InHeader>();
        let body = request.get(start..start + self.body).ok_or(Malformed)?;
        Operation::read(self.opcode, Cursor(body), dialect)
    }
}

/// A time to set.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum WireTime {
    Now,
    At { secs: i64, nanos: u32 },
}

/// SETATTR: what to change; what is `None` stays.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Setattr {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<WireTime>,
    pub(super) mtime: Option<WireTime>,
    /// `FATTR_KILL_SUIDGID`, or nothing at all is set, which is how the kernel asks for the same.
    pub(super) kill_priv: bool,
}

/// What is asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Operation<'r> {
    Lookup {
        name: &'r [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'r>),
    Getattr,
    Setattr(Setattr),
    Readlink,
    Symlink {
        name: &'r [u8],
        target: &'r [u8],
    },
    Mknod {
        name: &'r [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: &'r [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'r [u8],
    },
    Rmdir {
        name: &'r [u8],
    },
    Rename {
        name: &'r [u8],
        new_parent: u64,
        new_name: &'r [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'r [u8],
    },
    Open {
        flags: u32,
        kill_priv: bool,
    },
    Create {
        name: &'r [u8],
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Tmpfile {
        flags: u32,
        mode: u32,
        umask: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: &'r [u8],
        /// Pages that the kernel held back: no client waits for the answer, and one that says less
        /// was written is taken for success.
        from_cache: bool,
        kill_priv: bool,
    },
    Release {
        handle: u64,
    },
    Fsync {
        data_only: bool,
    },
    Fsyncdir {
        data_only: bool,
    },
    Syncfs,
    Statfs,
    Getxattr {
        name: &'r [u8],
        size: u32,
    },
    Setxattr {
        name: &'r [u8],
        value: &'r [u8],
        flags: u32,
        kill_sgid: bool,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'r [u8],
    },
    Readdir {
        cookie: u64,
        size: u32,
        plus: bool,
    },
    Fallocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyRange),
    Interrupt,
    Ioctl,
    Destroy,
    /// A code that is not answered here.
    Unknown,
}

/// COPY_FILE_RANGE.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct CopyRange {
    pub(super) handle_in: u64,
    pub(super) offset_in: u64,
    pub(super) node_out: u64,
    pub(super) handle_out: u64,
    pub(super) offset_out: u64,
    pub(super) length: u64,
    pub(super) flags: u64,
}

/// The nodes of a BATCH_FORGET.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Forgets<'r>(&'r [u8]);

impl Iterator for Forgets<'_> {
    type Item = wire::ForgetOne;

    fn next(&mut self) -> Option<Self::Item> {
        let (one, rest) = wire::ForgetOne::read_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(one)
    }
}

impl<'r> Operation<'r> {
    fn read(code: u32, mut body: Cursor<'r>, dialect: Dialect) -> Result<Self, Malformed> {
        Ok(match code {
            opcode::LOOKUP => Self::Lookup { name: body.name()? },
            opcode::FORGET => Self::Forget {
                count: body.take::<wire::ForgetIn>()?.nlookup,
            },
            opcode::BATCH_FORGET => Self::BatchForget(body.forgets()?),
            opcode::GETATTR => {
                body.take::<wire::GetattrIn>()?;
                Self::Getattr
            }
            opcode::SETATTR => Self::Setattr(setattr(&body.take()?)),
            opcode::STATFS => Self::Statfs,
            opcode::GETXATTR => {
                let asked: wire::GetxattrIn = body.take()?;
                Self::Getxattr {
                    name: body.name()?,
                    size: asked.size,
                }
            }
            opcode::SETXATTR => body.setxattr(dialect)?,
            opcode::LISTXATTR => Self::Listxattr {
                size: body.take::<wire::GetxattrIn>()?.size,
            },
            opcode::REMOVEXATTR => Self::Removexattr { name: body.name()? },
            opcode::READLINK => Self::Readlink,
            opcode::READDIR => body.readdir(false)?,
            opcode::READDIRPLUS => body.readdir(true)?,
            opcode::INTERRUPT => Self::Interrupt,
            opcode::IOCTL => Self::Ioctl,
            opcode::DESTROY => Self::Destroy,
            opcode::SYNCFS => Self::Syncfs,
            _ => match Self::read_of_names(code, &mut body)? {
                Some(operation) => operation,
                None => Self::read_of_files(code, &mut body)?.unwrap_or(Self::Unknown),
            },
        })
    }

    /// What changes names.
    fn read_of_names(code: u32, body: &mut Cursor<'r>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match code {
            opcode::SYMLINK => Self::Symlink {
                name: body.name()?,
                target: body.name()?,
            },
            opcode::MKNOD => {
                let asked: wire::MknodIn = body.take()?;
                Self::Mknod {
                    name: body.name()?,
                    mode: asked.mode,
                    rdev: asked.rdev,
                    umask: asked.umask,
                }
            }
            opcode::MKDIR => {
                let asked: wire::MkdirIn = body.take()?;
                Self::Mkdir {
                    name: body.name()?,
                    mode: asked.mode,
                    umask: asked.umask,
                }
            }
            opcode::UNLINK => Self::Unlink { name: body.name()? },
            opcode::RMDIR => Self::Rmdir { name: body.name()? },
            opcode::RENAME => {
                let asked: wire::RenameIn = body.take()?;
                Self::Rename {
                    name: body.name()?,
                    new_parent: asked.newdir,
                    new_name: body.name()?,
                    flags: 0,
                }
            }
            opcode::RENAME2 => {
                let asked: wire::Rename2In = body.take()?;
                Self::Rename {
                    name: body.name()?,
                    new_parent: asked.newdir,
                    new_name: body.name()?,
                    flags: asked.flags,
                }
            }
            opcode::LINK => {
                let asked: wire::LinkIn = body.take()?;
                Self::Link {
                    node: asked.oldnodeid,
                    name: body.name()?,
                }
            }
            opcode::CREATE => {
                let asked: wire::CreateIn = body.take()?;
                Self::Create {
                    name: body.name()?,
                    flags: asked.flags,
                    mode: asked.mode,
                    umask: asked.umask,
                }
            }
            opcode::TMPFILE => {
                let asked: wire::CreateIn = body.take()?;
                Self::Tmpfile {
                    flags: asked.flags,
                    mode: asked.mode,
                    umask: asked.umask,
                }
            }
            _ => return Ok(None),
        }))
    }

    /// What is done with files.
    fn read_of_files(code: u32, body: &mut Cursor<'r>) -> Result<Option<Self>, Malformed> {
        Ok(Some(match code {
            opcode::OPEN => {
                let asked: wire::OpenIn = body.take()?;
                Self::Open {
                    flags: asked.flags,
                    kill_priv: asked.open_flags & wire::OPEN_KILL_SUIDGID != 0,
                }
            }
            opcode::READ => {
                let asked: wire::ReadIn = body.take()?;
                Self::Read {
                    handle: asked.fh,
                    offset: asked.offset,
                    size: asked.size,
                }
            }
            opcode::WRITE => {
                let asked: wire::WriteIn = body.take()?;
                let data = body.bytes(asked.size)?;
                let has = |flag: u32| asked.write_flags & flag != 0;
                Self::Write {
                    handle: asked.fh,
                    offset: asked.offset,
                    data,
                    from_cache: has(wire::WRITE_CACHE),
                    kill_priv: has(wire::WRITE_KILL_SUIDGID),
                }
            }
            opcode::RELEASE => Self::Release {
                handle: body.take::<wire::ReleaseIn>()?.fh,
            },
            opcode::FSYNC => {
                let asked: wire::FsyncIn = body.take()?;
                Self::Fsync {
                    data_only: asked.fsync_flags & wire::FSYNC_FDATASYNC != 0,
                }
            }
            opcode::FSYNCDIR => {
                let asked: wire::FsyncIn = body.take()?;
                Self::Fsyncdir {
                    data_only: asked.fsync_flags & wire::FSYNC_FDATASYNC != 0,
                }
            }
            opcode::FALLOCATE => {
                let asked: wire::FallocateIn = body.take()?;
                Self::Fallocate {
                    handle: asked.fh,
                    offset: asked.offset,
                    length: asked.length,
                    mode: asked.mode,
                }
            }
            opcode::LSEEK => {
                let asked: wire::LseekIn = body.take()?;
                Self::Lseek {
                    handle: asked.fh,
                    offset: asked.offset,
                    whence: asked.whence,
                }
            }
            opcode::COPY_FILE_RANGE => {
                let asked: wire::CopyFileRangeIn = body.take()?;
                Self::CopyFileRange(CopyRange {
                    handle_in: asked.fh_in,
                    offset_in: asked.off_in,
                    node_out: asked.nodeid_out,
                    handle_out: asked.fh_out,
                    offset_out: asked.off_out,
                    length: asked.len,
                    flags: asked.flags,
                })
            }
            _ => return Ok(None),
        }))
    }
}

fn setattr(asked: &wire::SetattrIn) -> Setattr {
    use wire::fattr;
    let has = |flag: u32| asked.valid & flag != 0;
    let time = |set: u32, now: u32, secs: i64, nanos: u32| {
        has(set).then_some(if has(now) {
            WireTime::Now
        } else {
            WireTime::At { secs, nanos }
        })
    };
    let set = Setattr {
        mode: has(fattr::MODE).then_some(asked.mode),
        uid: has(fattr::UID).then_some(asked.uid),
        gid: has(fattr::GID).then_some(asked.gid),
        size: has(fattr::SIZE).then_some(asked.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, asked.atime, asked.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, asked.mtime, asked.mtimensec),
        kill_priv: has(fattr::KILL_SUIDGID),
    };
    // With the writeback cache the kernel adds its time of change to every request; that alone
    // asks for nothing.
    let changes = fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME;
    Setattr {
        kill_priv: set.kill_priv || asked.valid & changes == 0,
        ..set
    }
}

#[cfg(test)]
mod tests;
