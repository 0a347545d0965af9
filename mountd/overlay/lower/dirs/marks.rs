//! What a layer says of the layers below it: whiteouts, opaque directories, redirects, and files
//! of which it has the metadata only.
//!
//! Read as overlayfs does, in `trusted.` or with `userxattr` in `user.`, and as fuse-overlayfs
//! does: `.wh.` files, and its own opaque mark.

use std::os::fd::{AsFd, OwnedFd};

use cowl_core::tree::FileType;
use cowl_core::upper::each_entry;
use cowl_core::upper::marks::{self, Mark, Namespace};
use cowl_core::upper::name_at::{NameAt, is_whiteout};
use cowl_core::upper::scan;
use cowl_core::upper::spelling::Redirect;
use cowl_core::upper::whiteouts::OPAQUE_FILE;
use rustix::fs::FileType as HostType;

use crate::overlay::types::Errno;

/// A file of this prefix hides the rest of its name in the layers below.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Names of this prefix are marks of their directory, and never shown.
const MARK_PREFIX: &[u8] = b".wh..wh.";
/// A directory with this attribute is opaque.
const OPAQUE_ATTRIBUTE: &[u8] = b"user.fuseoverlayfs.opaque";

/// The entries of one directory of a layer.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) files: Vec<Found>,
    /// Names that are hidden in the layers below.
    pub(super) hidden: Vec<Vec<u8>>,
}

/// A file that a directory of a layer has.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    pub(super) file_type: FileType,
    pub(super) inode: u64,
}

/// Whether a directory hides the layers below, as a directory of theirs.
fn opaque_value(dir: NameAt<'_>, space: Namespace) -> Result<Option<Vec<u8>>, Errno> {
    dir.xattr(Mark::Opaque.name(space).as_bytes())
}

/// Whether a directory shows nothing of the layers below.
pub(super) fn is_opaque(dir: &OwnedFd, space: Namespace) -> Result<bool, Errno> {
    let own = NameAt::new(dir.as_fd(), b".");
    let is_yes = |value: Option<Vec<u8>>| value.as_deref() == Some(marks::YES);
    Ok(is_yes(opaque_value(own, space)?)
        || is_yes(own.xattr(OPAQUE_ATTRIBUTE)?)
        || NameAt::new(dir.as_fd(), OPAQUE_FILE).exists()?)
}

/// Where a directory's part of the layers below is, if not at its own name.
pub(super) fn redirect(dir: &OwnedFd, space: Namespace) -> Result<Option<Redirect>, Errno> {
    redirect_of(NameAt::new(dir.as_fd(), b"."), space)
}

/// The same of a file that has only metadata.
pub(super) fn redirect_of(
    name_at: NameAt<'_>,
    space: Namespace,
) -> Result<Option<Redirect>, Errno> {
    let Some(value) = name_at.xattr(Mark::Redirect.name(space).as_bytes())? else {
        return Ok(None);
    };
    let redirect = Redirect::parse(value);
    if redirect.is_none() {
        tracing::error!(name = %name_at.name.escape_ascii(), "a lower layer has a redirect that leads nowhere");
    }
    redirect.map(Some).ok_or(Errno::IO)
}

/// Whether a regular file has only metadata, and its content is in the layers below.
pub(super) fn is_metacopy(name_at: NameAt<'_>, space: Namespace) -> Result<bool, Errno> {
    Ok(name_at
        .xattr(Mark::Metacopy.name(space).as_bytes())?
        .is_some())
}

/// Whether a layer hides a name in the layers below; it is not a directory there.
pub(super) fn is_hidden_at(dir: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let whiteout = [WHITEOUT_PREFIX, name].concat();
    match NameAt::new(dir.as_fd(), &whiteout).exists() {
        Err(Errno::NAMETOOLONG) => Ok(false),
        found => found,
    }
}

/// Lists a directory of a layer.
pub(super) fn entries(dir: &OwnedFd, space: Namespace) -> Result<Entries, Errno> {
    let fd = dir.as_fd();
    // Such a directory may have regular files as whiteouts (overlayfs.rst).
    let own = opaque_value(NameAt::new(fd, b"."), space)?;
    let by_attribute = own.as_deref() == Some(b"x");
    let mut entries = Entries::default();
    each_entry(fd, |name, host_type, inode| {
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            if !name.starts_with(MARK_PREFIX) {
                entries.hidden.push(hidden.to_vec());
            }
            return Ok(());
        }
        let name_at = NameAt::new(fd, name);
        let host_type = match host_type {
            HostType::Unknown => HostType::from_raw_mode(u32::from(name_at.stat()?.stx_mode)),
            known => known,
        };
        let is_whiteout = match host_type {
            HostType::CharacterDevice => is_whiteout(&name_at.stat()?),
            HostType::RegularFile if by_attribute => name_at.xattr(whiteout_name(space))?.is_some(),
            _ => false,
        };
        if is_whiteout {
            entries.hidden.push(name.to_vec());
            return Ok(());
        }
        entries.files.push(Found {
            name: name.to_vec(),
            file_type: scan::file_type(host_type).ok_or(Errno::IO)?,
            inode,
        });
        Ok(())
    })?;
    Ok(entries)
}

const fn whiteout_name(space: Namespace) -> &'static [u8] {
    match space {
        Namespace::Trusted => b"trusted.overlay.whiteout",
        Namespace::User => b"user.overlay.whiteout",
    }
}
