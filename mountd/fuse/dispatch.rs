//! Calls the overlay's method for each request, and encodes what it returns.
//!
//! Invariant: everything here is translation; rules of the filesystem are the overlay's, bytes are
//! `decode`'s and `reply`'s. The overlay's [`NodeId`] is the kernel's node id, `st_ino` is a
//! number of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use cowl_core::tree::{FileType, Timestamp};
use rustix::io::Errno;

use super::backing::BackingIds;
use super::decode::{Header, Operation, Setattr, WireTime};
use super::files::{handle_of, open_flags, write_whole};
use super::negotiate::{Connection, MAX_WRITE};
use super::notify;
use super::owners::Owners;
use super::reply::{self, Reply};
use super::shortage::Shortage;
use super::wire;
use crate::overlay::{
    Attr, Caller, Entry, NodeId, Overlay, RenameMode, SetAttr, SetTime, XattrFlags,
};

/// Whether the kernel waits for an answer.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// What is in the [`Reply`].
    Reply,
    /// It does not.
    Silence,
}

/// Translates the requests of one connection.
#[derive(Debug)]
pub(crate) struct Dispatcher<'m> {
    pub(super) overlay: &'m Overlay,
    pub(super) device: BorrowedFd<'m>,
    pub(super) backing: BackingIds,
    shortage: Shortage,
    owners: &'m Owners,
    /// Whether OPEN and CREATE are answered ENOSYS, and so asked once only. The kernel then opens
    /// files by itself, and creates them with MKNOD, which no RELEASE follows.
    pub(super) skip_open: bool,
    /// Whether LSEEK is answered ENOSYS: the kernel does not hand over what it holds back before
    /// it asks, so our files may lack data that a client has written. It then takes all below the
    /// end for data, and asks no more.
    pub(super) skip_seek: bool,
}

impl<'m> Dispatcher<'m> {
    /// A dispatcher of `connection`'s requests to `overlay`, whose owners are shown by `owners`.
    pub(crate) fn new(
        overlay: &'m Overlay,
        connection: &'m Connection,
        owners: &'m Owners,
    ) -> io::Result<Self> {
        let has_handles = !connection.may_skip_open();
        Ok(Self {
            overlay,
            device: connection.as_fd(),
            backing: BackingIds::new(
                connection.as_fd(),
                overlay.journal().filter(|_| has_handles).map(Arc::clone),
                &overlay.open_in_passthrough(),
            )?,
            shortage: Shortage::default(),
            owners,
            skip_open: !has_handles,
            skip_seek: connection.writes_back(),
        })
    }

    /// Does what is asked; the answer's payload is in `reply`, or the answer is the error.
    pub(super) fn dispatch(
        &self,
        header: &Header,
        operation: Operation<'_>,
        reply: &mut Reply,
    ) -> Result<Answer, Errno> {
        let node = NodeId(header.node);
        match operation {
            Operation::Forget { count } => {
                self.forget(node, count);
                Ok(Answer::Silence)
            }
            Operation::BatchForget(nodes) => {
                for one in nodes {
                    self.forget(NodeId(one.nodeid), one.nlookup);
                }
                Ok(Answer::Silence)
            }
            awaited => {
                let answer = || {
                    reply.clear();
                    self.answer(header, node, &awaited, reply)
                };
                self.outlast_shortage(answer).map(|()| Answer::Reply)
            }
        }
    }

    pub(super) fn outlast_shortage(
        &self,
        answer: impl FnMut() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.shortage.outlast(answer, || self.overlay.close_kept())
    }

    fn answer(
        &self,
        header: &Header,
        node: NodeId,
        operation: &Operation<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let overlay = self.overlay;
        let caller = Caller {
            uid: header.uid,
            gid: header.gid,
        };
        match *operation {
            Operation::Lookup { name } => self.lookup(node, name, reply),
            Operation::Getattr => self.getattr(node, reply),
            Operation::Setattr(changes) => self.setattr(node, &changes, reply),
            Operation::Readlink => reply.put_bytes(&overlay.readlink(node)?),
            Operation::Readdir { cookie, size, plus } => {
                self.readdir(node, cookie, size, plus, reply)
            }
            Operation::Statfs => reply.put(&reply::statfs_out(&overlay.statfs()?)),
            Operation::Getxattr { name, size } => {
                let mut value = overlay.getxattr(node, name)?;
                self.owners.shown_value(name, &mut value);
                sized(&value, size, reply)
            }
            Operation::Listxattr { size } => sized(&overlay.listxattr(node)?, size, reply),
            Operation::Setxattr {
                name,
                value,
                flags,
                kill_sgid,
            } => {
                let flags = xattr_flags(flags, kill_sgid)?;
                let value = self.owners.value_of_file(name, value);
                overlay.setxattr(node, name, &value, flags)
            }
            Operation::Removexattr { name } => overlay.removexattr(node, name),
            Operation::Fsyncdir { data_only } => overlay.fsyncdir(node, data_only),
            Operation::Syncfs => overlay.syncfs(),
            // Nothing to do ahead of the ENODEV that the next read will give.
            Operation::Destroy => Ok(()),
            // As on a local filesystem, what is under way is finished. ENOSYS stops the kernel
            // from asking again.
            Operation::Interrupt | Operation::Unknown => Err(Errno::NOSYS),
            Operation::Ioctl => Err(Errno::NOTTY),
            Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. } => self.change_names(node, caller, operation, reply),
            _ => self.use_file(node, caller, operation, reply),
        }
    }

    fn change_names(
        &self,
        parent: NodeId,
        caller: Caller,
        operation: &Operation<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let entry = match *operation {
            Operation::Symlink { name, target } => self.as_caller(caller, |caller| {
                self.overlay.symlink(parent, name, target, caller)
            })?,
            Operation::Mknod {
                name,
                mode,
                rdev,
                umask,
            } => {
                let file_type = FileType::from_mode_bits(mode).ok_or(Errno::INVAL)?;
                let (mode, rdev) = (mode & 0o7777, reply::decode_rdev(rdev));
                self.as_caller(caller, |caller| {
                    self.overlay
                        .mknod(parent, name, file_type, mode, rdev, umask, caller)
                })?
            }
            Operation::Mkdir { name, mode, umask } => self.as_caller(caller, |caller| {
                self.overlay
                    .mkdir(parent, name, mode & 0o7777, umask, caller)
            })?,
            Operation::Link { node, name } => self.overlay.link(NodeId(node), parent, name)?,
            Operation::Unlink { name } => return self.overlay.unlink(parent, name),
            Operation::Rmdir { name } => return self.overlay.rmdir(parent, name),
            Operation::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => {
                return self.overlay.rename(
                    parent,
                    name,
                    NodeId(new_parent),
                    new_name,
                    RenameMode::from_bits(flags)?,
                );
            }
            _ => return Err(Errno::NOSYS),
        };
        reply.put(&reply::entry_out(&self.shown(entry)))
    }

    fn use_file(
        &self,
        node: NodeId,
        caller: Caller,
        operation: &Operation<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        match *operation {
            Operation::Open { flags, kill_priv } => self.open(node, flags, kill_priv, reply),
            Operation::Create { .. } if self.skip_open => Err(Errno::NOSYS),
            Operation::Create {
                name,
                flags,
                mode,
                umask,
            } => {
                let (mode, flags) = (mode & 0o7777, open_flags(flags, false));
                let (entry, opened) = self.as_caller(caller, |caller| {
                    self.overlay.create(node, name, mode, umask, flags, caller)
                })?;
                self.created(&self.shown(entry), &opened, reply)
            }
            Operation::Tmpfile { flags, mode, umask } => {
                let (mode, flags) = (mode & 0o7777, open_flags(flags, false));
                let (entry, opened) = self.as_caller(caller, |caller| {
                    self.overlay.tmpfile(node, mode, umask, flags, caller)
                })?;
                self.created(&self.shown(entry), &opened, reply)
            }
            Operation::Read {
                handle,
                offset,
                size,
            } => {
                let read = self
                    .overlay
                    .read(node, handle_of(handle), offset, reply.room(size)?)?;
                reply.filled(read);
                Ok(())
            }
            Operation::Write {
                handle,
                offset,
                data,
                from_cache,
                kill_priv,
            } => {
                let write = |data: &[u8], offset: u64| {
                    self.overlay
                        .write(node, handle_of(handle), offset, data, kill_priv)
                };
                let written = if from_cache {
                    write_whole(data, offset, write)?
                } else {
                    write(data, offset)?
                };
                put_size(written, reply)
            }
            Operation::Release { handle } => self.release(node, handle),
            Operation::Fsync { data_only } => self.overlay.fsync(node, data_only),
            Operation::Fallocate {
                handle,
                offset,
                length,
                mode,
            } => self
                .overlay
                .fallocate(node, handle_of(handle), offset, length, mode),
            Operation::Lseek {
                handle,
                offset,
                whence,
            } => self.lseek(node, handle, offset, whence, reply),
            Operation::CopyFileRange(range) => self.copy_file_range(node, &range, reply),
            _ => Err(Errno::NOSYS),
        }
    }
}

impl Dispatcher<'_> {
    fn lookup(&self, parent: NodeId, name: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        match self.overlay.lookup(parent, name)? {
            Some(entry) => reply.put(&reply::entry_out(&self.shown(entry))),
            None => reply.put(&reply::absent()),
        }
    }

    fn getattr(&self, node: NodeId, reply: &mut Reply) -> Result<(), Errno> {
        let valid = self.validity(node);
        let attr = self.overlay.getattr(node)?;
        reply.put(&reply::attr_out(&self.owners.shown(&attr), valid))
    }

    fn setattr(&self, node: NodeId, changes: &Setattr, reply: &mut Reply) -> Result<(), Errno> {
        let set = SetAttr {
            mode: changes.mode.map(|mode| mode & 0o7777),
            uid: changes.uid,
            gid: changes.gid,
            size: changes.size,
            atime: changes.atime.map(set_time),
            mtime: changes.mtime.map(set_time),
            kill_priv: changes.kill_priv,
        };
        let valid = self.validity(node);
        let attr = self
            .change(node, &self.owners.change_of_file(&set))
            .inspect_err(|errno| self.note_stale(node, *errno))?;
        reply.put(&reply::attr_out(&self.owners.shown(&attr), valid))
    }

    /// Changes attributes. Where owners are not shown, as on hosts that do not let them be
    /// changed, that they cannot be is no error.
    fn change(&self, node: NodeId, set: &SetAttr) -> Result<Attr, Errno> {
        match self.overlay.setattr(node, set) {
            Err(Errno::PERM | Errno::INVAL)
                if self.owners.are_squashed() && (set.uid.is_some() || set.gid.is_some()) =>
            {
                let (uid, gid) = (None, None);
                self.overlay.setattr(node, &SetAttr { uid, gid, ..*set })
            }
            outcome => outcome,
        }
    }

    /// Creates with the ids that the caller's files have. Where owners are not shown, a file of
    /// an id that the host does not let us have is ours.
    fn as_caller<T>(
        &self,
        caller: Caller,
        create: impl Fn(&Caller) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match create(&self.owners.of_files(caller)) {
            Err(Errno::PERM | Errno::INVAL) if self.owners.are_squashed() => create(&Caller {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            }),
            outcome => outcome,
        }
    }

    /// A name's node, its owners mapped for the kernel.
    pub(super) fn shown(&self, entry: Entry) -> Entry {
        Entry {
            attr: self.owners.shown(&entry.attr),
            ..entry
        }
    }

    /// How long the kernel may believe attributes of a node that are read after this.
    ///
    /// Not at all where no request says that they changed: of a renumbered node, which shows its
    /// successor's attributes, and of one that is written in passthrough.
    fn validity(&self, node: NodeId) -> u64 {
        if self.overlay.is_succeeded(node) {
            return 0;
        }
        if self.overlay.is_written_in_passthrough(node) {
            // An idle backing id has the file open, and so looks like a writer.
            self.backing.drop_idle(self.device, node);
            if !self.overlay.settle(node) {
                return 0;
            }
        }
        reply::FOR_GOOD
    }

    /// After ESTALE the kernel must not believe what it knew of `node`.
    ///
    /// This notification takes no lock of a directory in the kernel, so it may go out before the
    /// answer.
    pub(super) fn note_stale(&self, node: NodeId, errno: Errno) {
        if errno == Errno::STALE {
            self.invalidate_attributes(node);
        }
    }

    pub(super) fn invalidate_attributes(&self, node: NodeId) {
        if let Err(error) = notify::invalidate_attributes(self.device, node) {
            tracing::warn!(node = node.0, %error, "old attributes of a node may be seen");
        }
    }

    fn readdir(
        &self,
        directory: NodeId,
        cookie: u64,
        size: u32,
        plus: bool,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        // The kernel asks for no more than a read's size, and may get less.
        let limit = usize::try_from(size.min(MAX_WRITE)).map_err(|_beyond_usize| Errno::INVAL)?;
        let mut failed = None;
        self.overlay
            .readdir(directory, cookie, plus, &mut |mut entry| {
                entry.entry = entry.entry.map(|node| self.shown(node));
                reply
                    .put_entry(&entry, limit, plus)
                    .unwrap_or_else(|errno| {
                        failed = Some(errno);
                        false
                    })
            })?;
        failed.map_or(Ok(()), Err)
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.backing.forget(self.device, node);
        self.overlay.forget(node, count);
    }
}

fn set_time(time: WireTime) -> SetTime {
    match time {
        WireTime::Now => SetTime::Now,
        WireTime::At { secs, nanos } => SetTime::At(Timestamp { secs, nanos }),
    }
}

fn xattr_flags(flags: u32, kill_sgid: bool) -> Result<XattrFlags, Errno> {
    use rustix::fs::XattrFlags as Flags;
    let flags = Flags::from_bits(flags).ok_or(Errno::INVAL)?;
    Ok(XattrFlags {
        create: flags.contains(Flags::CREATE),
        replace: flags.contains(Flags::REPLACE),
        kill_sgid,
    })
}

/// An attribute's value or names: their size if `size` is 0, themselves if they fit.
fn sized(value: &[u8], size: u32, reply: &mut Reply) -> Result<(), Errno> {
    if size == 0 {
        put_size(value.len(), reply)
    } else if usize::try_from(size).is_ok_and(|size| value.len() <= size) {
        reply.put_bytes(value)
    } else {
        Err(Errno::RANGE)
    }
}

pub(super) fn put_size(size: usize, reply: &mut Reply) -> Result<(), Errno> {
    let size = u32::try_from(size).map_err(|_beyond_u32| Errno::OVERFLOW)?;
    reply.put(&wire::SizeOut { size, padding: 0 })
}
