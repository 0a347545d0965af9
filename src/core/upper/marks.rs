//! Names, encoding and escaping of the upper's extended attributes. The format is documented in
//! [`super`].

use super::mark_links::MarkLinks;
use crate::digest::{ChainId, Sha256Digest};
use crate::tree::{Timestamp, TreeIno};

/// Which kind of extended attribute carries the marks of an upper.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Namespace {
    /// `trusted.`, on every type of file; needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.`, on regular files and directories; any owner may set it, so such an upper trusts
    /// its owner.
    User,
}

impl Namespace {
    /// The prefix, with its dot.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.",
            Self::User => "user.",
        }
    }

    /// Whether a file of this type can bear marks.
    pub const fn marks(self, file_type: crate::tree::FileType) -> bool {
        matches!(
            (self, file_type),
            (Self::Trusted, _)
                | (
                    Self::User,
                    crate::tree::FileType::Regular | crate::tree::FileType::Directory
                )
        )
    }
}

/// The marks.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Mark {
    /// On a directory: hides what the tree has under it. overlayfs's own.
    Opaque,
    /// On a directory: some file in it bears a [`FileMark`]. overlayfs's own.
    Impure,
    /// Over plain directories, on a directory or a file with [`Mark::Metacopy`]: the path in the
    /// lower that it was copied up from. overlayfs's own.
    Redirect,
    /// Over plain directories, on a regular file: only its metadata was copied up. overlayfs's own.
    Metacopy,
    /// A [`FileMark`].
    File,
    /// On the upper's root: a [`Stamp`].
    Stamp,
}

impl Mark {
    /// The attribute's full name.
    pub const fn name(self, space: Namespace) -> &'static str {
        match (space, self) {
            (Namespace::Trusted, Self::Opaque) => "trusted.overlay.opaque",
            (Namespace::Trusted, Self::Impure) => "trusted.overlay.impure",
            (Namespace::Trusted, Self::Redirect) => "trusted.overlay.redirect",
            (Namespace::Trusted, Self::Metacopy) => "trusted.overlay.metacopy",
            (Namespace::Trusted, Self::File) => "trusted.overlay.cowl",
            (Namespace::Trusted, Self::Stamp) => "trusted.overlay.cowl.stamp",
            (Namespace::User, Self::Opaque) => "user.overlay.opaque",
            (Namespace::User, Self::Impure) => "user.overlay.impure",
            (Namespace::User, Self::Redirect) => "user.overlay.redirect",
            (Namespace::User, Self::Metacopy) => "user.overlay.metacopy",
            (Namespace::User, Self::File) => "user.overlay.cowl",
            (Namespace::User, Self::Stamp) => "user.overlay.cowl.stamp",
        }
    }
}

impl Mark {
    /// The name below the prefix of a namespace and `overlay.`.
    pub(super) fn suffix(self) -> &'static str {
        let name = self.name(Namespace::User);
        name.strip_prefix("user.overlay.").unwrap_or(name)
    }
}

/// Where the marks of an upper are.
#[derive(Debug)]
pub enum MarkStore {
    /// Extended attributes of the files.
    Xattrs(Namespace),
    /// Symbolic links in `work/marks`.
    Links(MarkLinks),
}

impl MarkStore {
    /// The namespace of the marks; None: they are no extended attributes.
    pub const fn namespace(&self) -> Option<Namespace> {
        match self {
            Self::Xattrs(space) => Some(*space),
            Self::Links(_) => None,
        }
    }

    /// Whether a file of this type can bear marks.
    pub const fn marks(&self, file_type: crate::tree::FileType) -> bool {
        match self {
            Self::Xattrs(space) => space.marks(file_type),
            Self::Links(_) => true,
        }
    }
}

impl std::fmt::Display for MarkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Xattrs(space) => space.prefix(),
            Self::Links(_) => "work/marks",
        })
    }
}

/// The value of the marks opaque and impure, as in overlayfs.
pub const YES: &[u8] = b"y";

const VERSION: u8 = 2;

/// A mark whose bytes this version does not know.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the mark {} has bytes that this version of cowl does not know", .0.name(Namespace::Trusted))]
pub struct UnknownMark(pub Mark);

/// What a file was copied up from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A node of the tree.
    Node(TreeIno),
    /// A path in a stack of plain directories, from its root and with a leading slash.
    Path(Vec<u8>),
}

/// What [`Mark::File`] says of a file; the byte diagram is in [`super`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FileMark {
    /// What the file was copied up from: its id, its `st_ino`, a directory's children.
    pub origin: Option<Origin>,
    /// Only metadata was copied up: the content is the origin's, up to the length of this (sparse)
    /// file.
    pub metadata_only: bool,
    /// An empty regular file that stands for a character device 0:0, which by itself would be a
    /// whiteout.
    pub device: bool,
    /// Of a file in `work/index`: links shown = links of the host - 1 + this.
    pub link_delta: Option<i32>,
    /// The content is being copied up, which changes these attributes on the host. After a crash,
    /// the next lookup restores them.
    pub copying: Option<Saved>,
}

/// Attributes of a file from before its content was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Saved {
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Permission bits (07777).
    pub mode: u32,
    /// `security.capability`.
    pub capability: Option<Vec<u8>>,
}

mod flag {
    pub(super) const ORIGIN: u8 = 1;
    pub(super) const METADATA_ONLY: u8 = 2;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const LINKS: u8 = 8;
    pub(super) const COPYING: u8 = 16;
    pub(super) const PATH: u8 = 32;
}

impl FileMark {
    /// The mark of a directory, or of a file with a content of its own.
    pub fn of_origin(origin: TreeIno) -> Self {
        Self {
            origin: Some(Origin::Node(origin)),
            ..Self::default()
        }
    }

    /// The value of [`Mark::File`].
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        for (flag, set) in [
            (flag::ORIGIN, matches!(self.origin, Some(Origin::Node(_)))),
            (flag::PATH, matches!(self.origin, Some(Origin::Path(_)))),
            (flag::METADATA_ONLY, self.metadata_only),
            (flag::DEVICE, self.device),
            (flag::LINKS, self.link_delta.is_some()),
            (flag::COPYING, self.copying.is_some()),
        ] {
            if set {
                flags |= flag;
            }
        }
        let mut bytes = vec![VERSION, flags, 0, 0];
        if let Some(Origin::Node(node)) = self.origin {
            bytes.extend(node.0.to_le_bytes());
        }
        if let Some(delta) = self.link_delta {
            bytes.extend(delta.to_le_bytes());
        }
        if let Some(Origin::Path(path)) = &self.origin {
            // A longer one is no path of Linux, and decodes as unknown.
            bytes.extend(u16::try_from(path.len()).unwrap_or(0).to_le_bytes());
            bytes.extend(path);
        }
        if let Some(saved) = &self.copying {
            bytes.extend(saved.size.to_le_bytes());
            bytes.extend(saved.mtime.secs.to_le_bytes());
            bytes.extend(saved.mtime.nanos.to_le_bytes());
            bytes.extend(saved.mode.to_le_bytes());
            bytes.extend(saved.capability.iter().flatten());
        }
        bytes
    }

    /// Reads the value of [`Mark::File`].
    pub fn decode(bytes: &[u8]) -> Result<Self, UnknownMark> {
        Self::parse(bytes).ok_or(UnknownMark(Mark::File))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_first_chunk::<4>()?;
        let [VERSION, flags, 0, 0] = *head else {
            return None;
        };
        let has = |flag| flags & flag != 0;
        let mut mark = Self {
            metadata_only: has(flag::METADATA_ONLY),
            device: has(flag::DEVICE),
            ..Self::default()
        };
        if has(flag::ORIGIN) {
            let node = TreeIno(u32::from_le_bytes(take(&mut rest)?));
            mark.origin = Some(Origin::Node(node));
        }
        if has(flag::LINKS) {
            mark.link_delta = Some(i32::from_le_bytes(take(&mut rest)?));
        }
        if has(flag::PATH) {
            let length = u16::from_le_bytes(take(&mut rest)?);
            let (path, behind) = rest.split_at_checked(usize::from(length))?;
            rest = behind;
            if mark.origin.is_some() || !path.starts_with(b"/") {
                return None;
            }
            mark.origin = Some(Origin::Path(path.to_vec()));
        }
        if has(flag::COPYING) {
            mark.copying = Some(Saved {
                size: u64::from_le_bytes(take(&mut rest)?),
                mtime: Timestamp {
                    secs: i64::from_le_bytes(take(&mut rest)?),
                    nanos: u32::from_le_bytes(take(&mut rest)?),
                },
                mode: u32::from_le_bytes(take(&mut rest)?),
                capability: (!rest.is_empty()).then(|| std::mem::take(&mut rest).to_vec()),
            });
        }
        // Nothing else was ever written: no unknown flag, none without what it needs, no value out
        // of its range.
        let sound = rest.is_empty()
            && flags != 0
            && flags < flag::PATH << 1
            && (mark.origin.is_some() || !mark.metadata_only)
            && mark.copying.as_ref().is_none_or(|saved| {
                mark.metadata_only && saved.mtime.nanos < 1_000_000_000 && saved.mode <= 0o7777
            });
        sound.then_some(mark)
    }
}

/// Takes the first bytes of a value.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, behind) = rest.split_first_chunk::<N>()?;
    *rest = behind;
    Some(*first)
}

/// What an upper was written over: its marks mean nothing over anything else.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Stamp {
    /// The stack of layers.
    pub chain: ChainId,
    /// How the merged tree of that stack was numbered
    /// ([`Tree::numbering`](crate::tree::Tree::numbering)).
    pub numbering: u16,
}

impl Stamp {
    /// The value of [`Mark::Stamp`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, 0];
        bytes.extend(self.numbering.to_le_bytes());
        bytes.extend(self.chain.0.as_bytes());
        bytes
    }

    /// Reads the value of [`Mark::Stamp`].
    pub fn decode(bytes: &[u8]) -> Result<Self, UnknownMark> {
        Self::parse(bytes).ok_or(UnknownMark(Mark::Stamp))
    }

    fn parse(mut bytes: &[u8]) -> Option<Self> {
        let [VERSION, 0] = take(&mut bytes)? else {
            return None;
        };
        let numbering = u16::from_le_bytes(take(&mut bytes)?);
        let chain = ChainId(Sha256Digest::from_bytes(take(&mut bytes)?));
        bytes.is_empty().then_some(Self { chain, numbering })
    }
}

/// Both namespaces are escaped, whichever the marks use, so that reading the upper with the other
/// namespace finds no forged mark.
const ESCAPED: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

const ESCAPE: &[u8] = b"overlay.";

/// The prefix of fuse-overlayfs's marks in layers and uppers of plain directories: `origin`,
/// `opaque`, `redirect` and others. They are no attributes of a mount over these.
pub const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.";

/// The name that an attribute set through the mount is stored under. overlayfs's way:
/// `trusted.overlay.x` becomes `trusted.overlay.overlay.x`.
pub fn escape(name: &[u8]) -> Vec<u8> {
    for prefix in ESCAPED {
        if let Some(rest) = name.strip_prefix(prefix) {
            return [prefix, ESCAPE, rest].concat();
        }
    }
    name.to_vec()
}

/// The name that a stored attribute is shown under; None for a mark.
pub fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    for prefix in ESCAPED {
        if let Some(rest) = name.strip_prefix(prefix) {
            return rest
                .strip_prefix(ESCAPE)
                .map(|rest| [prefix, rest].concat());
        }
    }
    Some(name.to_vec())
}

#[cfg(test)]
mod tests;
