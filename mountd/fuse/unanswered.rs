//! Unanswered requests: a worker that died had read them, and perhaps done them.
//!
//! While the kernel waits for an answer it lets no other request at the names or the file that this
//! one changes. So the present state shows whether it was done, or the dead worker's [`Intent`]
//! does. Not here are requests that may be done twice: reads and lookups, and changes that
//! set what they say (a WRITE has its offset, also for `O_APPEND`).

use rustix::io::Errno;

use super::decode::{Header, Operation};
use super::dispatch::Dispatcher;
use super::reply::{self, Reply};
use crate::journal::Intent;
use crate::overlay::{NodeId, RenameMode};

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
                if let Some(Intent::Unnamed { number }) = unanswered.intent {
                    overlay.drop_unanswered(number);
                }
                return Ok(false);
            }
            _ => return Ok(false),
        };
        let Some(entry) = made else {
            return Ok(false);
        };
        reply.put(&reply::entry_out(&self.shown(entry)))?;
        Ok(true)
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
