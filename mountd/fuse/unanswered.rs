//! Unanswered requests: a worker that died had read them, and perhaps done them.
//!
//! While the kernel waits for an answer it lets no other request at the names or the file that this
//! one changes. So the present state shows whether it was done, or the dead worker's [`Intent`]
//! does. Not here are requests that may be done twice: reads and lookups, and changes that
//! set what they say (a WRITE has its offset, also for `O_APPEND`).
//!
//! An OPEN is done again without the handle that the kernel was not told of, but does not truncate
//! again: others may have written since, which the kernel does not hold back in passthrough.

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::decode::{Header, Operation};
use super::dispatch::Dispatcher;
use super::files::open_flags;
use super::reply::{self, Reply};
use crate::journal::Intent;
use crate::overlay::{Entry, HandleId, NodeId, OpenFlags, RenameMode};

/// What is known of an unanswered request.
#[derive(Copy, Clone, Debug)]
pub(super) struct Unanswered {
    /// What the worker was about to do when it died, if it came to that.
    pub(super) intent: Option<Intent>,
}

impl Dispatcher<'_> {
    /// Whether `operation` was done; its answer is then in `reply`.
    pub(super) fn is_done(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        unanswered: Unanswered,
        reply: &mut Reply,
    ) -> Result<bool, Errno> {
        let mut done = false;
        self.outlast_shortage(|| {
            reply.clear();
            done = self.finish(header, operation, unanswered, reply)?;
            Ok(())
        })?;
        Ok(done)
    }

    fn finish(
        &self,
        header: &Header,
        operation: &Operation<'_>,
        unanswered: Unanswered,
        reply: &mut Reply,
    ) -> Result<bool, Errno> {
        let node = NodeId(header.node);
        let overlay = self.overlay;
        let made = match *operation {
            Operation::Mknod { name, .. }
            | Operation::Mkdir { name, .. }
            | Operation::Symlink { name, .. } => overlay.already_made(node, name)?,
            Operation::Link { node: linked, name } => {
                overlay.already_linked(NodeId(linked), node, name)?
            }
            Operation::Unlink { name } | Operation::Rmdir { name } => {
                return overlay.already_removed(node, name);
            }
            Operation::Rename { name, flags, .. } => {
                return self.is_renamed(node, name, RenameMode::from_bits(flags)?, unanswered);
            }
            Operation::Setxattr { name, .. } => {
                return self.is_xattr_as_wanted(node, name, unanswered, false);
            }
            Operation::Removexattr { name } => {
                return self.is_xattr_as_wanted(node, name, unanswered, true);
            }
            Operation::Tmpfile { .. } => {
                if let Some(Intent::Unnamed { number }) = unanswered.intent
                    && let Some(file) = overlay.unanswered_file(number)
                {
                    self.release_all(file)?;
                    overlay.forget(file, u64::MAX);
                }
                return Ok(false);
            }
            Operation::Open { flags, kill_priv } => {
                return self.is_opened(node, flags, kill_priv, unanswered, reply);
            }
            Operation::Create { name, flags, .. } => {
                return self.is_created(node, name, flags, reply);
            }
            Operation::Release { handle } => return Ok(!overlay.is_open(HandleId(handle))),
            _ => return Ok(false),
        };
        let Some(entry) = made else {
            return Ok(false);
        };
        reply.put(&reply::entry_out(&self.shown(entry)))?;
        Ok(true)
    }

    fn is_opened(
        &self,
        node: NodeId,
        flags: u32,
        kill_priv: bool,
        unanswered: Unanswered,
        reply: &mut Reply,
    ) -> Result<bool, Errno> {
        if self.overlay.is_written_in_passthrough(node) {
            // The dead worker may not have come to that.
            self.invalidate_attributes(node);
        }
        let Some(Intent::Open { handle }) = unanswered.intent else {
            return Ok(false);
        };
        if self.overlay.is_open(HandleId(handle)) {
            self.release(node, handle)?;
        }
        let truncates = OFlags::TRUNC.bits();
        self.open(node, flags & !truncates, kill_priv, reply)?;
        Ok(true)
    }

    /// A created file is opened again: the kernel was not told of its handles. They are all this
    /// request's, since the kernel keeps others from the name until it is answered.
    fn is_created(
        &self,
        parent: NodeId,
        name: &[u8],
        flags: u32,
        reply: &mut Reply,
    ) -> Result<bool, Errno> {
        let Some(entry) = self.overlay.already_made(parent, name)? else {
            return Ok(false);
        };
        self.release_all(entry.id)?;
        let flags = OpenFlags {
            truncate: false,
            ..open_flags(flags, false)
        };
        let opened = self
            .overlay
            .open(entry.id, flags)
            .inspect_err(|_| self.overlay.forget(entry.id, 1))?;
        let settled = entry.settled && !opened.unsettles;
        let entry = self.shown(Entry { settled, ..entry });
        self.created(&entry, &opened, reply)?;
        Ok(true)
    }

    fn release_all(&self, node: NodeId) -> Result<(), Errno> {
        let mut handles = self.overlay.handles(node).into_iter();
        handles.try_for_each(|handle| self.release(node, handle.0))
    }

    fn is_renamed(
        &self,
        parent: NodeId,
        name: &[u8],
        mode: RenameMode,
        unanswered: Unanswered,
    ) -> Result<bool, Errno> {
        match (mode, unanswered.intent) {
            (RenameMode::Exchange, Some(Intent::Exchange { to, .. })) => {
                self.overlay.already_exchanged(parent, name, to)
            }
            // It did not come to that.
            (RenameMode::Exchange, _) => Ok(false),
            _ => self.overlay.already_removed(parent, name),
        }
    }

    /// An attribute that was there, or was not, and is no more, or is now. (One that is set
    /// whatever there was comes out the same twice, and was noted nowhere.)
    fn is_xattr_as_wanted(
        &self,
        node: NodeId,
        name: &[u8],
        unanswered: Unanswered,
        removed: bool,
    ) -> Result<bool, Errno> {
        if unanswered.intent != Some(Intent::Xattr { existed: removed }) {
            return Ok(false);
        }
        match self.overlay.getxattr(node, name) {
            Ok(_) => Ok(!removed),
            Err(Errno::NODATA) => Ok(removed),
            Err(errno) => Err(errno),
        }
    }
}
