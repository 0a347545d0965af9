//! Extended attributes, including POSIX ACLs. Names in the marks' namespace are escaped when
//! stored and unescaped when listed.

use std::borrow::Cow;

use cowl_core::upper::marks::{FUSE_OVERLAYFS, escape, unescape};
use cowl_core::upper::scan::Origins;
use cowl_core::upper::spelling::Spelling;
use rustix::fs::XattrFlags as HostFlags;

use super::Overlay;
use super::types::{Errno, NodeId, XattrFlags};
use crate::journal::Intent;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const SGID: u32 = 0o2000;
/// Namespaces of attributes (xattr(7)).
const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
/// Longest name of an attribute (XATTR_NAME_MAX).
const NAME_MAX: usize = 255;

impl Overlay {
    /// The value of an attribute; ENODATA if there is none.
    pub fn getxattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let (id, _guard) = self.guard_current(id);
        let value = self.find_xattr(id, name)?;
        Ok(value.ok_or(Errno::NODATA)?.into_owned())
    }

    /// The names of all attributes, each ended by a NUL.
    pub fn listxattr(&self, id: NodeId) -> Result<Vec<u8>, Errno> {
        let (id, _guard) = self.guard_current(id);
        let mut names = Vec::new();
        if !self.in_upper(id) {
            let all = self.lower.xattr_names(id.lower().ok_or(Errno::STALE)?)?;
            for name in all.into_iter().filter(|name| self.is_shown(name)) {
                names.extend_from_slice(&name);
                names.push(0);
            }
            return Ok(names);
        }
        let stored = self.place_of(id)?.name_at().xattr_names()?;
        for name in stored
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .filter_map(unescape)
            .filter(|name| self.is_shown(name))
        {
            names.extend_from_slice(&name);
            names.push(0);
        }
        Ok(names)
    }

    /// Sets an attribute.
    pub fn setxattr(
        &self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        self.writable()?;
        self.check_attribute(name)?;
        let id = self.current(id);
        self.copy_up(id)?;
        let _content = self.lock_content(id);
        let _guard = self.busy.lock(&[id]);
        let mut host = HostFlags::empty();
        host.set(HostFlags::CREATE, flags.create);
        host.set(HostFlags::REPLACE, flags.replace);
        let place = self.place_of(id)?;
        if flags.create {
            let existed = place.name_at().xattr(&escape(name))?.is_some();
            self.intend(Intent::Xattr { existed });
        }
        place.name_at().set_xattr(&escape(name), value, host)?;
        if flags.kill_sgid && name == ACL_ACCESS {
            let mode = u32::from(place.name_at().stat()?.stx_mode);
            place.name_at().chmod(mode & !SGID)?;
        }
        Ok(())
    }

    /// Removes an attribute; ENODATA if there is none, and then nothing is copied up. An ACL that
    /// is not there is removed with success, as ext4, xfs and btrfs do: the kernel asks for that
    /// where an ACL says no more than the mode.
    pub fn removexattr(&self, id: NodeId, name: &[u8]) -> Result<(), Errno> {
        self.writable()?;
        self.check_attribute(name)?;
        match self.getxattr(id, name) {
            Err(Errno::NODATA) if name == ACL_ACCESS || name == ACL_DEFAULT => return Ok(()),
            found => drop(found?),
        }
        let id = self.current(id);
        self.copy_up(id)?;
        let _content = self.lock_content(id);
        let _guard = self.busy.lock(&[id]);
        self.intend(Intent::Xattr { existed: true });
        self.place_of(id)?.name_at().remove_xattr(&escape(name))
    }

    /// An attribute's value. The caller guards the node.
    pub(super) fn find_xattr(
        &self,
        id: NodeId,
        name: &[u8],
    ) -> Result<Option<Cow<'_, [u8]>>, Errno> {
        self.check_attribute(name)?;
        if self.in_upper(id) {
            return Ok(self
                .place_of(id)?
                .name_at()
                .xattr(&escape(name))?
                .map(Cow::Owned));
        }
        let Some(node) = id.lower() else {
            return Ok(None);
        };
        self.lower.xattr(node, name)
    }

    /// Whether a node has a file in the upper.
    pub(super) fn in_upper(&self, id: NodeId) -> bool {
        self.upper.is_some()
            && self
                .state
                .read()
                .node(id)
                .is_some_and(|node| node.upper.is_some())
    }

    /// Whether an attribute is one of the mount's: of a namespace that Linux knows, since a tar
    /// may hold others (com.apple.provenance), no ACL where there are none, and no mark.
    fn is_shown(&self, name: &[u8]) -> bool {
        let is_acl = name == ACL_ACCESS || name == ACL_DEFAULT;
        let is_mark = self.lower.spelling() == Spelling::Plain && name.starts_with(FUSE_OVERLAYFS);
        NAMESPACES.iter().any(|space| name.starts_with(space))
            && !(is_acl && self.rules.no_acl)
            && !is_mark
    }

    fn check_attribute(&self, name: &[u8]) -> Result<(), Errno> {
        match name.len() {
            0 => Err(Errno::INVAL),
            length if length > NAME_MAX => Err(Errno::RANGE),
            _ if name.contains(&0) => Err(Errno::INVAL),
            _ if !self.is_shown(name) => Err(Errno::OPNOTSUPP),
            _ => Ok(()),
        }
    }
}
