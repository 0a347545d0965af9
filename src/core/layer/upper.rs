//! An upper at rest becomes a layer.
//!
//! Invariant: the layer's tar is the one that [`export`] writes of its tree, so its recipe is
//! canonical, and reading the tar gives the same tree. A content that only metadata was changed of
//! keeps its object.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use bstr::BString;
use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;

use super::export::{ExportError, export};
use crate::digest::{DiffId, Sha256Hasher};
use crate::recipe::canonical;
use crate::store::{Added, StoreError, Transaction};
use crate::tree::{
    BuildError, FileType, Kind, LayerBuilder, Meta, Rdev, Timestamp, Tree, TreeError, TreeIno,
};
use crate::upper::Upper;
use crate::upper::changes::{Change, ChangesError, MountPoints, Now, changes};
use crate::upper::marks::unescape;
use crate::upper::name_at::NameAt;
use crate::upper::scan::Marks;

const CAPABILITY: &[u8] = b"security.capability";
/// The host's policy, not the image's.
const LABEL: &[u8] = b"security.selinux";
const BUFFER: usize = 128 * 1024;

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why an upper did not become a layer.
#[derive(Debug, thiserror::Error)]
pub enum FromUpperError {
    /// The upper or the tree cannot be read.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// What no layer can hold.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The tree is damaged.
    #[error("cannot read the image's tree")]
    Tree(#[from] TreeError),
    /// The layer's tar cannot be made.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host refuses.
    #[error("cannot read {path:?} of the upper")]
    Read {
        /// The file.
        path: BString,
        /// What the host says.
        source: io::Error,
    },
}

/// A layer made of an upper.
#[derive(Debug)]
pub struct UpperLayer {
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// Bytes of its tar.
    pub tar_size: u64,
    /// Its tree, to be stored.
    pub tree_bytes: Vec<u8>,
    /// Its recipe, to be stored.
    pub recipe: Vec<u8>,
    /// The upper changes nothing.
    pub empty: bool,
}

/// Makes a layer of what an upper changes of `tree`, the merged tree below it. New contents go
/// into the transaction; the caller adds the layer.
pub fn from_upper(
    upper: &Upper,
    tree: &Tree,
    mount_points: &MountPoints,
    transaction: &Transaction<'_>,
) -> Result<UpperLayer, FromUpperError> {
    let mut fold = Fold {
        tree,
        transaction,
        builder: LayerBuilder::new(),
        entries: 0,
    };
    changes(upper, tree, mount_points, |change| fold.change(change))?;
    let empty = fold.entries == 0;
    let mut tar_size = 0;
    let (diff_id, tree_bytes) = fold.builder.finish_with(|tree| {
        let mut hasher = Sha256Hasher::new();
        let writer = io::BufWriter::with_capacity(BUFFER, &mut hasher);
        tar_size = export(tree, transaction, writer)?.bytes;
        Ok::<_, FromUpperError>(DiffId(hasher.finish()))
    })?;
    Ok(UpperLayer {
        recipe: canonical(diff_id, tar_size),
        diff_id,
        tar_size,
        tree_bytes,
        empty,
    })
}

struct Fold<'f> {
    tree: &'f Tree,
    transaction: &'f Transaction<'f>,
    builder: LayerBuilder,
    entries: u64,
}

impl Fold<'_> {
    fn change(&mut self, change: &Change<'_>) -> Result<(), FromUpperError> {
        let path = components(change.path);
        match &change.now {
            Now::Nothing => self.builder.whiteout(&path)?,
            Now::Opaque => self.builder.opaque(&path)?,
            Now::Link(first) => self.builder.hard_link(&path, &components(first))?,
            Now::Tree(ino) => {
                let (meta, kind) = self.of_tree(*ino)?;
                self.builder.insert(&path, meta, kind)?;
            }
            Now::Upper {
                name_at,
                stat,
                marks,
            } => {
                let Some((meta, kind)) = self.of_upper(change.path, *name_at, stat, marks)? else {
                    return Ok(());
                };
                if path.is_empty() {
                    let (was, _) = self.of_tree(TreeIno::ROOT)?;
                    if is_same(&was, &meta) {
                        return Ok(());
                    }
                }
                self.builder.insert(&path, meta, kind)?;
            }
        }
        self.entries += 1;
        Ok(())
    }

    fn of_tree(&self, ino: TreeIno) -> Result<(Meta, Kind), FromUpperError> {
        let node = self.tree.node(ino)?;
        let mut xattrs = Vec::new();
        for xattr in self.tree.xattrs(ino)? {
            let (name, value) = xattr?;
            xattrs.push((name.to_vec(), value.to_vec()));
        }
        let meta = Meta {
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs,
        };
        let object = match node.object {
            Some(object) => Some(self.tree.object_id(object)?),
            None => None,
        };
        let kind = match node.file_type {
            FileType::Regular => Kind::Regular {
                size: node.size,
                object,
                elf: node.elf,
            },
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink(self.tree.symlink_target(ino)?.to_vec()),
            FileType::CharDevice => Kind::CharDevice(node.rdev),
            FileType::BlockDevice => Kind::BlockDevice(node.rdev),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
        };
        Ok((meta, kind))
    }

    /// None for a socket, which no tar can hold.
    fn of_upper(
        &self,
        path: &[u8],
        name_at: NameAt<'_>,
        stat: &Statx,
        marks: &Marks<TreeIno>,
    ) -> Result<Option<(Meta, Kind)>, FromUpperError> {
        let mut meta = Meta {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: Timestamp {
                secs: stat.stx_mtime.tv_sec,
                nanos: stat.stx_mtime.tv_nsec,
            },
            xattrs: xattrs(path, name_at)?,
        };
        let mut size = stat.stx_size;
        if let Some(saved) = &marks.interrupted {
            size = saved.size;
            meta.mtime = saved.mtime;
            meta.mode = saved.mode;
            meta.xattrs.retain(|(name, _)| name != CAPABILITY);
            let capability = saved.capability.clone();
            meta.xattrs
                .extend(capability.map(|value| (CAPABILITY.to_vec(), value)));
        }
        let rdev = Rdev {
            major: stat.stx_rdev_major,
            minor: stat.stx_rdev_minor,
        };
        let kind = match marks.file_type {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(name_at.dir, name_at.name, Vec::new());
                let target = target.map_err(|errno| unreadable(path, errno))?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::CharDevice if marks.device => Kind::CharDevice(Rdev::default()),
            FileType::CharDevice => Kind::CharDevice(rdev),
            FileType::BlockDevice => Kind::BlockDevice(rdev),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => return Ok(None),
            FileType::Regular => self.content(path, name_at, size, marks)?,
        };
        if let Kind::Symlink(_) = kind {
            meta.mode = 0o777;
        }
        Ok(Some((meta, kind)))
    }

    /// A regular file's content, which a file of metadata alone has in the tree.
    fn content(
        &self,
        path: &[u8],
        name_at: NameAt<'_>,
        size: u64,
        marks: &Marks<TreeIno>,
    ) -> Result<Kind, FromUpperError> {
        if size == 0 {
            return Ok(Kind::Regular {
                size,
                object: None,
                elf: false,
            });
        }
        let failed = |source| FromUpperError::Read {
            path: path.into(),
            source,
        };
        let origin = marks.origin.filter(|_| marks.metadata_only);
        let below = match origin {
            Some(origin) => Some(self.of_tree(origin)?.1),
            None => None,
        };
        let file = match below {
            Some(kind @ Kind::Regular { size: whole, .. }) if whole == size => return Ok(kind),
            Some(Kind::Regular {
                object: Some(object),
                ..
            }) => self.transaction.open_object(object)?,
            Some(_) => return Err(unreadable(path, Errno::IO)),
            None => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(name_at.dir, name_at.name, flags, Mode::empty());
                File::from(file.map_err(|errno| unreadable(path, errno))?)
            }
        };
        let stored = add(&file, size, self.transaction).map_err(failed)?;
        Ok(Kind::Regular {
            size,
            object: Some(stored.id),
            elf: stored.elf,
        })
    }
}

fn unreadable(path: &[u8], errno: Errno) -> FromUpperError {
    FromUpperError::Read {
        path: path.into(),
        source: errno.into(),
    }
}

/// What a mount shows of a file's attributes.
fn xattrs(path: &[u8], name_at: NameAt<'_>) -> Result<Xattrs, FromUpperError> {
    let failed = |errno| unreadable(path, errno);
    let names = name_at.xattr_names().map_err(failed)?;
    let mut shown = Vec::new();
    for stored in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let Some(name) = unescape(stored).filter(|name| name != LABEL) else {
            continue;
        };
        // None: removed meanwhile, or not to be seen by this user.
        if let Some(value) = name_at.xattr(stored).map_err(failed)? {
            shown.push((name, value));
        }
    }
    shown.sort();
    Ok(shown)
}

fn is_same(was: &Meta, now: &Meta) -> bool {
    let mut sorted = was.xattrs.clone();
    sorted.sort();
    (was.mode, was.uid, was.gid, was.mtime) == (now.mode, now.uid, now.gid, now.mtime)
        && sorted == now.xattrs
}

/// Adds the first `size` bytes of a file, by a reflink where the file system has them; else holes
/// are not read.
fn add(mut file: &File, size: u64, transaction: &Transaction<'_>) -> io::Result<Added> {
    if let Some(added) = transaction.reflink_object(file, size)? {
        return Ok(added);
    }
    let mut writer = transaction.object_writer();
    let mut buffer = vec![0; usize::try_from(size).map_or(BUFFER, |size| size.min(BUFFER))];
    let mut position = 0;
    while position < size {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(position)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(errno) => return Err(errno.into()),
        };
        writer.zeros(data - position)?;
        position = data;
        if position == size {
            break;
        }
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(position))?.min(size);
        file.seek(SeekFrom::Start(position))?;
        while position < end {
            let wanted =
                usize::try_from(end - position).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            file.read_exact(piece)?;
            writer.write_all(piece)?;
            position += wanted as u64;
        }
    }
    Ok(writer.finish()?)
}

fn components(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
        .collect()
}
