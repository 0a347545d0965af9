//! A merged tree becomes files below an empty directory.
//!
//! Invariant: nothing outside of the directory is touched. Every call is on one name in a
//! directory that was opened here without following symbolic links; the paths of hard links are
//! looked up beneath the directory. Contents are reflinks where the file system has them, and
//! holes stay holes.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bstr::BString;
use cowl_sys::open::openat2;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::store::{Store, StoreError};
use crate::sys::copy::copy_data;
use crate::tree::{FileType, Node, Target, Timestamp, Tree, TreeError, TreeIno};

const SET_ID: u32 = 0o6000;

/// Why files were not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tree is damaged.
    #[error("cannot read the tree")]
    Tree(#[from] TreeError),
    /// A content cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host refuses.
    #[error("cannot {doing} {path:?}")]
    Host {
        /// What was to be done.
        doing: &'static str,
        /// To which file.
        path: BString,
        /// What the host says.
        source: Errno,
    },
    /// The directory has something in it.
    #[error("the directory is not empty")]
    NotEmpty,
}

/// What this user was not allowed to make as the image has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files that belong to this user instead of their owner, without their set-id bits.
    pub owners: u64,
    /// Devices that are missing.
    pub devices: u64,
    /// Extended attributes that are missing.
    pub xattrs: u64,
}

/// Unpacks a merged tree into an empty directory.
pub fn unpack(tree: &Tree, store: &Store, dir: OwnedFd) -> Result<Unpacked, UnpackError> {
    let mut empty = true;
    crate::upper::each_entry(dir.as_fd(), |_, _, _| {
        empty = false;
        Ok(())
    })
    .map_err(failed("list", b"."))?;
    if !empty {
        return Err(UnpackError::NotEmpty);
    }
    let top = dir.try_clone().map_err(|error| UnpackError::Host {
        doing: "open",
        path: ".".into(),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    let mut unpacker = Unpacker {
        tree,
        store,
        top,
        links: HashMap::new(),
        left: Unpacked::default(),
    };
    unpacker.walk(dir)?;
    Ok(unpacker.left)
}

fn failed(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> UnpackError {
    let path = BString::from(path);
    move |source| UnpackError::Host {
        doing,
        path,
        source,
    }
}

struct Unpacker<'u> {
    tree: &'u Tree,
    store: &'u Store,
    top: OwnedFd,
    /// The first path of each file with several names.
    links: HashMap<TreeIno, Vec<u8>>,
    left: Unpacked,
}

/// A directory being filled.
struct Level {
    fd: OwnedFd,
    ino: TreeIno,
    next: u32,
    /// Length of the path of the directory above.
    above: usize,
}

impl Unpacker<'_> {
    fn walk(&mut self, dir: OwnedFd) -> Result<(), UnpackError> {
        let tree = self.tree;
        let mut path = Vec::new();
        let mut levels = vec![Level {
            fd: dir,
            ino: TreeIno::ROOT,
            next: 0,
            above: 0,
        }];
        while let Some(level) = levels.last_mut() {
            let Some(child) = tree.child(level.ino, level.next)? else {
                // Last: its time, and the mode that may forbid to write into it.
                self.attributes(level.fd.as_fd(), None, level.ino, &path)?;
                path.truncate(level.above);
                levels.pop();
                continue;
            };
            level.next += 1;
            let Target::Node(ino) = child.target else {
                continue;
            };
            let above = path.len();
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(child.name);
            if child.file_type == Some(FileType::Directory) {
                rustix::fs::mkdirat(&level.fd, child.name, Mode::RWXU)
                    .map_err(failed("create", &path))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&level.fd, child.name, flags, Mode::empty())
                    .map_err(failed("open", &path))?;
                levels.push(Level {
                    fd,
                    ino,
                    next: 0,
                    above,
                });
                continue;
            }
            self.file(level.fd.as_fd(), child.name, ino, &path)?;
            path.truncate(above);
        }
        Ok(())
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        ino: TreeIno,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let node = self.tree.node(ino)?;
        if node.nlink > 1 {
            if let Some(first) = self.links.get(&ino) {
                return self.link(first, dir, name, path);
            }
            self.links.insert(ino, path.to_vec());
        }
        let made = match node.file_type {
            FileType::Regular => {
                let file = self.regular(dir, name, &node, path)?;
                return self.attributes(file.as_fd(), None, ino, path);
            }
            FileType::Symlink => rustix::fs::symlinkat(self.tree.symlink_target(ino)?, dir, name),
            _ => {
                let kind = rustix::fs::FileType::from_raw_mode(node.file_type.to_mode_bits());
                let device = rustix::fs::makedev(node.rdev.major, node.rdev.minor);
                rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)
            }
        };
        match made {
            Err(Errno::PERM)
                if matches!(node.file_type, FileType::CharDevice | FileType::BlockDevice) =>
            {
                self.left.devices += 1;
                self.links.remove(&ino);
                return Ok(());
            }
            made => made.map_err(failed("create", path))?,
        }
        self.attributes(dir, Some(name), ino, path)
    }

    fn regular(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        node: &Node,
        path: &[u8],
    ) -> Result<OwnedFd, UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create", path))?;
        if let Some(object) = node.object {
            let object = self.store.open_object(self.tree.object_id(object)?)?;
            copy_data(&object, &file, node.size).map_err(failed("write", path))?;
        }
        Ok(file)
    }

    fn link(
        &self,
        first: &[u8],
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let (parent, base) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => first.split_at(slash),
            None => (&b"."[..], first),
        };
        let base = base.strip_prefix(b"/").unwrap_or(base);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent =
            openat2(&self.top, parent, flags, resolve).map_err(failed("link to", first))?;
        rustix::fs::linkat(parent, base, dir, name, AtFlags::empty())
            .map_err(failed("create", path))
    }

    /// Sets owner, attributes, mode and times, in this order: a change of owner clears what comes
    /// after it. With a name, of the symbolic link or special file in the directory `fd`.
    fn attributes(
        &mut self,
        fd: BorrowedFd<'_>,
        name: Option<&[u8]>,
        ino: TreeIno,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let node = self.tree.node(ino)?;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        let (at, flags) = match name {
            Some(name) => (name, AtFlags::SYMLINK_NOFOLLOW),
            None => (&b""[..], AtFlags::EMPTY_PATH),
        };
        let mut mode = node.mode;
        match rustix::fs::chownat(fd, at, Some(uid), Some(gid), flags) {
            Ok(()) => {}
            // EINVAL: this user namespace has no such id.
            Err(Errno::PERM | Errno::INVAL) => {
                self.left.owners += 1;
                mode &= !SET_ID;
            }
            Err(errno) => return Err(failed("change the owner of", path)(errno)),
        }
        // By the descriptor: what a path in /proc leads to cannot be replaced.
        let mut place = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
        if let Some(name) = name {
            place.push(b'/');
            place.extend_from_slice(name);
        }
        for xattr in self.tree.xattrs(ino)? {
            let (name_of_it, value) = xattr?;
            let none = XattrFlags::empty();
            let set = match name {
                Some(_) => rustix::fs::lsetxattr(place.as_slice(), name_of_it, value, none),
                None => rustix::fs::setxattr(place.as_slice(), name_of_it, value, none),
            };
            match set {
                Ok(()) => {}
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS) => {
                    self.left.xattrs += 1;
                }
                Err(errno) => return Err(failed("set an attribute of", path)(errno)),
            }
        }
        if node.file_type != FileType::Symlink {
            let mode = Mode::from_raw_mode(mode);
            let set = match name {
                Some(name) => chmod_special(fd, name, mode),
                None => rustix::fs::fchmod(fd, mode),
            };
            set.map_err(failed("set the mode of", path))?;
        }
        let times = times(node.mtime);
        let set = match name {
            Some(name) => rustix::fs::utimensat(fd, name, &times, AtFlags::SYMLINK_NOFOLLOW),
            None => rustix::fs::futimens(fd, &times),
        };
        set.map_err(failed("set the time of", path))
    }
}

/// Sets the mode of a device or a pipe, and never of what a symbolic link leads to.
fn chmod_special(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if kind == rustix::fs::FileType::Symlink {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
}

fn times(mtime: Timestamp) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.secs,
        tv_nsec: i64::from(mtime.nanos),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
