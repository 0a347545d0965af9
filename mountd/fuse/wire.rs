//! The structs of the FUSE protocol, as they lie in a request and in a reply.
//!
//! From Linux `include/uapi/linux/fuse.h`, protocol 7.40 (Linux 6.9; `ALLOW_IDMAP` of 7.41 changes
//! no struct); `negotiate` says 7.40 to the kernel. Integers are the machine's own. Names follow
//! the header, less its `fuse_`.
//!
//! Invariant: a struct has the header's size and offsets; padding is spelt out, so the derives
//! refuse any that isn't.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SetattrIn::valid`.
pub(super) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `OpenOut::open_flags`.
pub(super) mod fopen {
    pub(crate) const KEEP_CACHE: u32 = 1 << 1;
    pub(crate) const PASSTHROUGH: u32 = 1 << 7;
}

/// `OpenIn::open_flags`: drop set-uid, set-gid and capabilities of the file if it is cut.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `WriteIn::write_flags`: from the page cache, on behalf of no client.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `WriteIn::write_flags`: drop them after this write.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FsyncIn::fsync_flags`: contents only.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// `SetxattrMore::setxattr_flags`: the ACL being set takes set-gid away.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    /// Bytes of the extensions at the message's end, in units of 8.
    pub(super) total_extlen: u16,
    pub(super) padding: u16,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ForgetIn {
    pub(super) nlookup: u64,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ForgetOne {
    pub(super) nodeid: u64,
    pub(super) nlookup: u64,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct BatchForgetIn {
    pub(super) count: u32,
    pub(super) dummy: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GetattrIn {
    pub(super) getattr_flags: u32,
    pub(super) dummy: u32,
    pub(super) fh: u64,
}

/// Times are signed seconds here, as in `stat`; the header says unsigned.
#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SetattrIn {
    pub(super) valid: u32,
    pub(super) padding: u32,
    pub(super) fh: u64,
    pub(super) size: u64,
    pub(super) lock_owner: u64,
    pub(super) atime: i64,
    pub(super) mtime: i64,
    pub(super) ctime: i64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    pub(super) mode: u32,
    pub(super) unused4: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) unused5: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct MknodIn {
    pub(super) mode: u32,
    pub(super) rdev: u32,
    pub(super) umask: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct MkdirIn {
    pub(super) mode: u32,
    pub(super) umask: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct RenameIn {
    pub(super) newdir: u64,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Rename2In {
    pub(super) newdir: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LinkIn {
    pub(super) oldnodeid: u64,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OpenIn {
    pub(super) flags: u32,
    pub(super) open_flags: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CreateIn {
    pub(super) flags: u32,
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) open_flags: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReleaseIn {
    pub(super) fh: u64,
    pub(super) flags: u32,
    pub(super) release_flags: u32,
    pub(super) lock_owner: u64,
}

/// Of READ, READDIR and READDIRPLUS.
#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReadIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) read_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct WriteIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) write_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FsyncIn {
    pub(super) fh: u64,
    pub(super) fsync_flags: u32,
    pub(super) padding: u32,
}

/// The short form, which [`SetxattrMore`] follows where `SETXATTR_EXT` was negotiated.
#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SetxattrIn {
    pub(super) size: u32,
    pub(super) flags: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SetxattrMore {
    pub(super) setxattr_flags: u32,
    pub(super) padding: u32,
}

/// Of GETXATTR and LISTXATTR.
#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct GetxattrIn {
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct FallocateIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) mode: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LseekIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) whence: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CopyFileRangeIn {
    pub(super) fh_in: u64,
    pub(super) off_in: u64,
    pub(super) nodeid_out: u64,
    pub(super) fh_out: u64,
    pub(super) off_out: u64,
    pub(super) len: u64,
    pub(super) flags: u64,
}

#[derive(Copy, Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    /// 0 or a negative error number.
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// Set in `OutHeader::unique` of an answer to the request's INTERRUPT (`FUSE_INT_REQ_BIT` of
/// fs/fuse/dev.c, as requests are numbered since Linux 4.20).
pub(super) const UNIQUE_INTERRUPT: u64 = 1;

/// `OutHeader::error` of a notification: `FUSE_NOTIFY_RETRIEVE`.
pub(super) const NOTIFY_RETRIEVE: i32 = 5;

#[derive(Copy, Clone, Debug, Default, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NotifyRetrieveOut {
    pub(super) notify_unique: u64,
    pub(super) nodeid: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `OutHeader::error` of a notification: `FUSE_NOTIFY_INVAL_INODE`.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct NotifyInvalInodeOut {
    pub(super) ino: u64,
    pub(super) off: i64,
    pub(super) len: i64,
}

#[derive(Copy, Clone, Debug, Default, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AttrBody {
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: i64,
    pub(super) mtime: i64,
    pub(super) ctime: i64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}

#[derive(Copy, Clone, Debug, Default, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct EntryOut {
    pub(super) nodeid: u64,
    pub(super) generation: u64,
    pub(super) entry_valid: u64,
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nsec: u32,
    pub(super) attr_valid_nsec: u32,
    pub(super) attr: AttrBody,
}

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) dummy: u32,
    pub(super) attr: AttrBody,
}

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) fh: u64,
    pub(super) open_flags: u32,
    pub(super) backing_id: u32,
}

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CreateOut {
    pub(super) entry: EntryOut,
    pub(super) open: OpenOut,
}

/// Of WRITE and COPY_FILE_RANGE, and, as `getxattr_out`, of GETXATTR and LISTXATTR when they ask
/// for a size.
#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SizeOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LseekOut {
    pub(super) offset: u64,
}

#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) blocks: u64,
    pub(super) bfree: u64,
    pub(super) bavail: u64,
    pub(super) files: u64,
    pub(super) ffree: u64,
    pub(super) bsize: u32,
    pub(super) namelen: u32,
    pub(super) frsize: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// Followed by the name, and zeroes up to a multiple of 8.
#[derive(Copy, Clone, Debug, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) ino: u64,
    pub(super) off: u64,
    pub(super) namelen: u32,
    pub(super) kind: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes as the C compiler gives them for the kernel's header.
    #[test]
    fn structs_have_the_sizes_of_the_kernels_header() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<ForgetIn>(), 8),
            (size_of::<ForgetOne>(), 16),
            (size_of::<BatchForgetIn>(), 8),
            (size_of::<GetattrIn>(), 16),
            (size_of::<SetattrIn>(), 88),
            (size_of::<MknodIn>(), 16),
            (size_of::<MkdirIn>(), 8),
            (size_of::<RenameIn>(), 8),
            (size_of::<Rename2In>(), 16),
            (size_of::<LinkIn>(), 8),
            (size_of::<OpenIn>(), 8),
            (size_of::<CreateIn>(), 16),
            (size_of::<ReleaseIn>(), 24),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<FsyncIn>(), 16),
            (size_of::<SetxattrIn>(), 8),
            (size_of::<SetxattrMore>(), 8),
            (size_of::<GetxattrIn>(), 8),
            (size_of::<FallocateIn>(), 32),
            (size_of::<LseekIn>(), 24),
            (size_of::<CopyFileRangeIn>(), 56),
            (size_of::<OutHeader>(), 16),
            (size_of::<NotifyInvalInodeOut>(), 24),
            (size_of::<NotifyRetrieveOut>(), 32),
            (size_of::<AttrBody>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<OpenOut>(), 16),
            (size_of::<CreateOut>(), 144),
            (size_of::<SizeOut>(), 8),
            (size_of::<LseekOut>(), 8),
            (size_of::<StatfsOut>(), 80),
            (size_of::<Dirent>(), 24),
        ];
        for (at, (ours, theirs)) in sizes.into_iter().enumerate() {
            assert_eq!(ours, theirs, "struct {at}");
        }
    }
}
