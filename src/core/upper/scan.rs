//! Reads the upper: whiteouts, and the meaning of a file's marks over the tree.
//!
//! Shared by lookup and readdir, and by diff and commit later. Invariant: marks are foreign bytes.
//! A mark that contradicts itself or the tree is an error of its name, never a panic and never a
//! guess.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType as HostType;
use rustix::io::Errno;

use super::each_entry;
use super::marks::{self, FileMark, Mark, MarkStore, Origin, Saved, UnknownMark};
use super::name_at::{NameAt, is_whiteout};
use super::spelling::{self, KernelOrigin, Spelling};
use super::whiteouts::{OPAQUE_FILE, Whiteouts, hidden_by};
use crate::tree::FileType;

/// A name of an upper's directory, as it is listed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Listed {
    /// The tree's file of this name is hidden.
    Whiteout,
    /// The same by a device, in an upper whose whiteouts are files.
    DeviceWhiteout,
    /// A `.wh.` file beside a file of this name, which says nothing.
    NeedlessWhiteout,
    /// A file; its marks are still to be read.
    File {
        /// Of the host's file.
        file_type: FileType,
        /// Of the host.
        inode: u64,
    },
}

/// The decoded and checked marks of a file; `N` is a node of the lower.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Marks<N> {
    /// The type to show.
    pub file_type: FileType,
    /// The lower node that this was copied up from. A directory shows its children, unless it is
    /// opaque.
    pub origin: Option<N>,
    /// A directory that shows nothing of the tree.
    pub opaque: bool,
    /// The content is the origin's.
    pub metadata_only: bool,
    /// A character device 0:0, kept as an empty regular file.
    pub device: bool,
    /// See [`FileMark::link_delta`].
    pub link_delta: Option<i32>,
    /// A crash stopped the copy-up of the content: these attributes are to be restored.
    pub interrupted: Option<Saved>,
}

/// Why a file's marks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The host.
    #[error(transparent)]
    Host(#[from] Errno),
    /// Bytes of no known meaning.
    #[error(transparent)]
    Unknown(#[from] UnknownMark),
    /// The lower has no such node.
    #[error("its origin, {0:?}, is not in the lower")]
    NoOrigin(Origin),
    /// The lower's node is of another type.
    #[error("its origin, {0:?}, is of another type")]
    OtherType(Origin),
    /// The lower's node has no content.
    #[error("its content is that of {0:?}, which has none")]
    NoContent(Origin),
    /// A mark that says what only a regular file can be.
    #[error("only a regular file can have this mark")]
    NotRegular,
    /// A type that Linux does not have.
    #[error("it has an unknown file type")]
    NoType,
}

/// Lists a directory of the upper without reading marks. Whiteouts that are links to one inode
/// cost one `statx` for all.
pub fn list(
    dir: BorrowedFd<'_>,
    whiteouts: Whiteouts,
    spelling: Spelling,
    mut f: impl FnMut(&[u8], Listed) -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    let mut devices = HashSet::new();
    // Where whiteouts are files: what they hide, and the names of all other entries.
    let mut hidden: Vec<Box<[u8]>> = Vec::new();
    let mut files: HashSet<Box<[u8]>> = HashSet::new();
    let mut hidden_by_devices: HashSet<Box<[u8]>> = HashSet::new();
    each_entry(dir, |name, host_type, inode| {
        if spelling == Spelling::Plain && name == OPAQUE_FILE {
            return Ok(());
        }
        if whiteouts == Whiteouts::Files {
            if let Some(name) = hidden_by(name) {
                hidden.extend((!name.is_empty()).then(|| name.into()));
                return Ok(());
            }
            files.insert(name.into());
        }
        let host_type = match host_type {
            HostType::Unknown => {
                HostType::from_raw_mode(u32::from(NameAt::new(dir, name).stat()?.stx_mode))
            }
            known => known,
        };
        if host_type == HostType::CharacterDevice {
            if !devices.contains(&inode) && is_whiteout(&NameAt::new(dir, name).stat()?) {
                devices.insert(inode);
            }
            if devices.contains(&inode) {
                return match whiteouts {
                    Whiteouts::Devices => f(name, Listed::Whiteout),
                    Whiteouts::Files => {
                        hidden_by_devices.insert(name.into());
                        f(name, Listed::DeviceWhiteout)
                    }
                };
            }
        }
        let file_type = file_type(host_type).ok_or(Errno::IO)?;
        f(name, Listed::File { file_type, inode })
    })?;
    for name in hidden {
        if !files.contains(&name) {
            f(&name, Listed::Whiteout)?;
        } else if !hidden_by_devices.contains(&name) {
            f(&name, Listed::NeedlessWhiteout)?;
        }
    }
    Ok(())
}

/// The type of a file of the host.
pub fn file_type(host: HostType) -> Option<FileType> {
    FileType::from_mode_bits(host.as_raw_mode())
}

/// Whether a directory's files bear marks.
pub fn is_impure(dir: BorrowedFd<'_>, store: &MarkStore) -> rustix::io::Result<bool> {
    Ok(NameAt::new(dir, b".").mark(store, Mark::Impure)?.is_some())
}

/// Whether a directory is opaque.
pub fn is_opaque(dir: NameAt<'_>, store: &MarkStore) -> rustix::io::Result<bool> {
    Ok(dir.mark(store, Mark::Opaque)?.as_deref() == Some(marks::YES))
}

/// Whether a directory has fuse-overlayfs's mark of an opaque one.
fn has_opaque_file(dir: NameAt<'_>) -> rustix::io::Result<bool> {
    let path = [dir.name, b"/", OPAQUE_FILE].concat();
    match NameAt::new(dir.dir, &path).exists() {
        // The name alone is as long as a path can be.
        Err(Errno::NAMETOOLONG) => Ok(false),
        found => found,
    }
}

/// The lower that marks refer to.
pub trait Origins {
    /// A node of it.
    type Node: Copy;

    /// How marks over it are spelled.
    fn spelling(&self) -> Spelling;

    /// The node that a mark names; None if there is none.
    fn origin(&self, origin: &Origin) -> rustix::io::Result<Option<OriginNode<Self::Node>>>;

    /// What is at a name of a directory.
    fn child(
        &self,
        dir: Self::Node,
        name: &[u8],
    ) -> rustix::io::Result<Option<OriginNode<Self::Node>>>;
}

/// What a mark's claims are checked against.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct OriginNode<N> {
    /// The node.
    pub node: N,
    /// The type of its file in an upper.
    pub stored_type: FileType,
    /// It is a character device 0:0.
    pub null_device: bool,
    /// It is a regular file that is not empty.
    pub has_content: bool,
}

/// Reads the marks of a file and checks them against the lower. `below` is the lower directory that
/// the file's directory merges with; files in a directory that is not `impure` bear none of our
/// own.
pub fn read_marks<L: Origins>(
    name_at: NameAt<'_>,
    host_type: FileType,
    store: &MarkStore,
    lower: &L,
    below: Option<L::Node>,
    impure: bool,
) -> Result<Marks<L::Node>, MarkError> {
    let directory = host_type == FileType::Directory;
    let plain = lower.spelling() == Spelling::Plain;
    let find = |name: &[u8]| below.map_or(Ok(None), |below| lower.child(below, name));
    let same_name = if directory { find(name_at.name)? } else { None };
    let same_name = same_name.filter(|found| found.stored_type == FileType::Directory);
    let opaque = directory
        && ((impure || plain || same_name.is_some()) && is_opaque(name_at, store)?
            || plain && same_name.is_some() && has_opaque_file(name_at)?);
    let value = if impure && store.marks(host_type) {
        name_at.mark(store, Mark::File)?
    } else {
        None
    };
    let mut mark = value
        .map(|value| FileMark::decode(&value))
        .transpose()?
        .unwrap_or_default();
    let kernels = if plain {
        spelling::read_kernel_marks(name_at, host_type, store, &mut mark)?
    } else {
        KernelOrigin::None
    };
    if let KernelOrigin::Path(path) = &kernels {
        mark.origin = Some(Origin::Path(path.clone()));
    }
    let named = match &kernels {
        KernelOrigin::SameName if mark.origin.is_none() => Some(find(name_at.name)?),
        KernelOrigin::Sibling(name) => Some(find(name)?),
        _ => None,
    };
    let origin = match (named, &mark.origin) {
        (Some(found), _) => {
            let found =
                found.ok_or_else(|| MarkError::NoOrigin(Origin::Path(name_at.name.into())))?;
            Some((found, Origin::Path(name_at.name.into())))
        }
        (None, Some(origin)) => {
            let found = lower.origin(origin)?;
            let found = found.ok_or_else(|| MarkError::NoOrigin(origin.clone()))?;
            Some((found, origin.clone()))
        }
        (None, None) => None,
    };
    let origin = check(&mark, host_type, origin)?;
    Ok(Marks {
        file_type: if mark.device {
            FileType::CharDevice
        } else {
            host_type
        },
        origin: match origin {
            None if directory && !opaque => same_name.map(|found| found.node),
            origin => origin,
        },
        opaque,
        metadata_only: mark.metadata_only,
        device: mark.device,
        link_delta: mark.link_delta,
        interrupted: mark.copying,
    })
}

fn check<N>(
    mark: &FileMark,
    host_type: FileType,
    origin: Option<(OriginNode<N>, Origin)>,
) -> Result<Option<N>, MarkError> {
    if (mark.metadata_only || mark.device) && host_type != FileType::Regular {
        return Err(MarkError::NotRegular);
    }
    let Some((found, origin)) = origin else {
        return Ok(None);
    };
    if found.stored_type != host_type || found.null_device != mark.device {
        return Err(MarkError::OtherType(origin));
    }
    if mark.metadata_only && !found.has_content {
        return Err(MarkError::NoContent(origin));
    }
    Ok(Some(found.node))
}
